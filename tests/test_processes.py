"What one process cannot show: a kill -9 at any moment, a disk that is full, files that are gone, and two who want the same run."

import itertools, json, os, random, shutil, signal, subprocess, sys, time
import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from ich_soups.core import BadInput, Config
from ich_soups.train.finished_run import Run
from ich_soups.train.runs import get_run

CFG = Config.scratch(data='scenes17:300', size=32, bs=32, epochs=5, k=1, cycle=2)
SERVER = """
import json, os, resource, signal, sys
import torch
from ich_soups import core
from ich_soups.train import runs as training
from ich_soups.core import BadInput, Config
torch.set_num_threads(1)

def on_write(n, act, after):
    "Do `act` at the n-th file that gets its final name, before or after it does."
    rename, seen = os.replace, []
    def replace(a, b):
        seen.append(b)
        if len(seen) == n and not after: act()
        rename(a, b)
        if len(seen) == n and after: act()
    os.replace = replace

def life(path, cfg, die_at=0, after=False, full_at=0):
    if die_at: on_write(die_at, lambda: os.kill(os.getpid(), signal.SIGKILL), after)
    if full_at: on_write(full_at, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)), after)
    try: training.get_run(Config(**cfg), path)
    except BadInput as e:
        print(json.dumps(str(e)), flush=True)
        os._exit(2)

for line in sys.stdin:          # a fork of a process that has imported everything starts training at once
    if not (pid := os.fork()):
        life(**json.loads(line))
        os._exit(0)
    print(json.dumps(pid), flush=True)
    print(json.dumps(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])), flush=True)
"""


class Crash(Callback):
    "The third epoch does not come."

    def before_batch(self):
        if self.epoch == 2:
            raise KeyError('power cut')


class Trainer:
    "Trains in forks of one process, which can be killed without paying for the imports again."

    def __init__(self, env):
        self.p = subprocess.Popen(
            [sys.executable, '-W', 'ignore', '-c', SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=env,
            text=True,
        )

    def start(self, path, cfg=CFG, **how):
        from dataclasses import asdict

        self.p.stdin.write(json.dumps(dict(path=str(path), cfg=asdict(cfg), **how)) + '\n')
        self.p.stdin.flush()
        return self.said()

    def said(self):
        return json.loads(self.p.stdout.readline())

    def life(self, path, **how):
        "The exit code of a whole life, and what it said."
        self.start(path, **how)
        words = []
        while isinstance(w := self.said(), str):
            words.append(w)
        return w, words


@pytest.fixture(scope='module')
def trainer(tmp_path_factory):
    with pytest.MonkeyPatch.context() as m:
        m.setenv('ICH_SOUPS_HOME', str(tmp_path_factory.mktemp('store')))
        t = Trainer(os.environ | dict(OMP_NUM_THREADS='1'))
        yield t
        t.p.kill()
        t.p.wait()


@pytest.fixture(scope='module')
def whole(trainer, tmp_path_factory):
    "A run that was never disturbed."
    path = tmp_path_factory.mktemp('runs') / 'whole'
    assert trainer.life(path) == (0, [])
    return Run(path)


def hashes(run):
    return (
        {s.epoch: (s.sha256, s.logits().tobytes()) for s in run.snapshots}
        | {p.name: p.read_bytes() for p in sorted((run.path / 'averages').glob('*.safetensors'))}
        | {'history': run.history.to_csv()}
    )


def same(path, whole):
    run = Run(path)
    assert hashes(run) == hashes(whole)
    run.store.verify()
    left = {str(p.relative_to(path)) for p in path.rglob('*') if p.is_file()} ^ {
        str(p.relative_to(whole.path)) for p in whole.path.rglob('*') if p.is_file()
    }
    assert not left, f'files of only one of the two: {left}'


@pytest.mark.slow
@pytest.mark.parametrize('after', [False, True])
def test_killed_at_each_write(tmp_path, trainer, whole, after):
    "The n-th life dies at its n-th write: on the way through, every write of a run is somebody's last."
    for n in itertools.count(1):
        code, said = trainer.life(tmp_path / 'r', die_at=n, after=after)
        if code == 0:
            break
        assert code == -signal.SIGKILL and not said, (n, code, said)
    assert n > 12
    same(tmp_path / 'r', whole)


@pytest.mark.parametrize('wanted', [1, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments(tmp_path, trainer, whole, wanted):
    "In the middle of whatever it is: an epoch, a file, a start. The moments are other ones each time; the seed is printed."
    seed = random.SystemRandom().randrange(10**6)
    print('seed of the moments:', seed)
    rng, kills, seconds = random.Random(seed), 0, whole.provenance['seconds']
    for r in itertools.count():
        path, t0 = tmp_path / f'r{r}', time.time()
        while not (path / 'DONE').exists():
            pid = trainer.start(path)
            time.sleep(rng.uniform(0.05, 0.6 * seconds) if kills < wanted else 2 * seconds)
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            kills += trainer.said() == -signal.SIGKILL
            assert time.time() - t0 < 240
        assert trainer.life(path) == (0, [])
        same(path, whole)
        if kills >= wanted:
            break


@pytest.mark.slow
def test_a_resumed_run_repeats_one_epoch_at_most(tmp_path, trainer, whole):
    per = whole.provenance['seconds'] / CFG.epochs
    n = next(
        n
        for n in itertools.count(10)
        if trainer.life(tmp_path / f'r{n}', die_at=n)[0]
        and (tmp_path / f'r{n}' / 'state.pt').exists()
        and len((tmp_path / f'r{n}' / 'history.csv').read_text().splitlines()) > 3
    )
    done = len((tmp_path / f'r{n}' / 'history.csv').read_text().splitlines()) - 1
    assert trainer.life(tmp_path / f'r{n}') == (0, [])
    p = Run(tmp_path / f'r{n}').provenance
    assert p['resumed_at'] >= done - 1 and p['seconds'] < (CFG.epochs - p['resumed_at'] + 1) * per * 2 + 2


@pytest.mark.parametrize('n', [8, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 14))])
def test_a_full_disk_is_one_sentence_and_costs_nothing(tmp_path, trainer, whole, n):
    path = tmp_path / f'r{n}'
    code, said = trainer.life(path, full_at=n, after=True)
    assert (
        code == 2
        and len(said) == 1
        and 'the disk is full; free some space' in said[0]
        and said[0].startswith(str(path))
    )
    assert not list(path.rglob('.*.*.*')), 'something half written was left'
    assert trainer.life(path) == (0, [])
    same(path, whole)


def use(path):
    "Everything that a reader asks of a run."
    run = get_run(CFG, path)
    for n in ('last', 'ema', 'swa'):
        run.weights(n)
    return hashes(run), run.logits('val')


@pytest.mark.parametrize(
    'damage, finished',
    [
        ('removed', True),
        ('cut short', True),
        ('cut short', False),
        pytest.param('removed', False, marks=pytest.mark.slow),
    ],
)
def test_files_that_are_gone_or_damaged(tmp_path, trainer, whole, finished, damage):
    "The run goes on to the same end, or one line names the file and says what to do."
    source, n = whole.path, 12
    while not finished:
        source, n = tmp_path / f'begun{n}', n + 1
        trainer.life(source, die_at=n)
        if (source / 'state.pt').exists():
            break
    files = [p.relative_to(source) for p in sorted(source.rglob('*')) if p.is_file() and p.name != '.lock']
    assert len(files) >= 5
    ends = {}
    for f in files:
        shutil.rmtree(tmp_path / 'hurt', ignore_errors=True)
        shutil.copytree(source, tmp_path / 'hurt')
        if damage == 'removed':
            (tmp_path / 'hurt' / f).unlink()
        else:
            (tmp_path / 'hurt' / f).write_bytes(
                (source / f).read_bytes()[: len((source / f).read_bytes()) // 2]
            )
        try:
            got, logits = use(tmp_path / 'hurt')
            assert got == hashes(whole) and np.isfinite(logits).all()
            ends[str(f)] = 'the same'
        except BadInput as e:
            assert (
                '\n' not in str(e)
                and str(tmp_path / 'hurt') in str(e)
                and any(w in str(e) for w in ('delete', 'restore'))
            ), str(e)
            ends[str(f)] = str(e)
    assert ('the same' in ends.values()) == (
        not finished or damage == 'removed'
    )  # a finished run does not train again because a file was cut
    assert finished or damage == 'cut short' or ends['history.csv'] == ends['state.pt'] == 'the same'
    assert any('epoch_' in e for e in ends.values())


def test_two_processes_train_one_run_once(tmp_path, trainer):
    code = f'from ich_soups.core import Config; from ich_soups.train.runs import get_run; get_run({CFG!r}, {str(tmp_path / "shared")!r})'
    two = [
        subprocess.Popen([sys.executable, '-W', 'ignore', '-c', code], stderr=subprocess.DEVNULL)
        for _ in range(2)
    ]
    t0 = time.time()
    while not (tmp_path / 'shared' / 'DONE').exists() and time.time() - t0 < 300:
        time.sleep(0.05)
    first = (tmp_path / 'shared' / 'DONE').stat().st_mtime_ns
    assert [p.wait(300) for p in two] == [0, 0]
    assert (
        tmp_path / 'shared' / 'DONE'
    ).stat().st_mtime_ns == first  # the second one waited, and wrote nothing
    assert len(Run(tmp_path / 'shared').history) == CFG.epochs


def test_the_state_for_more_epochs_has_the_same_bytes(home, tmp_path):
    "Whether a run was interrupted or not: what `pickle` writes would tell."

    cfg = Config.scratch(data='scenes17:200', size=32, epochs=3, cycle=3, bs=64, k=1)
    get_run(cfg, tmp_path / 'whole', more=True)
    with pytest.raises(KeyError, match='power cut'):
        get_run(cfg, tmp_path / 'cut', more=True, cbs=[Crash()])
    get_run(cfg, tmp_path / 'cut', more=True)
    assert (tmp_path / 'cut' / 'end.pt').read_bytes() == (tmp_path / 'whole' / 'end.pt').read_bytes()


@pytest.mark.slow
def test_a_compiled_training_goes_on_with_the_same_bits(home, tmp_path, monkeypatch):
    "Without the code generator, which takes a minute and changes nothing in what is resumed."
    compiler = torch.compile
    monkeypatch.setattr(torch, 'compile', lambda m, **kw: compiler(m, **kw, backend='aot_eager'))
    cfg = Config.scratch(data='scenes17:200', size=32, epochs=3, cycle=3, bs=64, k=1, compile=True)
    get_run(cfg, tmp_path / 'whole')
    with pytest.raises(KeyError, match='power cut'):
        get_run(cfg, tmp_path / 'cut', cbs=[Crash()])
    get_run(cfg, tmp_path / 'cut')
    assert hashes(Run(tmp_path / 'cut')) == hashes(Run(tmp_path / 'whole'))
