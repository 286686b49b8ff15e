"The page in a real browser: upload, answer, a bad file, two people at once; and what it must not do."
import io, os, shutil, socket, sys
from urllib.parse import urlparse
import pytest
from PIL import Image
from ich_soups.compare import cook
from ich_soups.core import BadInput, Config
from ich_soups.training import get_run

pytest.importorskip('gradio', reason="to run this, pip install 'ich_soups[demo]'")
pytest.importorskip('captum', reason="to run this, pip install 'ich_soups[demo]'")
import httpx
from ich_soups import demo
from ich_soups.export import to_onnx

CHROMIUM = os.environ.get('CHROMIUM') or shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
FLAGS = '--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'.split()
SHOTS = os.environ.get('ICH_SOUPS_SHOTS')     # a folder for screenshots, to look at


@pytest.fixture(scope='module')
def served(tmp_path_factory):
    "The page of a small run's soup: blocks, address, run."
    at = tmp_path_factory.mktemp('demo')
    old = {k: os.environ.get(k) for k in ('ICH_SOUPS_HOME', 'GRADIO_TEMP_DIR')}
    os.environ.update(ICH_SOUPS_HOME=str(at/'home'), GRADIO_TEMP_DIR=str(at/'uploads'))
    run = get_run(Config.tiny(data='scenes17:400', size=32, epochs=3, bs=64, k=2))
    cook(run).save(at/'soup.safetensors')
    blocks = demo.build(at/'soup.safetensors', run=run)
    url = demo.start(blocks, block=False)
    yield blocks, url, run
    blocks.close()
    for k, v in old.items(): os.environ.pop(k) if v is None else os.environ.update({k: v})


@pytest.fixture(scope='module')
def browser():
    playwright = pytest.importorskip('playwright.sync_api', reason='to run this, pip install playwright, and install Chromium')
    if not CHROMIUM: pytest.skip('to run this, install Chromium (Debian: apt-get install chromium), or set CHROMIUM to its path')
    with playwright.sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield b
        b.close()


def scene(run, k, size=(360, 240)):
    "A test picture as an upload."
    i = run.pictures.idxs('test')[k]
    f = io.BytesIO(); Image.fromarray(run.pictures.array[i]).resize(size, Image.BICUBIC).save(f, 'jpeg', quality=92)
    return f.getvalue()


def person(browser, url, **kw):
    "A new visitor's page, and the hosts that it asked."
    page, hosts = browser.new_context(**kw).new_page(), set()
    page.set_default_timeout(60_000)
    page.on('request', lambda r: hosts.add(urlparse(r.url).hostname) if r.url.startswith('http') else None)
    page.goto(url); page.wait_for_selector('#photo input[type=file]', state='attached')
    return page, hosts


def give(page, data, name='photo.jpg'): page.set_input_files('#photo input[type=file]', dict(name=name, mimeType='image/jpeg', buffer=data))


def shot(page, name):
    if SHOTS: page.wait_for_timeout(400); page.screenshot(path=f'{SHOTS}/{name}.png', full_page=True)


def expected(blocks, data):
    "Class and per cent of the likeliest, as the page writes them."
    c = blocks.classifier
    p = c.probs([data])[0]
    return c.classes[p.argmax()], f'{100*p.max():.1f}'


def test_a_photo_gets_its_answer(served, browser):
    blocks, url, run = served
    page, hosts = person(browser, url, viewport=dict(width=1280, height=900))
    assert 'Drop a photo' in page.inner_text('#answer'); shot(page, 'empty')
    data = scene(run, 0)
    give(page, data); page.wait_for_selector('.answer .verdict')
    name, percent = expected(blocks, data)
    assert name in page.inner_text('.verdict') and percent in page.inner_text('.bars .first >> nth=0')
    assert page.locator('.bars').count() == 2 and page.locator('.bars li').count() == 10 and page.locator('.maps img').count() == 3 and page.locator('.alike img').count() == 6
    assert all(page.eval_on_selector_all('.answer img', 'els => els.map(e => e.naturalWidth > 0 && e.alt.length > 3)'))
    assert 'no proof' in page.inner_text('.answer') and 'Best single checkpoint' in page.inner_text('.answer'); shot(page, 'answer')
    assert hosts == {'127.0.0.1'}, hosts
    page.click('#examples button.thumbnail-item >> nth=1')
    want = blocks.classifier.classes[blocks.classifier.logits([demo.examples_of(run)[1][0]])[0].argmax()]
    page.wait_for_function('n => document.querySelector(".verdict b").innerText === n', arg=want.replace('_', ' ')); shot(page, 'example')
    page.context.close()


def test_a_bad_file_gets_a_friendly_sentence_and_the_next_one_an_answer(served, browser):
    blocks, url, run = served
    page, _ = person(browser, url)
    give(page, b'this is no picture', 'holiday.jpg'); page.wait_for_selector('.sorry')
    page.wait_for_selector('#photo img', state='detached')
    assert 'cannot be read as a picture' in page.inner_text('.sorry') and 'Traceback' not in page.content(); shot(page, 'bad')
    f = io.BytesIO(); Image.new('1', (20000, 20000)).save(f, 'png')
    page.reload(); give(page, f.getvalue(), 'large.png'); page.wait_for_selector('.sorry')
    assert 'too many pixels' in page.inner_text('.sorry')
    page.reload(); give(page, scene(run, 1)); page.wait_for_selector('.answer .verdict')
    page.context.close()


def test_two_people_at_once(served, browser):
    blocks, url, run = served
    people, data = [person(browser, url)[0] for _ in range(2)], [scene(run, 2), scene(run, 5)]
    for p, d in zip(people, data): give(p, d)
    for p, d in zip(people, data):
        p.wait_for_selector('.answer .verdict')
        name, percent = expected(blocks, d)
        assert name in p.inner_text('.verdict') and percent in p.inner_text('.bars .first >> nth=0')
        p.context.close()


def test_a_phone_and_the_dark(served, browser):
    "Nothing sticks out at the side of a phone; colours follow the wish for darkness."
    blocks, url, run = served
    page, _ = person(browser, url, viewport=dict(width=390, height=844), device_scale_factor=2, color_scheme='dark', is_mobile=True, has_touch=True)
    give(page, scene(run, 3)); page.wait_for_selector('.answer .verdict')
    assert page.evaluate('document.documentElement.scrollWidth') <= 390
    page.wait_for_function('(r => r.top >= 0 && r.bottom <= innerHeight)(document.querySelector(".verdict").getBoundingClientRect())')     # nobody has to search for it
    assert page.evaluate('getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).every(v => v < 80)')
    shot(page, 'phone')     # last: a picture of the whole page scrolls it
    page.context.close()


def ask(at, path, **more):
    "What the queue says to a client that names a file of its own choosing."
    r = httpx.post(f'{at}gradio_api/call/classify', json=dict(data=[dict(path=path, meta=dict(_type='gradio.FileData'), **more)]), timeout=30)
    if r.status_code != 200: return r.text
    return httpx.get(f"{at}gradio_api/call/classify/{r.json()['event_id']}", timeout=30).text


def test_no_path_of_the_client_is_opened(served, tmp_path):
    "A real picture outside of the uploads, by its path, by a detour, by an address: refused. The same picture uploaded: answered."
    blocks, url, run = served
    secret = tmp_path/'secret.jpg'; secret.write_bytes(scene(run, 0))
    up = httpx.post(f'{url}gradio_api/upload', files=dict(files=('a.jpg', secret.read_bytes()))).json()[0]
    assert 'verdict' in ask(url, up)
    for path in (str(secret), f'{os.path.dirname(up)}/../../../{os.path.relpath(secret, "/")}', os.path.relpath(secret), f'file://{secret}', '/etc/hostname'):
        answer = ask(url, path)
        assert 'event: error' in answer and 'verdict' not in answer, path
    for path in (secret, '/etc/hostname'): assert httpx.get(f'{url}gradio_api/file={path}').status_code in (403, 404)
    assert blocks.allowed_paths == [] and blocks.share is False


def test_no_address_is_fetched(served):
    "Not even one of this machine, which would answer."
    _, url, _ = served
    with socket.create_server(('127.0.0.1', 0)) as s:
        s.settimeout(.5)
        for there in (f'http://127.0.0.1:{s.getsockname()[1]}/a.jpg', 'https://example.org/a.jpg'):
            assert 'event: error' in ask(url, there) and 'event: error' in ask(url, there, url=there)
        with pytest.raises(TimeoutError): s.accept()


def test_it_listens_to_this_machine_alone_and_takes_no_large_files(served):
    blocks, url, _ = served
    assert urlparse(url).hostname == '127.0.0.1' and blocks.server_name == '127.0.0.1' and not blocks.analytics_enabled
    other = next((a[4][0] for a in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET) if not a[4][0].startswith('127.')), None)
    if other:
        with pytest.raises(OSError): socket.create_connection((other, urlparse(url).port), timeout=2).close()
    r = httpx.post(f'{url}gradio_api/upload', files=dict(files=('a.jpg', b'0'*(demo.MOST_BYTES+1))))
    assert r.status_code == 413
    with pytest.raises(BadInput, match='choose another port'): demo.start(demo.build(blocks.classifier), port=urlparse(url).port, block=False)


def test_building_and_serving_ask_nothing_of_the_network(served, monkeypatch, tmp_path):
    blocks, _, run = served
    asked, real = [], socket.getaddrinfo
    monkeypatch.setattr(socket, 'getaddrinfo', lambda host, *a, **kw: (asked.append(host), real(host, *a, **kw))[1])
    b = demo.build(blocks.classifier, examples=[scene(run, 0)])
    url = demo.start(b, block=False)
    assert httpx.get(url).status_code == 200
    b.close()
    assert {h.decode() if isinstance(h, bytes) else h for h in asked} <= {'127.0.0.1', 'localhost', '0.0.0.0'}, asked


def test_serving_an_onnx_file(served, tmp_path, monkeypatch, capsys):
    "The whole of `serve`: a folder of its own for uploads, the address said, an answer without a map."
    blocks, _, run = served
    file, made, build = to_onnx(blocks.classifier, tmp_path/'my soup.onnx'), [], demo.build
    monkeypatch.delenv('GRADIO_TEMP_DIR'); monkeypatch.setattr(demo, 'build', lambda *a, **kw: made.append(build(*a, **kw)) or made[0])
    url = demo.serve(file, run=run, block=False)
    own = os.environ['GRADIO_TEMP_DIR']
    up = httpx.post(f'{url}gradio_api/upload', files=dict(files=('a.jpg', scene(run, 0)))).json()[0]
    answer = ask(url, up)
    made[0].close()
    assert up.startswith(own) and 'ich-soups-page' in own and f'{url}  open this in a browser' in capsys.readouterr().err
    assert 'keeps no gradients' in answer and 'most alike' in answer and expected(blocks, scene(run, 0))[0] in answer


def test_without_gradio_it_says_what_to_install(served, monkeypatch):
    monkeypatch.setitem(sys.modules, 'gradio', None)
    with pytest.raises(BadInput, match=r"pip install 'ich_soups\[demo\]'"): demo.build(served[0].classifier)
