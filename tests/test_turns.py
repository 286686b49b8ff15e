"Turns, places that may not be written to, and what killed processes leave: a word for who waits, a sentence for who cannot write, nothing left."

import errno, fcntl, json, os, shutil, subprocess, sys
from pathlib import Path
import pytest
from ich_soups.app import cli
from ich_soups import locks
from ich_soups.files import _machine
from ich_soups.core import Config, atomic, scratch, sweep_temporary, write_json
from ich_soups.locks import locked
from ich_soups.train.runs import get_run

ROOT = Path(__file__).resolve().parent.parent
HOLD = "import sys; from ich_soups.locks import locked\nwith locked(sys.argv[1]): print('held', flush=True); sys.stdin.read()"


def python(code, *args, **kw):
    "A process that runs the code."
    env = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', ICH_SOUPS_DEVICE='cpu')
    return subprocess.Popen(
        [sys.executable, '-W', 'ignore', '-c', code, *map(str, args)],
        env=env,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **kw,
    )


def killed():
    "The number of a process that is no more."
    p = python('')
    p.wait()
    return p.pid


def test_who_waits_says_for_whom(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(locks, 'PATIENCE', 0.2)
    monkeypatch.setattr(sys, '__stderr__', sys.stderr)
    p = python(HOLD, tmp_path / '.lock')
    assert p.stdout.readline() == 'held\n'
    say = locks._say_who
    monkeypatch.setattr(locks, '_say_who', lambda *a: (say(*a), p.stdin.close()))
    with locked(tmp_path / '.lock'):
        pass
    said = capfd.readouterr().err
    assert (
        said.count('\n') == 1
        and said.startswith(f'note: waiting for process {p.pid} on ')
        and ', since 20' in said
        and str(tmp_path / '.lock') in said
    )
    assert p.wait() == 0 and [f.name for f in tmp_path.iterdir() if f.name != '.lock'] == []


def test_a_lock_of_a_killed_process_is_free(tmp_path, monkeypatch, capfd):
    p = python(HOLD, tmp_path / '.lock')
    assert p.stdout.readline() == 'held\n'
    p.kill()
    p.wait()
    with locked(tmp_path / '.lock'):
        assert f'process {os.getpid()} ' in locks.holder(tmp_path / '.lock')
    assert capfd.readouterr().err == ''


@pytest.mark.parametrize('code', [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks(code, home, tmp_path, monkeypatch):
    "A whole training, in a folder where real locks were used before."
    run = tmp_path / 'run'
    run.mkdir()
    (run / '.lock').write_text('')

    def flock(fd, how):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, 'flock', flock)
    get_run(Config.scratch(data='scenes17:200', size=32, epochs=1, bs=32), run)
    assert (run / 'DONE').exists() and not list(run.glob('.lock.*'))


def test_all_locks_are_of_one_kind():
    for p in (*(ROOT / 'ich_soups').rglob('*.py'), *(ROOT / 'nbs').rglob('*.ipynb')):
        if p.stem not in ('locks', '08_locks'):
            assert 'FileLock(' not in p.read_text(encoding='utf-8'), p.name


def test_a_home_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    "A file stands where the home should be: nobody, not even root, can write there."
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('ICH_SOUPS_HOME', str(tmp_path / 'file' / 'home'))
    for words in (['train', 'scenes17:200', '--size', '32', '--epochs', '1'], ['check', ROOT / 'figures']):
        code = cli.main(words)
        said = capsys.readouterr().err.strip()
        assert code == 2 and 'bug' not in said, said
        if words[0] == 'train':
            assert len(said.splitlines()) == 1 and 'set ICH_SOUPS_HOME to a folder that can be' in said, said


READS = """
import ctypes, os, sys
from pathlib import Path
if os.getuid() == 0: ctypes.CDLL(None).capset((ctypes.c_uint32*2)(0x20080522, 0), (ctypes.c_uint32*6)())     # root without its privileges
from ich_soups.app import cli
run, home, out = sys.argv[1:]
assert not os.access(run, os.W_OK) and not os.access(home, os.W_OK)
photo = next(Path(out).parent.glob('*.png'))
codes = [cli.main(w) for w in (['eval', run], ['report', run, '--out', out + '/r.html'], ['predict', out + '/s.safetensors', photo],
                               ['cook', run, '--out', out + '/c.safetensors'], ['train', 'scenes17:200', '--size', '32', '--epochs', '2', '--out', run],
                               ['train', 'scenes17:200', '--size', '32', '--epochs', '3'])]
print(codes)
"""


@pytest.mark.skipif(os.name != 'posix', reason='to run this, use a system of the family of Unix')
def test_what_only_reads_works_where_nothing_may_be_written(home, tmp_path):
    "A finished run and a filled cache, in folders of somebody else."
    from PIL import Image

    run, out = tmp_path / 'run', tmp_path / 'out'
    out.mkdir()
    assert cli.main(['train', 'scenes17:200', '--size', '32', '--epochs', '2', '--out', run]) == 0
    assert cli.main(['cook', run, '--out', out / 's.safetensors']) == 0
    shutil.rmtree(run / 'logits', ignore_errors=True)
    Image.new('RGB', (40, 30), 'red').save(tmp_path / 'a.png')
    for d in (tmp_path, run, home, *run.rglob('*'), *home.rglob('*')):
        os.chmod(d, 0o555 if d.is_dir() else 0o444)
    os.chmod(out, 0o777)
    os.chmod(out / 's.safetensors', 0o644)
    try:
        said, err = (p := python(READS, run, home, out, cwd=str(out))).communicate(timeout=500)
    finally:
        for d in (tmp_path, run, home, *run.rglob('*'), *home.rglob('*')):
            os.chmod(d, 0o755)
    assert p.returncode == 0 and said.strip().endswith('[0, 0, 0, 0, 0, 2]'), said + err
    assert 'set ICH_SOUPS_HOME to a folder that can be' in err and 'bug' not in err, err
    assert not (run / 'logits' / 'test.npy').exists()


def test_leavings_of_the_dead_are_swept_where_they_arise(tmp_path):
    pid = killed()
    dead, living, other = [
        tmp_path / f'.{p}.{_machine()}000001.{n}'
        for p, n in ((pid, 's.json'), (os.getpid(), 's.json'), (pid, 't.json'))
    ]
    for f in (dead, living, other):
        f.write_text('half')
    write_json(tmp_path / 's.json', {})
    assert (dead.exists(), living.exists(), other.exists()) == (False, True, True)
    sweep_temporary(tmp_path)
    assert (living.exists(), other.exists()) == (True, False)


def test_a_killed_writer_leaves_nothing_for_long(tmp_path):
    "A real one, in the middle of a file; the next writer of that file clears it away, another one lives and keeps its own."
    code = "import sys, time; from ich_soups.core import atomic\nwith atomic(sys.argv[1]) as t: t.write_text('half'); print('there', flush=True); sys.stdin.read()"
    a, b = python(code, tmp_path / 'x'), python(code, tmp_path / 'x')
    assert (a.stdout.readline(), b.stdout.readline()) == ('there\n', 'there\n')
    a.kill()
    a.wait()
    with atomic(tmp_path / 'x') as t:
        t.write_text('whole')
    assert sorted(f.name.split('.')[1] for f in tmp_path.glob('.*')) == [str(b.pid)]
    b.stdin.close()
    assert b.wait() == 0 and [f.name for f in tmp_path.iterdir()] == ['x']


def test_an_export_that_is_killed_between_two_names_takes_nothing_away(home, tmp_path):
    from ich_soups.app.export import _rescue

    left = tmp_path / f'.{killed()}.{_machine()}000001.model'
    (left / 'old').mkdir(parents=True)
    (left / 'old' / 'config.json').write_text('{}')
    _rescue(tmp_path / 'model')
    with scratch(tmp_path, 'model'):
        assert not left.exists()
    assert (tmp_path / 'model' / 'config.json').exists() and [f.name for f in tmp_path.iterdir()] == ['model']


def test_a_memory_of_another_kind_is_made_again(home, photos):
    from ich_soups.data.scan import _memo
    from ich_soups.data.collections import load_pictures

    want = load_pictures(photos).digests
    f = _memo(photos, 'digests', 'json')
    for words in (
        '[]',
        '5',
        '{"a": 5}',
        json.dumps({k: 5 for k in json.loads(f.read_text())}),
        '[' * 100_000,
    ):
        f.write_text(words)
        assert list(load_pictures(photos).digests) == list(want)


def test_dependencies_report_nothing():
    "Before any of them is imported; and whoever has decided otherwise is left alone."
    names = (
        'HF_HUB_DISABLE_TELEMETRY',
        'GRADIO_ANALYTICS_ENABLED',
        'RAY_USAGE_STATS_ENABLED',
        'ORT_DISABLE_TELEMETRY',
    )
    code = f'import ich_soups, os; print([os.environ[n] for n in {names}])'

    def said(**more):
        env = {k: v for k, v in os.environ.items() if k not in names} | dict(PYTHONPATH=str(ROOT)) | more
        return subprocess.run(
            [sys.executable, '-c', code], capture_output=True, text=True, env=env, check=True
        ).stdout.strip()

    assert (
        said() == "['1', 'False', '0', '1']"
        and said(RAY_USAGE_STATS_ENABLED='1') == "['1', 'False', '1', '1']"
    )
    code = 'import ich_soups, huggingface_hub.constants as c; print(c.HF_HUB_DISABLE_TELEMETRY)'
    assert said() == 'True'
