"A cluster of two machines on this one, and one run in two processes: what is computed, how often, and what survives a kill."

import json, os, signal, subprocess, sys, threading, time
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from fastai.callback.core import Callback
from dataclasses import asdict
from ich_soups.core import BadInput, Config, runs_dir, write_json
from ich_soups.soups.run_files import epochs_done
from ich_soups.train import cluster, train_all as train_all_module
from ich_soups.train.cluster import launch
from ich_soups.paths import set_environ
from ich_soups.train.engine import _own_auth, ray_on
from ich_soups.train.map_runs import map_runs
from ich_soups.train.ranks import Ranks
from ich_soups.train.train_all import train_all
from ich_soups.train.workers import torch_threads
from ich_soups.train.finished_run import Run
from ich_soups.train.runs import get_run

TINY = dict(data='scenes17:300', size=32, bs=32, k=2, epochs=2)
LONG = TINY | dict(epochs=16, monitor=('accuracy',))


def trace(file):
    "A callback that writes a line for every epoch that somebody trains: which run, which epoch, who, where. Made here, it travels to workers that cannot import the tests."

    class Trace(Callback):
        order = 100

        def after_train(self):
            import ray

            with open(file, 'a') as f:
                f.write(
                    f'{self.learn.path.name} {self.epoch + 1} {os.getpid()} {ray.get_runtime_context().get_node_id()}\n'
                )

    return Trace()


class Elsewhere(threading.Thread):
    "A call in a thread, for a test that interferes meanwhile; `result()` is what it returned or raised."

    def __init__(self, f):
        super().__init__(daemon=True)
        self.f, self.out, self.error = f, None, None
        self.start()

    def run(self):
        try:
            self.out = self.f()
        except BaseException as e:
            self.error = e

    def result(self, seconds=400):
        self.join(seconds)
        assert not self.is_alive()
        if self.error:
            raise self.error
        return self.out


def trained(file):
    return (
        pd.read_csv(file, sep=' ', names=['run', 'epoch', 'pid', 'node'])
        if Path(file).exists()
        else pd.DataFrame(dict(run=[], epoch=[], pid=[], node=[]))
    )


def files(run):
    return sorted(f.relative_to(run.path).as_posix() for f in run.path.rglob('*') if f.is_file())


def bits(run):
    return {s.epoch: s.sha256 for s in run.snapshots} | {
        p.name: p.read_bytes() for p in sorted((run.path / 'averages').glob('*.safetensors'))
    }


def wait_for(what, other, seconds=400):
    "The first true `what()`, while the other thread works."
    t0 = time.time()
    while not (x := what()):
        if not other.is_alive():
            other.result()
        assert other.is_alive() and time.time() - t0 < seconds
        time.sleep(0.05)
    return x


def patiently(start, tries=4):
    "Ray waits 30 s for a node, which a busy machine may not keep."
    for left in reversed(range(tries)):
        try:
            return start()
        except Exception:
            if not left:
                raise


@pytest.fixture(scope='module')
def machines(tmp_path_factory):
    "Two Ray nodes of one CPU each with a home of their own, and a connection to them."
    from ray.cluster_utils import Cluster

    small = dict(num_cpus=1, object_store_memory=100 << 20)
    theirs = tmp_path_factory.mktemp('theirs')
    with set_environ(ICH_SOUPS_HOME=str(theirs), RAY_USAGE_STATS_ENABLED='0'):
        c = patiently(
            lambda: Cluster(initialize_head=True, head_node_args=small | dict(include_dashboard=False))
        )
        patiently(lambda: c.add_node(**small))
    c.small, c.home = small, theirs
    with ray_on(c.address):
        yield c
    c.shutdown()


@pytest.mark.slow
def test_two_machines_give_the_bits_of_one_process(machines, home, monkeypatch):
    cfgs = [Config.scratch(**TINY, seed=s) for s in (2, 0, 1)]
    where = lambda run: __import__('ray').get_runtime_context().get_node_id()
    nodes = train_all(cfgs, machines.address, then=where)
    there = train_all(cfgs, machines.address)
    monkeypatch.setenv('ICH_SOUPS_HOME', str(home / 'alone'))
    here = train_all(cfgs)
    assert len(set(nodes)) == 2 and [r.cfg for r in there] == cfgs
    assert [bits(r) for r in there] == [bits(r) for r in here]
    assert there[0].path != here[0].path and files(there[0]) == files(here[0])


@pytest.mark.slow
def test_a_killed_worker_is_retried_and_nothing_is_computed_twice(machines, home, tmp_path):
    cfgs, log = [Config.scratch(**LONG, seed=s) for s in range(2)], tmp_path / 'log'
    t = Elsewhere(lambda: train_all(cfgs * 2, machines.address, cbs=[trace(log)]))
    wait_for(lambda: len(trained(log).query('epoch == 3')), t)
    victim = trained(log).query('epoch == 3').iloc[0]
    os.kill(victim.pid, signal.SIGKILL)
    runs, df = t.result(), trained(log)
    assert [r.cfg for r in runs] == cfgs * 2
    resumed = {r.path.name: r.provenance['resumed_at'] for r in runs}
    assert resumed[victim.run] >= 2 and sum(v > 0 for v in resumed.values()) == 1
    assert {r: sorted(set(g.epoch)) for r, g in df.groupby('run')} == {
        c.key: list(range(1, 17)) for c in cfgs
    }
    assert len(df) <= 2 * 16 + 1  # the epoch in which it was killed, if that was trained already
    assert len(set(df[df.run == victim.run].pid)) == 2
    for r in runs:
        r.store.verify()
    done = [(r.path / 'DONE').stat().st_mtime_ns for r in runs]
    train_all(cfgs, machines.address, cbs=[trace(log)], then=lambda run: 0)
    assert len(trained(log)) == len(df) and [(r.path / 'DONE').stat().st_mtime_ns for r in runs] == done


@pytest.mark.slow
def test_a_machine_that_goes_away(machines, home, tmp_path):
    third, log = patiently(lambda: machines.add_node(**machines.small)), tmp_path / 'log'
    cfgs = [Config.scratch(**LONG, seed=s) for s in range(3)]
    t = Elsewhere(lambda: train_all(cfgs, machines.address, cbs=[trace(log)]))
    wait_for(lambda: (trained(log).query('epoch == 2').node == third.node_id).any(), t)
    machines.remove_node(third, allow_graceful=False)
    runs, df = t.result(), trained(log)
    lost = df[df.node == third.node_id].run.iloc[0]
    assert sorted(df[df.run == lost].epoch.unique()) == list(range(1, 17)) and len(df) <= 3 * 16 + 1
    assert {r.path.name: r.provenance['resumed_at'] > 0 for r in runs} == {c.key: c.key == lost for c in cfgs}


@pytest.mark.slow
def test_runs_come_home_from_machines_with_disks_of_their_own(machines, home, tmp_path, photos, monkeypatch):
    "`/proc/self/cwd` is another folder for every process, as a local disk is for every machine."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_all_module, 'PIECE', 50_000)
    monkeypatch.setenv('ICH_SOUPS_HOME', '/proc/self/cwd/mine')
    cfg = Config.scratch(**TINY | dict(data=str(photos), bs=8))
    half = tmp_path / 'mine' / 'runs' / cfg.key / 'snapshots' / 'epoch_099.safetensors'  # somebody began here
    half.parent.mkdir(parents=True)
    half.touch()
    n, run = train_all([cfg], machines.address, then=lambda r: len(r.snapshots))[0], Run(half.parents[1])
    assert n == len(run.snapshots) and not half.exists()
    run.store.verify()
    with torch_threads(1):
        get_run(cfg, tmp_path / 'here')  # as a worker with one CPU
    assert bits(run) == bits(Run(tmp_path / 'here')) and files(run) == files(Run(tmp_path / 'here'))
    first = (run.path / 'split.csv').read_text(encoding='utf-8').split('\n')[1].split(',')[0]
    assert Path(os.path.normpath(runs_dir() / cfg.key / first)).is_file()  # relative to where it is now
    was = (run.path / 'DONE').stat().st_mtime_ns
    assert (
        train_all([cfg], machines.address, then=lambda r: r.path.exists()) == [True]
        and (run.path / 'DONE').stat().st_mtime_ns == was
    )
    assert not list(tmp_path.rglob('.seen-*')) and not list(
        Path(machines.home).rglob('DONE')
    )  # the guest has left


@pytest.mark.slow
def test_bad_input_is_not_retried(machines, home, tmp_path):
    def f(x):
        with open(tmp_path / 'calls', 'a') as h:
            h.write('.')
        raise BadInput('no such thing')

    with pytest.raises(BadInput, match='no such thing'):
        map_runs(f, [1], machines.address)
    assert (tmp_path / 'calls').read_text() == '.'

    def g(x):
        with open(tmp_path / 'flaky', 'a') as h:
            h.write('.')
        if (tmp_path / 'flaky').stat().st_size < 2:
            raise OSError('a network disk')
        return x

    assert map_runs(g, [7], machines.address) == [7]
    with pytest.raises(BadInput, match='it was lost in 1 of 1 tries'):
        map_runs(lambda x: os.kill(os.getpid(), 9), ['it'], machines.address, retries=0)

    def h(x):
        with open(tmp_path / 'deaths', 'a') as f:
            f.write('.')
        os.kill(os.getpid(), 9)

    with pytest.raises(BadInput, match='it was lost in 2 of 2 tries'):
        map_runs(h, ['it'], machines.address, retries=1)
    assert (tmp_path / 'deaths').read_text() == '..'


def test_without_ray_the_runs_are_trained_here(home, monkeypatch):
    monkeypatch.setitem(sys.modules, 'ray', None)
    cfg = Config.scratch(**TINY)
    with pytest.raises(BadInput, match=r"pip install 'ich_soups\[cluster\]'"):
        train_all([cfg], 'ray')
    assert train_all([cfg])[0].cfg == cfg


# One run in two processes. Where nothing is drawn and nothing is normalised over a batch, halves of batches must give what whole batches give.

PLAIN = """
import sys
from ich_soups.train import cluster
from ich_soups.data import loaders
loaders.CropFlip = lambda size, crop_min: loaders.DisplayedTransform()
cluster.main(sys.argv[1:])
"""
EXACT = dict(
    data='scenes17:300',
    size=32,
    bs=32,
    accum=2,
    arch='tiny_vit8',
    mix=0.0,
    precision='fp32',
    epochs=2,
    lr=1e-3,
)


def test_two_processes_take_the_steps_of_one(home, tmp_path, monkeypatch):
    from ich_soups.data import loaders

    cfg = Config.scratch(**EXACT)
    monkeypatch.setenv('ICH_SOUPS_DEVICE', 'cpu')
    monkeypatch.setattr(loaders, 'CropFlip', lambda size, crop_min: loaders.DisplayedTransform())
    one = get_run(cfg, tmp_path / 'one')
    write_json(tmp_path / 'cfg.json', asdict(cfg))
    (tmp_path / 'plain.py').write_text(PLAIN)
    subprocess.run(
        [
            sys.executable,
            '-m',
            'accelerate.commands.launch',
            '--multi_gpu',
            '--num_processes=2',
            '--num_machines=1',
            '--mixed_precision=no',
            '--dynamo_backend=no',
            '--main_process_port=0',
            tmp_path / 'plain.py',
            tmp_path / 'cfg.json',
            tmp_path / 'two',
        ],
        check=True,
        env=os.environ | dict(OMP_NUM_THREADS='1'),
    )
    two = Run(tmp_path / 'two')
    assert files(two) == files(one)
    for k in ('lr', 'train_loss', 'valid_loss'):
        np.testing.assert_allclose(two.history[k], one.history[k], rtol=1e-3)
    for k in ('last', 'ema', 'swa'):
        a, b = one.weights(k), two.weights(k)
        assert list(a) == list(b)
        np.testing.assert_allclose(two.logits_of(b), one.logits_of(a), atol=0.02)


def holder(path):
    "The process that holds a run's lock."
    for fd in Path('/proc').glob('[0-9]*/fd/*'):
        try:
            if os.readlink(fd) == str(path / '.lock'):
                return int(fd.parts[2])
        except OSError:
            pass


@pytest.mark.slow
def test_a_run_of_two_processes_is_killed_and_goes_on_to_the_same_bits(home, monkeypatch):
    monkeypatch.setenv('ICH_SOUPS_DEVICE', 'cpu')
    cfg = Config.scratch(**TINY | dict(data='scenes17:600', epochs=6))
    whole, path = launch(cfg, 2, home / 'whole'), home / 'killed'
    t = Elsewhere(lambda: launch(cfg, 2, path))
    wait_for(lambda: epochs_done(path) >= 2, t)
    os.kill(holder(path), signal.SIGKILL)
    with pytest.raises(BadInput, match='launch again and they go on'):
        t.result()
    assert not (path / 'DONE').exists()
    run = launch(cfg, 2, path)
    assert (
        1 <= run.provenance['resumed_at'] < 6
        and run.provenance['processes'] == 2
        and bits(run) == bits(whole)
        and files(run) == files(whole)
    )
    run.store.verify()
    assert (
        not (path / 'state.pt').exists()
        and len(run.history) == 6
        and all('module.' not in k for k in run.snapshots[0].weights())
    )

    # within noise: as near to single processes as those, which differ by their seed, are to each other
    one = [get_run(cfg.replace(seed=s)) for s in range(3)]
    loss = np.array([r.history.valid_loss.iloc[-3:].mean() for r in one])
    assert (
        abs(run.history.valid_loss.iloc[-3:].mean() - loss.mean())
        < 4 * loss.std(ddof=1) * np.sqrt(1 + 1 / 3) + 0.02
    ), (run.history.valid_loss, loss)


def test_what_cannot_be_used_is_said_once(home, tmp_path, monkeypatch):
    cfg = Config.scratch(**TINY | dict(arch='no_such_net'))
    write_json(tmp_path / 'cfg.json', asdict(cfg))
    monkeypatch.setattr(os, '_exit', sys.exit)
    with pytest.raises(SystemExit) as e:
        cluster.main([str(tmp_path / 'cfg.json'), str(tmp_path / 'run'), str(tmp_path / 'error')])
    assert e.value.code == 2 and 'no_such_net' in (tmp_path / 'error').read_text(encoding='utf-8')
    with pytest.raises(BadInput, match='cannot be split evenly over 2 processes'):
        launch(cfg.replace(bs=33), 2)


# A Ray of this machine listens in the whole network. Who has no token gets no work done.

STRANGER = """
import sys, ray
ray.init(address=sys.argv[1], logging_level='ERROR', log_to_driver=False)
print('pid', ray.get(ray.remote(lambda: __import__('os').getpid()).remote()))
"""
OURS = """
import json, os, subprocess, sys, warnings
warnings.simplefilter('ignore')
if 'first' in sys.argv: import ray
from ich_soups.train.map_runs import map_runs
from ich_soups.train.engine import ray_on
mine = {k: v for k, v in os.environ.items() if k.startswith('RAY_AUTH')}
def come(at, **env):
    p = subprocess.run([sys.executable, '-W', 'ignore', '-c', sys.argv[1], at], capture_output=True, text=True, timeout=120, env=os.environ | env)
    return 'pid' in p.stdout
with ray_on('ray') as ray:
    at = ray.get_runtime_context().gcs_address
    said = dict(work=map_runs(lambda x: x+1, [1, 2], 'ray', progress=False), mode=ray.get(ray.remote(lambda: os.environ.get('RAY_AUTH_MODE')).remote()),
                token=ray.get(ray.remote(lambda: os.environ.get('RAY_AUTH_TOKEN')).remote()), stranger=come(at))
    if not mine: said['wrong'] = come(at, RAY_AUTH_MODE='token', RAY_AUTH_TOKEN='0'*64)
said['kept'] = mine == {k: v for k, v in os.environ.items() if k.startswith('RAY_AUTH')}
print(json.dumps(said))
"""


def ours(*words, **env):
    "What happens to a Ray of ours, in a process of its own."
    clean = {k: v for k, v in os.environ.items() if not k.startswith('RAY_')}
    p = subprocess.run(
        [sys.executable, '-c', OURS, STRANGER, *words],
        capture_output=True,
        text=True,
        timeout=400,
        env=clean | env | dict(OMP_NUM_THREADS='1'),
    )
    assert p.returncode == 0, p.stderr[-2000:]
    return json.loads(p.stdout.splitlines()[-1])


@pytest.mark.slow  # the notebook of the module sends a stranger away in every run
@pytest.mark.parametrize('words', [(), ('first',)], ids=['', 'ray was imported before'])
def test_a_ray_of_this_machine_demands_a_token(words, home):
    said = ours(*words)
    assert said['work'] == [2, 3] and said['mode'] == 'token' and len(said['token']) == 64 and said['kept']
    assert not said['stranger'] and not said['wrong']


@pytest.mark.slow
def test_settings_of_the_user_stay_as_they_are(home):
    "Who has switched tokens off gets none, and then a stranger gets in: so the tests above can fail."
    said = ours(RAY_AUTH_MODE='disabled')
    assert (
        said['work'] == [2, 3]
        and said['mode'] == 'disabled'
        and said['token'] is None
        and said['kept']
        and said['stranger']
    )


@pytest.mark.parametrize(
    'theirs',
    [
        dict(RAY_AUTH_MODE='token', RAY_AUTH_TOKEN='t'),
        dict(RAY_AUTH_MODE='disabled'),
        dict(RAY_AUTH_TOKEN='t'),
        dict(RAY_AUTH_TOKEN_PATH='/x'),
        {},
    ],
)
def test_what_is_added_to_the_settings_of_the_user(theirs, monkeypatch):
    for k in ('RAY_AUTH_MODE', 'RAY_AUTH_TOKEN', 'RAY_AUTH_TOKEN_PATH'):
        monkeypatch.delenv(k, raising=False)
    for k, v in theirs.items():
        monkeypatch.setenv(k, v)
    new = _own_auth()
    assert not set(new) & set(theirs)
    assert {'RAY_AUTH_TOKEN' in new, 'RAY_AUTH_MODE' in new} == {not theirs, 'RAY_AUTH_MODE' not in theirs}


class Alone:
    "What Accelerate is to a single process on a GPU: it hands the model back as it is."

    process_index, num_processes, is_main_process, device = 0, 1, True, torch.device('cpu')

    def prepare(self, model):
        return model

    def reduce(self, x, how):
        return x


def test_a_group_of_one_on_a_gpu_gets_its_model_back(home, tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / 'store'), 1)
    torch.distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
    try:
        run = get_run(Config.scratch(**TINY), home / 'run', [Ranks(Alone(), 0)])
    finally:
        torch.distributed.destroy_process_group()
    assert len(run.history) == 2 and np.isfinite(run.history.train_loss).all()


def listeners(group):
    "Addresses, as the system writes them, at which processes of that session listen."
    inodes = set()
    for p in Path('/proc').glob('[0-9]*'):
        try:
            if os.getsid(int(p.name)) != group:
                continue
            for fd in (p / 'fd').iterdir():
                if (to := os.readlink(fd)).startswith('socket:'):
                    inodes.add(to[8:-1])
        except OSError:
            pass
    rows = [
        l.split()
        for f in ('tcp', 'tcp6')
        if Path(f'/proc/net/{f}').exists()
        for l in Path(f'/proc/net/{f}').read_text().splitlines()[1:]
    ]
    return {r[1].split(':')[0] for r in rows if r[3] == '0A' and r[9] in inodes}


@pytest.mark.skipif(not Path('/proc/net/tcp').exists(), reason='to run this, use Linux')
def test_processes_of_one_machine_listen_to_nobody_else(home, monkeypatch):
    "Asked again and again while two of them train: 127.0.0.1 or ::1, and nothing else."
    monkeypatch.setenv('ICH_SOUPS_DEVICE', 'cpu')
    seen, watch = set(), cluster.watch

    def watched(p, cfg, path, progress):
        while p.poll() is None:
            seen.update(listeners(p.pid))
            time.sleep(0.1)
        return watch(p, cfg, path, progress)

    monkeypatch.setattr(cluster, 'watch', watched)
    run = launch(Config.scratch(**TINY | dict(data='scenes17:200', epochs=1)), 2)
    assert run.provenance['processes'] == 2
    assert seen and seen <= {
        '0100007F',
        '00000000000000000000000001000000',
        '0000000000000000FFFF00000100007F',
    }, seen
