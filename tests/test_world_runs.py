"Runs as people keep them: photographs that moved, trainings that are made longer, directories that are used twice."

import json
import warnings
from pathlib import Path
import numpy as np
import pytest
import torch
from ich_soups.app import cli
from ich_soups.core import BadInput, Config
from ich_soups.data.collections import load_pictures
from ich_soups import SnapshotCallback
from ich_soups.train.snapshots import SnapshotStore
from ich_soups.train.finished_run import Run
from ich_soups.train.schedules import held_schedule, lr_schedule
from ich_soups.train.runs import get_run
from test_world_checkpoints import fitted, learner

TINY = ('--arch', 'test_resnet', '--size', '32', '--bs', '8')


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


@pytest.fixture
def sh(home, photos, monkeypatch, capsys):
    "Runs a command where the photographs lie: exit code, stdout, stderr."
    monkeypatch.chdir(photos.parent)

    def run(*args):
        code = cli.main(list(map(str, args)))
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


def done(sh, *args):
    code, out, err = sh(*args)
    assert code == 0, (args, out, err)
    return out, err


def advised(out):
    "The commands that an output says to give next."
    return [l.split()[2:] for l in out.splitlines() if l.startswith('next: ')]


def cfg(photos, epochs=2, **kw):
    return Config.scratch(
        data=str(photos), arch='test_resnet', size=32, bs=8, seed=3, profile='cli',
        **dict(schedule='flat:1.0', epochs=epochs, fixed=()) | kw,
    )  # fmt: skip


# Photographs that moved.


def test_every_command_that_opens_a_run_takes_the_moved_photographs(sh, photos, monkeypatch):
    done(sh, 'train', 'photos', *TINY, '--epochs', 2, '--out', 'run')
    photos.rename('moved')
    out, _ = done(sh, 'train', 'moved', *TINY, '--epochs', 2, '--out', 'run')
    (again,) = advised(out)
    assert again[:3] == ['cook', 'run', '--data'] and Path(again[3]) == Path('moved').resolve()
    out, _ = done(sh, *again)
    for words in (next_ := advised(out)):
        assert words[-2] == '--data'
        done(sh, *words)  # what is advised works
    assert [w[0] for w in next_] == ['report', 'eval']
    done(sh, 'eval', 'run', 'soup.safetensors', '--data', 'moved')
    done(sh, 'predict', 'soup.safetensors', 'moved')
    done(sh, 'export', 'soup.safetensors', '--to', 'timm', '--data', 'moved', '--out', 'model')
    served = []
    monkeypatch.setattr('ich_soups.app.demo.serve', lambda soup, run, *a, **k: served.append(run))
    done(sh, 'demo', 'soup.safetensors', '--run', 'run', '--data', 'moved')
    assert len(served[0].pictures) == 36


@pytest.mark.parametrize(
    'args',
    [
        ('cook', 'run'),
        ('eval', 'run'),
        ('report', 'run'),
        ('export', 'soup.safetensors', '--to', 'timm', '--out', 'model'),
        ('demo', 'soup.safetensors', '--run', 'run'),
    ],
)
def test_where_they_are_is_asked_for_and_others_are_refused(sh, photos, args):
    done(sh, 'train', 'photos', *TINY, '--epochs', 1, '--out', 'run')
    done(sh, 'cook', 'run')
    photos.rename('moved')
    code, _, err = sh(*args)
    assert code == 2 and ('--data' in err.splitlines()[-1]), err
    next(Path('moved').rglob('*.jpg')).unlink()
    code, _, err = sh(*args, '--data', 'moved')
    if args[0] == 'eval':
        assert code == 0 and 'note: these are not the images' in err, err
    else:
        assert code == 2 and 'moved does not hold the images' in err, err


def test_a_run_is_scored_on_others_when_its_own_are_gone(sh, photos):
    "What the classes are called is known to the run; one from before that is told what to do."
    done(sh, 'train', 'photos', *TINY, '--epochs', 1, '--out', 'run')
    done(sh, 'cook', 'run')
    photos.rename('other')
    next(Path('other').rglob('*.jpg')).unlink()
    _, said = done(sh, 'eval', 'run', 'soup.safetensors', '--data', 'other', '--split', 'all')
    assert 'is not known' in said
    told = json.loads(Path('run/DONE').read_text())
    assert told.pop('classes') == load_pictures('other').classes
    Path('run/DONE').write_text(json.dumps(told))
    code, _, err = sh('eval', 'run', '--data', 'other')
    assert code == 2 and 'other holds others; put them back' in err, err


def test_data_that_nobody_would_look_at_is_not_taken_in_silence(sh, photos):
    done(sh, 'train', 'photos', *TINY, '--epochs', 1, '--out', 'run')
    done(sh, 'cook', 'run')
    for args in (('export', 'soup.safetensors', '--to', 'onnx'), ('demo', 'soup.safetensors')):
        code, _, err = sh(*args, '--data', 'photos')
        assert code == 2 and '--data' in err, err


# Files with several networks.


def test_every_command_says_how_one_of_several_networks_is_read(sh, photos):
    done(sh, 'train', 'photos', *TINY, '--epochs', 1, '--out', 'run')
    w = Run('run').best().weights()
    torch.save(dict(student=w, teacher={k: v + 0 for k, v in w.items()}), 'two.pth')
    on = ('--data', 'photos', '--arch', 'test_resnet', '--size', 32)
    code, _, err = sh('eval', 'two.pth', *on)
    assert code == 2 and '--part student' in err, err
    done(sh, 'eval', 'two.pth', *on, '--part', 'teacher')
    for args in (
        ('predict', 'two.pth', 'photos'),
        ('export', 'two.pth', '--to', 'onnx'),
        ('export', 'two.pth', '--to', 'safetensors'),
        ('demo', 'two.pth'),
    ):
        code, _, err = sh(*args)
        assert (
            code == 2 and "cook it with --data and --arch and --part, one of 'student', 'teacher'" in err
        ), err
    code, _, err = sh('train', 'photos', *TINY, '--epochs', 1, '--out', 'r2', '--pretrained', 'two.pth')
    assert code == 2 and 'cook FILE --part NAME' in err, err
    done(sh, 'cook', 'two.pth', *on, '--part', 'teacher', '--out', 't.safetensors')
    done(sh, 'predict', 't.safetensors', 'photos')
    done(sh, 'train', 'photos', *TINY, '--epochs', 1, '--out', 'r2', '--pretrained', 't.safetensors')


# More epochs.


def test_the_rate_of_a_longer_training_is_held_or_goes_on_in_cycles(photos):
    c = cfg(photos, 6, schedule='flat:0.1')
    long, first = held_schedule(c, [4, 5]), lr_schedule(cfg(photos, 4, schedule='flat:0.1'))
    for epoch in np.linspace(0, 4, 9):
        assert long(epoch / 6) == pytest.approx(first(epoch / 4), rel=1e-6)
    assert [long(e / 6) for e in (4.5, 6)] == [pytest.approx(c.lr * 0.1)] * 2
    c = cfg(photos, 6, schedule='restarts')
    assert [held_schedule(c, [3])(p) for p in (0, 0.3, 0.9)] == [lr_schedule(c)(p) for p in (0, 0.3, 0.9)]


def test_a_finished_training_goes_on(sh, photos):
    train = ('train', 'photos', *TINY, '--out', 'run', '--json', '--epochs')
    done(sh, *train, 2)
    short = Run('run')
    first, last = short.history, short.weights('last')
    short.logits('test')
    out, err = done(sh, *train, 4)
    run = Run('run')
    assert 'goes on after epoch 2' in err and 'stays at' in err and 'keeps a record' in err
    assert run.cfg.epochs == 4 and run.provenance['planned'] == [2]
    assert run.history.iloc[:2].equals(first.iloc[:2]) and len(run.history) == 4
    assert run.history.lr.iloc[1:].nunique() == 1
    assert any(not torch.equal(v, last[k]) for k, v in run.weights('last').items())
    assert len(run.logits('test')) == len(run.snapshots)  # not those of the shorter training
    out, err = done(sh, *train, 4)
    assert 'goes on' not in err
    done(sh, *train, 5)
    assert Run('run').provenance['planned'] == [2, 4]
    code, _, err = sh(*train, 3)
    assert code == 2 and 'epochs 5 there, 3 now' in err


def test_going_on_is_what_it_says(home, photos, tmp_path):
    "With restarts the weights are those of one piece: order, augmentation, optimizer and rate go on."
    get_run(cfg(photos, 2, schedule='restarts', cycle=2), tmp_path / 'a', more=True)
    a = get_run(cfg(photos, 4, schedule='restarts', cycle=2), tmp_path / 'a', more=True)
    b = get_run(cfg(photos, 4, schedule='restarts', cycle=2), tmp_path / 'b')
    for name in ('last', 'ema'):
        for k, v in a.weights(name).items():
            assert torch.allclose(v.float(), b.weights(name)[k].float(), atol=1e-5), k
    assert 'planned' not in b.provenance


@pytest.mark.parametrize(
    'kind, says',
    [
        ('annealed', 'went down to zero'),
        ('not kept', 'was not kept'),
        ('other field', 'lr 0.0'),
        ('not finished', 'finish it first'),
    ],
)
def test_why_it_does_not_go_on(kind, says, home, photos, tmp_path):
    more = dict(schedule='annealed') if kind == 'annealed' else {}
    get_run(cfg(photos, 2, **more), tmp_path / 'a', more=kind != 'not kept')
    if kind == 'not finished':
        (tmp_path / 'a' / 'DONE').unlink()
    c = cfg(photos, 3, **more | (dict(lr=0.5) if kind == 'other field' else {}))
    with pytest.raises(BadInput, match=says):
        get_run(c, tmp_path / 'a', more=True)
    assert Run(tmp_path / 'a').cfg.epochs == 2 if kind != 'not finished' else True


@pytest.mark.parametrize('at', ['state.pt', 'DONE', 'first epoch'])
def test_a_machine_that_stops_meanwhile(at, home, photos, tmp_path, monkeypatch):
    "The same command goes on from wherever it was; so does the old one, where nothing more was trained."
    from fastai.callback.core import Callback
    from ich_soups.train.longer import lengthen

    class Stop(Callback):
        def before_epoch(self):
            if self.epoch == 3:
                raise KeyboardInterrupt

    short, long = cfg(photos, 2), cfg(photos, 4)
    get_run(short, tmp_path / 'a', more=True)
    if at == 'first epoch':
        with pytest.raises(KeyboardInterrupt):
            get_run(long, tmp_path / 'a', [Stop()], more=True)
    else:
        lengthen(long, tmp_path / 'a')
        if at == 'state.pt':  # DONE was still there
            (tmp_path / 'a' / 'DONE').write_text(json.dumps(done_of(short, photos, tmp_path)))
    if at == 'DONE':
        assert get_run(short, tmp_path / 'a', more=True).cfg.epochs == 2
    run = get_run(long, tmp_path / 'a', more=True)
    assert (run.cfg.epochs, len(run.history), run.provenance['planned'][0]) == (4, 4, 2)
    whole = get_run(short, tmp_path / 'b', more=True)
    assert not (whole.path / 'state.pt').exists()
    whole = get_run(long, tmp_path / 'b', more=True)
    assert run.history.equals(whole.history)


def done_of(c, photos, tmp_path):
    get_run(c, tmp_path / 'c')
    return json.loads((tmp_path / 'c' / 'DONE').read_text())


def test_ordinary_runs_keep_nothing_more(home, photos, tmp_path):
    run = get_run(cfg(photos, 1), tmp_path / 'a')
    assert not [f for f in run.path.iterdir() if f.suffix == '.pt']


# Directories of snapshots.


def test_files_that_only_look_like_snapshots_are_not_deleted(tmp_path):
    for name in ('epoch_001.safetensors', 'epoch_012.logits.npy'):
        (tmp_path / name).mkdir(parents=True)
        f = tmp_path / name / name
        f.write_bytes(b'mine')
        with pytest.raises(BadInput, match='no manifest.json'):
            fitted(learner(), lambda l: l.fit(1, cbs=SnapshotCallback(tmp_path / name)))
        assert f.read_bytes() == b'mine'


def test_two_trainings_at_once_do_not_mix(tmp_path):
    "The one that comes second is told, and the other one's snapshots stay."
    first = SnapshotCallback(tmp_path / 'a', k=9)
    second = SnapshotCallback(tmp_path / 'a', k=9)
    assert fitted(learner(), lambda l: l.fit(2, cbs=first)) == [1, 2]
    files = {f.name: f.read_bytes() for f in (tmp_path / 'a').iterdir()}
    with pytest.raises(BadInput, match='another training writes its snapshots'):
        fitted(learner(), lambda l: l.fit(1, cbs=second))
    assert {f.name: f.read_bytes() for f in (tmp_path / 'a').iterdir()} == files


def test_another_network_does_not_go_on_from_a_directory(tmp_path):
    fitted(learner(), lambda l: l.fit(2, cbs=SnapshotCallback(tmp_path / 'a', k=9)))
    learn = learner()
    learn.model = torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.Linear(5, 3))
    with pytest.raises(BadInput, match='snapshots of another network'):
        fitted(learn, lambda l: l.fit(3, start_epoch=2, cbs=SnapshotCallback(tmp_path / 'a', start=2)))
    assert fitted(
        learner(), lambda l: l.fit(3, start_epoch=2, cbs=SnapshotCallback(tmp_path / 'a', k=9, start=2))
    ) == [1, 2, 3]


def test_a_second_callback_is_told_how_to_count_on(tmp_path):
    learn = learner()
    fitted(learn, lambda l: l.fit(1, cbs=SnapshotCallback(tmp_path / 'a')))
    with pytest.raises(BadInput, match='give every fit the same callback'):
        fitted(learn, lambda l: l.fit(1, cbs=SnapshotCallback(SnapshotStore(tmp_path / 'a'))))
