"Folders, images and lists as the world makes them: from telephones, file servers, microscopes and spreadsheets."

import base64
import io
import os
import shutil
import struct
import unicodedata
import warnings
import zlib
from collections import Counter
from pathlib import Path
from urllib.parse import quote
import numpy as np
import pytest
from PIL import Image, ImageCms
from ich_soups.app import cli_models, cli_predict, upload
from ich_soups.data import collections, decoding, formats, metadata, scan, splits
from ich_soups.app.audit import inspect
from ich_soups.app.classifier import _read
from ich_soups.core import BadInput, write_json
from ich_soups.data.decoding import decode, open_picture, to_look_at
from ich_soups.data.lists import files_of_list, write_split
from ich_soups.data.collections import load_pictures
from ich_soups.data.photos import read_photos

HEIC = base64.b85decode(  # 64 x 48, its left half red, its right half blue
    '0000SW^{RQXk}?*00000ZE0pPXk}?*ZE0a<0004fZDn*}000000000XXk=`10000000000aA{+700000000000000000000B57=IV*mgE07O6l0RRC200001p#T8@00000002P%0'
    '01LtX>Mi!000000RR916=`l}WdZ;I000310BCk&F#rGn01j|zbZr0t000010002}X>f9I0002pX>en20001XXm(>m0RwOV0058x000009`FGC{rLC*01pFT0096PKmiN^|NjGU00'
    '093kN^M!000939=ZZRVE_RDDnbDP18@KU0|1Z!00RI30{|YNAb|yz>g1-mxCm%4AOHXZ10VnZ0{|gn00967L;=Bbz=;3=025<xY;ta6Y<K_x01W^JfB*mh6lrsCWdHyG00000KmY'
    '&$KmY&$C}V74Z~y=RKmY&$0RR91FaQ7m0RR91000000{{R2@Bjb+0ssI25O8UDX#fBK00RgJ2mk;87-?{AVE_OC000000RRC7fdT^sga7~lNo{0dbN~PVJtzUMSmyNVzyIZHzy7'
    '2Ahspo{U;j$ISMD(r{+<O|TK{wOeHGo54sIF4Csf+pCF@PqdNj{9r8F}~pF{'
)
needs_heif = pytest.mark.skipif(
    'HEIF' not in formats.FORMATS, reason="to run this, pip install 'ich_soups[photos]'"
)


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


def saved(im, kind='png', **kw):
    im.save(f := io.BytesIO(), kind, **kw)
    return f.getvalue()


def ramp(top=255, kind=np.uint8, low=0):
    "Grey from left to right, 40 x 40, from `low` to `top`."
    return np.tile(np.linspace(low, top, 40), (40, 1)).astype(kind)


WANT = ramp().astype(int)


def is_ramp(b, tolerance=4):
    a = decode(b, 40).astype(int)
    assert abs(a - WANT[..., None]).max() <= tolerance, (a[20, ::8, 0], WANT[20, ::8])


def notes(f):
    "What a call says, and what it returns."
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        out = f()
    return out, ' | '.join(str(x.message) for x in w)


def texts(path):
    return '\n'.join(inspect(path, near=None).text)


# Folders.


def test_the_fingerprint_of_an_ordinary_folder_is_what_it_was(home, tmp_path):
    "A run is found by it."
    r = np.random.default_rng(0)
    for c in ('a', 'B', 'Chợ nổi'):
        (tmp_path / 'in' / c).mkdir(parents=True)
        for i in range(12):
            (tmp_path / 'in' / c / f'{i}.png').write_bytes(
                fixed_png(r.integers(0, 255, (8, 8), dtype=np.uint8))
            )
    assert load_pictures(tmp_path / 'in').fingerprint == FINGERPRINT


FINGERPRINT = '22a51fde3bd10b31'


def fixed_png(grey):
    "The same bytes with every library."
    rows = b''.join(b'\0' + r.tobytes() for r in grey)
    stored = (
        b'\x78\x01\x01'
        + struct.pack('<HH', len(rows), len(rows) ^ 0xFFFF)
        + rows
        + struct.pack('>I', zlib.adler32(rows))
    )
    return png_of(len(grey), 8, 0, stored)


def chunk(kind, b):
    return struct.pack('>I', len(b)) + kind + b + struct.pack('>I', zlib.crc32(kind + b))


def png_of(side, depth, colour, packed, *more):
    head = chunk(b'IHDR', struct.pack('>IIBBBBB', side, side, depth, colour, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + head + b''.join(more) + chunk(b'IDAT', packed) + chunk(b'IEND', b'')


@pytest.mark.parametrize(
    'name',
    ['.ipynb_checkpoints', '@eaDir', '.thumbnails', 'Thumbs', '__MACOSX', '#recycle', 'RECYCLER', '@tmp'],
)
@pytest.mark.parametrize('where', ['class', 'top'])
def test_hidden_and_thumbnail_folders_are_not_entered(name, where, home, photos):
    before = load_pictures(photos).fingerprint
    first = sorted(photos.rglob('*.jpg'))[0]
    at = (first.parent if where == 'class' else photos) / name / 'deeper'
    at.mkdir(parents=True)
    shutil.copy(first, at / f'thumb_{first.name}')
    pics, said = notes(lambda: load_pictures(photos))
    assert len(pics) == 36 and pics.fingerprint == before and f'1 in {name}' in said
    assert f'1 in {name}' in texts(photos) and '36 images' in texts(photos)


def test_a_folder_of_gestures_called_thumbs_is_a_class(home, photos):
    (photos / 'Thumbs').mkdir()
    for i, f in enumerate(sorted(photos.rglob('*.jpg'))[:12]):
        with Image.open(f) as im:
            im.rotate(90).save(photos / 'Thumbs' / f'up {i}.jpg')
    assert load_pictures(photos).classes[-1] == 'Đờn ca tài tử' and 'Thumbs' in load_pictures(photos).classes


@pytest.mark.parametrize('kind', ['mixed parts', 'flat', 'list'])
def test_names_in_two_forms_of_unicode_are_one_class(kind, home, photos, tmp_path):
    other = 'NFD' if unicodedata.is_normalized('NFC', 'Chợ nổi') else 'NFC'
    if kind == 'mixed parts':
        for s in ('train', 'val', 'test'):
            for c in sorted(photos.iterdir()):
                shutil.copytree(
                    c, tmp_path / 'in' / s / (unicodedata.normalize(other, c.name) if s == 'val' else c.name)
                )
    elif kind == 'flat':
        for c in sorted(photos.iterdir()):
            shutil.copytree(c, tmp_path / 'in' / c.name)
            shutil.copytree(c, tmp_path / 'in' / unicodedata.normalize(other, c.name), dirs_exist_ok=True)
    else:
        (tmp_path / 'in').write_text(
            'path,label\n'
            + ''.join(
                f'photos/{c.name}/{f.name},{unicodedata.normalize(("NFC", "NFD")[i % 2], c.name)}\n'
                for c in sorted(photos.iterdir())
                for i, f in enumerate(sorted(c.iterdir()))
            ),
            encoding='utf-8',
        )
    pics, said = notes(lambda: load_pictures(tmp_path / 'in'))
    assert (
        len(pics.classes) == 3
        and 'written in two ways' in said
        and 'written in two ways' in texts(tmp_path / 'in')
    )


def test_a_folder_wholly_from_a_mac_keeps_its_names_and_is_scored_by_other_models(home, photos):
    for c in sorted(photos.iterdir()):
        c.rename(photos / unicodedata.normalize('NFD', c.name))
    pics = load_pictures(photos)
    assert pics.classes == sorted(unicodedata.normalize('NFD', c) for c in pics.classes)
    model = type('Model', (), dict(classes=[unicodedata.normalize('NFC', c) for c in pics.classes]))
    cli_models.check_classes(model, 'm', pics)
    assert (cli_models.targets(model, pics, np.arange(len(pics))) == pics.labels).all()


@pytest.mark.parametrize('names', [('Cat', 'cat'), ('dog', 'dog '), ('bell tower', 'bell_tower')])
def test_names_that_differ_in_capitals_or_blanks_are_a_finding(names, home, photos):
    for c, n in zip(sorted(photos.iterdir()), names):
        c.rename(photos / n)
    assert f'{names[0]!r} and {names[1]!r}' in texts(photos) and 'capitals, blanks' in texts(photos)


@pytest.mark.parametrize('more', ['cat\u200b', '\u2060cat', 'ca\u00adt'])
def test_names_that_differ_in_what_nobody_sees_are_a_finding(more, home, photos):
    for d, name in zip(sorted(photos.iterdir()), ('cat', more)):
        d.rename(photos / name)
    assert '1 class is called like another' in texts(photos)


@pytest.mark.parametrize('names', [('.git',), ('@Recycle', '#recycle', '$RECYCLE.BIN'), ('Thumbs', '.x')])
def test_of_hidden_copies_nobody_is_told_to_convert_them(names, home, photos):
    first = sorted(photos.rglob('*.jpg'))[0]
    for n in names:
        (photos / n).mkdir()
        shutil.copy(first, photos / n / first.name)
    said = texts(photos)
    assert all(f'1 in {n}' in said for n in names) and 'hidden place' in said and 'JPEG' not in said
    (photos / 'a.cr2').write_bytes(b'raw')
    assert '1 .cr2 - convert photographs among them to JPEG' in texts(photos)


@pytest.mark.parametrize('names', [('seg_train', 'seg_test'), ('Training', 'validation'), ('train', 'eval')])
def test_folders_of_parts_are_called_as_they_are(names, home, photos, tmp_path):
    for n in (*names, 'more'):
        shutil.copytree(photos, tmp_path / 'in' / n)
    one, other = sorted(names)
    assert f"has {one} and {other} and beside them 'more'" in said_by(lambda: load_pictures(tmp_path / 'in'))


def test_a_class_that_is_called_otherwise_in_train_is_named(home, photos, tmp_path):
    for s, n in (('train', 'Cat'), ('val', 'cat'), ('test', 'cat')):
        for c, to in zip(sorted(photos.iterdir()), (n, 'dog')):
            shutil.copytree(c, tmp_path / 'in' / s / to)
    with pytest.raises(BadInput, match="'cat' has no training image; it is called 'Cat' there"):
        load_pictures(tmp_path / 'in')


def split(photos, root, **parts):
    for s, name in parts.items():
        shutil.copytree(photos, root / name)
    return root


@pytest.mark.parametrize(
    'names',
    [
        ('training_set', 'val_set', 'test_set'),
        ('seg_train/seg_train', 'seg_val', 'seg_test/seg_test'),
        ('train_images', 'Validation', 'test-images'),
        ('train2017', 'val2017', 'test2017'),
        ('Train', 'Valid', 'Testing'),
    ],
)
def test_parts_by_any_usual_name(names, home, photos, tmp_path):
    root = split(photos, tmp_path / 'in', **dict(zip(('train', 'val', 'test'), names)))
    pics = load_pictures(root)
    assert len(pics.classes) == 3 and [len(pics.idxs(s)) for s in splits.SPLITS] == [36] * 3


@pytest.mark.parametrize(
    'names',
    [('training_set/training_set', 'test_set/test_set'), ('train', 'test'), ('seg_train', 'seg_test')],
)
def test_a_split_without_val_is_no_folder_of_two_classes(names, home, photos, tmp_path):
    root = split(photos, tmp_path / 'in', **dict(zip(('train', 'test'), names)))
    pics, said = notes(lambda: load_pictures(root))
    assert [len(pics.idxs(s)) for s in splits.SPLITS] == [33, 3, 36] and 'in has no val part' in said
    assert {c: n for c, n in Counter(pics.labels[pics.idxs('val')].tolist()).items()} == {0: 1, 1: 1, 2: 1}
    tested = {Path(pics.items[i]).relative_to(root).parts[0] for i in pics.idxs('test')}
    assert tested == {names[1].split('/')[0]}  # what was given for judging stays that
    assert 'there is no val part: it is drawn from train' in texts(root)
    assert load_pictures(root, scoring=True).fingerprint == pics.fingerprint  # found again by eval
    assert load_pictures(root, 1).fingerprint != pics.fingerprint


@pytest.mark.parametrize('kind', ['folder', 'list', 'flat test'])
def test_a_train_part_alone_is_split(kind, home, photos, tmp_path):
    root = source = split(photos, tmp_path / 'in', train='train')
    if kind == 'flat test':
        (root / 'test').mkdir()
        shutil.copy(next(photos.rglob('*.jpg')), root / 'test' / '1.jpg')
    if kind == 'list':
        source = tmp_path / 'list.csv'
        rows = ''.join(f'{p},{l},train\n' for p, l in rows_of(photos))
        source.write_text('path,label,split\n' + rows, encoding='utf-8')
    pics, said = notes(lambda: load_pictures(source))
    assert [len(pics.idxs(s)) for s in splits.SPLITS] == [29, 3, 4]
    assert 'has no val part: val (3) and test (4) of its 36 training images' in said
    assert 'there is no val and no test part: they are drawn from train' in texts(source)


@pytest.mark.parametrize('parts', [('test',), ('val',), ('val', 'test')])
def test_without_train_nothing_is_drawn(parts, home, photos, tmp_path):
    root = split(photos, tmp_path / 'in', **{s: s for s in parts})
    with pytest.raises(BadInput, match="no 'train' folder"):
        load_pictures(root)
    assert 'it cannot be trained on as it is' in texts(root)


@pytest.mark.parametrize(
    'names', [('train1', 'train2'), ('test 1', 'test 2', 'train 1'), ('train', 'bus', 'car')]
)
def test_classes_that_sound_like_parts_stay_classes(names, home, photos):
    for c, n in zip(sorted(photos.iterdir()), names):
        c.rename(photos / n)
    assert set(names) <= set(load_pictures(photos).classes)


@pytest.mark.parametrize(
    'names, parts',
    [
        (('train', 'eval'), 'train test'),
        (('Training', 'hold-out'), 'train test'),
        (('train', 'held_out', 'test'), 'train val test'),
        (('my-train', 'my-valid', 'my-test'), 'train val test'),
        (('1_train', '2_val', '3_test'), 'train val test'),
        (('train_2023', 'test_2023'), 'train test'),
        (('train v2', 'dev v2', 'evaluation v2'), 'train val test'),
    ],
)
@pytest.mark.parametrize('first', ['parts', 'classes'])
def test_parts_that_are_called_otherwise_are_no_classes(names, parts, first, home, photos, tmp_path):
    "Above the class folders or in them: what was to be held out is never trained on."
    for n in names:
        for c in photos.iterdir():
            shutil.copytree(c, tmp_path / 'in' / (f'{n}/{c.name}' if first == 'parts' else f'{c.name}/{n}'))
    (tmp_path / 'in' / 'docs').mkdir()
    pics = read_photos(tmp_path / 'in', scoring=True)
    assert pics.classes == sorted(c.name for c in photos.iterdir())
    of = dict(zip(names, parts.split()))
    at = 0 if first == 'parts' else 1
    for p, s in zip(pics.items, pics.part):
        part = of[Path(p).relative_to(tmp_path / 'in').parts[at]]
        assert s == part or ('val' not in of.values() and (part, s) == ('train', 'val'))


@pytest.mark.parametrize(
    'names', [('train', 'bus', 'car'), ('eval', 'holdout', 'x'), ('freight train', 'test train', 'tram')]
)
@pytest.mark.parametrize('inner', ['', 'batch'])
def test_vehicles_are_classes(names, inner, home, photos):
    for c, n in zip(sorted(photos.iterdir()), names):
        (photos / n).mkdir()
        c.rename(photos / n / inner if inner else photos / n)
    assert load_pictures(photos).classes == sorted(names)


@pytest.mark.parametrize('names', [('train', 'eval'), ('my-train', 'my-test'), ('train 1', 'test 2')])
def test_parts_without_class_folders_are_refused(names, home, photos):
    for c, n in zip(sorted(photos.iterdir()), names):
        c.rename(photos / n)
    for c in photos.iterdir():
        if c.name not in names:
            shutil.rmtree(c)
    assert f'{names[0]} holds 12 images but no class folders' in said_by(lambda: load_pictures(photos))


@pytest.mark.parametrize('inner', ['images', 'images/all', 'JPEGImages'])
@pytest.mark.parametrize('parts', [True, False])
def test_the_folder_of_class_folders_in_a_folder_is_what_to_give(inner, parts, home, photos, tmp_path):
    "As label tools export: the images, and beside them a folder of their labels."
    if parts:
        split(photos, tmp_path / 'in' / inner, train='train', val='val')
    else:
        shutil.copytree(photos, tmp_path / 'in' / inner)
    for folder in ('labels/train', 'labels/val'):
        (tmp_path / 'in' / folder).mkdir(parents=True)
        (tmp_path / 'in' / folder / '1.txt').write_text('0 0.5 0.5 1 1')
    says = f'{tmp_path / "in" / inner} holds the class folders: give that'
    assert says in said_by(lambda: read_photos(tmp_path / 'in')) and says in texts(tmp_path / 'in')
    assert len(read_photos(tmp_path / 'in' / inner).classes) == 3


@pytest.mark.parametrize('parts', [('train', 'val'), ('train', 'val', 'test'), ('train', 'eval')])
def test_a_folder_that_is_no_class_in_any_part_is_said_once(parts, home, photos, tmp_path):
    for s in parts:
        shutil.copytree(photos, tmp_path / 'in' / s)
        (tmp_path / 'in' / s / 'labels').mkdir()
    assert texts(tmp_path / 'in').count("the folder 'labels' holds no image") == 1


@pytest.mark.parametrize(
    'cells', [('train', 'eval'), ('train', 'dev', 'Holdout'), ('training', 'test', 'eval')]
)
def test_parts_in_a_list_by_any_usual_name(cells, home, photos, tmp_path):
    rows = [(p, l, cells[i % len(cells)]) for i, (p, l) in enumerate(rows_of(photos))]
    (tmp_path / 'list.csv').write_text('path,label,split\n' + ''.join(f'{",".join(r)}\n' for r in rows))
    pics = read_photos(tmp_path / 'list.csv', scoring=True)
    held = {p for (p, _, s), part in zip(rows, pics.part) if part == 'test'}
    assert held == {p for p, _, s in rows if s == ('test' if 'test' in cells else cells[-1])}


def test_train_and_val_are_enough(home, photos, tmp_path):
    root = split(photos, tmp_path / 'in', train='train', val='val')
    pics, said = notes(lambda: load_pictures(root))
    assert (
        [len(pics.idxs(s)) for s in splits.SPLITS] == [36, 36, 0]
        and 'no test part' in said
        and 'there is no test part' in texts(root)
    )
    (root / 'test').mkdir()
    shutil.copy(next(photos.rglob('*.jpg')), root / 'test' / '1.jpg')
    pics, said = notes(lambda: load_pictures(root))
    assert len(pics) == 72 and "'test' holds 1 images without class folders" in said


@pytest.mark.parametrize('inner', ['my_photos', 'a/b', 'my_photos with parts'])
def test_wrappers(inner, home, photos, tmp_path):
    if 'parts' in inner:
        split(photos, tmp_path / 'in' / 'x', train='train', val='val', test='test')
    else:
        shutil.copytree(photos, tmp_path / 'in' / inner)
    (tmp_path / 'in' / '__MACOSX' / 'x').mkdir(parents=True)
    pics, said = notes(lambda: load_pictures(tmp_path / 'in'))
    assert (
        len(pics.classes) == 3 and 'holds one folder' in said and 'holds one folder' in texts(tmp_path / 'in')
    )


@pytest.mark.parametrize('name', ['no ending', 'a.jpg_large', 'a.JFIF~', 'a.HEIC'])
def test_an_image_is_one_by_its_contents(name, home, photos):
    f = sorted(photos.rglob('*.jpg'))[0]
    f.rename(f.with_name(name))
    assert len(load_pictures(photos)) == (36 if 'HEIF' in formats.FORMATS or name != 'a.HEIC' else 35)


@pytest.mark.parametrize(
    'name,head',
    [
        ('a.h5', b'\x89HDF\r\n\x1a\n'),
        ('a.eps', b'%!PS-Adobe-3.0 EPSF-3.0\n'),
        ('a', b'plain text'),
        ('a.mp4', b'0'),
        ('a.nef', b'II*\0' + bytes(40)),
        ('a.jxl', b'\xff\x0a'),
    ],
)
def test_what_is_no_image_is_counted_and_named(name, head, home, photos, capsys):
    (sorted(photos.iterdir())[0] / name).write_bytes(head)
    kind = Path(name).suffix or 'without an ending'
    pics, said = notes(lambda: load_pictures(photos))
    assert len(pics) == 36 and f'1 {kind}' in said and f'1 {kind}' in texts(photos)
    assert len(cli_predict.pictures([photos])) == 36 and f'1 {kind}' in capsys.readouterr().err


def test_a_class_that_vanishes_is_named(home, photos):
    for f in sorted(photos.iterdir())[0].iterdir():
        f.with_suffix('.cr2').write_bytes(b'raw'), f.unlink()
    (photos / 'empty').mkdir()
    pics, said = notes(lambda: load_pictures(photos))
    assert len(pics.classes) == 2 and '12 .cr2' in said and said.count('is no class') == 2


@needs_heif
@pytest.mark.parametrize('name', ['IMG_1.HEIC', 'IMG_1.heif', 'IMG_1'])
def test_heic(name, home, photos):
    (sorted(photos.iterdir())[0] / name).write_bytes(HEIC)
    pics = load_pictures(photos)
    a = decode(HEIC, 16).astype(int)
    assert (
        len(pics) == 37
        and abs(a[8, 2] - (200, 30, 30)).max() < 20
        and abs(a[8, 13] - (30, 30, 200)).max() < 20
    )
    assert upload.read_upload(HEIC, 16)[1].size == (64, 48)


@needs_heif
@pytest.mark.parametrize('cut', [20, 100, 300, 480])
def test_a_broken_heic_is_unreadable(cut, tmp_path):
    (tmp_path / 'a.heic').write_bytes(HEIC[:cut])
    assert scan._check_file(tmp_path / 'a.heic')[1]


@pytest.mark.parametrize('kind', ['heic', 'jpg', 'png', 'webp', 'gif'])
@pytest.mark.parametrize('left', [24, 0.5])
def test_a_damaged_image_is_to_be_copied_again_not_removed(kind, left, home, photos):
    if kind == 'heic' and 'HEIF' not in formats.FORMATS:
        pytest.skip("to run this, pip install 'ich_soups[photos]'")
    im = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    b = HEIC if kind == 'heic' else saved(im, dict(jpg='jpeg').get(kind, kind))
    (photos / 'Chợ nổi' / f'a.{kind}').write_bytes(b[: left if left > 1 else int(left * len(b))])
    said = texts(photos)
    assert 'copy or download it again' in said and 'remove it)' not in said, said


NO_IMAGES = {
    'pointer': (
        b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n',
        'git lfs pull fetches it',
    ),
    'page': (
        b'\n<!DOCTYPE html>\n<html><body>404</body></html>',
        'it is a web page: download the image again',
    ),
    'answer': (
        b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
        'it is the answer of a server',
    ),
    'text': (b'Too many requests', 'it is text and no image'),
    'drawing': (b'<?xml version="1.0"?><svg xmlns="x"/>', 'of a kind that is not read: save it as a JPEG'),
    'nothing': (bytes(range(40)), 'it is no image'),
    'cut': (saved(Image.new('RGB', (64, 64)), 'jpeg')[:-40], 'cut short'),
}


@pytest.mark.parametrize('kind', NO_IMAGES)
def test_what_lies_there_instead_of_an_image_is_said_in_plain_words(kind, home, photos):
    "In check, in training and in labelling alike, with the way to get the image."
    b, says = NO_IMAGES[kind]
    f = photos / 'Chợ nổi' / 'a.jpg'
    f.write_bytes(b)
    trained, labelled = (said_by(lambda: read_photos(photos)), said_by(lambda: _read(0, f, 32)))
    for said in (texts(photos), trained, labelled, said_by(lambda: _read(0, b, 32))):
        assert says in said and 'Error' not in said and 'not processed' not in said, said


# Images.


def tiff_of_exif(entries):
    head = b'II*\0' + struct.pack('<IH', 8, len(entries))
    return (
        b'Exif\0\0'
        + head
        + b''.join(struct.pack('<HHI', t, k, n) + v.ljust(4, b'\0') for t, k, n, v in entries)
        + bytes(4)
    )


TURNED = (0x112, 3, 1, struct.pack('<H', 6))
ODD = {
    'negative rational': (0x11A, 10, 1, struct.pack('<I', 38)),
    'beyond the end': (0x9286, 7, 2**31 - 1, b''),
    'unknown kind': (0x9000, 99, 1, b'x'),
    'text for a number': (0x100, 2, 3, b'ab\0'),
}


@pytest.mark.parametrize('odd', ODD)
@pytest.mark.parametrize('kind', ['jpeg', 'webp', 'png'])
def test_photographs_are_turned_whatever_else_their_exif_says(odd, kind):
    im = Image.new('RGB', (40, 40), 'blue')
    im.paste('red', (0, 0, 40, 20))
    raw = tiff_of_exif([TURNED, ODD[odd]]) + struct.pack('<ii', -1, 0)
    a = decode(saved(im, kind, exif=raw, **({} if kind == 'png' else dict(quality=95))), 8).astype(int)
    assert abs(a[4, -1] - (255, 0, 0)).max() < 40 and abs(a[4, 0] - (0, 0, 255)).max() < 40


DEEP = {
    'sixteen bits': (ramp(65535, np.uint16), ''),
    'twelve in sixteen': (ramp(4095, np.uint16), '4095'),
    'ten in sixteen': (ramp(1023, np.uint16), '1023'),
    'int32 of a byte': (ramp(255, np.int32), '255'),
    'int32 of sixteen bits': (ramp(65535, np.int32), '65535'),
    'floats to 1': (ramp(1, np.float32), '1'),
    'floats to 255': (ramp(255, np.float32), '255'),
    'floats from -1': (ramp(1, np.float32, -1), '-1'),
    'floats to a million': (ramp(1e6, np.float32), '1e+06'),
    'signed': (ramp(20000, np.int32, -20000), '-20000'),
}


@pytest.mark.parametrize('kind', DEEP)
def test_deep_pixels_by_the_range_they_use(kind, home, photos):
    a, guess = DEEP[kind]
    b = saved(Image.fromarray(a), 'tiff')
    is_ramp(b)
    f = sorted(photos.iterdir())[0] / 'deep.tif'
    f.write_bytes(b)
    assert (
        ('was guessed: ' in texts(photos) and guess in texts(photos))
        if guess
        else 'guessed' not in texts(photos)
    )
    assert texts(photos) == texts(photos)  # what was remembered says the same


@pytest.mark.parametrize('tags', [{340: 0.0, 341: 8.0}, {281: 8}, {340: -8.0, 341: 8.0}])
def test_deep_pixels_by_the_range_that_the_file_states(tags, home):
    info, low = Image.Exif(), tags.get(340, 0)
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    info = ImageFileDirectory_v2()
    for k, v in tags.items():
        info[k] = v
        if k in (340, 341):
            info.tagtype[k] = 11
    b = saved(Image.fromarray(ramp(4, np.float32, low)), 'tiff', tiffinfo=info)
    want = (ramp(4, float, low) - low) / (8 - low) * 255
    assert abs(decode(b, 40)[..., 0] - want).max() <= 4 and not decoding._decoded(b, 40)[1]


@pytest.mark.parametrize('top', [255, 1023, 4095, 65535])
@pytest.mark.parametrize('turn', [None, 6, 'opaque'])
def test_deep_colours(top, turn):
    "Three channels of sixteen bits, of which Pillow decodes the upper eight."
    a = np.stack([ramp(top, np.uint16)] * 3, -1).astype('>u2')
    exif = chunk(b'eXIf', tiff_of_exif([TURNED])[6:]) if turn == 6 else b''
    if turn == 6:
        a = np.rot90(a)
    if turn == 'opaque':
        a = np.concatenate([a, np.full_like(a[..., :1], top)], -1).astype('>u2')
    b = png_of(
        40, 16, 6 if turn == 'opaque' else 2, zlib.compress(b''.join(b'\0' + r.tobytes() for r in a)), exif
    )
    is_ramp(b, 4)
    assert bool(decoding._decoded(b, 40)[1]) == (top < 65535)


def test_numbers_that_are_none():
    a = ramp(1, np.float32)
    a[0, 0], a[0, 1] = np.nan, np.inf
    assert abs(decode(saved(Image.fromarray(a), 'tiff'), 40)[5:, :, 0].astype(int) - WANT[5:]).max() <= 4
    assert decode(saved(Image.fromarray(np.full((4, 4), np.nan, np.float32)), 'tiff'), 4).max() == 0
    for flat in (np.zeros((4, 4), np.float32), np.zeros((4, 4), np.uint16), np.zeros((4, 4), np.int32)):
        assert decode(saved(Image.fromarray(flat), 'tiff'), 4).max() == 0


@pytest.mark.parametrize(
    'depth,colour,pixels,clear',
    [
        (8, 0, bytes([10] * 20 + [200] * 20), struct.pack('>H', 10)),
        (16, 0, struct.pack('>40H', *[2570] * 20, *[51400] * 20), struct.pack('>H', 2570)),
        (4, 0, bytes([0x11] * 10 + [0xCC] * 10), struct.pack('>H', 1)),
        (2, 0, bytes([0x55] * 5 + [0xAA] * 5), struct.pack('>H', 1)),
        (1, 0, bytes([0xFF, 0xFF, 0xF0, 0, 0]), struct.pack('>H', 1)),
        (
            16,
            2,
            struct.pack('>120H', *[65535, 0, 0] * 20, *[0, 0, 65535] * 20),
            struct.pack('>3H', 65535, 0, 0),
        ),
    ],
)
def test_a_transparent_colour_is_white(depth, colour, pixels, clear):
    b = png_of(40, depth, colour, zlib.compress((b'\0' + pixels) * 40), chunk(b'tRNS', clear))
    a = decode(b, 40)
    assert a[20, 5].tolist() == [255] * 3 and a[20, 35].tolist() != [255] * 3
    shown = np.asarray(upload.read_upload(b, 40)[1])
    assert shown[20, 5].tolist() == [255] * 3 and (shown == a).all()


def long_notes(kind):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    if kind == 'itxt':
        info.add_itxt('workflow', 'x' * 3_000_000, zip=True)
    if kind == 'ztxt':
        info.add_text('workflow', 'x' * 3_000_000, zip=True)
    if kind == 'many':
        [info.add_text(f'k{i}', 'x' * 900_000, zip=True) for i in range(3)]
    if kind == 'a hundred':
        [info.add_text(f'k{i}', 'x' * 900_000, zip=True) for i in range(100)]
    more = dict(icc_profile=b'\0' * 2_000_000) if kind == 'profile' else {}
    b = saved(Image.fromarray(ramp()), 'png', pnginfo=info, **more)
    if kind != 'after the image':
        return b
    return b[:-12] + chunk(b'zTXt', b'k\0\0' + zlib.compress(b'x' * 3_000_000)) + b[-12:]


@pytest.mark.parametrize('kind', ['itxt', 'ztxt', 'many', 'a hundred', 'profile', 'after the image'])
def test_long_notes_in_a_png(kind):
    is_ramp(long_notes(kind), 1)


def test_short_notes_stay():
    assert metadata._without_long_notes(b := saved(Image.fromarray(ramp()), 'png', dpi=(72, 72))) is b


def wide_gamut():
    "A matrix profile whose primaries are those of Display P3: what a telephone writes."
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes())
    primaries = dict(
        rXYZ=(0.5151, 0.2412, -0.0011), gXYZ=(0.2919, 0.6922, 0.0419), bXYZ=(0.1572, 0.0666, 0.7841)
    )
    n = struct.unpack_from('>I', profile, 128)[0]
    for i in range(n):
        tag, at, size = struct.unpack_from('>4sII', profile, 132 + 12 * i)
        if tag.decode() in primaries:
            struct.pack_into('>3i', profile, at + 8, *(round(v * 65536) for v in primaries[tag.decode()]))
    return bytes(profile)


@pytest.mark.parametrize('kind', ['jpeg', 'png', 'tiff', 'webp'])
def test_wide_gamut_is_converted(kind):
    "Green of Display P3 is out of sRGB; a modest one becomes more saturated."
    im = Image.new('RGB', (16, 16), (100, 160, 100))
    how = dict(png={}, tiff={}, jpeg=dict(quality=98), webp=dict(lossless=True))[kind]
    plain, wide = (
        decode(saved(im, kind, icc_profile=p, **how), 16)[8, 8].astype(int)
        for p in (ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes(), wide_gamut())
    )
    assert abs(plain - (100, 160, 100)).max() <= 2 and wide[0] < 90 and wide[1] > 158
    b = saved(im, kind, icc_profile=wide_gamut(), **how)
    assert abs(np.asarray(upload.read_upload(b, 16)[1])[8, 8].astype(int) - wide).max() <= 2


@pytest.mark.parametrize('profile', [b'junk', b'\0' * 5000, b''])
def test_profiles_that_are_none(profile):
    is_ramp(saved(Image.fromarray(ramp()).convert('RGB'), 'jpeg', quality=98, icc_profile=profile), 6)


def uploads():
    im = Image.fromarray(np.stack([ramp(), ramp().T, ramp()], -1))
    clear, turned = im.convert('RGBA'), Image.Exif()
    clear.putalpha(Image.fromarray(ramp()))
    turned[0x112] = 8
    return {
        'jpeg': saved(im, 'jpeg'),
        'turned': saved(im, 'jpeg', exif=turned),
        'cmyk': saved(im.convert('CMYK'), 'jpeg'),
        'clear': saved(clear),
        'palette': saved(im.quantize(16), transparency=3),
        'grey alpha': saved(clear.convert('LA')),
        'float': saved(Image.fromarray(ramp(1, np.float32)), 'tiff'),
        'sixteen': saved(Image.fromarray(ramp(4095, np.uint16))),
        'gif': saved(im, 'gif', save_all=True, append_images=[im.rotate(90)]),
        'turned tiff': saved(im, 'tiff', exif=turned),
        'one bit': saved(im.convert('1')),
        'p3': saved(im, icc_profile=wide_gamut()),
    }


@pytest.mark.parametrize('kind', uploads())
def test_the_page_shows_what_the_model_sees(kind):
    b = uploads()[kind]
    im, shown = upload.read_upload(b, 40)
    assert (decode(im, 40) == decode(b, 40)).all()
    assert abs(np.asarray(shown.resize((40, 40), Image.BICUBIC)).astype(int) - decode(b, 40)).max() <= 6
    assert (np.asarray(to_look_at(open_picture(b), 40).resize((40, 40))) == np.asarray(shown)).all()


# Lists.


def rows_of(photos):
    return [(f'photos/{f.parent.name}/{f.name}', f.parent.name) for f in sorted(photos.rglob('*.jpg'))]


LISTS = {
    'semicolon': lambda r: 'path;label\n' + ''.join(f'{p};{l}\n' for p, l in r),
    'tab': lambda r: 'path\tlabel\n' + ''.join(f'{p}\t{l}\n' for p, l in r),
    'sep': lambda r: 'sep=;\r\npath;label\r\n' + ''.join(f'{p};{l}\r\n' for p, l in r),
    'blanks': lambda r: 'path , label\n' + ''.join(f'{p} , {l} \n' for p, l in r),
    'capitals': lambda r: 'Path,LABEL\n' + ''.join(f'{p},{l}\n' for p, l in r),
    'other names': lambda r: 'id,File Name,Class\n' + ''.join(f'{i},{p},{l}\n' for i, (p, l) in enumerate(r)),
    'windows': lambda r: (
        'path,label\r\n' + ''.join('{},{}\r\n'.format(p.replace('/', '\\'), l) for p, l in r)
    ),
    'quoted': lambda r: 'path,label\n' + ''.join(f'"{p}", "{l}"\n' for p, l in r),
    'trailing': lambda r: (
        'path,label,\n' + ''.join(f'{p},{l}{" " * (i % 2)},\n' for i, (p, l) in enumerate(r)) + '\n,,\n'
    ),
    'decomposed': lambda r: unicodedata.normalize(
        'NFD', 'path,label\n' + ''.join(f'{p},{l}\n' for p, l in r)
    ),
    'links': lambda r: 'path,label\n' + ''.join(f'file:///home/somebody/{quote(p)},{l}\n' for p, l in r),
    'a disk of Windows': lambda r: (
        'path,label\n' + ''.join('D:\\data\\{},{}\n'.format(p.replace('/', '\\'), l) for p, l in r)
    ),
    'other capitals': lambda r: 'path,label\n' + ''.join(f'{p.upper()},{l}\n' for p, l in r),
    'dot': lambda r: 'path,label\n' + ''.join(f'./{p},{l}\n' for p, l in r),
}


@pytest.mark.parametrize('kind', LISTS)
@pytest.mark.parametrize('code', ['utf-8', 'utf-8-sig', 'utf-16'])
def test_lists_of_spreadsheets(kind, code, home, photos, tmp_path):
    (tmp_path / 'list.csv').write_bytes(LISTS[kind](rows_of(photos)).encode(code))
    pics = load_pictures(tmp_path / 'list.csv')
    assert len(pics) == 36 and len(pics.classes) == 3


@pytest.mark.parametrize(
    'text,says',
    [
        ('a.jpg,x\nb.jpg,y\n', 'its first row is a.jpg, x'),
        ('name,kind\na,b\n', 'its first row is name, kind'),
        ('', 'its first row is nothing'),
        ('path,label\n', 'at least one row'),
        ('path,label\na.jpg,\n', 'row 2'),
        ('path,label,split\na.jpg,x,train\nb.jpg,y,tset\n', "row 3: split is 'tset'"),
    ],
)
def test_what_was_found_instead_is_said(text, says, tmp_path):
    (tmp_path / 'list.csv').write_text(text)
    with pytest.raises(BadInput, match=says):
        load_pictures(tmp_path / 'list.csv')


@pytest.mark.parametrize('named', [lambda f: f.name, lambda f: f.stem, lambda f: f.name.upper()])
@pytest.mark.parametrize('folder', ['images', 'data/train_images'])
def test_bare_names_are_found_in_the_folder_of_images(named, folder, home, photos, tmp_path):
    "As Kaggle writes lists: the name or the number of a file, and the images in a folder beside the list."
    (tmp_path / folder).mkdir(parents=True)
    rows = []
    for i, f in enumerate(sorted(photos.rglob('*.jpg'))):
        rows.append((f.parent.name, f.rename(tmp_path / folder / f'im_{i}.{i}.jpg')))
    shutil.rmtree(photos)
    text = 'image_id,label\n' + ''.join(f'{named(f)},{l}\n' for l, f in rows)
    (tmp_path / 'list.csv').write_text(text, encoding='utf-8')
    pics, said = notes(lambda: load_pictures(tmp_path / 'list.csv'))
    assert len(pics) == 36 and '36 of its files were found by their names alone' in said
    assert {Path(p).name: pics.classes[l] for p, l in zip(pics.items, pics.labels)} == {
        f.name: l for l, f in rows
    }


def test_names_that_repeat_are_not_guessed_at(home, photos, tmp_path):
    for f in photos.rglob('*.jpg'):
        f.rename(f.with_name(f'{f.stem[-1]}.jpg'))
    some = sorted(photos.rglob('*.jpg'))
    (tmp_path / 'list.csv').write_text('path,label\n' + ''.join(f'{f.name},x\n' for f in some))
    with pytest.raises(BadInput):
        load_pictures(tmp_path / 'list.csv', scoring=True)


def test_a_column_of_folds_is_said_to_be_unused(home, photos, tmp_path):
    rows = ''.join(f'{p},{l},{i % 5}\n' for i, (p, l) in enumerate(rows_of(photos)))
    (tmp_path / 'list.csv').write_text('path,label,fold\n' + rows, encoding='utf-8')
    _, said = notes(lambda: load_pictures(tmp_path / 'list.csv'))
    assert "its column 'fold' says no train, val or test: it is not used" in said


@pytest.mark.parametrize(
    'names, cells, parts',
    [
        (['is_valid'], [['True'], ['False']], ['val', 'train']),
        (['Is-Valid'], [['1'], ['0']], ['val', 'train']),
        (['is_valid', 'is_test'], [['no', 'yes'], ['yes', ''], ['no', 'no']], ['test', 'val', 'train']),
    ],
)
def test_columns_of_yes_and_no_are_parts(names, cells, parts, home, photos, tmp_path):
    "As fastai writes lists; an image that was to be held out must not be trained on."
    rows, n = rows_of(photos), len(cells)
    text = ''.join(f"{p},{l},{','.join(cells[i % n])}\n" for i, (p, l) in enumerate(rows))
    (tmp_path / 'list.csv').write_text(f"fname,label,{','.join(names)}\n{text}", encoding='utf-8')
    pics, said = notes(lambda: read_photos(tmp_path / 'list.csv', scoring=True))
    assert f"its columns of yes and no, {', '.join(names)}, say which part" in said
    assert dict(zip(map(str, pics.items), pics.part)) == {
        str(tmp_path / p): parts[i % n] for i, (p, _) in enumerate(rows)
    }


@pytest.mark.parametrize('header', ['image,breed', 'id,breed,split', 'is_valid,breed,file'])
def test_the_only_other_column_is_the_label(header, home, photos, tmp_path):
    cells = dict(breed=1, split='train', is_valid='no')
    text = ''.join(
        ','.join(str(dict(cells, breed=l).get(h, p)) for h in header.split(',')) + '\n'
        for p, l in rows_of(photos)
    )
    (tmp_path / 'list.csv').write_text(f'{header}\n{text}', encoding='utf-8')
    assert read_photos(tmp_path / 'list.csv', scoring=True).classes == sorted(
        d.name for d in photos.iterdir()
    )


@pytest.mark.parametrize('folder', ['images', 'train/images'])
def test_a_list_beside_a_heap_of_images_is_what_to_give(folder, home, photos, tmp_path):
    heap = tmp_path / 'heap'
    (heap / folder).mkdir(parents=True)
    rows = [
        ((tmp_path / f).rename(heap / folder / f'{i}.jpg'), l) for i, (f, l) in enumerate(rows_of(photos))
    ]
    (heap / 'train.csv').write_text('image_id,label\n' + ''.join(f'{f.name},{l}\n' for f, l in rows))
    (heap / 'sample_submission.csv').write_text('image_id,prediction\n')
    with pytest.raises(BadInput, match='train.csv is a list of 36 images with labels: give that'):
        load_pictures(heap)
    assert load_pictures(heap / 'train.csv').classes == sorted({l for _, l in rows})


def test_folders_that_repeat_in_every_class_are_a_note(home, photos):
    "Folds above the classes, or batches below them: nobody can tell, so it is said which are taken."
    for d in list(photos.iterdir()):
        for i, f in enumerate(sorted(d.iterdir())):
            (d / f'class {i % 3}').mkdir(exist_ok=True)
            f.rename(d / f'class {i % 3}' / f.name)
    said = texts(photos)
    assert 'holds the folders class 0, class 1, class 2; the outer ones are taken for the classes' in said


@pytest.mark.parametrize('sep', [',', ';', '\t', '|'])
def test_a_label_with_a_separator_in_it_is_no_other_class(sep, home, photos, tmp_path):
    rows, f = rows_of(photos), tmp_path / 'list.csv'
    f.write_text(f'path{sep}label\n' + ''.join(f'{p}{sep}{l}{sep} new\n' for p, l in rows))
    with pytest.raises(BadInput, match='row 2 of .*list.csv has 3 fields, its first row 2: put the label in'):
        load_pictures(f)
    assert 'has 3 fields' in said_by(lambda: files_of_list(f))
    f.write_text(f'path{sep}label\n' + ''.join(f'{p}{sep}"{l}{sep} new"{sep}{sep}\n' for p, l in rows))
    assert f'Chợ nổi{sep} new' in load_pictures(f).classes


def said_by(f):
    with pytest.raises(BadInput) as e:
        f()
    return str(e.value)


@pytest.mark.parametrize('names', [('label', 'label'), ('Class', 'class '), ('class_name', 'class-name')])
def test_two_columns_of_one_name_say_the_same_or_are_refused(names, home, photos, tmp_path):
    rows, f = rows_of(photos), tmp_path / 'list.csv'
    head = f'path,{names[0]},{names[1]}\n'
    f.write_text(head + ''.join(f'{p},{l},{l}\n' for p, l in rows))
    assert len(read_photos(f).classes) == 3
    f.write_text(head + ''.join(f'{p},{l},x\n' for p, l in rows))
    assert f'two columns {names[0]!r} that differ in row 2; keep one' in said_by(lambda: read_photos(f))


def test_of_two_columns_of_labels_it_is_said_which_is_taken(home, photos, tmp_path):
    text = ''.join(f'{p},{l},{i}\n' for i, (p, l) in enumerate(rows_of(photos)))
    (tmp_path / 'list.csv').write_text('path,label,class\n' + text)
    assert "its columns 'label' and 'class' differ: 'label' is taken for the label" in texts(
        tmp_path / 'list.csv'
    )


def test_a_list_without_a_row_of_names(home, photos, tmp_path):
    text = ''.join(f'{p},{l}\n' for p, l in rows_of(photos))
    (tmp_path / 'list.csv').write_text(text, encoding='utf-8')
    with pytest.raises(BadInput, match='no row of names above the first file; write the line path,label'):
        load_pictures(tmp_path / 'list.csv')


@pytest.mark.parametrize(
    'head, says',
    [
        (b'PK\3\4\x14\0\6\0[Content_Types].xml', 'workbook'),
        (b'\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1', 'workbook'),
        (b'PK\3\4cats/1.jpg', 'unpack it'),
        (b'\x1f\x8b\x08\0', 'unpack it'),
        (b'PAR1\x15\4', 'Parquet'),
        (b'{"file_name": "a.jpg", "label": "x"}\n', 'JSON, which is not read'),
        ('path,label\na,b\n'.encode('utf-16-le'), 'CSV UTF-8'),
    ],
)
def test_what_is_given_for_a_list_is_named(head, says, home, tmp_path):
    (tmp_path / 'photos.csv').write_bytes(head + bytes(20) * (not says.startswith('CSV')))
    with pytest.raises(BadInput, match=says):
        load_pictures(tmp_path / 'photos.csv')


@pytest.mark.parametrize(
    'change, says',
    [
        ('gone', '1 image is missing: Chợ nổi/ảnh 3.jpg'),
        ('two gone', '2 images are missing: Chợ nổi/ảnh 3.jpg and others'),
        ('new', '1 image is new: Chợ nổi/new.jpg'),
        ('edited', '1 image is missing: Chợ nổi/ảnh 3.jpg, 1 image is new: Chợ nổi/ảnh 3.jpg'),
        ('moved', '1 image is of another class: Chợ nổi/ảnh 3.jpg'),
        ('renamed', 'the same images, renamed or split otherwise'),
    ],
)
def test_what_changed_since_a_training_is_named(change, says, home, photos, tmp_path):
    from ich_soups.train.finished_run import _what_changed

    pics, f, other = load_pictures(photos), photos / 'Chợ nổi' / 'ảnh 3.jpg', sorted(photos.iterdir())[-1]
    write_split(pics, tmp_path / 'run' / 'split.csv')
    assert _what_changed(tmp_path / 'run', pics) == ''  # an old run noted no digests
    write_json(tmp_path / 'run' / 'digests.json', dict(digests=list(pics.digests)))
    if change == 'two gone':
        (f.parent / 'ảnh 4.jpg').unlink()
    if change in ('new', 'edited'):
        with Image.open(f) as im:
            im.rotate(90).save(f if change == 'edited' else f.parent / 'new.jpg')
    elif 'gone' in change:
        f.unlink()
    else:
        f.rename(f.parent / 'a.jpg' if change == 'renamed' else other / 'a.jpg')
    assert _what_changed(tmp_path / 'run', load_pictures(photos)) == says


def test_addresses_are_no_files(home, photos, tmp_path):
    (tmp_path / 'list.csv').write_text(
        'path,label\nhttps://example.org/a.jpg,x\n' + ''.join(f'{p},{l}\n' for p, l in rows_of(photos)),
        encoding='utf-8',
    )
    said = texts(tmp_path / 'list.csv'), said_by(lambda: load_pictures(tmp_path / 'list.csv'))
    for s in (*said, said_by(lambda: _read(0, files_of_list(tmp_path / 'list.csv')[0], 32))):
        assert 'https://example.org/a.jpg' in s and 'it is an address' in s and f'{tmp_path}/http' not in s, s


@pytest.mark.parametrize('where', ['beside', 'link to a folder', 'below'])
def test_a_list_that_was_written_is_read_from_anywhere(where, home, photos, tmp_path, monkeypatch):
    pics = load_pictures(photos)
    to = dict(beside=tmp_path, below=photos).get(where, tmp_path / 'link')
    if where.startswith('link'):
        (tmp_path / 'deep' / 'er').mkdir(parents=True)
        to.symlink_to(tmp_path / 'deep' / 'er')
    write_split(pics, to / 'list.csv')
    monkeypatch.chdir('/')
    again = load_pictures(to / 'list.csv')
    assert again.fingerprint == pics.fingerprint
    assert [os.path.realpath(p) for p in files_of_list(to / 'list.csv')] == [
        os.path.realpath(p) for p in pics.items
    ]


@pytest.mark.parametrize('kind', ['test alone', 'one class', 'folder of test'])
def test_what_is_only_scored_needs_no_training_part(kind, home, photos, tmp_path):
    rows = [r for r in rows_of(photos) if kind != 'one class' or r[1] == 'Chợ nổi']
    (tmp_path / 'list.csv').write_text(
        'path,label,split\n' + ''.join(f'{p},{l},test\n' for p, l in rows), encoding='utf-8'
    )
    if kind == 'folder of test':
        split(photos, tmp_path / 'in', test='test')
    source = tmp_path / 'in' if kind == 'folder of test' else tmp_path / 'list.csv'
    pics = load_pictures(source, scoring=True)
    assert Counter(pics.part.tolist()) == {'test': len(rows)}
    with pytest.raises(BadInput):
        read_photos(source)


def test_a_name_means_the_collection_everywhere(home, photos, monkeypatch):
    photos.rename(photos.with_name('scenes17'))
    monkeypatch.chdir(photos.parent)
    assert (
        collections.is_named('scenes17')
        and collections.is_named('scenes17:40')
        and not collections.is_named('./scenes17')
    )
    assert len(inspect('scenes17:40', near=None).source.items) == 40
    pics, said = notes(lambda: load_pictures('./scenes17'))
    assert len(pics) == 36 and not said
    collections._say_which('scenes17:40')
    assert 'give ./scenes17' in notes(lambda: collections._say_which('scenes17'))[1]


# Colours that are floating-point numbers, and formats that come and go.


def float_tiff(a, order='<', predictor=1, packed=False, apart=False, strips=1, turn=1):
    "A TIFF of float [H, W, n], as microscopes and renderers write it; checked against nothing but the standard."
    h, w, n = a.shape
    bits, rows = a.dtype.itemsize * 8, -(-h // strips)
    planes = [a[..., k : k + 1] for k in range(n)] if apart else [a]
    pieces = []
    for p in planes:
        for y in range(0, h, rows):
            b = p[y : y + rows].astype(a.dtype.newbyteorder(order)).tobytes()
            if predictor == 3:
                be = p[y : y + rows].astype('>f4').tobytes()
                b3 = np.frombuffer(be, np.uint8).reshape(len(p[y : y + rows]), -1, 4).transpose(0, 2, 1)
                flat = b3.reshape(len(b3), -1, p.shape[2]).astype(np.int64)
                b = np.diff(flat, axis=1, prepend=0).astype(np.uint8).tobytes()
            pieces.append(zlib.compress(b) if packed else b)
    fields = {
        256: (4, [w]), 257: (4, [h]), 258: (3, [bits] * n), 259: (3, [8 if packed else 1]), 262: (3, [2]),
        274: (3, [turn]), 277: (3, [n]), 278: (4, [rows]), 284: (3, [2 if apart else 1]), 317: (3, [predictor]),
        339: (3, [3] * n),
    }  # fmt: skip
    if n == 4:
        fields[338] = (3, [2])
    body, places = b'', []
    for p in pieces:
        places.append(8 + len(body))
        body += p
    fields |= {273: (4, places), 279: (4, [len(p) for p in pieces])}
    if predictor == 1:
        del fields[317]
    extra_at, entries, extra = 8 + len(body) + 2 + 12 * len(fields) + 4, b'', b''
    for tag, (kind, v) in sorted(fields.items()):
        packed_v = struct.pack(f'{order}{len(v)}{"H" if kind == 3 else "I"}', *v)
        if len(packed_v) > 4:
            packed_v, extra = struct.pack(order + 'I', extra_at + len(extra)), extra + packed_v
        entries += struct.pack(order + 'HHI', tag, kind, len(v)) + packed_v.ljust(4, b'\0')
    head = (b'II*\0' if order == '<' else b'MM\0*') + struct.pack(order + 'I', 8 + len(body))
    return head + body + struct.pack(order + 'H', len(fields)) + entries + bytes(4) + extra


FLOATS = [
    dict(),
    dict(order='>'),
    dict(packed=True),
    dict(packed=True, strips=3),
    dict(packed=True, predictor=3),
    dict(packed=True, predictor=3, strips=4),
    dict(packed=True, predictor=3, order='>'),
    dict(packed=True, order='>'),
    dict(apart=True),
    dict(apart=True, strips=4),
    dict(apart=True, packed=True, predictor=3),
    dict(turn=6),
    dict(top=4095.0),
    dict(alpha=True),
    dict(alpha=True, packed=True, predictor=3),
    dict(odd=True),
]


@pytest.mark.parametrize('how', FLOATS, ids=lambda h: ' '.join(f'{k}={v}' for k, v in h.items()) or 'plain')
def test_colours_of_floating_point(how, home, photos):
    how = dict(how)
    top, alpha, odd = (how.pop(k, d) for k, d in dict(top=1, alpha=0, odd=0).items())
    y, x = np.mgrid[0:32, 0:40] / 40
    a = np.stack([x, y, np.full_like(x, 0.25)], -1)
    a[0, 0] = 1
    want = (a * 255).round()
    a = (a * top).astype('f4')
    if alpha:
        clear = np.ones((32, 40, 1), 'f4')
        clear[:, 20:] = 0
        a, want[:, 20:] = np.concatenate([a, clear], -1), 255
    if odd:
        a[5, 5], want[5, 5] = (np.nan, np.inf, -np.inf), (0, 255, 0)
    b = float_tiff(a, **how)
    if how.get('turn') == 6:
        want = np.rot90(want, -1)
    shown = np.asarray(to_look_at(open_picture(b), 64)).astype(int)
    assert shown.shape == want.shape and abs(shown - want).max() <= 1, (shown[3, ::9], want[3, ::9])
    assert decode(b, 16).shape == (16, 16, 3)
    (photos / 'Chợ nổi' / 'float.tif').write_bytes(b)
    assert 'taken as 0 to' in texts(photos) and len(load_pictures(photos)) == 37


@pytest.mark.parametrize(
    'b',
    [
        float_tiff(np.zeros((8, 8, 3), 'f2')),
        float_tiff(np.zeros((8, 8, 3), 'f8')),
        float_tiff(np.zeros((8, 8, 6), 'f4')),
        float_tiff(np.zeros((9, 8, 3), 'f4'), apart=True, strips=2),
    ],
    ids=['half', 'double', 'six colours', 'uneven strips apart'],
)
def test_colours_of_floating_point_that_are_not_read(b, tmp_path):
    (tmp_path / 'a.tif').write_bytes(b)
    why = scan._check_file(tmp_path / 'a.tif')[1]
    assert why.startswith('it is a TIFF') and 'save it as' in why, why


@pytest.mark.parametrize('order', '<>')
@pytest.mark.parametrize('packed', [False, True])
def test_grey_of_floating_point_in_either_order(order, packed):
    a = np.linspace(0, 1, 40, dtype='f4')[None, :, None].repeat(40, 0)
    is_ramp(float_tiff(a, order, packed=packed).replace(*photometric(order)))


def photometric(order):
    "What makes grey of a TIFF that says it is RGB."
    entry = lambda v: struct.pack(order + 'HHIHH', 262, 3, 1, v, 0)
    return entry(2), entry(1)


def test_a_broken_tiff_of_floating_point_is_one_sentence(tmp_path):
    b = float_tiff(np.random.default_rng(0).random((8, 8, 3)).astype('f4'), packed=True)
    for k in range(4, len(b), 29):
        for spoilt in (b[:k], b[:k] + bytes([b[k] ^ 0xFF]) + b[k + 1 :]):
            (tmp_path / 'a.tif').write_bytes(spoilt)
            scan._check_file(tmp_path / 'a.tif')  # a reason, or pixels; never more


@pytest.mark.skipif('AVIF' not in formats.FORMATS, reason='to run this, take a Pillow that reads AVIF')
@pytest.mark.parametrize('name', ['a.avif', 'a', 'a.jpg'])
def test_avif(name, home, photos):
    im = Image.fromarray(np.stack([ramp()] * 3, -1))
    (photos / 'Chợ nổi' / name).write_bytes(saved(im, 'avif', quality=95))
    assert len(load_pictures(photos)) == 37
    is_ramp((photos / 'Chợ nổi' / name).read_bytes(), 10)


@pytest.mark.parametrize(
    'head, lost, says',
    [
        (b'\xff\x0a\xfa\x7f', 'JXL', 'JPEG XL'),
        (b'\0\0\0\x0cJXL \r\n\x87\n', 'JXL', 'JPEG XL'),
        (b'\0\0\0\x20ftypavif', 'AVIF', 'newer Pillow'),
        (b'\0\0\0\x20ftypheic', 'HEIF', 'ich_soups[photos]'),
    ],
)
def test_formats_that_are_not_read_here_are_named(head, lost, says, home, photos, monkeypatch, tmp_path):
    known = tuple(f for f in formats.FORMATS if f != lost)
    for module in (formats, decoding):
        monkeypatch.setattr(module, 'FORMATS', known)
    (tmp_path / 'a.jpg').write_bytes(head + bytes(200))
    why = scan._check_file(tmp_path / 'a.jpg')[1]
    assert says in why and why.startswith('it is '), why


@needs_heif
@pytest.mark.parametrize('turns', [0, 1, 2, 3])
def test_heic_that_is_turned_by_its_container(turns):
    "`irot` counts quarter turns against the clock; telephones write it beside an EXIF that says the same."
    want = np.rot90(decode(HEIC, 64), turns)
    got = decode(with_irot(HEIC, turns), 64)
    assert abs(got.astype(int) - want.astype(int)).max() < 40


def with_irot(b, turns):
    "A HEIC whose first property says in what direction it lies."
    assert b.count(b'ipco') == b.count(b'ipma') == 1
    box = struct.pack('>I4sB', 9, b'irot', turns)
    ipco = b.index(b'ipco') - 4
    size = struct.unpack_from('>I', b, ipco)[0]
    kinds, at = [], ipco + 8
    while at < ipco + size:
        kinds.append(b[at + 4 : at + 8])
        at += struct.unpack_from('>I', b, at)[0]
    new = b[: ipco + size] + box + b[ipco + size :]
    number = len(kinds) + 1
    if b'irot' in kinds:
        raise AssertionError('it is turned already')
    ipma = new.index(b'ipma') - 4
    count = new[ipma + 4 + 4 + 4 + 4 + 2]
    end = ipma + 19 + count
    new = new[: ipma + 18] + bytes([count + 1]) + new[ipma + 19 : end] + bytes([0x80 | number]) + new[end:]
    grown = {ipco: 9, ipma: 1}
    for name, n in ((b'iprp', 10), (b'meta', 10)):
        grown[new.index(name) - 4] = n
    out = bytearray(new)
    for place, n in grown.items():
        struct.pack_into('>I', out, place, struct.unpack_from('>I', new, place)[0] + n)
    return moved(bytes(out), 10)


def moved(b, n):
    "The same with the places of its data (`iloc`, version 0, one extent each) moved on."
    at = b.index(b'iloc') + 4
    version, sizes = b[at], struct.unpack_from('>H', b, at + 4)[0]
    assert version in (0, 1) and sizes >> 12 == 4
    base = (sizes >> 4) & 15
    out, k = bytearray(b), at + 8
    for _ in range(struct.unpack_from('>H', b, at + 6)[0]):
        k += 2 + (2 if version else 0) + 2 + base
        extents = struct.unpack_from('>H', b, k)[0]
        k += 2
        for _ in range(extents):
            struct.pack_into('>I', out, k, struct.unpack_from('>I', b, k)[0] + n)
            k += 4 + ((sizes >> 8) & 15)
    return bytes(out)
