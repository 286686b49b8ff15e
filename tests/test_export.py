"A model that leaves the house says the same everywhere: in files, folders, ONNX, fastai, and in the code of its own card."

import contextlib, http.server, os, re, subprocess, sys, threading, time
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from ich_soups.app import classifier, export, onnx_export
from ich_soups.soups.cook import cook
from ich_soups.core import BadInput, Config
from ich_soups.data.loaders import image_dls
from ich_soups.app.export import Classifier
from ich_soups.app.loading import as_classifier
from ich_soups.app.int8 import int8_loss, split_of, to_int8
from ich_soups.app.export import push_to_hub, save_pretrained
from ich_soups.app.learner import to_learner
from ich_soups.app.onnx_export import to_onnx
from ich_soups.train.models import create_model
from ich_soups.data.scenes import scenes17
from ich_soups.soups.soup import Soup
from ich_soups.train.scoring import evaluate, predict_logits
from ich_soups.train.runs import get_run


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A small run on photographs of every kind: large and small, turned, transparent, grey."
    at, s = tmp_path_factory.mktemp('export'), scenes17(17 * 16, 96, noise=0)
    for c, name in enumerate(('Chợ nổi', 'two words', 'ghe\nngo')):
        (at / 'photos' / name).mkdir(parents=True)
        for i, a in enumerate(s.images[s.labels == c][:16]):
            im, f = Image.fromarray(a), at / 'photos' / name / f'ảnh {i}'
            if i % 4 == 0:
                im.resize((300, 200)).save(
                    f.with_suffix('.jpg'), exif=(e := Image.Exif(), e.__setitem__(0x0112, 6))[0]
                )
            elif i % 4 == 1:
                (im.putalpha(im.convert('L')), im.save(f.with_suffix('.png')))
            elif i % 4 == 2:
                im.convert('L').save(f.with_suffix('.webp'))
            else:
                im.resize((40, 50)).save(f.with_suffix('.jpg'))
    old = os.environ.get('ICH_SOUPS_HOME')
    os.environ['ICH_SOUPS_HOME'] = str(at / 'home')
    yield get_run(Config.scratch(data=str(at / 'photos'), size=32, epochs=2, bs=16, k=2, precision='fp32'))
    os.environ.pop('ICH_SOUPS_HOME') if old is None else os.environ.update(ICH_SOUPS_HOME=old)


@pytest.fixture(scope='module')
def soup(run, tmp_path_factory):
    path = tmp_path_factory.mktemp('soup') / 'soup of ours.safetensors'
    cook(run).save(path)
    return path


@pytest.fixture(scope='module')
def onnx(soup):
    return to_onnx(soup, soup.with_suffix('.onnx'))


def test_files_are_seen_as_in_training(run, soup):
    "Paths, bytes and open images give the logits of the run's own test loader: in float32 to a rounding, in bfloat16 exactly as near as bfloat16 is."
    files, weights = [run.pictures.items[i] for i in run.pictures.idxs('test')], Soup.load(soup).weights
    c, want = Classifier.load(soup), run.logits_of(weights, 'test')
    assert (
        abs(c.logits(files) - want).max() < 1e-4 and abs(c.logits(map(str, files), bs=2) - want).max() < 1e-4
    )
    assert (c.logits([f.read_bytes() for f in files]) == c.logits(files)).all()
    plain = [f for f in files if Image.open(f).width <= 64]
    assert (c.logits(map(Image.open, plain)) == c.logits(plain)).all() and len(plain)
    run.model.load_state_dict(weights)
    assert (
        abs(
            Classifier.load(soup, precision='bf16').logits(files)
            - predict_logits(run.model, run.dls[2], 'bf16')
        ).max()
        < 0.05
    )
    x = torch.cat([b[0].as_subclass(torch.Tensor) for b in run.dls[2]]).cpu().numpy()
    assert abs(c.pixels(files) - x).max() < 1e-6


def test_decoding_and_the_model_work_at_the_same_time(soup, monkeypatch):
    "20 batches of 10 ms in the model, and 5 ms of decoding an image on two threads, take little longer than the longer of the two."
    c = Classifier.load(soup)

    def forward(x):
        time.sleep(0.01)
        return [np.zeros((len(x), 3), np.float32), None]

    def read(i, p, size):
        time.sleep(0.005)
        return np.zeros((size, size, 3), np.uint8)

    monkeypatch.setattr(classifier.os, 'cpu_count', lambda: 2)
    monkeypatch.setattr(classifier, '_read', read)
    c.forward = forward

    def seconds():
        begun = time.perf_counter()
        assert c.logits(range(80), bs=4).shape == (80, 3)
        return time.perf_counter() - begun

    took = min(seconds() for _ in range(5))  # a busy machine may delay some of them, not all
    assert took < 0.75 * (20 * 0.01 + 80 * 0.005)  # one after the other 0.6 s, at the same time 0.2 s


WATCH = """
import sys, time, os
pid, counts = sys.argv[1], []
print('ready', flush=True)
end = time.time() + 20
while time.time() < end and not os.path.exists(sys.argv[2]):
    try: states = [open(f'/proc/{pid}/task/{t}/stat').read().rsplit(')', 1)[1].split()[0] for t in os.listdir(f'/proc/{pid}/task')]
    except OSError: continue      # a thread has just ended
    counts.append(states.count('R')); time.sleep(.004)
print(sum(c >= 2 for c in counts)/len(counts))
"""


@pytest.mark.skipif(
    not Path('/proc/self/task').exists(),
    reason='to run this, use Linux: it counts the threads that want a processor',
)
def test_predicting_keeps_two_processors_busy(soup, tmp_path):
    "Most of the time two threads or more are running, or would if a processor were free: that holds on a busy machine too."
    c = Classifier.load(soup)
    Image.effect_noise((1500, 1000), 60).convert('RGB').save(tmp_path / 'a.jpg', quality=90)
    c.logits([tmp_path / 'a.jpg'] * 8)
    watch = subprocess.Popen(
        [sys.executable, '-c', WATCH, str(os.getpid()), str(tmp_path / 'end')],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert watch.stdout.readline() == 'ready\n'
    c.logits([tmp_path / 'a.jpg'] * 250)
    (tmp_path / 'end').touch()
    assert float(watch.communicate()[0]) > 0.7


def test_long_lists_do_not_fill_memory(soup):
    seen = dict(asked=0, most=0, done=0)
    c = Classifier.load(soup)
    data = Path(soup).with_name('one.png')
    Image.new('RGB', (8, 8), 'red').save(data)

    def names():
        for _ in range(2000):
            seen['asked'] += 1
            seen['most'] = max(seen['most'], seen['asked'] - seen['done'])
            yield data

    c.forward = lambda x: [np.zeros((len(x), 3), np.float32), None]
    for part, y in c.stream(names(), bs=32):
        seen['done'] += len(part)
    assert seen['done'] == 2000 and seen['most'] <= 5 * 32


@pytest.mark.parametrize('what', ['text', 'truncated', 'bomb', 'missing', 'folder'])
def test_a_bad_picture_is_named(what, soup, tmp_path):
    bad = tmp_path / 'a name\nwith  spaces é.jpg'
    if what == 'text':
        bad.write_text('no image')
    if what == 'truncated':
        Image.effect_noise((200, 200), 50).save(bad)
        bad.write_bytes(bad.read_bytes()[:2000])
    if what == 'bomb':
        Image.new('1', (20000, 20000)).save(bad, 'png')
    if what == 'folder':
        bad.mkdir()
    good = tmp_path / 'good.png'
    Image.new('RGB', (8, 8)).save(good)
    c, said = Classifier.load(soup), []
    with pytest.raises(BadInput, match=r'with  spaces é.jpg cannot be read as an image \(\w+') as e:
        c.logits([good, bad])
    assert '\n' not in str(e.value) and str(e.value).count('spaces') == 1
    out = c.logits([good, bad, good], on_bad=lambda p, why: said.append((p, why)))
    assert (
        np.isnan(out[1]).all()
        and np.isfinite(out[[0, 2]]).all()
        and said[0][0] == bad
        and 'remove or replace it' in said[0][1]
    )


def real_pictures(run):
    "Real photographs where they are, or those of the run."
    if os.environ.get('AHE10'):
        return sorted(Path(os.environ['AHE10']).rglob('*.jpg'))[::150]
    return list(run.pictures.items)


def test_onnx_says_the_same_and_needs_nothing_else(run, soup, onnx):
    import onnx as lib

    files, c, o = real_pictures(run), Classifier.load(soup), Classifier.load(onnx, threads=1)
    assert (
        len(files) >= 48
        and abs(c.logits(files) - o.logits(files)).max() < 1e-4
        and abs(c.probs(files) - o.probs(files)).max() < 1e-5
    )
    assert (o.classes, o.size, o.mean, o.std, o.temperature, o.info['ingredients']) == (
        c.classes,
        c.size,
        c.mean,
        c.std,
        c.temperature,
        c.info['ingredients'],
    )
    m = lib.load(onnx)
    assert {'classes', 'mean', 'std', 'size', 'interpolation', 'temperature', 'provenance'} <= {
        p.key for p in m.metadata_props
    } and m.opset_import[0].version == onnx_export.OPSET
    assert (
        m.graph.input[0].type.tensor_type.shape.dim[0].dim_param
        and abs(o.logits(files, bs=1) - o.logits(files, bs=7)).max() < 1e-4
    )


def test_eight_bits_and_what_they_lose(run, onnx, tmp_path):
    small = to_int8(onnx, tmp_path / 'small.onnx', run)
    loss = int8_loss(onnx, small, *split_of(run, 'test'))
    a, b = (
        Classifier.load(f).logits([run.pictures.items[i] for i in run.pictures.idxs('test')]).argmax(1)
        == run.targs('test')
        for f in (onnx, small)
    )
    assert loss.accuracy.tolist() == [a.mean(), b.mean()] and (loss.wins['int8'], loss.losses['int8']) == (
        (b & ~a).sum(),
        (a & ~b).sum(),
    )
    assert (
        loss.MB['int8'] < 0.5 * loss.MB['float32']
        and loss.ms.min() > 0
        and Classifier.load(small).temperature == Classifier.load(onnx).temperature
    )


def blocks(card):
    return dict(zip(('timm', 'package', 'onnx'), re.findall(r'```python\n(.*?)```', card, re.S)))


def test_the_card_is_filled_in_and_its_code_works(run, soup, tmp_path, monkeypatch):
    folder = save_pretrained(soup, tmp_path / 'my model', run, licence='cc-by-4.0', onnx=True)
    card = (folder / 'README.md').read_text(encoding='utf-8')
    e = evaluate(run, Soup.load(soup).weights)
    assert (
        f"{100 * e.value.accuracy:.1f} [{100 * e.lo.accuracy:.1f}, {100 * e.hi.accuracy:.1f}]" in card
        and f"{100 * e.value.f1:.1f} [{100 * e.lo.f1:.1f}, {100 * e.hi.f1:.1f}]" in card
    )
    assert all(
        s in card
        for s in (
            'license: cc-by-4.0',
            'pipeline_tag: image-classification',
            'Chợ nổi',
            r'ghe\nngo',
            run.cfg.key,
            *Soup.load(soup).ingredients,
            torch.__version__,
            run.provenance['date'],
        )
    ) and 'None' not in card.replace('[None]', '')
    photo = next(f for f in run.pictures.items if Image.open(f).size == (40, 50))
    want = Classifier.load(soup).probs([photo])[0]
    (folder / 'photo.jpg').write_bytes(photo.read_bytes())
    monkeypatch.chdir(folder)
    for way, code in blocks(card).items():
        ns = {}
        exec(code, ns)
        got = (
            torch.as_tensor(
                ns['probs']
                if 'probs' in ns
                else torch.tensor(ns['logits'][0] / Classifier.load(soup).temperature).softmax(-1)
            )
            .detach()
            .numpy()
        )
        assert abs(got - want).max() < 1e-3, way


def test_the_architectures_of_this_package_are_loadable_by_timm_once_it_is_imported(tmp_path):
    for arch in ('tiny_vit8', 'tiny_densenet'):
        model = create_model(arch, 3, 32, seed=0)
        folder = save_pretrained(
            Soup(model.state_dict(), [], [], info=dict(arch=arch, size=32, classes=list('abc'))),
            tmp_path / arch,
        )
        assert (
            'import ich_soups.train.relatives'
            in blocks((folder / 'README.md').read_text(encoding='utf-8'))['timm']
        )
    Image.new('RGB', (50, 40), 'red').save(folder / 'photo.jpg')
    code = blocks((folder / 'README.md').read_text(encoding='utf-8'))['timm'] + '\nprint(*probs.tolist())'
    out = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code], cwd=folder, capture_output=True, text=True
    )
    assert np.allclose(
        list(map(float, out.stdout.split())),
        Classifier.load(folder).probs([folder / 'photo.jpg'])[0],
        atol=1e-3,
    ), out.stderr


@pytest.mark.skipif(
    sys.platform not in ('linux', 'darwin'),
    reason='to run this, use Linux or macOS, which can exchange two folders',
)
def test_a_folder_takes_the_place_of_another_in_one_step(soup, tmp_path, monkeypatch):
    "Nothing is renamed out of the way, so that no moment is left in which a kill would leave neither."
    folder = save_pretrained(soup, tmp_path / 'm', licence='mit')
    monkeypatch.setattr(Path, 'rename', lambda *a: pytest.fail('a folder was moved away first'))
    save_pretrained(soup, folder, licence='cc-by-4.0')
    assert 'cc-by-4.0' in (folder / 'README.md').read_text(encoding='utf-8')
    assert [p.name for p in tmp_path.iterdir()] == ['m']


def test_a_folder_is_whole_or_absent(soup, tmp_path, monkeypatch):
    old = save_pretrained(soup, tmp_path / 'old')
    before = {p.name: p.read_bytes() for p in old.iterdir()}

    def full(*a, **kw):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(export, 'save_config_for_hf', full)
    for to in ('old', 'new'):
        with pytest.raises(OSError):
            save_pretrained(soup, tmp_path / to)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['old'] and before == {
        p.name: p.read_bytes() for p in old.iterdir()
    }


@contextlib.contextmanager
def hub(status):
    "A loopback server that answers every request like a Hub that does not want us."

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers.get('Content-Length', 0)))
            self.send_response(status)
            self.send_header('Content-Length', '2')
            self.end_headers()
            self.wfile.write(b'{}')

        do_GET = do_POST

        def log_message(self, *a):
            pass

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f'http://127.0.0.1:{server.server_port}'
    finally:
        server.shutdown()


def test_pushing(soup, tmp_path, monkeypatch):
    folder = save_pretrained(soup, tmp_path / 'm')
    (folder / 'secret.txt').write_text('mine')
    with (
        hub(401) as url,
        pytest.raises(
            BadInput, match='nobody is logged in, or the token may not write there; run hf auth login'
        ),
    ):
        push_to_hub(folder, 'me/soup', token='no', endpoint=url)
    with pytest.raises(BadInput, match='owner/name'):
        push_to_hub(folder, 'not a name!', token='no', endpoint='http://127.0.0.1:9')
    seen = {}

    class Fake:
        def __init__(self, **kw):
            seen.update(kw)

        def create_repo(self, repo_id, **kw):
            seen.update(kw)
            return type('Url', (str,), dict(repo_id=repo_id))(f'https://hub/{repo_id}')

        def upload_folder(self, **kw):
            seen.update(kw)

    monkeypatch.setattr(export, 'HfApi', Fake)
    assert push_to_hub(folder, 'me/soup') == 'https://hub/me/soup'
    assert (
        seen['private']
        and seen['folder_path'] == str(folder)
        and 'secret.txt' not in seen['allow_patterns']
        and {'README.md', 'config.json', 'model.safetensors'} <= set(seen['allow_patterns'])
    )


def test_a_learner_predicts_alike_and_learns_on(run, soup):
    files, c, learn = list(run.pictures.items[:9]), Classifier.load(soup), to_learner(soup)
    with learn.no_bar(), learn.no_logging():
        assert (
            abs(
                learn.get_preds(dl=learn.dls.test_dl(files))[0].numpy() - c.probs(files, calibrated=False)
            ).max()
            < 1e-5
        )
        assert learn.predict(files[0])[0] == c.classes[c.logits(files[:1]).argmax()]
        mine = to_learner(soup, image_dls(run.pictures, 32, 16))
        before = mine.validate()[0]
        mine.fit(3, 1e-3)
    assert mine.validate()[0] != before and (Classifier.load(soup).logits(files) == c.logits(files)).all()


def test_what_cannot_be_loaded_says_so(soup, onnx, tmp_path):
    (tmp_path / 'cut.safetensors').write_bytes(Path(soup).read_bytes()[:5000])
    (tmp_path / 'text.onnx').write_text('no')
    (tmp_path / 'cut.onnx').write_bytes(Path(onnx).read_bytes()[:5000])
    other = Soup.load(soup)
    other.info['classes'] = ['a', 'b']
    other.save(tmp_path / 'other.safetensors')
    wrong = Soup.load(soup)
    wrong.info['arch'] = 'test_resnet'
    wrong.save(tmp_path / 'wrong.safetensors')
    odd = Soup.load(soup)
    odd.info['arch'] = 'test_coatnett'
    odd.save(tmp_path / 'odd.safetensors')
    bare = Soup.load(soup)
    bare.info = {}
    bare.save(tmp_path / 'bare.safetensors')
    for name, says in {
        'nowhere.safetensors': 'does not exist',
        'cut.safetensors': 'damaged|cut short',
        'text.onnx': 'export it again',
        'cut.onnx': 'export it again',
        'other.safetensors': 'of 2 classes',
        'wrong.safetensors': 'not a test_resnet',
        'odd.safetensors': 'did you mean test_coatnet',
        'bare.safetensors': 'give arch=, classes=, size=',
    }.items():
        with pytest.raises(BadInput, match=says) as e:
            Classifier.load(tmp_path / name)
        assert '\n' not in str(e.value)
    assert as_classifier(tmp_path / 'bare.safetensors', arch='test_coatnet', classes=3, size=32).classes == [
        'class 0',
        'class 1',
        'class 2',
    ]
    stray = Soup.load(soup)
    stray.info['run'] = 'another'
    with pytest.raises(BadInput, match='cooked from the run another, not from'):
        save_pretrained(stray, tmp_path / 'f', run=type('Run', (), dict(cfg=Config.scratch()))())
    assert not (tmp_path / 'f').exists()


def test_an_onnx_file_that_is_not_of_the_images_it_speaks_of(soup, onnx, tmp_path):
    "Of another size, or without the output: a sentence, where ONNX Runtime's own error came through."
    import onnx as format

    m = format.load(onnx)
    for p in m.metadata_props:
        p.value = '40' if p.key == 'size' else p.value
    dim = m.graph.input[0].type.tensor_type.shape.dim
    dim[2].dim_value = dim[3].dim_value = 32
    format.save(m, tmp_path / 'size.onnx')
    m = format.load(onnx)
    m.graph.input[0].name = 'other'
    for n in m.graph.node:
        n.input[:] = ['other' if i == 'pixels' else i for i in n.input]
    format.save(m, tmp_path / 'input.onnx')
    for name in ('size.onnx', 'input.onnx'):
        with pytest.raises(BadInput, match='is no model of the images that its metadata speak of') as e:
            Classifier.load(tmp_path / name).forward(np.zeros((1, 3, 40, 40), np.float32))
        assert '\n' not in str(e.value) and name in str(e.value)


def test_without_the_packages_it_says_what_to_install(soup, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(BadInput, match=r"pip install 'ich_soups\[onnx\]'"):
        to_onnx(soup, tmp_path / 'a.onnx')
    assert not list(tmp_path.iterdir())
