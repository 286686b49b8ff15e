"Names of strangers - of classes, files, data, runs - in tables, sheets, cards and pages: they are text there, and all of it can be seen."

import csv, io, os, shutil, sys, unicodedata
import numpy as np
import pytest
from PIL import Image
from ich_soups.app import audit_inspect, audit_sheet
from ich_soups.app import cli, cli_predict
from ich_soups.app import export, onnx_model
from ich_soups.app import answer, demo, page, report
from ich_soups.app.audit import inspect
from ich_soups.soups.cook import cook
from ich_soups.core import Config
from ich_soups.errors import one_line
from ich_soups.data.collections import load_pictures
from ich_soups.data.names import visible
from ich_soups.app.export import Classifier
from ich_soups.app.card import model_card
from ich_soups.train.models import create_model
from ich_soups.train.runs import get_run

FORMULAS = ('$\\bad$', '$\\frac{1}', '$x$ and $\\', '\\$', '$$', 'a_b^c')
CONTROLS = {'escape': 'a\x1b[2J', 'C1': 'b\x9b31m', 'both ends': '\x08c\x7f\x80', 'rows': 'd\x85e\x0bf'}
HIDDEN = '\u202e\u200b\u2066\u2069\ufeff\u200f\u061c\u00ad\u2060\u202a'


def test_sheets_of_names_that_look_like_formulas(home, photos, tmp_path, capsys):
    "In class names and file names; near-duplicates of them, and doubtful labels."
    first = sorted(photos.iterdir())[0]
    for k, name in enumerate(FORMULAS):
        shutil.copytree(first, photos / name)
        for f in list((photos / name).iterdir())[3:]:
            f.unlink()
        os.rename(next((photos / name).iterdir()), photos / name / f'{name}{k}.jpg')
    assert (
        cli.main(['check', photos, '--sheet', tmp_path / 'sheet.png']) == 0
        and 'sheet.png' in capsys.readouterr().out
    )
    with Image.open(tmp_path / 'sheet.png') as im:
        assert im.width > 300 and np.asarray(im.convert('L')).std() > 5
    a = inspect(photos)
    classes = sorted(set(a.source.labels))
    a.suspects = {0: (0.01, classes[1], 0.9), 1: (0.02, FORMULAS[0], 0.8)}
    a.contact_sheet(tmp_path / 'doubts.png')
    for name in FORMULAS:
        tile = dict(pictures=[np.zeros((8, 8, 3), np.uint8)], title=name, under=[name], colour='black')
        audit_sheet.plot_findings([tile], name).savefig(io.BytesIO(), format='png')


@pytest.mark.parametrize('copies', ['in one class', 'under two labels', 'in two parts'])
def test_a_sheet_of_exact_copies_alone(copies, home, photos, tmp_path, capsys, monkeypatch):
    "There are no near-duplicates, and no doubts; a copy is a pair all the same."
    if copies == 'in two parts':
        for part in ('val', 'test'):
            shutil.copytree(photos, tmp_path / 'split' / part)
        shutil.move(photos, tmp_path / 'split' / 'train')
        photos = tmp_path / 'split'
    else:
        a, b = sorted(photos.iterdir())[:2]
        shutil.copy(next(a.glob('*.jpg')), (a if copies == 'in one class' else b) / 'again.jpg')
    monkeypatch.setattr(audit_inspect, 'near_pairs', lambda *a: ((np.empty(0, int),) * 4, None))
    assert cli.main(['check', photos, '--sheet', tmp_path / 'sheet.png']) == 0
    assert 'written' in capsys.readouterr().out and (tmp_path / 'sheet.png').exists()


def test_without_anything_to_show_there_is_no_sheet(home, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(audit_inspect, 'near_pairs', lambda *a: ((np.empty(0, int),) * 4, None))
    assert cli.main(['check', photos, '--sheet', tmp_path / 'sheet.png']) == 0
    assert 'no sheet was written' in capsys.readouterr().err and not (tmp_path / 'sheet.png').exists()


def test_tables_for_spreadsheets_hold_no_formulas(home, photos, tmp_path, monkeypatch, capsys):
    names = ['=HYPERLINK("http:x")', '+1', '-2', '@SUM(A1)', '\tx', '\r=1', ' =1', '＝1', 'plain', "it's"]
    model = create_model('test_coatnet', len(names), 32, seed=0)
    info = dict(arch='test_coatnet', classes=names, size=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    monkeypatch.setattr(
        cli_predict,
        'open_classifier',
        lambda *a, **k: export.from_weights(model.state_dict(), info, 'x', device='cpu'),
    )
    monkeypatch.chdir(tmp_path)
    for name in ('=cmd.jpg', '-4.jpg', '@x.jpg', 'good.jpg'):
        shutil.copy(next(photos.rglob('*.jpg')), tmp_path / name)
    (tmp_path / '+bad.jpg').write_text('no image')
    assert (
        cli.main(
            [
                'predict',
                'soup.safetensors',
                '=cmd.jpg',
                '@x.jpg',
                'good.jpg',
                '+bad.jpg',
                './-4.jpg',
                '--top',
                len(names),
                '--csv',
                'out.csv',
            ]
        )
        == 0
    )
    with open('out.csv', newline='', encoding='utf-8') as f:
        cells = [c for row in csv.reader(f) for c in row]
    assert not [c for c in cells if c.lstrip()[:1] in tuple('=+-@＝') or c[:1] == '\t' or '\r' in c]
    assert {"'=cmd.jpg", "'@x.jpg", 'good.jpg', "'+1", "'\tx", 'plain', "it's"} <= set(cells) and any(
        c.startswith("'+bad.jpg") for c in cells
    )
    assert cli.main(['check', photos, '--fix', 'list.csv']) == 0 and "'" not in (
        tmp_path / 'list.csv'
    ).read_text(encoding='utf-8')  # it is read back


def controls_in(text):
    return {c for c in text if unicodedata.category(c) in ('Cc', 'Cs')} - {'\n'}


@pytest.fixture
def stub_model(monkeypatch):
    "`predict` with a model of classes that are called like this."

    def stub(names):
        model = create_model('test_coatnet', len(names), 32, seed=0)
        info = dict(arch='test_coatnet', classes=names, size=32, mean=(0.5,) * 3, std=(0.5,) * 3)
        classifier = export.from_weights(model.state_dict(), info, 'x', device='cpu')
        monkeypatch.setattr(cli_predict, 'open_classifier', lambda *a, **k: classifier)

    return stub


def test_tables_hold_nothing_that_steers_and_every_name_can_be_written(
    home, photos, tmp_path, monkeypatch, stub_model, capsys
):
    "Of classes and of files, one of which is not UTF-8; on the terminal too."
    names = list(CONTROLS.values())
    stub_model(names)
    monkeypatch.chdir(tmp_path)
    files = ['x\x1b[2J.jpg', 'y\x9b31m.jpg', 'plain.jpg']
    if sys.platform == 'linux':  # others know no such names
        files += ['z\udcff.jpg', '\udc80\udcfe.jpg', 'bad\udcff.jpg']
    for name in files:
        shutil.copy(next(photos.rglob('*.jpg')), name)
        if name.startswith('bad'):
            open(name, 'w').close()
    words = ['predict', 's', *files, '--top', 4, '--accept-all']
    assert cli.main([*words, '--csv', 'out.csv']) == 0 and cli.main(words) == 0
    said = capsys.readouterr()
    text = (tmp_path / 'out.csv').read_text(encoding='utf-8')
    assert not controls_in(text) | controls_in(said.out) | controls_in(said.err)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [r['path'] for r in rows][:3] == [r'x\x1b[2J.jpg', r'y\x9b31m.jpg', 'plain.jpg']
    if sys.platform == 'linux':
        assert [r['path'] for r in rows][3:] == [r'z\xff.jpg', r'\x80\xfe.jpg', r'bad\xff.jpg']
    assert {r'a\x1b[2J', r'b\x9b31m', r'd\x85e\x0bf'} < {rows[0][f'class_{i}'] for i in range(1, 5)}


@pytest.mark.parametrize('name', CONTROLS.values(), ids=CONTROLS)
def test_a_name_steers_nothing_wherever_it_is_shown(name):
    "In sentences, cards, reports, figures and on the page for trying a model."
    model = create_model('test_coatnet', 2, 32)
    c = Classifier(None, [name, 'b'], 32, arch='test_coatnet', info=dict(data=name), model=model)
    section = page.Section('s', name, text=[name], points=[name], notes=[name])
    shown = dict(
        sentence=one_line(name),
        card=model_card(c),
        page=page.render(name, [name], [section]),
        figure=''.join(page.plot_names([name])),
        answer=str(answer.shown_name(name)),
        about=demo._about(c),
    )
    assert not {where: controls_in(text) for where, text in shown.items() if controls_in(text)}
    for where in ('card', 'page', 'answer', 'about'):
        assert one_line(name).replace('_', ' ') in shown[where].replace('\\\\', '\\').replace('\\[', '['), (
            where
        )


def test_hidden_characters_are_written_out():
    for c in HIDDEN:
        assert visible(f'a{c}b') == f'a{c.encode("unicode_escape").decode()}b'
    for name in ('Chợ nổi', 'می\u200cخواهم', 'ক্\u200dষ', '👩\u200d🌾', '日本 語', 'e\u0301'):
        assert visible(name) == name
    for c in '\u200c\u200d':
        assert c not in visible(f'a{c}b') + visible(f'{c}') + visible(f'ợ{c}ờ')


@pytest.fixture
def strange_run(home, tmp_path, drawn):
    "A run whose classes, files and data are called what strangers call them."
    names = (
        f'abc{HIDDEN}gnp.exe',
        '<b onclick=x>|[x](http://y.example) **b** `c` @you',
        'www.example.org $x$ \\*\x1b[2J\x9b31m',
    )
    for c, name in enumerate(names):
        (tmp_path / 'odd\u202e`data' / name).mkdir(parents=True)
        for i, im in enumerate(drawn.images[drawn.labels == c][:12]):
            Image.fromarray(im).save(tmp_path / 'odd\u202e`data' / name / f'{i}\u202egpj.png')
    return get_run(
        Config.scratch(data=str(tmp_path / 'odd\u202e`data'), size=32, epochs=2, bs=16, k=2)
    ), names


def test_cards_and_reports_hide_nothing_and_link_nowhere(strange_run, tmp_path):
    run, names = strange_run
    soup = cook(run)
    soup.info |= dict(
        batchnorm='x\u202e`<i>', metric='m`**', run=run.cfg.key, device='d\u200b<script>', date='today [x](y)'
    )
    soup.ingredients = ['a|b\u202e', *soup.ingredients[1:]]
    card = model_card(export.as_classifier(soup))
    page = report.write_report(run, tmp_path / 'r.html', soups={'x\u202e<i>': cook(run)}).read_text(
        encoding='utf-8'
    )
    for text in (card, page):
        assert not set(HIDDEN) & set(text) and not controls_in(text)
    assert r'\u202e' in card and r'\u202e' in page
    body = card.split('---\n', 2)[2]
    for no in ('<b ', '<i>', '<script', '[x](', '**b**', '`c`', 'http://y', '@you', 'www.example', '$x$'):
        assert no not in body, no
    assert '&lt;b onclick=x&gt;' in body and r'a\|b\u202e' in body and r'\[x\]' in body
    for no in ('<b ', '<i>', '<script'):
        assert no not in page


def test_plain_names_stay_plain():
    c = Classifier(
        None,
        ['Chợ nổi', 'bell_tower', "it's & so"],
        32,
        arch='test_coatnet',
        info=dict(data='photos'),
        model=create_model('test_coatnet', 3, 32),
    )
    assert "Chợ nổi, bell_tower, it's &amp; so." in model_card(c)


@pytest.mark.parametrize(
    'words',
    [
        ['cook', 'PIPE'],
        ['cook', 'PIPE', 'PIPE'],
        ['eval', 'PIPE', '--data', 'scenes17:300'],
        ['predict', 'PIPE', 'x.jpg'],
        ['export', 'PIPE', '--to', 'onnx'],
        ['demo', 'PIPE'],
        ['cook', '/dev/zero'],
        ['cook', 'x.pth', '--out', 'PIPE'],
    ],
)
def test_a_pipe_is_called_one(words, home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    os.mkfifo('pipe.safetensors')
    (tmp_path / 'x.jpg').write_bytes(b'')
    assert cli.main([w.replace('PIPE', 'pipe.safetensors') for w in words]) == 2
    err = capsys.readouterr().err
    assert (
        ('is a named pipe' in err or 'is a device' in err)
        and 'give a regular file' in err
        and err.count('\n') == 1
    )


def test_onnx_runtime_tells_nobody(monkeypatch, tmp_path):
    pytest.importorskip('onnxruntime', reason="to run this, pip install 'ich_soups[onnx]'")
    monkeypatch.delenv('ORT_DISABLE_TELEMETRY', raising=False)
    assert onnx_model.needs_onnx() and os.environ['ORT_DISABLE_TELEMETRY'] == '1'
    code = "from ich_soups.app.onnx_model import needs_onnx; needs_onnx()"
    import subprocess, sys

    subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code], env=os.environ | dict(TMPDIR=str(tmp_path)), check=True
    )
    assert not list(tmp_path.glob('*.ses')) and not (tmp_path / '.ses').exists()


def test_a_folder_whose_name_looks_like_a_share_is_a_folder(tmp_path, monkeypatch):
    "`name@30` means 30 % of a collection's training images, unless such a folder lies here."
    monkeypatch.chdir(tmp_path)
    for i, c in enumerate('ab'):
        (tmp_path / 'scenes17@30' / c).mkdir(parents=True)
        for k in range(8):
            Image.new('RGB', (40, 40), (90 * i + 50, 20 * k, 9)).save(
                tmp_path / 'scenes17@30' / c / f'{k}.png'
            )
    assert load_pictures('scenes17@30').classes == ['a', 'b']
