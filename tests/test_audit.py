"What is wrong with a folder: found, told in one line each, and left out of a list; photographs stay as they are."

import shutil, time
import numpy as np
import pytest
from PIL import Image
from ich_soups.app import audit_copies, audit_inspect, audit_labels, audit_source
from ich_soups.app.audit import inspect
from ich_soups.app.audit_hashes import hamming_counts, hamming_pairs, phash
from ich_soups.core import BadInput, cache_dir
from ich_soups.data.collections import load_pictures


def contents(folder):
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.rglob('*')) if p.is_file()}


@pytest.fixture
def spoilt(photos):
    "A folder of classes with a bad file, a copy, a copy under another label and an altered copy."
    a, b = photos / 'Chợ nổi', photos / 'Đua ghe ngo'
    (a / 'notes.jpg').write_text('not an image')
    shutil.copy(a / 'ảnh 1.jpg', a / 'again.jpg')
    shutil.copy(a / 'ảnh 2.jpg', b / 'stray.jpg')
    with Image.open(b / 'ảnh 3.jpg') as im:
        im.resize((64, 64)).save(b / 'dòng 1\ndòng 2.png')
    return photos


def found(a):
    return a.findings.kind.value_counts().to_dict()


def test_a_folder_of_classes(home, spoilt):
    before = contents(spoilt)
    a = inspect(spoilt)
    assert found(a) == dict(unreadable=1, conflict=1, duplicate=1, near=1) and not a.ok
    assert all('\n' not in line for line in a.text) and r'dòng 1\ndòng 2.png' in str(a)
    out = a.fix(spoilt.parent / 'clean.csv')
    pics = load_pictures(out)
    assert len(pics) == 36 + 4 - 1 - 1 - 2  # the bad file, the copy, both under two labels
    twins = [
        s
        for p, s in zip(pics.items, pics.part)
        if p.parent.name == 'Đua ghe ngo' and p.name in ('ảnh 3.jpg', 'dòng 1\ndòng 2.png')
    ]
    assert len(twins) == 2 and len(set(twins)) == 1
    assert contents(spoilt) == before
    assert inspect(out).ok


def test_a_list(home, spoilt):
    rows = [
        f'{"photos/Chợ nổi" if i < 6 else "photos/Đua ghe ngo"}/ảnh {i}.jpg,{"a" if i < 6 else "b"},{s}'
        for i in range(12)
        for s in (('train', 'val', 'test')[i % 3],)
    ]
    rows += [
        'photos/Chợ nổi/ảnh 2.jpg,a,train',
        'photos/gone.jpg,b,test',
        'photos,b,test',
    ]  # the second is in test too
    (spoilt.parent / 'list.csv').write_text(
        'path,label,split\n' + '\n'.join(rows) + '\n', encoding='utf-8-sig'
    )
    a = inspect(spoilt.parent / 'list.csv')
    assert found(a) == {'unreadable': 2, 'leak': 1, 'few': 2}
    assert {'it is not there: correct the list', 'it is a folder: correct the list'} == set(
        a.findings.advice[a.findings.kind == 'unreadable']
    )
    pics = load_pictures(a.fix(spoilt.parent / 'deep' / 'er' / 'clean.csv'))
    assert len(pics) == 12 and {s for p, s in zip(pics.items, pics.part) if p.name == 'ảnh 2.jpg'} == {'test'}


def test_a_missing_class_and_a_leak_between_parts(home, tmp_path, photos):
    for i, s in enumerate(('train', 'val', 'test')):
        for c in photos.iterdir():
            (tmp_path / 'split' / s / c.name).mkdir(parents=True)
            for f in sorted(c.iterdir())[4 * i : 4 * i + 4]:
                shutil.copy(f, tmp_path / 'split' / s / c.name)
    split = tmp_path / 'split'
    assert inspect(split).ok
    shutil.rmtree(split / 'val' / 'Đua ghe ngo')
    leaked = next((split / 'test' / 'Chợ nổi').glob('*.jpg'))
    with Image.open(leaked) as im:
        im.resize((48, 48)).save(split / 'train' / 'Chợ nổi' / 'small.png')
    shutil.copy(leaked, split / 'val' / 'Chợ nổi' / 'copy.jpg')
    a = inspect(split)
    assert found(a) == {'missing': 1, 'leak': 1, 'near-leak': 1, 'few': 1}
    assert list(a.findings.kind)[:2] == ['missing', 'leak'] and 'Đua ghe ngo has none in val' in str(a)
    assert dict(a.plan().why.value_counts()) == {'': 32, 'copy': 1, 'near-duplicate': 1}
    assert a.plan().why[[p.name == 'small.png' for p in a.plan().path]].item() == 'near-duplicate'


def test_of_a_burst_nothing_is_left_beside_its_picture_in_test(home, tmp_path, photos):
    "More frames than an image has near neighbours on record."
    for s, n in (('train', 45), ('val', 1), ('test', 1)):
        for c in photos.iterdir():
            (tmp_path / 'split' / s / c.name).mkdir(parents=True)
            for f in sorted(c.iterdir())[{'train': 0, 'val': 6, 'test': 9}[s] :][:3]:
                shutil.copy(f, tmp_path / 'split' / s / c.name)
        with Image.open(photos / 'Chợ nổi' / 'ảnh 11.jpg') as im:
            for i in range(n):
                im.convert('RGB').resize((40 + i, 40 + i)).save(
                    tmp_path / 'split' / s / 'Chợ nổi' / f'{s} {i}.png'
                )
    p = inspect(tmp_path / 'split').plan().set_index('path')
    burst = p[[' ' in f.name and f.name.split()[0] in ('train', 'val', 'test') for f in p.index]]
    assert dict(burst[burst.why == ''].split.value_counts()) == {'test': 1}
    assert set(burst.why[burst.split != 'test']) == {'near-duplicate', 'copy'} and len(burst) == 47


def test_a_class_does_not_vanish_from_the_list(home, tmp_path, photos):
    for f in (photos / 'Chợ nổi').iterdir():
        f.write_text('not an image')
    with pytest.raises(BadInput, match='the class Chợ nổi would have no image left'):
        inspect(photos).fix(tmp_path / 'x.csv')


def test_a_photograph_is_no_contact_sheet(home, spoilt):
    before, a = contents(spoilt), inspect(spoilt)
    photo = next(spoilt.rglob('*.png'))
    with pytest.raises(BadInput, match='is no contact sheet'):
        a.contact_sheet(photo)
    assert contents(spoilt) == before
    sheet = a.contact_sheet(spoilt.parent / 'sheet.png')
    assert a.contact_sheet(sheet) == sheet


def test_bursts_are_too_little_to_judge_labels_by(home, tmp_path, drawn):
    for c in (0, 1):
        (tmp_path / 'two' / str(c)).mkdir(parents=True)
        im = Image.fromarray(drawn.images[c]).resize((96, 96))
        for i in range(8):
            im.resize((80 + i, 80 + i)).save(tmp_path / 'two' / str(c) / f'{i}.png')
    with pytest.raises(BadInput, match='differ by more than a near-duplicate'):
        inspect(tmp_path / 'two', suspects=True)


def test_nothing_is_decoded_twice(home, photos, monkeypatch):
    first = inspect(photos)
    monkeypatch.setattr(audit_source, 'phash', lambda t: pytest.fail('hashed again'))
    monkeypatch.setattr(audit_copies, 'same_photo', lambda a, b: pytest.fail('compared again'))
    monkeypatch.setattr('ich_soups.data.pictures.decode', lambda *a: pytest.fail('decoded again'))
    monkeypatch.setattr(audit_source, 'decode', lambda *a: pytest.fail('decoded again'))
    again = inspect(photos)
    assert again.findings.equals(first.findings) and again.curve.equals(first.curve)


def test_the_scan_of_a_training_is_used_and_a_damaged_memory_is_made_again(home, photos):
    load_pictures(photos)  # digests are known, thumbnails are not
    first = inspect(photos)
    for f in (cache_dir() / 'thumbs').iterdir():
        f.write_bytes(b'half')
    assert inspect(photos).curve.equals(first.curve)


def test_bad_input(home, tmp_path, photos):
    (tmp_path / 'empty').mkdir()
    for path, says in (
        (tmp_path / 'empty', 'holds no images'),
        (tmp_path / 'nowhere', 'does not exist'),
        (photos / 'Chợ nổi' / 'ảnh 1.jpg', 'is not a list'),
        ('scene17', 'did you mean scenes17?'),
    ):
        with pytest.raises(BadInput, match=says.replace('?', r'\?')):
            inspect(path)
    a = inspect(photos)
    with pytest.raises(BadInput, match='ends in .csv'):
        a.fix(photos / 'Chợ nổi' / 'ảnh 1.jpg', overwrite=True)
    with pytest.raises(BadInput, match='no pairs and no doubtful labels'):
        a.contact_sheet(tmp_path / 'sheet.png')
    with pytest.raises(BadInput, match=r'probs is \[2, 3\]'):
        inspect(photos, suspects=True, probs=np.ones((2, 3)))
    with pytest.raises(BadInput, match='are no files'):
        inspect('scenes17:40', near=None).fix(tmp_path / 'x.csv')
    assert not (tmp_path / 'x.csv').exists() and not (tmp_path / 'sheet.png').exists()


def test_one_class_is_a_finding_and_no_list(home, tmp_path, photos):
    for c in ('Đua ghe ngo', 'Đờn ca tài tử'):
        shutil.rmtree(photos / c)
    a = inspect(photos, suspects=True)
    assert found(a) == {'one-class': 1} and not a.ok
    with pytest.raises(BadInput, match='at least two'):
        a.fix(tmp_path / 'x.csv')


def test_classes_that_differ_by_a_detail_are_kept(home, tmp_path, drawn):
    "Inspection: one and the same part, with and without a flaw. Everything is a near-duplicate, and nothing may go."
    board = Image.fromarray(drawn.images[0]).resize((128, 128), Image.BICUBIC)
    for c, flaw in (('good', False), ('flawed', True)):
        (tmp_path / 'boards' / c).mkdir(parents=True)
        for i in range(10):
            im = board.copy()
            im.putpixel((i, 0), (i, 0, 0))
            if flaw:
                im.paste('black', (60, 60, 66, 66))
            im.save(tmp_path / 'boards' / c / f'{i}.png')
    a = inspect(tmp_path / 'boards')
    assert found(a)['near-conflict'] == 100 and (a.plan().why == '').all()
    with pytest.raises(BadInput, match='near=None'):
        a.fix(tmp_path / 'x.csv')  # each class is one burst: no split of bursts exists
    assert len(load_pictures(inspect(tmp_path / 'boards', near=None).fix(tmp_path / 'x.csv'))) == 20


def test_suspects_from_given_probabilities(home, photos):
    n, y = 36, np.repeat([0, 1, 2], 12)
    p = np.full((n, 3), 0.05)
    p[np.arange(n), y] = 0.9
    p[5] = 0.02, 0.96, 0.02
    a = inspect(photos, suspects=True, probs=p)
    row = a.findings[a.findings.kind == 'suspect']
    assert (
        len(row) == 1 and row.label.item() == 'Chợ nổi' and row.other_label.item() == 'Đua ghe ngo' and a.ok
    )
    assert (a.plan().why == '').all() and (a.plan(suspects=True).why == 'suspect').sum() == 1
    sheet = a.contact_sheet(photos.parent / 'sheet.png')
    with Image.open(sheet) as im:
        assert im.width > 300


def test_missing_packages_are_said(home, photos, monkeypatch):
    def absent(module, what, extra):
        raise BadInput(f'{what} needs the package {module}')

    for module in (audit_inspect, audit_labels):
        monkeypatch.setattr(module, 'needed', absent)
    a = inspect(photos, suspects='auto')
    assert (
        a.ok
        and a.curve is None
        and [('imagehash' in t, 'cleanlab' in t) for t in a.text[-2:]] == [(True, False), (False, True)]
    )
    with pytest.raises(BadInput, match='cleanlab'):
        inspect(photos, suspects=True)


def test_fifty_thousand_pictures(home):
    "Two passes over 1.25 billion pairs, with twenty pairs to find."
    h = np.random.default_rng(0).integers(0, 2**64, 50_000, np.uint64)
    h[-20:] = h[:20] ^ np.uint64(0b101 << 7)
    t0 = time.time()
    assert hamming_counts(h).sum() == 50_000 * 49_999 // 2
    a, b, d = hamming_pairs(h, 4)
    assert a.tolist() == list(range(20)) and b.tolist() == list(range(49_980, 50_000)) and set(d) == {2}
    assert time.time() - t0 < 60


def test_pictures_alike_by_nature_do_not_make_a_pair_of_every_two(home):
    r = np.random.default_rng(0)
    base = r.integers(60, 190, (32, 32))
    thumbs = np.clip(base + r.normal(0, 1, (300, 32, 32)), 0, 255).astype(np.uint8)
    (a, b, *_), curve = audit_copies.near_pairs(
        [f'{i}' for i in range(300)], range(300), thumbs, np.array([phash(t) for t in thumbs]), 0.8, 16
    )
    assert (
        curve.pairs.sum() == 300 * 299 // 2
        and len(a) == 280 * 20 + 20 * 19 // 2
        and set(range(300)) == {*a, *b}
    )


def test_photographs_of_heritage(home, ahe10):
    "The whole collection: in time, and a second time in seconds; pairs from the web, and nobody's split to leak across."
    t0 = time.time()
    a = inspect(ahe10)
    assert time.time() - t0 < 60
    t0 = time.time()
    assert inspect(ahe10).findings.equals(a.findings)
    assert time.time() - t0 < 10
    assert 40 <= (a.findings.kind == 'near').sum() <= 200 and not (a.findings.kind == 'duplicate').any()
