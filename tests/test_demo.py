"The page in a real browser: upload, answer, a bad file, two people at once; and what it must not do."

import concurrent.futures, io, json, os, re, shutil, signal, socket
import struct, subprocess, sys, tempfile, threading, time, zlib
from urllib.parse import urlparse
import numpy as np
import pytest
from PIL import Image
from ich_soups.soups.cook import cook
from ich_soups.core import BadInput, Config
from ich_soups.files import _machine
from ich_soups.data.decoding import decode
from ich_soups.train.runs import get_run

pytest.importorskip('gradio', reason="to run this, pip install 'ich_soups[demo]'")
pytest.importorskip('captum', reason="to run this, pip install 'ich_soups[demo]'")
import httpx
from ich_soups.app import answer, demo, guard, upload, visits
from ich_soups.app.onnx_export import to_onnx
from ich_soups.app.from_run import examples_of
from ich_soups.app.visits import COOKIE

CHROMIUM = (
    os.environ.get('CHROMIUM')
    or shutil.which('chromium')
    or shutil.which('chromium-browser')
    or shutil.which('google-chrome')
)
FLAGS = '--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'.split()
SHOTS = os.environ.get('ICH_SOUPS_SHOTS')  # a folder for screenshots, to look at


@pytest.fixture(scope='module')
def served(tmp_path_factory):
    "The page of a small run's soup: blocks, address, run."
    at = tmp_path_factory.mktemp('demo')
    old = {k: os.environ.get(k) for k in ('ICH_SOUPS_HOME', 'GRADIO_TEMP_DIR')}
    os.environ.update(ICH_SOUPS_HOME=str(at / 'home'), GRADIO_TEMP_DIR=str(at / 'uploads'))
    run = get_run(Config.scratch(data='scenes17:400', size=32, epochs=3, bs=64, k=2))
    cook(run).save(at / 'soup.safetensors')
    blocks = demo.build(at / 'soup.safetensors', run=run)
    url = demo.start(blocks, block=False)
    yield blocks, url, run
    blocks.close()
    for k, v in old.items():
        os.environ.pop(k) if v is None else os.environ.update({k: v})


@pytest.fixture(scope='module')
def browser():
    playwright = pytest.importorskip(
        'playwright.sync_api', reason='to run this, pip install playwright, and install Chromium'
    )
    if not CHROMIUM:
        pytest.skip(
            'to run this, install Chromium (Debian: apt-get install chromium), or set CHROMIUM to its path'
        )
    with playwright.sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield b
        b.close()


def scene(run, k, size=(360, 240)):
    "A test image as an upload."
    i = run.pictures.idxs('test')[k]
    f = io.BytesIO()
    Image.fromarray(run.pictures.array[i]).resize(size, Image.BICUBIC).save(f, 'jpeg', quality=92)
    return f.getvalue()


def person(browser, url, **kw):
    "A new visitor's page, and the hosts that it asked."
    page, hosts = browser.new_context(**kw).new_page(), set()
    page.set_default_timeout(60_000)
    page.on('request', lambda r: hosts.add(urlparse(r.url).hostname) if r.url.startswith('http') else None)
    page.goto(url)
    page.wait_for_selector('#photo input[type=file]', state='attached')
    return page, hosts


def give(page, data, name='photo.jpg'):
    page.set_input_files('#photo input[type=file]', dict(name=name, mimeType='image/jpeg', buffer=data))


def shot(page, name):
    if SHOTS:
        page.wait_for_timeout(400)
        page.screenshot(path=f'{SHOTS}/{name}.png', full_page=True)


def expected(blocks, data):
    "Class and per cent of the likeliest, as the page writes them."
    c = blocks.classifier
    p = c.probs([data])[0]
    return c.classes[p.argmax()], f'{100 * p.max():.1f}'


def test_a_photo_gets_its_answer(served, browser):
    blocks, url, run = served
    page, hosts = person(browser, url, viewport=dict(width=1280, height=900))
    assert 'Drop a photo' in page.inner_text('#answer')
    shot(page, 'empty')
    data = scene(run, 0)
    give(page, data)
    page.wait_for_selector('.answer .verdict')
    name, percent = expected(blocks, data)
    assert name in page.inner_text('.verdict') and percent in page.inner_text('.bars .first >> nth=0')
    assert (
        page.locator('.bars').count() == 2
        and page.locator('.bars li').count() == 10
        and page.locator('.maps img').count() == 3
        and page.locator('.alike img').count() == 6
    )
    assert all(
        page.eval_on_selector_all(
            '.answer img', 'els => els.map(e => e.naturalWidth > 0 && e.alt.length > 3)'
        )
    )
    assert 'no proof' in page.inner_text('.answer') and 'Best single checkpoint' in page.inner_text('.answer')
    shot(page, 'answer')
    assert hosts == {'127.0.0.1'}, hosts
    page.click('#examples button.thumbnail-item >> nth=1')
    want = blocks.classifier.classes[blocks.classifier.logits([examples_of(run)[1][0]])[0].argmax()]
    page.wait_for_function(
        'n => document.querySelector(".verdict b").innerText === n', arg=want.replace('_', ' ')
    )
    shot(page, 'example')
    page.context.close()


def test_a_bad_file_gets_a_friendly_sentence_and_the_next_one_an_answer(served, browser):
    blocks, url, run = served
    page, _ = person(browser, url)
    give(page, b'this is no picture', 'holiday.jpg')
    page.wait_for_selector('.sorry')
    page.wait_for_selector('#photo img', state='detached')
    assert 'cannot be read as an image' in page.inner_text('.sorry') and 'Traceback' not in page.content()
    shot(page, 'bad')
    f = io.BytesIO()
    Image.new('1', (20000, 20000)).save(f, 'png')
    page.reload()
    give(page, f.getvalue(), 'large.png')
    page.wait_for_selector('.sorry')
    assert 'too many pixels' in page.inner_text('.sorry')
    page.reload()
    give(page, scene(run, 1))
    page.wait_for_selector('.answer .verdict')
    page.context.close()


def test_two_people_at_once(served, browser):
    blocks, url, run = served
    people, data = [person(browser, url)[0] for _ in range(2)], [scene(run, 2), scene(run, 5)]
    for p, d in zip(people, data):
        give(p, d)
    for p, d in zip(people, data):
        p.wait_for_selector('.answer .verdict')
        name, percent = expected(blocks, d)
        assert name in p.inner_text('.verdict') and percent in p.inner_text('.bars .first >> nth=0')
        p.context.close()


def test_a_phone_and_the_dark(served, browser):
    "Nothing sticks out at the side of a phone; colours follow the wish for darkness."
    blocks, url, run = served
    page, _ = person(
        browser,
        url,
        viewport=dict(width=390, height=844),
        device_scale_factor=2,
        color_scheme='dark',
        is_mobile=True,
        has_touch=True,
    )
    give(page, scene(run, 3))
    page.wait_for_selector('.answer .verdict')
    assert page.evaluate('document.documentElement.scrollWidth') <= 390
    page.wait_for_function(
        '(r => r.top >= 0 && r.bottom <= innerHeight)(document.querySelector(".verdict").getBoundingClientRect())'
    )  # nobody has to search for it
    assert page.evaluate(
        'getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).every(v => v < 80)'
    )
    shot(page, 'phone')  # last: an image of the whole page scrolls it
    page.context.close()


def ask(at, path, **more):
    "What the queue says to a client that names a file of its own choosing."
    r = httpx.post(
        f'{at}gradio_api/call/classify',
        json=dict(data=[dict(path=path, meta=dict(_type='gradio.FileData'), **more)]),
        timeout=30,
    )
    if r.status_code != 200:
        return r.text
    return httpx.get(f"{at}gradio_api/call/classify/{r.json()['event_id']}", timeout=30).text


def test_no_path_of_the_client_is_opened(served, tmp_path):
    "A real image outside of the uploads, by its path, by a detour, by an address: refused. The same image uploaded: answered."
    blocks, url, run = served
    secret = tmp_path / 'secret.jpg'
    secret.write_bytes(scene(run, 0))
    up = httpx.post(f'{url}gradio_api/upload', files=dict(files=('a.jpg', secret.read_bytes()))).json()[0]
    assert 'verdict' in ask(url, up)
    for path in (
        str(secret),
        f'{os.path.dirname(up)}/../../../{os.path.relpath(secret, "/")}',
        os.path.relpath(secret),
        f'file://{secret}',
        '/etc/hostname',
    ):
        answer = ask(url, path)
        assert 'event: error' in answer and 'verdict' not in answer, path
    for path in (secret, '/etc/hostname'):
        assert httpx.get(f'{url}gradio_api/file={path}').status_code in (403, 404)
    assert blocks.allowed_paths == [] and blocks.share is False


def call(at, value, route='call/classify', wrap=lambda v: dict(data=[v])):
    "What the queue says to a client that sends anything at all as a photo."
    r = httpx.post(f'{at}gradio_api/{route}', json=wrap(value), timeout=30)
    if r.status_code != 200:
        return r.text
    return httpx.get(f"{at}gradio_api/call/classify/{r.json()['event_id']}", timeout=30).text


META = dict(_type='gradio.FileData')
SHAPES = {
    'without meta': lambda p: dict(path=p),
    'meta of another kind': lambda p: dict(path=p, meta=dict(_type='x')),
    'meta is null': lambda p: dict(path=p, meta=None),
    'with meta': lambda p: dict(path=p, meta=META),
    'as an address of ours': lambda p: dict(path=p, url=f'/gradio_api/file={p}', meta=META),
    'address alone': lambda p: dict(url=f'file://{p}'),
    'a list': lambda p: [dict(path=p)],
    'nested': lambda p: dict(path=dict(path=p)),
    'nested deeper': lambda p: dict(image=dict(path=p, meta=META)),
    'a stream': lambda p: dict(path=p, is_stream=True, meta=META),
    'text': lambda p: p,
    'a size that is none': lambda p: dict(path=p, size='x'),
}


@pytest.fixture
def secret(tmp_path, served):
    "An image of this machine that nobody uploaded, and a place where nothing is."
    (tmp_path / 'diary.png').write_bytes(scene(served[2], 1))
    return tmp_path / 'diary.png', tmp_path / 'nothing.png'


@pytest.mark.parametrize('shape', SHAPES)
def test_nothing_but_uploads_is_opened_whatever_a_client_sends(served, secret, shape, monkeypatch):
    "The same sentence whether the file is there or not, whatever it is, and not one of them is looked at."
    _, url, run = served
    up = httpx.post(f'{url}gradio_api/upload', files=dict(files=('a.jpg', scene(run, 2)))).json()[0]
    planted = os.path.join(os.path.dirname(os.path.dirname(up)), 'planted.jpg')
    shutil.copy(secret[0], planted)
    there, missing = map(str, secret)
    paths = (
        there,
        missing,
        planted,
        os.path.dirname(up),
        up + '/',
        f'{os.path.dirname(up)}/../{os.path.relpath(up, os.path.dirname(os.path.dirname(up)))}',
        '/dev/zero',
        '/proc/self/environ',
        f'file://{there}',
        os.path.relpath(there),
    )
    looked, opened = [], visits.read_file
    monkeypatch.setattr(visits, 'read_file', lambda *a: looked.append(a[0]) or opened(*a))
    answers = {call(url, SHAPES[shape](p)) for p in paths}
    assert (
        len(answers) == 1
        and 'event: error' in next(iter(answers))
        and 'only what was uploaded' in next(iter(answers))
    ), answers
    assert not looked


@pytest.mark.parametrize(
    'route, wrap',
    [
        ('call/v2/classify', lambda v: dict(path=v)),
        ('call/v2/classify', lambda v: dict(photo=v)),
        ('run/classify', lambda v: dict(data=[v])),
        ('api/classify', lambda v: dict(data=[v])),
        ('queue/join', lambda v: dict(data=[v], fn_index=0, session_hash='s')),
        ('component_server', lambda v: dict(data=v, component_id=1, fn_name='preprocess', session_hash='s')),
        ('process_recording', lambda v: v),
    ],
)
def test_no_other_route_opens_files(served, secret, route, wrap):
    _, url, _ = served
    for value in (dict(path=str(secret[0])), dict(path=str(secret[0]), meta=META)):
        r = httpx.post(f'{url}gradio_api/{route}', json=wrap(value), timeout=30)
        text = r.text
        if 'event_id' in text:
            where = (
                'queue/data?session_hash=s' if 'queue' in route else f"call/classify/{r.json()['event_id']}"
            )
            text = httpx.get(f'{url}gradio_api/{where}', timeout=30).text
        assert 'verdict' not in text and 'webp;base64' not in text and str(secret[0]) not in text, text


NOBODY = (
    'x',
    '%5Cetc%5Cpasswd',
    '%252e%252e%252fetc',
    '..%2f..%2fetc',
    'classify%00',
    'v2/x',
    'v3/classify',
    '1',
)


@pytest.mark.parametrize('route', ('call', 'run', 'api'))
@pytest.mark.parametrize('name', NOBODY)
def test_a_call_of_what_is_not_there_is_no_error_of_the_page(served, route, name, capfd):
    _, url, _ = served
    r = httpx.post(f'{url}gradio_api/{route}/{name}', json=dict(data=[None]), timeout=30)
    assert 400 <= r.status_code < 500, (r.status_code, r.text)
    assert 'Traceback' not in capfd.readouterr().err


@pytest.mark.parametrize('event', (None, 'x', dict(index='x'), dict(index=10**9)))
@pytest.mark.parametrize('n', (-2, -1, 5, 10**9, None, 'x'))
def test_a_function_that_is_not_there_is_no_error_of_the_page(served, n, event, capfd):
    _, url, _ = served
    call = dict(data=[None], fn_index=n, session_hash='nonsense', event_data=event)
    r = httpx.post(f'{url}gradio_api/queue/join', json=call, timeout=30)
    assert 400 <= r.status_code < 500, (r.status_code, r.text)
    said = capfd.readouterr().err
    assert 'Traceback' not in said and len(said) < 200, said


EVENTS = (
    None,
    'x',
    3,
    [1],
    {},
    dict(index='x'),
    dict(index=[0, 1]),
    dict(index=1.0, value='x'),
    dict(index=True),
    dict(index=-1),
    dict(index=10**9),
    dict(index=None),
)


@pytest.mark.parametrize('route', ('queue/join', 'run/x', 'api/x', 'call/x'))
@pytest.mark.parametrize('event', EVENTS, ids=str)
def test_functions_that_are_there_take_no_odd_call(served, route, event, capfd):
    "Those of the browser alone have no code here; that of the examples looks at what the event says."
    blocks, url, _ = served
    for n, fn in blocks.fns.items():
        call = dict(data=[], fn_index=n, session_hash='odd', event_data=event)
        r = httpx.post(f'{url}gradio_api/{route}', json=call, timeout=30)
        assert r.status_code == 200 and fn.fn or 400 <= r.status_code < 500, (n, r.status_code, r.text)
        if r.status_code == 200 and route == 'queue/join' and fn.fn.__name__ == 'take':
            said = httpx.get(f'{url}gradio_api/queue/data?session_hash=odd', timeout=30).text
            assert 'no such example' in said and 'webp;base64' not in said
    said = capfd.readouterr().err
    assert 'Traceback' not in said and len(said) < 1000, said


def test_an_example_is_taken_by_its_number(served):
    blocks, url, _ = served
    n = next(n for n, fn in blocks.fns.items() if getattr(fn.fn, '__name__', '') == 'take')
    call = dict(data=[], fn_index=n, session_hash='taken', event_data=dict(index=1, value='x'))
    assert httpx.post(f'{url}gradio_api/queue/join', json=call, timeout=30).status_code == 200
    assert 'verdict' in httpx.get(f'{url}gradio_api/queue/data?session_hash=taken', timeout=30).text


def test_answers_tell_browsers_to_be_careful(served):
    _, url, _ = served
    for path, head in (
        ('', {}),
        ('config', {}),
        ('gradio_api/file=/etc/passwd', {}),
        ('', dict(host='evil')),
    ):
        r = httpx.get(f'{url}{path}', headers=head)
        assert r.headers['x-content-type-options'] == 'nosniff'
        assert r.headers['cross-origin-resource-policy'] == r.headers['referrer-policy'] == 'same-origin'
        assert r.headers['x-frame-options'] == 'DENY'
        assert r.headers['content-security-policy'] == "frame-ancestors 'none'"


def test_files_are_served_of_that_visit_alone(served, secret):
    "Neither what lies beside the uploads, nor the upload of another visit; an example of the page to everybody."
    blocks, url, run = served
    me, you = (httpx.Client(base_url=url, headers={'accept': 'text/html'}) for _ in range(2))
    for c in (me, you):
        assert c.get('').cookies.get(COOKIE)
    up = me.post('gradio_api/upload', files=dict(files=('a.jpg', scene(run, 3)))).json()[0]
    other = os.path.join(os.path.dirname(os.path.dirname(up)), 'planted.jpg')
    shutil.copy(secret[0], other)
    got = lambda c, path: c.get(f'gradio_api/file={path}').status_code
    assert (got(me, up), got(you, up), got(me, other), got(me, secret[0]), got(you, blocks.own[0])) == (
        200,
        403,
        403,
        403,
        200,
    )

    def asked(c):
        r = c.post('gradio_api/call/classify', json=dict(data=[dict(path=up, meta=META)]))
        return c.get(f"gradio_api/call/classify/{r.json()['event_id']}").text

    assert 'verdict' in asked(me) and 'only what was uploaded' in asked(you)
    for path in ('http://127.0.0.1:1/', f'{up}/../../planted.jpg', '~/.bashrc'):
        assert got(me, path) == 403
    os.unlink(up)
    os.symlink(secret[0], up)  # what was uploaded is something else now
    assert 'only what was uploaded' in asked(me)


def test_the_photo_that_is_shown_is_what_the_model_sees(served):
    "For every kind of file and every upload of a visit: its own pixels, upright, on white, of the model's size."
    from test_world_photos import HEIC, uploads

    blocks, url, run = served
    me, you = (httpx.Client(base_url=url, headers={'accept': 'text/html'}, timeout=60) for _ in range(2))
    for c in (me, you):
        c.get('')
    kinds = uploads() | (dict(heic=HEIC) if 'HEIF' in Image.OPEN else {})
    for kind, data in kinds.items():
        up = me.post('gradio_api/upload', files=dict(files=(f'{kind}.jpg', data))).json()[0]
        r = me.post('gradio_api/call/classify', json=dict(data=[dict(path=up, meta=META)]))
        said = me.get(f"gradio_api/call/classify/{r.json()['event_id']}").text
        _, photo = json.loads(said.split('data: ')[-1])
        shown = me.get(f"gradio_api/file={photo['path']}")
        assert shown.status_code == 200 and you.get(f"gradio_api/file={photo['path']}").status_code == 403
        with Image.open(io.BytesIO(shown.content)) as im:
            seen = np.asarray(im)
        want = blocks.classifier.size
        assert seen.shape == (want, want, 3), kind
        assert abs(seen.astype(int) - decode(data, want).astype(int)).max() == 0, kind
    broken = me.post('gradio_api/upload', files=dict(files=('a.jpg', b'no picture'))).json()[0]
    r = me.post('gradio_api/call/classify', json=dict(data=[dict(path=broken, meta=META)]))
    said = me.get(f"gradio_api/call/classify/{r.json()['event_id']}").text
    assert json.loads(said.split('data: ')[-1])[1] is None  # what is broken is not left standing


@pytest.mark.parametrize(
    'host',
    [
        'evil.example',
        'evil.example:{port}',
        '127.0.0.1.evil.example',
        'localhost:{port}@evil.example',
        '192.168.7.9:{port}',
        '[::2]:{port}',
        'evil',
        '',
    ],
)
def test_it_answers_under_its_own_names_alone(served, host):
    "DNS rebinding: a strange name that points here."
    _, url, run = served
    head, port = dict(host=host.format(port=urlparse(url).port)), urlparse(url).port
    assert (
        httpx.get(f'{url}config', headers=head).status_code == 400 == httpx.get(url, headers=head).status_code
    )
    assert (
        httpx.options(
            f'{url}gradio_api/upload',
            headers=head | {'origin': 'http://evil.example', 'access-control-request-method': 'POST'},
        ).status_code
        == 400
    )
    r = httpx.post(
        f'{url}gradio_api/upload',
        files=dict(files=('a.jpg', scene(run, 0))),
        headers=head | dict(origin=f"http://{head['host']}"),
    )
    assert r.status_code == 400 and 'Use the address that it printed' in r.text
    for name in ('127.0.0.1', 'localhost', f'LOCALHOST:{port}', f'[::1]:{port}'):
        assert httpx.get(f'{url}config', headers=dict(host=name)).status_code == 200


@pytest.mark.parametrize(
    'origin',
    [
        'http://evil.example',
        'null',
        'http://127.0.0.1:1',
        'http://localhost',
        'https://127.0.0.1.evil.example',
    ],
)
def test_other_origins_may_neither_upload_nor_call(served, origin):
    _, url, run = served
    before, own = len(served[0].uploads.kept.get('', {})), url.rstrip('/')
    for head in (dict(origin=origin), {'origin': origin, 'sec-fetch-site': 'cross-site'}):
        assert (
            httpx.post(
                f'{url}gradio_api/upload', files=dict(files=('b.jpg', scene(run, 4))), headers=head
            ).status_code
            == 403
        )
        assert (
            httpx.post(f'{url}gradio_api/call/classify', json=dict(data=[None]), headers=head).status_code
            == 403
        )
    assert (
        httpx.post(
            f'{url}gradio_api/upload',
            files=dict(files=('b.jpg', b'x')),
            headers={'sec-fetch-site': 'cross-site'},
        ).status_code
        == 403
    )
    assert len(served[0].uploads.kept.get('', {})) == before
    assert (
        httpx.post(
            f'{url}gradio_api/call/classify', json=dict(data=[None]), headers=dict(origin=own)
        ).status_code
        == 200
    )


def form(*parts):
    "A form by hand: (line of the disposition, contents)."
    body = b''.join(
        b'--X\r\nContent-Disposition: form-data; '
        + d.encode()
        + b'\r\nContent-Type: image/jpeg\r\n\r\n'
        + b
        + b'\r\n'
        for d, b in parts
    )
    return dict(content=body + b'--X--\r\n', headers={'content-type': 'multipart/form-data; boundary=X'})


@pytest.mark.parametrize(
    'says',
    [
        'name="files"',
        'name="files"; filename=""',
        'name="files"; filename="."',
        'name="files"; filename=".."',
        'name="files"; filename="/"',
        'name="files"; filename="a/."',
        'name="files"; filename=" "',
        'name="other"; filename="a.jpg"',
        'filename="a.jpg"',
    ],
)
def test_uploads_need_a_name(served, says, capfd):
    "No traceback, no 500, and nothing left behind."
    blocks, url, _ = served
    before = set(os.listdir(blocks.uploads.folder))
    r = httpx.post(f'{url}gradio_api/upload', **form((says, b'x' * 100)))
    assert (
        r.status_code == 400
        and 'needs a file with a name' in r.text
        and 'Traceback' not in capfd.readouterr().err
    )
    assert set(os.listdir(blocks.uploads.folder)) == before


def test_bodies_are_bounded(served):
    "One image's worth of bytes, a few files, a call of a few letters; also without a length said before."
    blocks, url, run = served
    one = ('name="files"; filename="a.jpg"', b'x')
    assert httpx.post(f'{url}gradio_api/upload', **form(*[one] * guard.MOST_FILES)).status_code == 200
    for n in (guard.MOST_FILES + 1, 1000):
        assert httpx.post(f'{url}gradio_api/upload', **form(*[one] * n)).status_code in (400, 413)
    big = ('name="files"; filename="a.jpg"', bytes(upload.UPLOAD_BYTES // 2))
    assert httpx.post(f'{url}gradio_api/upload', **form(big, big, big)).status_code == 413

    def pieces():
        yield from [form(big)['content'][:-7]] + [bytes(1 << 20)] * 30

    assert httpx.post(
        f'{url}gradio_api/upload',
        content=iter([form(big, big, big)['content']]),
        headers=form(big)['headers'],
        timeout=60,
    ).status_code in (400, 413)
    assert (
        httpx.post(
            f'{url}gradio_api/upload', content=pieces(), headers=form(big)['headers'], timeout=60
        ).status_code
        == 413
    )
    json_head = {'content-type': 'application/json'}
    for route in ('call/classify', 'queue/join', 'run/classify'):
        assert (
            httpx.post(
                f'{url}gradio_api/{route}', json=dict(data=['x' * guard.MOST_JSON]), timeout=60
            ).status_code
            == 413
        )
        assert (
            httpx.post(
                f'{url}gradio_api/{route}',
                content=(b'"' + b'x' * 9999 for _ in range(20)),
                headers=json_head,
                timeout=60,
            ).status_code
            == 413
        )
    for odd in (dict(), dict(data=None), dict(data='x'), dict(data=[]), dict(data=[None] * 9)):
        assert 'verdict' not in call(url, odd, wrap=lambda v: v)


def begun(url, body=b''):
    "A connection that sent the head of an upload, and this much of it."
    at = urlparse(url)
    s = socket.create_connection((at.hostname, at.port), timeout=20)
    kind = 'Content-Type: multipart/form-data; boundary=X\r\nContent-Length: 100000'
    s.sendall(f'POST /gradio_api/upload HTTP/1.1\r\nHost: {at.netloc}\r\n{kind}\r\n\r\n'.encode() + body)
    return s


HALF = b'--X\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n' + b'x' * 50_000


def in_time(f, seconds=20):
    until = time.time() + seconds
    while not f() and time.time() < until:
        time.sleep(0.05)
    return f()


@pytest.mark.parametrize('body', [b'', HALF], ids=['head alone', 'half of a file'])
def test_idle_uploads_block_nobody(served, body):
    "Four hundred connections send the head of an upload and then nothing more; somebody else is answered as before."
    blocks, url, run = served
    before = set(os.listdir(blocks.uploads.folder))

    def took():
        t0 = time.perf_counter()
        photo = dict(files=('a.jpg', scene(run, 3)))
        up = httpx.post(f'{url}gradio_api/upload', files=photo, timeout=60).json()[0]
        assert 'verdict' in ask(url, up)
        return time.perf_counter() - t0

    alone = took()
    idle = [begun(url, body) for _ in range(400)]
    try:
        time.sleep(0.5)
        assert min(took() for _ in range(3)) < alone + 2  # a busy machine may delay some of them, not all
    finally:
        for s in idle:
            s.close()
    new = lambda: set(os.listdir(blocks.uploads.folder)) - before
    assert in_time(lambda: not [n for n in new() if n.startswith('tmp')])


@pytest.mark.parametrize('how', ['goes away', 'stands still'])
def test_half_an_upload_leaves_nothing(served, how, monkeypatch, capfd):
    "Neither on the disk nor on the console, and the connection is closed."
    blocks, url, _ = served
    monkeypatch.setattr(guard, 'IDLE', 1 if how == 'stands still' else 30)
    folder = blocks.uploads.folder
    before = set(os.listdir(folder))
    halves = [begun(url, HALF) for _ in range(20)]
    assert in_time(lambda: len(set(os.listdir(folder)) - before) >= 20) or how == 'stands still'
    if how == 'stands still':
        assert all(s.recv(1000).startswith(b'HTTP/1.1 400') for s in halves)
        assert all(s.recv(1000) == b'' for s in halves)  # closed by the page
    for s in halves:
        s.close()
    assert in_time(lambda: set(os.listdir(folder)) == before)
    assert capfd.readouterr().err == ''


def opened(url, said=b''):
    "A connection that said this much."
    at = urlparse(url)
    s = socket.create_connection((at.hostname, at.port), timeout=20)
    s.sendall(said.replace(b'HOST', at.netloc.encode()))
    return s


ASKED = b'GET /config HTTP/1.1\r\nHost: HOST\r\n'
BEGUN = {
    'nothing': b'',
    'half a word': b'GET / HTTP/1.1\r\nHo',
    'half a head': ASKED,
    'after an answer': ASKED + b'\r\n' + ASKED,
}


@pytest.mark.parametrize('name', BEGUN)
def test_heads_that_do_not_come_are_given_up(served, name, monkeypatch):
    monkeypatch.setattr(guard, 'IDLE', 1)
    waiting, t0 = [opened(served[1], BEGUN[name]) for _ in range(20)], time.time()
    for s in waiting:
        with s:
            said = b''.join(iter(lambda: s.recv(65536), b''))  # until the page closes
        assert (said[:15] == b'HTTP/1.1 200 OK') == (name == 'after an answer')
    assert time.time() - t0 < 8


def test_a_head_that_drips_is_given_up_and_one_that_is_slow_is_not(served, monkeypatch):
    monkeypatch.setattr(guard, 'IDLE', 2)
    with opened(served[1], ASKED + b'X-Drip: ') as drips, opened(served[1], ASKED) as slow:
        time.sleep(0.5)
        slow.sendall(b'Connection: close\r\n\r\n')
        assert slow.recv(15) == b'HTTP/1.1 200 OK'
        with pytest.raises(OSError):  # nobody is there any more
            for _ in range(40):
                drips.sendall(b'a')
                time.sleep(0.1)


@pytest.mark.parametrize('said', [b'', BEGUN['half a word'], ASKED], ids=['nothing', 'a word', 'half a head'])
def test_connections_that_ask_nothing_shut_nobody_out(served, said, monkeypatch):
    "A stream goes on, who asks is answered, and no more are open than may be."
    blocks, url, run = served
    monkeypatch.setattr(guard, 'MOST_CONNECTIONS', 30)
    stream = b'GET /gradio_api/heartbeat/me HTTP/1.1\r\nHost: HOST\r\n\r\n'
    with opened(url, stream) as living:
        assert living.recv(15) == b'HTTP/1.1 200 OK'
        many = [opened(url, said) for _ in range(100)]
        try:
            assert httpx.get(f'{url}config').status_code == 200
            assert in_time(lambda: len(blocks.server.server_state.connections) <= 30)
            living.settimeout(0.2)
            with pytest.raises(TimeoutError):  # it is open, and says nothing
                while living.recv(65536):
                    pass
        finally:
            for s in many:
                s.close()


def test_connections_are_fewer_than_files(monkeypatch):
    resource = pytest.importorskip('resource', reason='to run this, use a system with limits of files')
    for files, most in ((100, 50), (1, 1), (10**6, guard.MOST_CONNECTIONS), (-1, guard.MOST_CONNECTIONS)):
        monkeypatch.setattr(resource, 'getrlimit', lambda _: (files, files))
        assert guard.most_connections() == most


def raw(url, text):
    "The answer to a request as it stands here."
    at = urlparse(url)
    with socket.create_connection((at.hostname, at.port), timeout=20) as s:
        s.sendall(text.format(host=at.netloc).replace('\n', '\r\n').encode('latin-1') + b'\r\n\r\n')
        return b''.join(iter(lambda: s.recv(65536), b'')).decode('latin-1')


RAW = {
    'two hosts': ('GET /config HTTP/1.1\nHost: evil.example\nHost: {host}\nConnection: close', 400),
    'no host': ('GET /config HTTP/1.0', 400),
    'a websocket': (
        'GET /gradio_api/queue/join HTTP/1.1\nHost: {host}\nUpgrade: websocket\nConnection: Upgrade\n'
        'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\nSec-WebSocket-Version: 13',
        403,
    ),
    'a length twice': (
        'POST /gradio_api/upload HTTP/1.1\nHost: {host}\nContent-Length: 5\nContent-Length: 6',
        400,
    ),
    'a method in a header': (
        'GET /gradio_api/file=/etc/passwd HTTP/1.1\nHost: {host}\nX-HTTP-Method-Override: POST\n'
        'X-Original-URL: /config\nConnection: close',
        403,
    ),
    'an encoded route': (
        'GET /gradio_api/%66ile%3D/etc/passwd HTTP/1.1\nHost: {host}\nConnection: close',
        403,
    ),
    'a doubled slash': ('GET //gradio_api//file=/etc/passwd HTTP/1.1\nHost: {host}\nConnection: close', 403),
    'a broken line': ('GET /gradio_api/file=%0a/etc/passwd HTTP/1.1\nHost: {host}\nConnection: close', 403),
    'writing a file': ('PUT /gradio_api/file=/etc/passwd HTTP/1.1\nHost: {host}\nConnection: close', 404),
    'deleting': ('DELETE /config HTTP/1.1\nHost: {host}\nConnection: close', 404),
    'a host with half a bracket': ('GET /config HTTP/1.1\nHost: [::1\nConnection: close', 400),
    'a host in brackets that is none': ('GET /config HTTP/1.1\nHost: [x]:80\nConnection: close', 400),
    **{
        f'the origin {o}': (f'GET /config HTTP/1.1\nHost: {{host}}\nOrigin: {o}\nConnection: close', 403)
        for o in ('http://[::1', 'http://[x]', 'http://[::1]x', '//[', 'http://127.0.0.1:x', '\xe9')
    },
    **{
        f'{name} {value}': (f'GET / HTTP/1.1\nHost: {{host}}\n{name}: {value}\nConnection: close', status)
        for name, value, status in (
            ('Referer', 'http://[::1', 200),
            ('Cookie', 'ich-soups-visit=[;;=\xff; a="', 200),
            ('Accept-Language', '\xe9[', 200),
            ('X-Forwarded-Host', '[::1', 400),
            ('X-Forwarded-Proto', 'http://[', 200),
        )
    },
    'an upload of nothing, of an odd kind': (
        'POST /gradio_api/upload HTTP/1.1\nHost: {host}\nContent-Length: 0\nConnection: close\n'
        'Content-Type: multipart/form-data; boundary="\xe9',
        200,
    ),
    'a long length': (
        'POST /gradio_api/upload HTTP/1.1\nHost: {host}\nConnection: close\nContent-Length: ' + '9' * 5000,
        400,
    ),
}


@pytest.mark.parametrize('name', RAW)
def test_requests_that_no_browser_sends(served, name, capfd):
    request, status = RAW[name]
    said = raw(served[1], request)
    assert said.split()[1] == str(status) and 'root:' not in said
    assert 'Traceback' not in capfd.readouterr().err


def test_streams_of_sessions_that_are_not_there_say_nothing_on_the_console(served, capfd):
    for k in range(3):
        request = (
            f'GET /gradio_api/queue/data?session_hash=none{k} HTTP/1.1\nHost: {{host}}\nConnection: close'
        )
        said = raw(served[1], request)
        assert said.startswith('HTTP/1.1 200') and 'session_not_found' in said
    said = capfd.readouterr().err
    assert 'note:' not in said and 'ERROR' not in said


DEEP = {
    'lists': b'[' * 45_000 + b']' * 45_000,
    'objects': b'{"a":' * 15_000 + b'1' + b'}' * 15_000,
    'numbers': b'9' * 90_000,
    'half a character': b'{"path":"\\ud800"}',
    'nothing': b'{"path":"\\u0000"}',
    'an address': b'{"url":"http://127.0.0.1:1/x","path":null}',
}


@pytest.mark.parametrize('name', DEEP)
def test_json_that_is_hard_to_read(served, name):
    _, url, _ = served
    t0 = time.perf_counter()
    head = {'content-type': 'application/json'}
    r = httpx.post(f'{url}gradio_api/call/classify', content=b'{"data":[' + DEEP[name] + b']}', headers=head)
    said = r.text
    if r.status_code == 200:
        said = httpx.get(f"{url}gradio_api/call/classify/{r.json()['event_id']}", timeout=30).text
    assert r.status_code in (200, 400, 422) and 'verdict' not in said and time.perf_counter() - t0 < 5


def test_the_page_forgets_sessions(served):
    """A client without a session begins one with every call, and Gradio kept ten thousand of them with their
    answers; and of answers that nobody fetches, and events of clients that went away, all there were."""
    blocks, url, run = served
    up = httpx.post(f'{url}gradio_api/upload', files=dict(files=('a.jpg', scene(run, 3)))).json()[0]
    assert blocks.app.state_holder.capacity == blocks.state_session_capacity == demo.MOST_SESSIONS <= 100
    waiting = blocks._queue.pending_messages_per_session, blocks._queue.pending_event_ids_session
    for w in waiting:
        assert type(w) is demo.Latest and w.most == demo.MOST_WAITING
        w.most = len(w) + 5
    try:
        for k in range(12):
            body = dict(data=[dict(path=up, meta=META)], fn_index=0, session_hash=f'never fetched {k}')
            assert httpx.post(f'{url}gradio_api/queue/join', json=body).status_code == 200
            assert in_time(lambda: not blocks._queue.event_ids_to_events)
        assert all(len(w) <= w.most for w in waiting)
    finally:
        for w in waiting:
            w.most = demo.MOST_WAITING
    assert 'verdict' in ask(url, up)


def test_visits_without_uploads_are_forgotten(tmp_path):
    book = visits.Uploads(tmp_path, most=5)
    for k in range(50):
        (tmp_path / f'{k}').write_bytes(b'p')
        book.add(str(tmp_path / f'{k}'), f'visit {k}')
    assert len(book.kept) == 5


def test_the_oldest_uploads_go_first(served, tmp_path):
    book = visits.Uploads(tmp_path, most=5)
    for visit, names in (('greedy', 'abcdef'), ('modest', 'x')):
        for n in names:
            (tmp_path / n).write_bytes(b'p')
            book.add(str(tmp_path / n), visit)
    assert sorted(f.name for f in tmp_path.iterdir()) == ['c', 'd', 'e', 'f', 'x'] and book.has(
        str(tmp_path / 'x'), 'modest'
    )


def test_uploads_that_went_leave_no_folders(served, tmp_path, monkeypatch):
    "Of one file, of two of the same contents, of one whose name looks like a folder; and the folder stays."
    blocks, url, run = served
    monkeypatch.setattr(blocks.uploads, 'most', 4)
    for k in range(12):
        names = (f'{k}.jpg', f'again {k}.jpg') if k % 3 == 0 else (f'a\\{k}.jpg',)
        for name in names:
            photo = dict(files=(name, scene(run, k)))
            up = httpx.post(f'{url}gradio_api/upload', files=photo, timeout=60).json()[0]
        assert 'verdict' in ask(url, up)
    folder = blocks.uploads.folder
    kept = {path for book in blocks.uploads.kept.values() for path in book}
    assert len(kept) == 4 and all(os.path.exists(path) for path in kept)
    assert not [f for f in folder.iterdir() if f.is_dir() and not any(f.iterdir())]


def page_folders(at):
    return [f for f in at.iterdir() if f.name.startswith('ich-soups-page')]


SERVING = """
import os, sys, threading
from ich_soups.app import demo
class Blocks:
    def block_thread(self):
        try:
            print('ready', flush=True)
            threading.Event().wait(60)
        except KeyboardInterrupt:
            print('closing', flush=True)
demo._own_folder()
demo._block(Blocks())
"""


@pytest.mark.slow  # two processes with all imports; what they do is tested in this one too
@pytest.mark.skipif(os.name != 'posix', reason='to run this, use a system with signals')
def test_a_page_that_is_ended_leaves_no_uploads(tmp_path):
    "Asked to end it ends as after Ctrl-C; what a killed one left is swept by the next, nothing else is."
    env = {k: v for k, v in os.environ.items() if k != 'GRADIO_TEMP_DIR'} | dict(TMPDIR=str(tmp_path))
    others = ('ich-soups-page-old', f'ich-soups-page-{os.getpid()}-{_machine()}-ab', 'ich-soups-page-1-1-ab')
    for name in others:
        (tmp_path / name).mkdir()
    start = lambda: subprocess.Popen(
        [sys.executable, '-c', SERVING], env=env, stdout=subprocess.PIPE, text=True
    )
    pages = {s: start() for s in (signal.SIGTERM, signal.SIGKILL)}
    assert all(p.stdout.readline() == 'ready\n' for p in pages.values())
    own = {s: next(f for f in page_folders(tmp_path) if f'-{p.pid}-' in f.name) for s, p in pages.items()}
    assert not any(f.stat().st_mode & 0o077 for f in own.values())
    for s, p in pages.items():
        p.send_signal(s)
        asked = s != signal.SIGKILL
        assert (p.communicate(timeout=60)[0], p.returncode) == (('closing\n', 0) if asked else ('', -s))
        assert own[s].exists() != asked
    demo._sweep_dead_pages(tmp_path)
    assert sorted(f.name for f in page_folders(tmp_path)) == sorted(others)


def test_a_program_keeps_its_own_signals():
    "Those that it handles, those that it ignores, and all of them in another thread."
    seen = []

    class Blocks:
        def block_thread(self):
            seen.append([signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)])

    old = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        for handler in (signal.SIG_IGN, print, signal.SIG_DFL):
            signal.signal(signal.SIGTERM, handler)
            demo._block(Blocks())
            assert signal.getsignal(signal.SIGTERM) == handler
        t = threading.Thread(target=demo._block, args=[Blocks()])
        t.start()
        t.join()
    finally:
        signal.signal(signal.SIGTERM, old)
    ours = signal.default_int_handler
    assert [s[0] for s in seen] == [signal.SIG_IGN, print, ours, signal.SIG_DFL]


def large_png(w, h):
    "A grey PNG of any size in a few kilobytes."

    def chunk(kind, body):
        return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))

    packer, row = zlib.compressobj(1), bytes(1 + 3 * w)
    body = b''.join(packer.compress(row) for _ in range(h)) + packer.flush()
    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, 8, 2, 0, 0, 0))
        + chunk(b'IDAT', body)
        + chunk(b'IEND', b'')
    )


@pytest.mark.parametrize('size', [(5001, 5001), (1, 25_000_001), (8000, 8000)])
def test_pixels_of_the_page_are_bounded(served, size):
    blocks, url, _ = served
    said = blocks.answers(
        large_png(size[0], 1).replace(struct.pack('>II', size[0], 1), struct.pack('>II', *size), 1)
    )
    assert 'That did not work' in said and 'verdict' not in said
    said = blocks.answers(large_png(*size) if size[0] > 1 else large_png(25_000_001, 1))
    assert 'too many pixels' in said and '25 million' in said


@pytest.mark.parametrize(
    'visits', [('greedy', 'modest'), ('', '')], ids=['two browsers', 'clients without cookies']
)
def test_one_visitor_does_not_block_another(served, visits):
    "Ten images just below the limit are under way; a small one of somebody else is answered at once, a large one after one of theirs."
    _, url, run = served
    large, small = large_png(4990, 4990), scene(run, 5)

    def ask_for(data, visit):
        with httpx.Client(base_url=url, timeout=120, cookies={COOKIE: visit} if visit else None) as c:
            up = c.post('gradio_api/upload', files=dict(files=('a.png', data))).json()[0]
            r = c.post('gradio_api/call/classify', json=dict(data=[dict(path=up, meta=META)]))
            return 'verdict' in c.get(
                f"gradio_api/call/classify/{r.json()['event_id']}"
            ).text, time.perf_counter()

    def alone(data):
        t0 = time.perf_counter()
        return ask_for(data, visits[1])[1] - t0

    idle, idle_large = alone(small), alone(large)
    with concurrent.futures.ThreadPoolExecutor(12) as ex:
        greedy = [ex.submit(ask_for, large, visits[0]) for _ in range(10)]
        until = time.time() + 20
        while len(served[0].answers.turns.line) < 5 and time.time() < until:
            time.sleep(0.01)
        took, took_large = alone(small), alone(large) if visits[0] else 0
        done = sum(f.done() for f in greedy)
        assert all(f.result()[0] for f in greedy)
    print(
        f'idle {idle:.2f} s, {idle_large:.2f} s large; beside ten large ones {took:.2f} s, {took_large:.2f} s large; {done} of ten done'
    )
    assert took < idle + 2 and took_large < 3 * idle_large + 2 and done < 10, (
        idle,
        took,
        idle_large,
        took_large,
        done,
    )


def test_no_lock_is_held_while_a_picture_is_decoded(served, monkeypatch):
    page, inside, go_on = served[0].answers, threading.Event(), threading.Event()
    read = answer.read_upload

    def slow(data, size):
        inside.set()
        assert go_on.wait(30)
        return read(data, size)

    small = scene(served[2], 6)
    monkeypatch.setattr(answer, 'read_upload', slow)
    t = threading.Thread(target=page, args=(small, 'a'))
    t.start()
    assert inside.wait(30)
    monkeypatch.setattr(answer, 'read_upload', read)
    assert 'verdict' in page(small, 'b') and t.is_alive() and not page.lock.locked()
    go_on.set()
    t.join(30)


@pytest.fixture
def far(served, capsys):
    "The page where others are let in: start it with the given options; (blocks, address, what it printed)."
    made = []

    def go(**kw):
        made.append(demo.build(served[0].classifier))
        capsys.readouterr()
        return made[-1], demo.start(made[-1], block=False, **kw), capsys.readouterr().err

    yield go
    for b in made:
        b.close()


@pytest.mark.parametrize(
    'host, password', [('0.0.0.0', None), ('0.0.0.0', 'correct horse'), ('127.0.0.1', 'correct horse')]
)
def test_beyond_this_machine_there_is_a_password(far, host, password):
    blocks, url, said = far(host=host, password=password)
    name, word = re.search(r'user name (\w+), password (.+)', said).groups()
    assert (word == password if password else len(word) >= 16) and urlparse(url).hostname != '0.0.0.0'
    c = httpx.Client(base_url=url)
    assert (
        c.get('config').status_code
        == 401
        == c.post('gradio_api/upload', files=dict(files=('a.jpg', b'x'))).status_code
    )
    assert c.post('gradio_api/call/classify', json=dict(data=[None])).status_code == 401
    assert c.post('login', data=dict(username=name, password='wrong')).status_code == 400
    assert (
        c.post('login', data=dict(username=name, password=word)).status_code == 200
        and c.get('config').status_code == 200
    )


def test_without_a_password_it_is_said_loudly(far):
    blocks, url, said = far(host='0.0.0.0', no_password=True)
    assert (
        'WARNING' in said
        and 'Everybody' in said
        and 'password ' not in said.replace('no password', '')
        and httpx.get(f'{url}config').status_code == 200
    )
    assert httpx.get(f'{url}config', headers=dict(host='evil.example')).status_code == 400
    for kw in (dict(password='a', no_password=True), dict(password=' ')):
        with pytest.raises(BadInput, match='password'):
            demo.start(blocks, host='0.0.0.0', block=False, **kw)


def test_on_this_machine_nobody_is_asked(far):
    blocks, url, said = far()
    assert said == '' and httpx.get(f'{url}config').status_code == 200


def test_it_says_who_sees_the_training_pictures(served, capsys):
    blocks, _, run = served
    for host, more, whom in (
        ('127.0.0.1', {}, 'uses this machine'),
        ('0.0.0.0', {}, 'has the password'),
        ('0.0.0.0', dict(no_password=True), 'in the network'),
        ('127.0.0.1', dict(password='a'), 'has the password'),
    ):
        demo._tell(blocks, host, run, more.get('password'), more.get('no_password', False))
        said = capsys.readouterr().err
        assert 'training images' in said and whom in said and f':{blocks.server_port}/' in said
        assert ('localhost' in said.split('open this')[0]) is False and '0.0.0.0' not in said


def test_no_address_is_fetched(served):
    "Not even one of this machine, which would answer."
    _, url, _ = served
    with socket.create_server(('127.0.0.1', 0)) as s:
        s.settimeout(0.5)
        for there in (f'http://127.0.0.1:{s.getsockname()[1]}/a.jpg', 'https://example.org/a.jpg'):
            assert 'event: error' in ask(url, there) and 'event: error' in ask(url, there, url=there)
        with pytest.raises(TimeoutError):
            s.accept()


def test_it_listens_to_this_machine_alone_and_takes_no_large_files(served):
    blocks, url, _ = served
    assert (
        urlparse(url).hostname == '127.0.0.1'
        and blocks.server_name == '127.0.0.1'
        and not blocks.analytics_enabled
    )
    other = next(
        (
            a[4][0]
            for a in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)
            if not a[4][0].startswith('127.')
        ),
        None,
    )
    if other:
        with pytest.raises(OSError):
            socket.create_connection((other, urlparse(url).port), timeout=2).close()
    r = httpx.post(f'{url}gradio_api/upload', files=dict(files=('a.jpg', b'0' * (upload.UPLOAD_BYTES + 1))))
    assert r.status_code == 413
    with pytest.raises(BadInput, match='choose another port'):
        demo.start(demo.build(blocks.classifier), port=urlparse(url).port, block=False)


def test_building_and_serving_ask_nothing_of_the_network(served, monkeypatch, tmp_path):
    blocks, _, run = served
    asked, real = [], socket.getaddrinfo
    monkeypatch.setattr(
        socket, 'getaddrinfo', lambda host, *a, **kw: (asked.append(host), real(host, *a, **kw))[1]
    )
    b = demo.build(blocks.classifier, examples=[scene(run, 0)])
    url = demo.start(b, block=False)
    assert httpx.get(url).status_code == 200
    b.close()
    assert {h.decode() if isinstance(h, bytes) else h for h in asked} <= {
        '127.0.0.1',
        'localhost',
        '0.0.0.0',
    }, asked


def test_serving_an_onnx_file(served, tmp_path, monkeypatch, capsys):
    "The whole of `serve`: a folder of its own for uploads, the address said, an answer without a map."
    blocks, _, run = served
    file, made, build = to_onnx(blocks.classifier, tmp_path / 'my soup.onnx'), [], demo.build
    monkeypatch.delenv('GRADIO_TEMP_DIR')
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))  # a worker of the tests is ended without a word
    monkeypatch.setattr(demo, 'build', lambda *a, **kw: made.append(build(*a, **kw)) or made[0])
    url = demo.serve(file, run=run, block=False)
    own = os.environ['GRADIO_TEMP_DIR']
    up = httpx.post(f'{url}gradio_api/upload', files=dict(files=('a.jpg', scene(run, 0)))).json()[0]
    answer = ask(url, up)
    made[0].close()
    assert (
        up.startswith(own)
        and 'ich-soups-page' in own
        and f'{url}  open this in a browser' in capsys.readouterr().err
    )
    assert (
        'keeps no gradients' in answer
        and 'most alike' in answer
        and expected(blocks, scene(run, 0))[0] in answer
    )


def test_without_gradio_it_says_what_to_install(served, monkeypatch):
    monkeypatch.setitem(sys.modules, 'gradio', None)
    with pytest.raises(BadInput, match=r"pip install 'ich_soups\[demo\]'"):
        demo.build(served[0].classifier)
