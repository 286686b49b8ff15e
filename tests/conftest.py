"Shared by the tests: throw-away homes, drawn photographs, and the real ones where they are."
import os
from pathlib import Path
import pytest
from PIL import Image
from ich_soups.scenes import scenes17

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure(config): config.addinivalue_line('markers', "slow: takes more than half a minute; leave out with -m 'not slow'")


@pytest.fixture
def home(tmp_path, monkeypatch):
    "An empty home for runs and caches."
    monkeypatch.setenv('ICH_SOUPS_HOME', str(tmp_path/'home'))
    return tmp_path/'home'


@pytest.fixture(scope='session')
def drawn():
    return scenes17(17*12, 32, noise=0)


@pytest.fixture
def photos(tmp_path, drawn):
    "A folder of three classes, twelve drawn pictures each."
    for c, name in enumerate(('Chợ nổi', 'Đua ghe ngo', 'Đờn ca tài tử')):
        (tmp_path/'photos'/name).mkdir(parents=True)
        for i, im in enumerate(drawn.images[drawn.labels == c][:12]): Image.fromarray(im).save(tmp_path/'photos'/name/f'ảnh {i}.jpg')
    return tmp_path/'photos'


@pytest.fixture
def ahe10():
    "The photographs of Architectural Heritage Elements."
    if not os.environ.get('AHE10'): pytest.skip('to run this, set AHE10 to the folder of Architectural Heritage Elements')
    return Path(os.environ['AHE10'])
