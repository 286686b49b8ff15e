"Bad input gets one sentence that names the thing; nothing is lost or left half written."

import io, os, shutil, warnings
from pathlib import Path
import numpy as np
import pytest
from PIL import Image
from fastai.callback.core import Callback
from ich_soups.train import runs as training
from ich_soups.app.audit import inspect
from ich_soups.core import BadInput, Config, cache_dir
from ich_soups.data.photos import check_folder, read_photos
from ich_soups.data.decoding import decode
from ich_soups.data.loaders import image_dls
from ich_soups.data.collections import load_pictures
from ich_soups.train.runs import get_run

pytestmark = pytest.mark.quick

warnings.simplefilter('ignore')


def message(f, *names):
    "The error of `f`: one line that contains `names`."
    with pytest.raises(BadInput) as e:
        f()
    text = str(e.value)
    assert '\n' not in text and all(n in text for n in names), text
    return text


def test_text_in_a_jpg(home, photos):
    (photos / 'Chợ nổi' / 'notes.jpg').write_text('not an image')
    message(lambda: load_pictures(photos), 'notes.jpg', 'cannot be read')


def test_a_truncated_jpeg(home, photos):
    f = next((photos / 'Chợ nổi').glob('*.jpg'))
    f.write_bytes(f.read_bytes()[: len(f.read_bytes()) // 2])
    message(lambda: load_pictures(photos), f.name, 'cannot be read')
    assert [p.name for p, _ in check_folder(photos).unreadable] == [f.name]
    assert len(read_photos(photos, on_bad='skip')) == 35


def test_a_picture_too_large_to_decode(home, photos):
    Image.new('1', (20_000, 20_000)).save(photos / 'Chợ nổi' / 'huge.png')
    message(lambda: load_pictures(photos), 'huge.png', 'DecompressionBomb')


def test_odd_names(home, photos):
    d = photos / 'tên lạ\n"quoted" & spaced'
    shutil.copytree(photos / 'Chợ nổi', d)
    Image.new('RGB', (40, 20), 'red').save(d / 'dòng 1\ndòng 2.png')
    pics = load_pictures(photos)
    assert d.name in pics.classes and pics.pixels(32).shape == (len(pics), 32, 32, 3)


def test_names_of_another_encoding(home, photos):
    "An archive from another system: bytes that are no UTF-8. The file is named, escaped, and can be left out."
    os.rename(photos / 'Chợ nổi' / 'ảnh 0.jpg', os.fsencode(photos / 'Chợ nổi') + b'/ch\xee 0.jpg')
    assert message(lambda: load_pictures(photos), r'ch\udcee 0.jpg', 'not UTF-8; rename it').encode()
    with pytest.warns(UserWarning, match=r'ch\\udcee 0.jpg'):
        assert len(read_photos(photos, on_bad='skip')) == 35
    assert r'ch\udcee 0.jpg' in str(inspect(photos))


def test_links_that_lead_back(home, photos):
    os.symlink(photos, photos / 'loop')
    os.symlink(photos / 'loop2', photos / 'loop2')
    os.symlink('..', photos / 'Chợ nổi' / 'up')
    os.symlink(photos / 'Chợ nổi' / 'nowhere.jpg', photos / 'Chợ nổi' / 'broken.jpg')
    assert (
        sorted(load_pictures(photos).classes) == sorted(('Chợ nổi', 'Đua ghe ngo', 'Đờn ca tài tử'))
        and len(load_pictures(photos)) == 36
    )
    assert inspect(photos).ok


def test_what_may_not_be_read(home, photos, monkeypatch):
    "A locked file is told like a damaged one, a locked folder by its name. (Root may read everything: the system's answer is played.)"
    read, access = Path.read_bytes, os.access

    def locked(p):
        if p.name == 'ảnh 3.jpg':
            raise PermissionError(13, 'Permission denied', str(p))
        return read(p)

    monkeypatch.setattr(Path, 'read_bytes', locked)
    message(lambda: load_pictures(photos), 'ảnh 3.jpg', 'Permission denied')
    assert set(inspect(photos).findings.advice[:3]) == {'allow reading it'}
    monkeypatch.setattr(
        os, 'access', lambda p, mode: False if Path(p).name == 'Đua ghe ngo' else access(p, mode)
    )
    message(lambda: load_pictures(photos), 'Đua ghe ngo', 'may not be read')


def test_files_that_are_no_pictures(home, photos):
    d = photos / 'Chợ nổi'
    (d / 'empty.jpg').write_bytes(b'')
    (d / 'folder.jpg').mkdir()
    (d / '._ảnh 0.jpg').write_bytes(b'resource fork of another system')
    (d / 'Thumbs.db').write_bytes(b'index')
    message(lambda: load_pictures(photos), 'empty.jpg', 'is empty')
    assert len(read_photos(photos, on_bad='skip')) == 36
    assert inspect(photos).findings.advice.tolist() == ['it is empty: copy or download it again']


def test_a_folder_of_telephone_pictures(home, tmp_path):
    for i in range(3):
        (tmp_path / 'phone' / 'a').mkdir(parents=True, exist_ok=True)
        (tmp_path / 'phone' / 'a' / f'IMG_{i}.CR2').write_bytes(b'raw')
    message(lambda: load_pictures(tmp_path / 'phone'), '3 .cr2 files', 'convert photographs to JPEG')


def test_a_list_that_is_none(home, tmp_path, photos):
    message(lambda: load_pictures(photos / 'Chợ nổi' / 'ảnh 0.jpg'), 'ảnh 0.jpg', 'is not a list')
    for text, says in (
        ('path,label\r\n', 'at least one row'),
        ('name;kind\na;b\n', 'columns path,label'),
        ('path,label\na.jpg\n', 'row 2: path or label is missing'),
        ('path,label\n\0,a\n', 'null'),
    ):
        (tmp_path / 'x.csv').write_text(text)
        message(lambda: load_pictures(tmp_path / 'x.csv'), says)
    (tmp_path / 'x.csv').write_bytes('path,label\nété.jpg,café\n'.encode('latin-1'))
    message(lambda: load_pictures(tmp_path / 'x.csv'), 'not a list in UTF-8')
    rows = ''.join(f'{p.relative_to(tmp_path)},{p.parent.name}\n' for p in sorted(photos.rglob('*.jpg')))
    (tmp_path / 'excel.csv').write_text('path,label\n' + rows, encoding='utf-8-sig')
    assert len(load_pictures(tmp_path / 'excel.csv')) == 36


def test_every_kind_of_picture(home, tmp_path):
    "One image in many wrappings: red on the left, blue on the right, whatever the file."
    im = Image.new('RGB', (40, 20), (250, 0, 0))
    im.paste((0, 0, 250), (20, 0, 40, 20))
    grey = np.zeros((20, 40), np.uint16)
    grey[:, 20:] = 65535
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    quarter = Image.Exif()
    quarter[0x0112] = 6
    clear = im.convert('RGBA')
    clear.paste((9, 9, 9, 0), (20, 0, 40, 20))  # the right half is transparent
    pal = clear.quantize(8)
    files = {
        'cmyk.jpg': (im.convert('CMYK'), {}),
        'turned.jpg': (im.rotate(180), dict(exif=exif)),
        'side.jpg': (im.rotate(90, expand=True), dict(exif=quarter)),
        'animated.gif': (im, dict(save_all=True, append_images=[Image.new('RGB', (40, 20), 'green')])),
        'animated.webp': (
            im,
            dict(save_all=True, append_images=[Image.new('RGB', (40, 20), 'green')], lossless=True),
        ),
        'palette.png': (im.quantize(8), {}),
        'one bit.png': (Image.fromarray(grey > 0), {}),
        'sixteen.png': (Image.fromarray(grey), {}),
        'sixteen.tif': (Image.fromarray(grey), {}),
        'clear.png': (clear, {}),
        'clear palette.png': (pal, {}),
        'grey clear.png': (clear.convert('LA'), {}),
        'progressive.jpg': (im, dict(progressive=True)),
        'bitmap.bmp': (im, {}),
        'wrong suffix.png': (im, dict(format='jpeg')),
    }
    for n, (x, kw) in files.items():
        x.save(tmp_path / n, **kw)
    red, blue, black, white = (250, 0, 0), (0, 0, 250), (0, 0, 0), (255, 255, 255)
    want = {n: (red, blue) for n in files} | {
        'one bit.png': (black, white),
        'sixteen.png': (black, white),
        'sixteen.tif': (black, white),
        'clear.png': (red, white),
        'clear palette.png': (red, white),
    }
    want['grey clear.png'] = ((75,) * 3, white)
    for n, (left, right) in want.items():
        a = decode(tmp_path / n, 16).astype(int)
        assert (
            a.shape == (16, 16, 3) and abs(a[8, 3] - left).max() < 30 and abs(a[8, 12] - right).max() < 30
        ), (n, a[8, 3], a[8, 12])


def test_notes_in_a_picture_that_make_no_sense(home, tmp_path):
    "A photograph whose EXIF is damaged is still a photograph."
    im = Image.new('RGB', (40, 20), (250, 0, 0))
    im.save(f := io.BytesIO(), 'jpeg')
    for k, notes in enumerate(
        (
            b'Exif\0\0nonsense',
            b'Exif\0\0II*\0\x08\0\0\0\xff\xff' + b'\x12\1\3\0\1\0\0\0\6\0\0\0',
            b'Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6',
        )
    ):
        b = f.getvalue()
        b = b[:2] + b'\xff\xe1' + (len(notes) + 2).to_bytes(2, 'big') + notes + b[2:]
        assert abs(decode(b, 16)[8, 8].astype(int) - (250, 0, 0)).max() < 12, k


def test_an_empty_folder_and_one_class(home, tmp_path, photos):
    (tmp_path / 'empty').mkdir()
    message(lambda: load_pictures(tmp_path / 'empty'), 'empty', 'no images')
    for c in ('Đua ghe ngo', 'Đờn ca tài tử'):
        shutil.rmtree(photos / c)
    message(lambda: load_pictures(photos), 'only one class', 'Chợ nổi')


def test_a_missing_split(home, tmp_path, photos):
    for s in ('val', 'test'):
        shutil.copytree(photos, tmp_path / 'split' / s)
    message(lambda: load_pictures(tmp_path / 'split'), "no 'train' folder")


def test_bad_models_leave_no_run(home, photos):
    for cfg, names in (
        (Config.scratch(data=str(photos), arch='test_coatnot', epochs=1), ('test_coatnot', 'test_coatnet')),
        (Config.scratch(data=str(photos), size=80, epochs=1), ('80 px', '64')),
    ):
        message(lambda: get_run(cfg, home / 'r'), *names)
        assert not (home / 'r' / 'DONE').exists()
        shutil.rmtree(home / 'r')


def test_changed_photographs_are_noticed(home, photos):
    cfg = Config.scratch(data=str(photos), size=32, epochs=1, bs=8)
    get_run(cfg)
    next((photos / 'Chợ nổi').glob('*.jpg')).unlink()
    message(lambda: get_run(cfg), 'have changed')


def test_photographs_that_change_while_a_run_is_interrupted(home, photos, monkeypatch):
    cfg, healthy = Config.scratch(data=str(photos), size=32, epochs=2, bs=8), training.make_learner

    class Crash(Callback):
        def before_train(self):
            if self.epoch == 1:
                raise KeyError('power cut')

    monkeypatch.setattr(training, 'make_learner', lambda *a: healthy(*a).add_cb(Crash()))
    with pytest.raises(KeyError):
        get_run(cfg)
    monkeypatch.undo()
    monkeypatch.setenv('ICH_SOUPS_HOME', str(home))
    shutil.copy(next((photos / 'Chợ nổi').glob('*.jpg')), photos / 'Đua ghe ngo' / 'new.jpg')
    message(lambda: get_run(cfg), 'have changed', 'begun')


def test_the_split_of_a_run_is_kept_and_can_be_read_again(home, photos):
    cfg = Config.scratch(data=str(photos), size=32, epochs=1, bs=8)
    run = get_run(cfg)
    again = load_pictures(run.path / 'split.csv', split_seed=7)
    assert again.part.tolist() == run.pictures.part.tolist()
    assert get_run(Config.scratch(data=os.path.relpath(photos), size=32, epochs=1, bs=8)).path == run.path


def test_a_broken_cache_entry_is_made_again(home, photos):
    load_pictures(photos)
    for f in (cache_dir() / 'digests').glob('*.json'):
        f.write_text('{"half')
    assert len(load_pictures(photos)) == 36


def test_the_loader_shows_what_the_file_holds(home, photos):
    dls = image_dls(photos, 32, bs=8, device='cpu')
    x, y = dls[2].one_batch()
    i = dls.pictures.idxs('test')[0]
    want = decode(dls.pictures.items[i], 32)
    assert (
        np.abs((x[0].permute(1, 2, 0).numpy() + 1) * 127.5 - want).max() < 0.51
        and dls.vocab[y[0]] == dls.pictures.items[i].parent.name
    )
