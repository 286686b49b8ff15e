"What one process cannot show: a kill -9, and two who want the same run."
import os, random, signal, subprocess, sys, time
from ich_soups.core import Config
from ich_soups.training import Run, get_run

CODE = """
import sys
from ich_soups.core import Config
from ich_soups.training import get_run
print('started', flush=True)
get_run(Config.tiny(data='scenes17:600', size=32, bs=32, epochs=12, k=3), sys.argv[1])
"""
CFG = Config.tiny(data='scenes17:600', size=32, bs=32, epochs=12, k=3)


def train(path, env): return subprocess.Popen([sys.executable, '-c', CODE, str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env, text=True)
def hashes(run): return {s.epoch: s.sha256 for s in run.snapshots} | {p.name: p.read_bytes() for p in sorted((run.path/'averages').glob('*.safetensors'))}


def test_killed_at_any_moment_it_ends_the_same(home):
    whole = get_run(CFG, home/'whole')
    path, rng, kills = home/'killed', random.Random(0), 0
    while not (path/'DONE').exists() and kills < 6:
        p = train(path, os.environ | dict(ICH_SOUPS_HOME=str(home)))
        p.stdout.readline()
        time.sleep(rng.uniform(.5, .5*whole.provenance['seconds']))
        if p.poll() is None: kills += 1
        p.send_signal(signal.SIGKILL)
        p.wait()
    run = get_run(CFG, path)
    assert kills and hashes(run) == hashes(whole)
    run.store.verify()
    assert not list(path.rglob('.*.safetensors')) and not (path/'state.pt').exists()


def test_two_processes_train_one_run_once(home):
    env = os.environ | dict(ICH_SOUPS_HOME=str(home))
    two = [train(home/'shared', env) for _ in range(2)]
    t0 = time.time()
    while not (home/'shared'/'DONE').exists() and time.time()-t0 < 300: time.sleep(.1)
    first = (home/'shared'/'DONE').stat().st_mtime_ns
    assert [p.wait(300) for p in two] == [0, 0]
    assert (home/'shared'/'DONE').stat().st_mtime_ns == first      # the second one waited, and wrote nothing
    assert len(Run(home/'shared').history) == CFG.epochs
