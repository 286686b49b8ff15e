"Shared by the tests: throw-away homes, drawn photographs, and the real ones where they are."

import os
from collections import Counter
from pathlib import Path
import pytest
import ich_soups  # noqa: F401  before anything that brings torch: how long its threads turn is read once
from PIL import Image
from ich_soups.data.scenes import scenes17

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def home(tmp_path, monkeypatch):
    "An empty home for runs and caches."
    monkeypatch.setenv('ICH_SOUPS_HOME', str(tmp_path / 'home'))
    return tmp_path / 'home'


@pytest.fixture(scope='session')
def drawn():
    return scenes17(17 * 12, 32, noise=0)


@pytest.fixture
def photos(tmp_path, drawn):
    "A folder of three classes, twelve drawn images each."
    for c, name in enumerate(('Chợ nổi', 'Đua ghe ngo', 'Đờn ca tài tử')):
        (tmp_path / 'photos' / name).mkdir(parents=True)
        for i, im in enumerate(drawn.images[drawn.labels == c][:12]):
            Image.fromarray(im).save(tmp_path / 'photos' / name / f'ảnh {i}.jpg')
    return tmp_path / 'photos'


@pytest.fixture
def ahe10():
    "The photographs of Architectural Heritage Elements."
    if not os.environ.get('AHE10'):
        pytest.skip('to run this, set AHE10 to the folder of Architectural Heritage Elements')
    return Path(os.environ['AHE10'])


def pytest_terminal_summary(terminalreporter):
    "Seconds of each file of tests, fixtures included, which `ich_soups.companion.build times` reads."
    seconds = Counter()
    for reports in terminalreporter.stats.values():
        for r in reports:
            if hasattr(r, 'nodeid') and hasattr(r, 'duration'):
                seconds[r.nodeid.split('::')[0].split('/')[-1]] += r.duration
    terminalreporter.section('seconds of each file')
    for name, s in seconds.most_common():
        terminalreporter.write_line(f'{name}: {s:.0f} s')


def put(folder, drawn, numbers, classes, name='{}.png'):
    "Files of drawn images, so many of each class."
    for c in classes:
        (folder / f'class {c}').mkdir(parents=True, exist_ok=True)
        images = drawn.images[drawn.labels == c]
        for i in numbers:
            Image.fromarray(images[i]).save(folder / f'class {c}' / name.format(i))
