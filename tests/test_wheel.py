"The wheel holds the package and nothing else, needs no nbdev, and works with both ends of the fastai that it allows."

import os, re, subprocess, sys, zipfile
import pytest
from conftest import ROOT

PACKAGE = ROOT / 'ich_soups'
MODULES = sorted(
    '.'.join(p.relative_to(PACKAGE).with_suffix('').parts)
    for p in PACKAGE.rglob('*.py')
    if not p.stem.startswith('_')
)
ABSENT = (
    'nbdev',
    'execnb',
    'nbconvert',
    'IPython',
    'jupyter',
    'optuna',
    'onnx',
    'onnxruntime',
    'mlxtend',
    'torchmetrics',
    'ray',
    'accelerate',
    'imagehash',
    'cleanlab',
    'gradio',
    'captum',
    'tensorboard',
    'playwright',
)


def pip(*args):
    subprocess.run([sys.executable, '-m', 'pip', *args, '-q', '--disable-pip-version-check'], check=True)


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    d = tmp_path_factory.mktemp('wheel')
    pip('wheel', '--no-deps', '--no-build-isolation', '-w', str(d), str(ROOT))
    return next(d.glob('*.whl'))


def test_contents(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split('/')[0] for n in names if '.dist-info' not in n} == {'ich_soups'}
    assert {f"ich_soups/{m.replace('.', '/')}.py" for m in MODULES} <= set(names)
    templates = {f'ich_soups/app/templates/{p.name}' for p in (PACKAGE / 'app' / 'templates').iterdir()}
    assert len(templates) == 8 and templates <= set(names)
    meta = next(zipfile.ZipFile(wheel).read(n).decode() for n in names if n.endswith('METADATA'))
    needed = {
        re.split(r'[^\w-]', l.removeprefix('Requires-Dist: '))[0]
        for l in meta.splitlines()
        if l.startswith('Requires-Dist') and 'extra ==' not in l
    }
    assert not needed & set(ABSENT) and {'torch', 'timm', 'fastai', 'typer'} <= needed
    assert b'ich-soups = ich_soups.app.cli:main' in next(
        zipfile.ZipFile(wheel).read(n) for n in names if n.endswith('entry_points.txt')
    )


SESSION = f"""
import sys, warnings
warnings.simplefilter('ignore')
for m in {ABSENT!r}: sys.modules[m] = None
import importlib, fastai, ich_soups
assert fastai.__version__ == sys.argv[1], fastai.__version__
assert ich_soups.__file__.startswith(sys.argv[2]), ich_soups.__file__
for m in {MODULES!r}: importlib.import_module('ich_soups.' + m)
from ich_soups.core import home
from ich_soups.app.cli import main
def do(*args):
    try: main(list(args))
    except SystemExit as e: assert not e.code, (args, e.code)
assert home().name == 'ich_soups' and '.cache' in str(home()), home()
do('train', 'scenes17:300', '--size', '32', '--epochs', '2', '--arch', 'test_coatnet', '--out', 'run')
do('cook', 'run', '--out', 'soup.safetensors')
do('eval', 'soup.safetensors', '--data', 'scenes17:300')
do('report', 'run', '--out', 'report.html')
"""
PARTS = ('fastcore', 'fasttransform', 'fastprogress', 'fastdownload', 'plum-dispatch')


OLDEST = pytest.param(
    '2.8.7', ['fastcore==1.12.3', 'fastprogress==1.0.3'], id='oldest', marks=pytest.mark.slow
)


@pytest.mark.parametrize('version, more', [OLDEST, pytest.param('2.8.12', PARTS, id='newest')])
def test_a_session_with_the_wheel_alone(wheel, tmp_path, version, more):
    "From training to the report, outside of the checkout, with every optional package absent."
    pip('install', '--no-deps', '--target', str(tmp_path / 'site'), str(wheel), f'fastai=={version}', *more)
    env = os.environ | dict(PYTHONPATH=str(tmp_path / 'site'), HOME=str(tmp_path), OMP_NUM_THREADS='1')
    env.pop('ICH_SOUPS_HOME', None)
    out = subprocess.run(
        [sys.executable, '-c', SESSION, version, str(tmp_path / 'site')],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert out.returncode == 0, out.stderr[-3000:]
    assert {p.name for p in tmp_path.iterdir()} >= {'run', 'soup.safetensors', 'report.html'}
