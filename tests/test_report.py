"The report in a real browser: it shows everything, asks nobody for anything, and fits a phone and a sheet of paper."

import re, shutil, time
from types import SimpleNamespace
import numpy as np
import pytest
from PIL import Image
from ich_soups.evidence.unknown import calibration, verdicts
from ich_soups.evidence.comparison import Candidate, table
from ich_soups.core import BadInput, Config
from ich_soups.data.pictures import Pictures
from ich_soups.app import mistake_sections, model_sections, result_sections
from ich_soups.app.evidence import Evidence, same_data
from ich_soups.app.page import render
from ich_soups.app.report import write_report
from ich_soups.train.runs import get_run

HOSTILE = ('<script>alert(1)<', 'Đờn ca tài tử', 'two\nlines "q" & \'s\'', '$x^{_ **bold** `code`')
FLAGS = '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'.split()


def fill(folder, images, sizes, name='<img src=x onerror=alert({i})> ảnh\n{i}.png'):
    "A folder of class folders: `sizes` is {class: how many}."
    images = iter(images)
    for c, n in sizes.items():
        (folder / c).mkdir(parents=True)
        for i in range(n):
            Image.fromarray(next(images)).save(folder / c / name.format(i=i))
    return folder


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A folder with a space and an accent in its name, which is the home too."
    with pytest.MonkeyPatch.context() as m:
        d = tmp_path_factory.mktemp('bản báo cáo')
        m.setenv('ICH_SOUPS_HOME', str(d / 'home'))
        yield d


@pytest.fixture(scope='module')
def runs(place, drawn):
    "Two seeds of a small training on classes with hostile names."
    data = fill(place / 'ảnh <b>', drawn.images, dict(zip(HOSTILE, (40, 24, 24, 12))))
    cfg = Config.scratch(
        data=str(data), size=32, epochs=3, bs=16, cycle=1, k=3, monitor=('accuracy', 'valid_loss')
    )
    return [get_run(cfg.replace(seed=s)) for s in range(2)]


@pytest.fixture(scope='module')
def written(runs, place):
    return write_report(
        runs,
        place / 'new folder' / 'báo cáo 1.html',
        title='<b>"Báo cáo"</b>',
        command='ich-soups report "x" <y>',
    )


@pytest.fixture(scope='module')
def browser():
    if not shutil.which('chromium'):
        pytest.skip('to run this, install chromium: apt install chromium')
    sync = pytest.importorskip('playwright.sync_api', reason="to run this, pip install 'ich_soups[dev]'")
    with sync.sync_playwright() as p:
        b = p.chromium.launch(executable_path=shutil.which('chromium'), args=FLAGS)
        yield b
        b.close()


@pytest.fixture
def page(browser, written):
    "The report at the size of a phone; what it complained of and asked for is kept."
    p = browser.new_page(viewport=dict(width=390, height=844))
    p.said, p.asked = [], []
    p.on('console', lambda m: p.said.append(m.text))
    p.on('pageerror', lambda e: p.said.append(str(e)))
    p.on('dialog', lambda d: (p.said.append(d.message), d.dismiss()))
    p.on('request', lambda r: p.asked.append(r.url))
    p.goto(written.as_uri())
    yield p
    p.close()


WIDTHS = '[document.documentElement.scrollWidth, window.innerWidth]'


def test_it_asks_nobody_and_complains_of_nothing(page):
    page.wait_for_load_state('networkidle')
    assert page.said == []
    assert [u for u in page.asked if not u.startswith('data:')] == [page.url]


def test_every_picture_is_there_and_described(page):
    shown = page.evaluate("[...document.images].map(i => [i.complete && i.naturalWidth > 0, i.alt])")
    assert len(shown) > 10 and all(ok and alt.strip() for ok, alt in shown)


@pytest.mark.parametrize('width', [320, 390, 820, 1280])
def test_nothing_sticks_out(page, width):
    page.set_viewport_size(dict(width=width, height=800))
    full, seen = page.evaluate(WIDTHS)
    assert full <= seen


def test_names_are_text(page):
    text = page.evaluate('document.body.textContent')
    assert (
        all(c in text for c in HOSTILE)
        and '<img src=x onerror=alert(' in text
        and '<b>"Báo cáo"</b>' in page.title()
    )
    assert page.evaluate("document.querySelectorAll('script, main b, img[onerror]').length") == 0


def test_it_is_well_made(page):
    assert page.evaluate("document.querySelectorAll('h1').length") == 1
    links = page.evaluate("[...document.querySelectorAll('a')].map(a => a.getAttribute('href'))")
    assert len(links) >= 13 and all(page.evaluate('h => !!document.querySelector(h)', h) for h in links)
    assert page.evaluate(
        "[...document.querySelectorAll('table')].every(t => t.caption && t.querySelector('thead th[scope=col]'))"
    )
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))


def test_dark_and_printed(page):
    light = 'rgb(255, 255, 255)'
    ground = lambda q: page.evaluate(f"getComputedStyle(document.querySelector('{q}')).backgroundColor")
    page.emulate_media(color_scheme='dark')
    assert ground('body') != light and ground('.plot') == light
    page.emulate_media(color_scheme='dark', media='print')
    assert (
        ground('body') == light
        and page.evaluate("getComputedStyle(document.querySelector('nav')).position") == 'static'
    )
    page.set_viewport_size(dict(width=688, height=1000))  # what A4 leaves between the margins, in CSS pixels
    assert np.subtract(*page.evaluate(WIDTHS)) <= 0
    assert page.evaluate(
        "[...document.querySelectorAll('table')].every(t => t.offsetParent === null || t.getBoundingClientRect().right <= innerWidth)"
    )
    pdf = page.pdf(prefer_css_page_size=True)
    assert pdf[:5] == b'%PDF-' and 4 <= len(re.findall(rb'/Type\s*/Page\b', pdf)) <= 20


def test_what_it_says(written, runs):
    text = written.read_text(encoding='utf-8')
    assert written.stat().st_size < 4_000_000 and 'http' not in re.sub('http-equiv', '', text)
    for s in (
        'What not to conclude',
        'Over several trainings',
        'Bias against variance',
        'The test images were read once',
        runs[0].provenance['data'],
        'ich-soups report &#34;x&#34; &lt;y&gt;',
    ):
        assert s in text
    assert all(s.sha256 in text for r in runs for s in r.snapshots)


def test_runs_that_do_not_go_together(runs, place, drawn):
    other = get_run(
        runs[0].cfg.replace(data=str(fill(place / 'other', drawn.images[::-1], dict(a=12, b=12))), epochs=1)
    )
    with pytest.raises(BadInput, match='trained on other images'):
        write_report([*runs, other], place / 'never.html')
    with pytest.raises(BadInput, match='given twice'):
        same_data([runs[0], runs[0]])
    (other.path / 'DONE').unlink()
    with pytest.raises(BadInput, match='not finished'):
        write_report(other.path, place / 'never.html')
    assert not list(place.glob('*never.html*'))


def test_pictures_that_have_changed(runs, place):
    f = next((place / 'ảnh <b>' / HOSTILE[0]).iterdir())
    data = f.read_bytes()
    try:
        Image.new('RGB', (32, 32)).save(f)
        with pytest.raises(BadInput, match='have changed since'):
            write_report(runs[0].path, place / 'never.html')
    finally:
        f.write_bytes(data)


@pytest.mark.filterwarnings('ignore:class .one')
def test_little_to_show(place, drawn, browser):
    "Two classes, one of a single image; no BatchNorm; one snapshot."
    data = fill(place / 'few', drawn.images, dict(many=30, one=1))
    run = get_run(
        Config.scratch(data=str(data), arch='tiny_vit8', size=32, epochs=1, bs=8, k=1, monitor=('accuracy',))
    )
    f = write_report(run, place / 'few.html')
    text = f.read_text(encoding='utf-8')
    for s in ('A map needs three snapshots', '1 class has no test image', 'needs several runs'):
        assert s in text
    assert 'fresh BN' not in text and 'soft voting of' not in text
    p = browser.new_page(viewport=dict(width=390, height=844))
    p.goto(f.as_uri())
    assert (
        p.evaluate("[...document.images].every(i => i.naturalWidth > 0)")
        and np.subtract(*p.evaluate(WIDTHS)) <= 0
    )
    p.close()


@pytest.mark.parametrize('n', [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_thousand_classes(place, drawn, n):
    "Tables are cut, drawings too, and nothing of a thousand by a thousand is made a thousand times."
    small = np.tile(drawn.images, (15, 1, 1, 1))[:3000] + np.arange(3000, dtype=np.uint8)[:, None, None, None]
    data = fill(
        place / f'wide {n}',
        small[:, ::2, ::2],
        {f'class {i:04d} of a long name': 3 for i in range(n)},
        '{i}.bmp',
    )
    run, t0 = (
        get_run(Config.scratch(data=str(data), arch='tiny_vit8', size=32, epochs=1, k=1)),
        time.process_time(),
    )
    f = write_report(run, place / f'wide {n}.html')
    text = f.read_text(encoding='utf-8')
    assert f.stat().st_size < 4_000_000 and time.process_time() - t0 < 60
    assert (
        f'largest and the 24 smallest classes of {n:,}' in text
        and 'classes with most errors' in text
        and text.count('<tr') < 1200
    )


@pytest.mark.parametrize('n', [4_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_a_hundred_thousand_pictures(n):
    "The sections about images, on logits that are made up."
    r, c = np.random.default_rng(0), 10
    labels, part = (
        r.integers(0, c, n),
        np.where(np.arange(n) % 2, 'test', np.where(np.arange(n) % 20, 'train', 'val')),
    )
    pics = Pictures(
        'many',
        [f'c{i}' for i in range(c)],
        labels,
        part,
        [f'p{i}' for i in range(n)],
        [str(i) for i in range(n)],
        np.zeros((n, 8, 8, 3), np.uint8),
    )
    targs = lambda split: labels[pics.idxs(split)]
    made = lambda split, s: (r.normal(size=(len(targs(split)), c)) + s * np.eye(c)[targs(split)]).astype(
        np.float32
    )
    run, t0 = (
        SimpleNamespace(
            pictures=pics, classes=pics.classes, targs=targs, cfg=Config.scratch(data='many', size=8)
        ),
        time.process_time(),
    )
    cands = {
        'single best': Candidate('control', made('test', 2)),
        'a soup': Candidate('soup', made('test', 2.1)),
    }
    e = Evidence(
        run,
        {'a soup': SimpleNamespace(coefs=[1.0], weights={}, info={})},
        cands,
        table(cands, targs('test')),
        {'single best': made('val', 2), 'a soup': made('val', 2.2)},
        1,
        2,
    )
    run.calibration = lambda weights: calibration(e.val['a soup'], targs('val'))
    run.verdicts = lambda weights, told: verdicts(e.logits('a soup'), **told)
    assert (e.best, e.soup, e.single) == ('a soup', 'a soup', 'single best')
    of_results = [getattr(result_sections, f'{s}_section')(e) for s in ('data', 'samples', 'results')]
    of_models = [getattr(mistake_sections, f'{s}_section')(e) for s in ('confusion', 'classes', 'mistakes')]
    of_models.append(model_sections.calibration_section(e))
    assert len(render('many', [], of_results + of_models)) < 2_000_000 and time.process_time() - t0 < 60
