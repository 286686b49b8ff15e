"The wheel holds the package and nothing else, and works without nbdev."
import subprocess, sys, zipfile
import pytest
from conftest import ROOT

MODULES = sorted(p.stem for p in (ROOT/'ich_soups').glob('*.py') if not p.stem.startswith('_'))


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    d = tmp_path_factory.mktemp('wheel')
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', str(d), str(ROOT)], check=True)
    return next(d.glob('*.whl'))


def test_contents(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split('/')[0] for n in names if '.dist-info' not in n} == {'ich_soups'}
    assert {f'ich_soups/{m}.py' for m in MODULES} <= set(names)


def test_it_works_outside_the_checkout_without_nbdev(wheel, tmp_path):
    subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--target', str(tmp_path/'site'), str(wheel)], check=True)
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path/'site')!r})
for m in ('nbdev', 'execnb', 'nbconvert', 'IPython', 'optuna', 'onnx', 'onnxruntime', 'mlxtend'): sys.modules[m] = None
import importlib
for m in {MODULES!r}: importlib.import_module('ich_soups.' + m)
import ich_soups
from ich_soups.core import home
assert ich_soups.__file__.startswith({str(tmp_path)!r}), ich_soups.__file__
assert home().name == 'ich_soups' and '.cache' in str(home()), home()
from ich_soups.scenes import scenes17
print(len(scenes17(34, 32).labels))
"""
    out = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert out.stdout.strip() == '34', out.stderr
