"`make gpu`, all of it but the card: every part in its small form, what fails, the time, the table."

import re
from functools import partial
import pandas as pd
import pytest
import torch
from conftest import ROOT
from ich_soups.companion import bench_clocks as clocks
from ich_soups.companion import gpu, gpu_parts, gpu_soups, gpu_training
from ich_soups.core import device_name

# a speed is timed against a process of its own, the others are the same function
QUICK = [n for n in gpu.PARTS if not n.startswith('speed')]


@pytest.fixture(scope='module')
def trial(tmp_path_factory):
    "One small trial on the CPU, whose training all checks share."
    with pytest.MonkeyPatch.context() as m:
        m.setenv('ICH_SOUPS_DEVICE', 'cpu')
        t = gpu_parts.GpuTrial(tmp_path_factory.mktemp('trial'), small=True)
        with t.opened:
            yield t


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setenv('ICH_SOUPS_DEVICE', 'cpu')


@pytest.fixture
def table(tmp_path, monkeypatch):
    "Where the long tables go instead of `figures/long`."
    for module in (clocks, gpu):
        monkeypatch.setattr(module, 'long_table', lambda: tmp_path / 'long')
    return tmp_path / 'long'


def fake(name, work, usual=0.1):
    "A part that is not registered."
    f = partial(gpu_parts.tried, name, work)
    f.usual = usual
    return f


def fine(trial):
    return dict(number=1.0, unit='of one')


def wrong(trial):
    gpu_parts.must(False, 'the card is upside down')


def lost(trial):
    raise RuntimeError('CUDA error: an illegal memory access\nsecond line')


def absent(trial):
    gpu_parts.skip_without('no_such_module', 'onnx')


def endless(trial):
    while True:
        pass


FAKES = dict(fine=fine, wrong=wrong, lost=lost, absent=absent, again=fine)


SEEN = [n for n in QUICK if n != 'one process under Accelerate']  # the notebook runs each of these too


@pytest.mark.parametrize(
    'name', [pytest.param(n, marks=pytest.mark.slow if n in SEEN else ()) for n in QUICK]
)
def test_each_part_in_its_small_form(trial, name):
    got = gpu.PARTS[name](trial)
    for row in got if isinstance(got, list) else [got]:
        assert (
            row['status'] in ('passed', 'measured')
            or row['status'] == 'skipped'
            and 'pip install' in row['note']
        ), row
        assert row['seconds'] >= 0 and ('number' in row) == (row['status'] != 'skipped'), row


def test_a_resumed_scale_that_is_lost_is_noticed(trial, monkeypatch):
    "The check fails where the training begins with a new scale."
    monkeypatch.setattr(gpu_training.Scale, 'before_train', lambda self: self.seen.append(2.0**16))
    again = gpu_parts.GpuTrial(trial.at / 'again', small=True)
    row = gpu_training.fp16_training(again)
    assert row['status'] == 'failed' and '65536 after the training was resumed' in row['note']


def test_a_recipe_that_leaves_the_cpu_is_noticed(trial, monkeypatch):
    "Every recipe has its turn, and the sentence names the one that is wrong."

    def strange(score):
        return dict(good=lambda ws: ws[0], odd=lambda ws: {k: v.to('meta') for k, v in ws[0].items()})

    monkeypatch.setattr(gpu_soups, 'cooks', strange)
    row = gpu_soups.soups_on_card(trial)
    assert row['status'] == 'failed' and row['note'].startswith('odd: ') and 'not on the CPU' in row['note']


def test_what_fails_is_told_and_the_others_go_on(on_cpu, table, monkeypatch, capsys):
    monkeypatch.setattr(gpu, 'PARTS', {n: fake(n, f) for n, f in FAKES.items()})
    with pytest.raises(SystemExit) as e:
        gpu.main(['--small', '--keep'])
    said = capsys.readouterr().out.splitlines()
    assert e.value.code == 1
    assert 'wrong failed: the card is upside down' in said
    assert 'lost failed: RuntimeError: CUDA error: an illegal memory access' in said
    assert said[-1] == '2 passed, 0 measured, 1 skipped, 2 failed'
    assert [l.split()[:2] for l in said[1:6]] == [
        ['passed', 'fine'],
        ['failed', 'wrong'],
        ['failed', 'lost'],
        ['skipped', 'absent'],
        ['passed', 'again'],
    ]


def test_rows_say_device_and_date_and_are_replaced(on_cpu, table, monkeypatch):
    monkeypatch.setattr(gpu, 'PARTS', {n: fake(n, f) for n, f in FAKES.items() if f is fine})
    for _ in range(2):
        gpu.main(['--small', '--keep'])
    rows = pd.read_csv(table / 'gpu.csv')
    assert (
        sorted(rows.check) == ['again', 'fine']
        and set(rows.device) == {device_name()}
        and set(rows.torch) == {torch.__version__}
    )
    assert rows.date.str.fullmatch(r'\d{4}-\d\d-\d\d').all() and set(rows.form) == {'small'}
    assert {'commit', 'status', 'number', 'unit', 'seconds', 'note'} <= set(rows.columns)


def test_the_small_form_keeps_nothing(on_cpu, table, monkeypatch):
    monkeypatch.setattr(gpu, 'PARTS', dict(fine=fake('fine', fine)))
    gpu.main(['--small'])
    assert not table.exists()


def test_the_time_holds(on_cpu, table, monkeypatch, capsys):
    "What hangs is stopped, what does not fit is not begun, and both are named."
    parts = dict(
        endless=fake('endless', endless, 0.3), long=fake('long', fine, 500.0), fine=fake('fine', fine)
    )
    monkeypatch.setattr(gpu, 'PARTS', parts)
    with pytest.raises(SystemExit) as e:
        gpu.main(['--small', '--minutes', '0.1'])
    said = capsys.readouterr().out.splitlines()
    assert e.value.code == 1 and 'endless failed: it took longer than the 1 s that it had' in said
    assert 'not started, as the time was over: long' in said
    assert float(re.search(r'([\d.]+) s', said[1])[1]) < 3


def test_the_parts_usually_fit_into_eight_minutes():
    "But for the last one, which is begun if the others were quick."
    usual = [f.usual for f in gpu.PARTS.values()]
    assert sum(usual[:-1]) < 8 * 60 and list(gpu.PARTS)[-1] == 'speed, CoAtNet-2 at 224 px'


@pytest.mark.parametrize('device, args', [('cpu', []), ('', ['--small'])])
def test_without_a_gpu_one_sentence(monkeypatch, capsys, device, args):
    monkeypatch.setenv('ICH_SOUPS_DEVICE', device)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(SystemExit) as e:
        gpu.main(args)
    said = capsys.readouterr().err.strip().splitlines()
    assert (
        e.value.code == 2
        and len(said) == 1
        and 'ICH_SOUPS_DEVICE=cpu python -m ich_soups.companion.gpu --small' in said[0]
    )


@pytest.mark.slow
def test_the_small_form_from_end_to_end(on_cpu, table, capsys):
    gpu.main(['--small', '--keep', '--minutes', '20'])
    rows, speeds = pd.read_csv(table / 'gpu.csv'), pd.read_csv(table / 'speed.csv')
    assert {*gpu.PARTS} - {*rows.check} == {
        "the paper's protocol, cut short"
    }  # which has a row for each number
    assert set(speeds.name) == {'bare model', 'ours', 'plain torchvision'} and set(speeds.date) == set(
        rows.date
    )


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason='to run this, take a machine with a CUDA GPU: make gpu'
)
def test_on_a_gpu(table):
    gpu.main([])
    rows = pd.read_csv(table / 'gpu.csv')
    assert set(rows.form) == {'full'} and set(rows.status) <= {'passed', 'measured', 'skipped'}


def test_the_command_is_there(capsys):
    with pytest.raises(SystemExit) as e:
        gpu.options(['--help'])
    assert e.value.code == 0 and '--minutes' in capsys.readouterr().out
    assert re.search(r'^gpu: setup .*##', (ROOT / 'Makefile').read_text(), re.M)
