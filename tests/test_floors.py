"The versions that we ask for lie past the holes that our code would reach: SECURITY.md, settings.ini and this environment agree."

import re
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, version
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from conftest import ROOT

pytestmark = pytest.mark.quick

READS_STRANGERS = ('torch', 'gradio', 'ray', 'pillow', 'pillow-heif', 'filelock')


def table():
    "`{package: (least version, why)}` of SECURITY.md."
    rows = re.findall(
        r'^\| ([\w-]+) \| ([\d.]+) \| (.+) \|$', (ROOT / 'SECURITY.md').read_text(encoding='utf-8'), re.M
    )
    return {name: (Version(least), why) for name, least, why in rows}


def required():
    "`{package: [Requirement]}` of settings.ini, the extras among them."
    parser, out = ConfigParser(delimiters=['='], interpolation=None), {}
    parser.read(ROOT / 'settings.ini', encoding='utf-8')
    for key, words in parser['DEFAULT'].items():
        if key.endswith('requirements'):
            for r in map(Requirement, words.split()):
                out.setdefault(r.name.lower(), []).append(r)
    return out


@pytest.mark.parametrize('name', READS_STRANGERS)
def test_settings_ask_for_the_versions_of_the_table(name):
    least, why = table()[name]
    assert re.search(r'CVE-20\d\d-\d+', why) and why.endswith('.')
    assert required()[name]
    for r in required()[name]:
        assert [Version(s.version) for s in r.specifier if s.operator == '>='] == [least], r
        below = (
            Version(f'{least.major}.{max(0, least.minor - 1)}.99')
            if least.minor
            else Version(f'{least.major - 1}.99')
        )
        assert least in r.specifier and below not in r.specifier, r


def test_the_table_has_no_other_rows():
    assert tuple(table()) == READS_STRANGERS


@pytest.mark.parametrize('name', READS_STRANGERS)
def test_what_is_installed_is_new_enough(name):
    try:
        have = Version(version(name))
    except PackageNotFoundError:
        pytest.skip(f'to run this, install {name}: make setup brings all of them')
    assert have >= table()[name][0]
    assert all(have in r.specifier for r in required()[name])


def test_everything_installed_fits_what_settings_ask_for():
    for name, asked in required().items():
        try:
            have = Version(version(name))
        except PackageNotFoundError:
            continue
        assert all(r.specifier.contains(have, prereleases=True) for r in asked), (name, have, asked)


@pytest.mark.parametrize(
    'promise', ['never run', 'uploaded anywhere', 'for this machine', 'not promised', 'How to report']
)
def test_security_md_says_what_is_promised(promise):
    assert promise in (ROOT / 'SECURITY.md').read_text(encoding='utf-8')


def test_every_requirement_has_a_floor():
    "The nightly job installs all of them at once; a name without one would be tried at its newest alone."
    parser = ConfigParser(delimiters=['='], interpolation=None)
    parser.read(ROOT / 'settings.ini', encoding='utf-8')
    assert not [w for w in parser['DEFAULT']['requirements'].split() if '>=' not in w]


def test_the_lock_file_holds_every_requirement():
    "`make lock` wrote it after the last change of settings.ini: each name is there, at a version that fits."
    text = (ROOT / 'requirements.lock').read_text(encoding='utf-8')
    locked = {canonicalize_name(n): v for n, v in re.findall(r'^([\w.-]+)==([\w.+!-]+)', text, re.M)}
    assert text.count('--hash=sha256:') >= len(locked)
    for name, asked in required().items():
        found = locked.get(canonicalize_name(name))
        assert found, f'{name} is not in requirements.lock; make lock'
        assert all(r.specifier.contains(found, prereleases=True) for r in asked), f'{name}; make lock'
