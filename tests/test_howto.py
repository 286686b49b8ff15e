"What the how-to notebooks do badly: a download from a server, and a job that may fail."

import functools, hashlib, http.server, json, os, subprocess, sys, tarfile, threading
import pytest
import yaml
from PIL import Image
from conftest import ROOT
from ich_soups.core import BadInput
from ich_soups.data.archives import fetch_archive, list_archive
from ich_soups.data.collections import load_pictures

pytestmark = pytest.mark.quick


def cells(name):
    return [
        ''.join(c['source'])
        for c in json.loads((ROOT / 'nbs' / f'{name}.ipynb').read_text(encoding='utf-8'))['cells']
        if c['cell_type'] == 'code'
    ]


def definition(name, what):
    return next(s for s in cells(name) if s.startswith(what))


@pytest.fixture
def server(tmp_path):
    "A web server on this machine over `site`, which counts what it is asked for."
    (tmp_path / 'site').mkdir()
    asked = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *a):
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(
        ('127.0.0.1', 0), functools.partial(Quiet, directory=tmp_path / 'site')
    ) as s:
        threading.Thread(target=s.serve_forever, daemon=True).start()
        yield tmp_path / 'site', f'http://127.0.0.1:{s.server_port}', asked
        s.shutdown()


def pack(site, drawn, name='birds.tgz', extra=()):
    "An archive of class folders, as CUB is laid out; its sha256."
    for c in range(4):
        (d := site.parent / 'make' / 'images' / f'{c:03d}.Chim số {c}').mkdir(parents=True, exist_ok=True)
        for i, im in enumerate(drawn.images[drawn.labels == c][:8]):
            Image.fromarray(im).save(d / f'{i}.jpg')
    with tarfile.open(site / name, 'w:gz') as t:
        t.add(site.parent / 'make' / 'images', 'birds/images')
        for i in extra:
            t.addfile(i)
    return hashlib.sha256((site / name).read_bytes()).hexdigest()


def left(folder):
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def test_a_collection_is_downloaded_verified_and_read(home, tmp_path, drawn, server):
    site, url, asked = server
    digest = pack(site, drawn)
    root = fetch_archive(f'{url}/birds.tgz', digest, tmp_path / 'got' / 'cub')
    pics = load_pictures(list_archive(root / 'birds' / 'images'))
    assert pics.classes == [f'{c:03d}.Chim số {c}' for c in range(4)] and len(pics) == 32
    assert fetch_archive(f'{url}/birds.tgz', digest, root) == root and len(asked) == 1  # once
    assert left(tmp_path / 'got') == ['cub', 'cub.lock']


@pytest.mark.parametrize('check', ['0' * 64, (1, 'f' * 32)])
def test_another_archive_is_refused_and_not_kept(tmp_path, drawn, server, check):
    site, url, _ = server
    pack(site, drawn)
    with pytest.raises(BadInput, match='not the archive that was expected'):
        fetch_archive(f'{url}/birds.tgz', check, tmp_path / 'got' / 'cub')
    assert left(tmp_path / 'got') == ['cub.lock']


def test_what_is_not_there_or_breaks_off_leaves_nothing(tmp_path, drawn, server):
    site, url, _ = server
    digest = pack(site, drawn)
    with pytest.raises(BadInput, match='could not be downloaded'):
        fetch_archive(f'{url}/no.tgz', digest, tmp_path / 'got' / 'cub')
    with pytest.raises(BadInput, match='could not be downloaded'):
        fetch_archive('http://127.0.0.1:9/birds.tgz', digest, tmp_path / 'got' / 'cub')
    (site / 'half.tgz').write_bytes(b := (site / 'birds.tgz').read_bytes()[:-2000])
    with pytest.raises(BadInput, match='cannot be unpacked'):
        fetch_archive(f'{url}/half.tgz', hashlib.sha256(b).hexdigest(), tmp_path / 'got' / 'cub')
    assert left(tmp_path / 'got') == ['cub.lock']


def test_an_archive_that_writes_elsewhere_is_refused(tmp_path, drawn, server):
    site, url, _ = server
    evil = tarfile.TarInfo('../../escaped.txt')
    digest = pack(site, drawn, 'evil.tgz', [evil])
    with pytest.raises(BadInput, match='cannot be unpacked'):
        fetch_archive(f'{url}/evil.tgz', digest, tmp_path / 'got' / 'cub')
    assert not list(tmp_path.rglob('escaped.txt')) and left(tmp_path / 'got') == ['cub.lock']


def test_the_notebook_downloads_its_birds(home, tmp_path, drawn, server, monkeypatch):
    "The notebook's own function, pointed at this server."
    site, url, asked = server
    digest = pack(site, drawn)
    scope = {}
    exec(definition('howto/05_another_field', 'import os\n'), scope)
    exec(definition('howto/05_another_field', 'def birds').split('\ntmp = ')[0], scope)
    monkeypatch.delenv('BIRDS', raising=False)
    monkeypatch.delenv('ICH_SOUPS_DOWNLOAD', raising=False)
    with pytest.raises(BadInput, match='ICH_SOUPS_DOWNLOAD=1 to fetch'):
        scope['birds'](f'{url}/birds.tgz', digest)
    assert not asked
    monkeypatch.setenv('ICH_SOUPS_DOWNLOAD', '1')
    assert len(load_pictures(scope['birds'](f'{url}/birds.tgz', digest))) == 32
    monkeypatch.setenv('BIRDS', 'elsewhere')
    assert scope['birds']() == 'elsewhere'


JOB = yaml.safe_load(definition('howto/04_cook_in_ci', 'WORKFLOW').split("'''")[1])['jobs']['soup']


def judge(cwd, difference, **env):
    "The judge's step on made-up scores: a console script of the job's own says them."
    (cwd / 'bin').mkdir(exist_ok=True)
    (cwd / 'bin' / 'ich-soups').write_text(
        f'''#!/bin/sh\necho '{json.dumps(dict(comparisons=[dict(accuracy_difference=difference, wins=3, losses=4)]))}'\n'''
    )
    (cwd / 'bin' / 'ich-soups').chmod(0o755)
    if not (cwd / 'bin' / 'python').exists():
        (cwd / 'bin' / 'python').symlink_to(sys.executable)
    step = next(s['run'] for s in JOB['steps'] if s.get('name') == 'judge')
    p = subprocess.run(
        ['bash', '--noprofile', '--norc', '-eo', 'pipefail', '-c', step],
        cwd=cwd,
        env=os.environ | JOB['env'] | dict(PATH=f"{cwd / 'bin'}{os.pathsep}{os.environ['PATH']}") | env,
        capture_output=True,
        text=True,
    )
    return p.returncode, p.stdout + p.stderr


@pytest.mark.parametrize(
    'difference, env, code',
    [
        (0.01, {}, 0),
        (0.0, {}, 0),
        (-0.005, {}, 1),
        (-0.005, dict(TOLERANCE='1'), 0),
        (-0.02, dict(TOLERANCE='1'), 1),
    ],
)
def test_the_job_fails_exactly_when_the_soup_is_worse(tmp_path, difference, env, code):
    rc, out = judge(tmp_path, difference, **env)
    assert rc == code and f'{100 * difference:+.1f} points' in out and ('not published' in out) == bool(code)


def test_the_job_stops_where_a_command_fails(tmp_path):
    judge(tmp_path, 0.0)
    (tmp_path / 'bin' / 'ich-soups').write_text('#!/bin/sh\necho "ich-soups: no" >&2; exit 2\n')
    step = next(s['run'] for s in JOB['steps'] if s.get('name') == 'judge')
    p = subprocess.run(
        ['bash', '--noprofile', '--norc', '-eo', 'pipefail', '-c', step],
        cwd=tmp_path,
        env=os.environ | JOB['env'] | dict(PATH=f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"),
        capture_output=True,
        text=True,
    )
    assert p.returncode == 2 and 'not published' not in p.stderr


def test_the_commands_of_the_job_are_commands():
    "Every ich-soups line of the workflow has options that exist."
    import typer.main
    from ich_soups.app.cli import app

    known = typer.main.get_command(app).commands
    lines = [
        l.strip()
        for s in JOB['steps']
        if 'run' in s
        for l in s['run'].splitlines()
        if l.strip().startswith('ich-soups')
    ]
    assert [l.split()[1] for l in lines] == ['train', 'cook', 'eval']
    for l in lines:
        have = {o for p in known[l.split()[1]].params for o in p.opts}
        assert {w for w in l.split() if w.startswith('--')} <= have
