"Pictures from anybody: a closed list of formats, bounded work, and what is checked is what is trained on."

import ast, io, os, random, signal, struct, subprocess, threading, time, zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
import pytest
from PIL import Image
import ich_soups
from ich_soups.app import audit
from ich_soups.app import cli
from ich_soups.data import decoding, files, formats, scan
from ich_soups.core import BadInput, cache_dir
from ich_soups.data.pictures import Pictures
from ich_soups.data.photos import check_folder, read_photos
from ich_soups.data.decoding import decode, open_picture
from ich_soups.data.collections import load_pictures

PACKAGE = Path(ich_soups.__file__).parent


@pytest.fixture(autouse=True)
def nobody_waits_for_ever():
    "A test that hangs is a failed test."

    def rung(*_):
        raise TimeoutError('this took too long')

    old = signal.signal(signal.SIGALRM, rung)
    signal.alarm(100)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)


def saved(im, kind, **kw):
    f = io.BytesIO()
    im.save(f, kind, **kw)
    return f.getvalue()


def photo(w=96, h=64, mode='RGB'):
    "An image with slopes, edges and noise."
    y, x = np.mgrid[:h, :w]
    a = np.stack([x * 255 // w, y * 255 // h, x * y % 255], -1).astype(np.uint8)
    a[h // 4 : h // 2, w // 4 : w // 2] = np.random.default_rng(5).integers(0, 255, 3)
    return Image.fromarray(a).convert(mode)


def chunk(kind, body):
    return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))


def blank_png(w, h, before=b'', rows=None):
    "A grey PNG of any size in a few kilobytes, perhaps with fewer rows than it says."
    packer, row = zlib.compressobj(9), bytes(1 + w)
    body = b''.join(packer.compress(row) for _ in range(h if rows is None else rows)) + packer.flush()
    head = chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, 8, 0, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + head + before + chunk(b'IDAT', body) + chunk(b'IEND', b'')


def icon(*parts):
    "An icon that says 16 x 16 of each of its images."
    at, entries = 6 + 16 * len(parts), b''
    for p in parts:
        entries += struct.pack('<BBBBHHII', 16, 16, 0, 0, 1, 32, len(p), at)
        at += len(p)
    return struct.pack('<HHH', 0, 1, len(parts)) + entries + b''.join(parts)


# One list of formats.


def opens(path):
    "Calls of `Image.open` in a module, however the module names it."
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom) and node.module == 'PIL.Image':
            yield node.lineno, None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == 'open':
            if ast.unparse(node.func.value).split('.')[-1] == 'Image':
                yield node.lineno, {k.arg: k.value for k in node.keywords}


def test_every_open_names_its_formats():
    found = [(f.name, line, how) for f in sorted(PACKAGE.rglob('*.py')) for line, how in opens(f)]
    assert len(found) >= 6 and {n for n, *_ in found} >= {'decoding.py', 'audit_sheet.py', 'page.py'}
    for name, line, how in found:
        assert how and 'formats' in how, f'{name}:{line} lets Pillow try every format it knows'
        given = how['formats']
        names = formats.FORMATS if ast.unparse(given) == 'FORMATS' else ast.literal_eval(given)
        assert set(names) <= {*formats.FORMATS, 'DIB'}, f'{name}:{line}'


def test_the_list_of_formats_is_short():
    assert {'JPEG', 'PNG', 'GIF', 'WEBP', 'BMP', 'TIFF', 'PPM', 'ICO', 'TGA', 'JPEG2000'} <= set(
        formats.FORMATS
    )
    assert not {'EPS', 'PSD', 'FITS', 'WMF', 'GRIB', 'HDF5', 'BUFR', 'MPEG', 'PDF', 'ICNS', 'SPIDER'} & set(
        formats.FORMATS
    )
    assert {'.jpg', '.png', '.webp', '.tif', '.jp2'} <= files._EXTS and not {
        '.eps',
        '.ps',
        '.psd',
        '.wmf',
        '.fits',
    } & files._EXTS


def eps():
    return b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\n(x) show\n%%EOF\n'


def psd():
    return b'8BPS' + struct.pack('>H6xHIIHH', 1, 3, 16, 16, 8, 3) + bytes(12) + b'\0\0' + bytes(768)


def fits():
    cards = (
        'SIMPLE  =                    T',
        'BITPIX  =                    8',
        'NAXIS   =                    2',
        'NAXIS1  =                   16',
        'NAXIS2  =                   16',
        'END',
    )
    return b''.join(c.ljust(80).encode() for c in cards).ljust(2880) + bytes(256)


OTHERS = {
    'eps': eps,
    'dos eps': lambda: (
        struct.pack('<IIIIIIIH', 0xC6D3D0C5, 32, len(eps()), 0, 0, 0, 0, 0xFFFF).ljust(32, b'\0') + eps()
    ),
    'psd': psd,
    'fits': fits,
    'pcx': lambda: saved(photo(), 'pcx'),
    'sgi': lambda: saved(photo(), 'sgi'),
    'dds': lambda: saved(photo(), 'dds'),
    'im': lambda: saved(photo(), 'im'),
    'pdf': lambda: saved(photo(), 'pdf'),
    'wmf': lambda: b'\xd7\xcd\xc6\x9a' + bytes(100),
    'icns': lambda: saved(photo(64, 64).convert('RGBA'), 'icns'),
}


@pytest.mark.parametrize('kind', OTHERS)
def test_other_formats_start_nothing(kind, tmp_path, home, photos, monkeypatch):
    "An EPS called holiday.jpg is a program for Ghostscript. Nobody runs it: not the check, not the list, not the page."
    started = []

    def no(*a, **kw):
        started.append(a)
        raise OSError('no programs here')

    monkeypatch.setattr(subprocess, 'Popen', no)
    monkeypatch.setattr(os, 'system', no)
    file = photos / 'Chợ nổi' / 'holiday.jpg'
    file.write_bytes(OTHERS[kind]())
    assert scan._check_file(file)[1].startswith(('it is no image', 'it is of a kind'))
    for give in (file, file.read_bytes()):
        with pytest.raises(Exception, match='cannot identify'):
            decode(give, 32)
    assert [f.name for f, _ in check_folder(photos).unreadable] == ['holiday.jpg']
    assert len(read_photos(photos, on_bad='skip')) == 36 and not started


# How much of an image.

LATE = {
    'icon of a png': lambda: icon(blank_png(9200, 9200)),
    'icon of two': lambda: icon(saved(photo(16, 16), 'png'), blank_png(9200, 9200)),
    'icon of a png with a long note': lambda: icon(
        blank_png(9200, 9200, chunk(b'tEXt', b'k\0' + b'v' * 5000))
    ),
    'icon of a bitmap': lambda: icon(
        struct.pack('<IiiHHIIiiII', 40, 9200, 18400, 1, 8, 0, 0, 0, 0, 256, 0) + bytes(2000)
    ),
    'jp2 that says less than it is': lambda: less_than_it_is(9200),
}


def less_than_it_is(side):
    "A JPEG 2000 whose box says 16 x 16 and whose code another size."
    b = bytearray(saved(photo(64, 64), 'jpeg2000'))
    box, code = b.find(b'ihdr'), b.find(b'\xff\x4f\xff\x51')
    b[box + 4 : box + 12] = struct.pack('>II', 16, 16)
    b[code + 8 : code + 16] = struct.pack('>II', side, side)
    return bytes(b)


@pytest.mark.parametrize('kind', LATE)
def test_sizes_that_are_known_late(kind, tmp_path, monkeypatch):
    "Refused before Pillow is asked to open the whole, which would decode it."
    file = tmp_path / 'bomb.jpg'
    file.write_bytes(LATE[kind]())
    opened = Image.open

    def watched(fp, formats=None):
        assert set(formats) <= {'PNG', 'DIB'}
        return opened(fp, formats=formats)

    monkeypatch.setattr(Image, 'open', watched)
    with pytest.raises(Image.DecompressionBombError, match='9,200 x'):
        open_picture(file)
    t0 = time.process_time()
    why = scan._check_file(file)[1]
    assert 'DecompressionBomb' in why and '9,200 x' in why and time.process_time() - t0 < 0.5, why


@pytest.mark.skipif('AVIF' not in formats.FORMATS, reason='to run this, take a Pillow that reads AVIF')
def test_formats_of_video_have_a_lower_bound():
    "Their decoders take nine bytes of each pixel: a kilobyte of AVIF could ask for 600 MB."
    f = io.BytesIO()
    Image.new('RGB', (8000, 6400)).save(f, 'AVIF', speed=10)
    with pytest.raises(Image.DecompressionBombError, match='more than the 50 million that are read'):
        decode(f.getvalue(), 64)


@pytest.mark.parametrize('size', [(9001, 9001), (1, 80_000_001), (60_000, 4_000)])
def test_too_many_pixels_in_a_folder(size, home, photos):
    "One sentence, with the file's name and its size, and nothing is decoded."
    (photos / 'Chợ nổi' / 'huge.png').write_bytes(blank_png(*size, rows=1))
    with pytest.raises(BadInput) as e:
        load_pictures(photos)
    text = str(e.value)
    assert (
        'huge.png' in text
        and '80 million' in text
        and f'{size[0] * size[1] / 1e6:,.0f} million' in text
        and '\n' not in text
    )
    assert 'pixels' in audit.inspect(photos).findings.advice.iloc[0]


def test_pixels_in_flight_are_counted(monkeypatch):
    "Sixteen threads and images of four million pixels, of which two fit at a time."
    budget, now, most, lock = decoding.Budget(9_000_000), [], [], threading.Lock()
    monkeypatch.setattr(decoding, 'IN_FLIGHT', budget)
    squeezed = decoding._squeezed

    def watched(im, size):
        with lock:
            now.append(im.width * im.height)
            most.append(sum(now))
        out = squeezed(im, size)
        with lock:
            now.remove(im.width * im.height)
        return out

    monkeypatch.setattr(decoding, '_squeezed', watched)
    files = [
        blank_png(2000, 2000),
        saved(photo(1500, 1200), 'bmp'),
        icon(blank_png(1800, 1800)),
        saved(photo(3000, 2500), 'jpeg', progressive=True),
    ]
    with ThreadPoolExecutor(16) as ex:
        list(ex.map(lambda k: decode(files[k % 4], 32), range(24)))
    assert max(most) <= 9_000_000 and budget.used == 0 and len(most) == 24


def test_what_fails_gives_its_pixels_back(monkeypatch):
    monkeypatch.setattr(decoding, 'IN_FLIGHT', decoding.Budget(1_000_000))
    bad = saved(photo(600, 600), 'png')[:3000]
    for _ in range(5):
        with pytest.raises(Exception):
            decode(bad, 32)
    assert (
        decoding.IN_FLIGHT.used == 0
        and decoding._IN_MEMORY.used == 0
        and decode(saved(photo(600, 600), 'png'), 32).shape == (32, 32, 3)
    )


# What a list may name.


@pytest.fixture
def no_files(tmp_path):
    "Paths that never end, or are none: (path, what is said of it)."
    os.mkfifo(tmp_path / 'pipe.jpg')
    (tmp_path / 'link.jpg').symlink_to('/dev/zero')
    with open(tmp_path / 'large.jpg', 'wb') as f:
        f.truncate(formats.MOST_BYTES + 1)
    return {
        '/dev/zero': 'a device',
        str(tmp_path / 'pipe.jpg'): 'a named pipe',
        str(tmp_path / 'link.jpg'): 'a device',
        str(tmp_path / 'large.jpg'): 'MB',
        '/proc/self/mem': 'empty',
        str(tmp_path): 'IsADirectory',
    }


def test_lists_name_regular_files_of_bounded_size(no_files, photos, tmp_path, home, capsys):
    "check, train, predict and eval alike: one line for each, at once."
    good = sorted(photos.rglob('*.jpg'))
    for path, said in no_files.items():
        rows = ''.join(f'{f},{f.parent.name}\n' for f in good) + f'{path},Chợ nổi\n'
        (tmp_path / 'list.csv').write_text('path,label\n' + rows, encoding='utf-8')
        assert (
            cli.main(['check', tmp_path / 'list.csv']) == 0
            and '1 file cannot be read' in capsys.readouterr().out
        )
        with pytest.raises(BadInput) as e:
            load_pictures(tmp_path / 'list.csv')
        assert (
            said in str(e.value)
            and Path(path).name in str(e.value)
            and len(read_photos(tmp_path / 'list.csv', on_bad='skip')) == 36
        )
        assert cli.main(['train', tmp_path / 'list.csv', '--out', tmp_path / 'run']) == 2
        err = capsys.readouterr().err
        assert said in err and err.count('\n') == 1 and not (tmp_path / 'run').exists()
        with pytest.raises(Exception):
            decode(path, 32)


@pytest.mark.parametrize('what', ['pipe', '/dev/zero', '/dev/null'])
def test_the_list_itself_is_a_regular_file(what, tmp_path, home, capsys):
    os.mkfifo(tmp_path / 'pipe')
    path = what if what.startswith('/') else tmp_path / what
    for words in (['check', path], ['train', path]):
        assert cli.main(words) == 2
        err = capsys.readouterr().err
        assert str(path) in err and 'give a regular file' in err and err.count('\n') == 1


# What is checked is what is trained on.


def test_a_tiff_is_read_from_bytes_everywhere(tmp_path):
    "Pillow maps an uncompressed TIFF from its path into memory, and counts its bytes otherwise."
    good = saved(photo(40, 30), 'tiff')
    for cut in (1, 100, 1000, 3000):
        file = tmp_path / f'{cut}.tif'
        file.write_bytes(good[:-cut])
        out = []
        for give in (file, file.read_bytes()):
            try:
                out.append(decode(give, 16).tobytes())
            except Exception as e:
                out.append(type(e))
        assert out[0] == out[1], cut
        pics = Pictures('x', ['a'], np.zeros(1, int), np.array(['train']), [file], ['d'])
        if isinstance(out[1], bytes):
            assert pics._one(0, 16).tobytes() == out[1]
        else:
            with pytest.raises(out[1]):
                pics._one(0, 16)


@pytest.mark.parametrize(
    'damage',
    [
        lambda b: b[: len(b) // 2],
        lambda b: b[:60],
        lambda b: b'',
        lambda b: b'no array at all',
        lambda b: b.replace(b'|u1', b'<u2', 1),
    ],
)
def test_a_cache_of_pixels_that_lost_its_end_is_made_again(damage, home, photos):
    pics = load_pictures(photos)
    want = pics.pixels(16).copy()
    file = next((cache_dir() / 'pixels').glob('*.npy'))
    file.write_bytes(damage(file.read_bytes()))
    assert (load_pictures(photos).pixels(16) == want).all()


# Mutations.


def seeds():
    p, deep = photo(), Image.fromarray((np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 15))
    clear = p.convert('RGBA')
    clear.putalpha(photo(mode='L'))
    turned = Image.Exif()
    turned[0x0112] = 6
    out = [
        saved(p, 'jpeg'),
        saved(p, 'jpeg', progressive=True),
        saved(p.convert('CMYK'), 'jpeg'),
        saved(p, 'jpeg', exif=turned),
        saved(p, 'png'),
        saved(clear, 'png'),
        saved(p.quantize(16), 'png', transparency=3),
        saved(deep, 'png'),
        saved(p.convert('1'), 'png'),
        saved(p, 'gif'),
        saved(p, 'webp'),
        saved(clear, 'webp', lossless=True),
        saved(p, 'bmp'),
        saved(p, 'ppm'),
        saved(p, 'tiff'),
        saved(p, 'tiff', compression='tiff_lzw'),
        saved(p, 'tiff', compression='jpeg'),
        saved(deep, 'tiff'),
        saved(p, 'ico', sizes=[(16, 16), (32, 32)]),
        icon(saved(p, 'png')),
        saved(p, 'tga'),
        saved(p, 'tga', compression='tga_rle'),
        saved(p, 'jpeg2000'),
        saved(p, 'mpo', save_all=True, append_images=[photo().rotate(90)]),
    ]
    if 'AVIF' in formats.FORMATS:
        out.append(saved(p, 'avif'))
    return out


NUMBERS = (0, 1, 2, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)


def mutated(r, pool):
    "Some of what happens to files, and what people do to them."
    b = bytearray(r.choice(pool))
    for _ in range(r.choice((1, 1, 2, 5))):
        at, how = r.randrange(max(1, min(len(b), r.choice((16, 64, 10**6))))), r.randrange(7)
        if how == 0:
            b[at : at + 1] = bytes([r.randrange(256)])
        elif how == 1 and b:
            b[at] ^= 1 << r.randrange(8)
        elif how == 2:
            b[at : at + 4] = struct.pack(r.choice('<>') + 'I', r.choice(NUMBERS))
        elif how == 3:
            b[at : at + 2] = struct.pack(r.choice('<>') + 'H', r.choice(NUMBERS) & 0xFFFF)
        elif how == 4:
            del b[at : at + r.randrange(1, 50)]
        elif how == 5:
            del b[at:]
        else:
            b[at:at] = r.choice(pool)[: r.randrange(1, 200)]
    return bytes(b)


def one_case(seed, pool, tmp_path):
    "What the check lets pass decodes at every size, from the file and from its bytes, to the same pixels; nothing else comes out."
    b = mutated(random.Random(seed), pool)
    file = tmp_path / 'a.jpg'
    file.write_bytes(b)
    digest, why = scan._check_file(file)
    assert bool(digest) != bool(why) and '\n' not in why and len(why) <= 140, seed
    if digest:
        for size in (16, 64, 224):
            a = decode(file, size)
            assert a.shape == (size, size, 3) and a.dtype == np.uint8 and (a == decode(b, size)).all(), seed
    assert decoding.IN_FLIGHT.used == decoding._IN_MEMORY.used == 0, seed
    return bool(digest)


def test_two_thousand_mutated_pictures(tmp_path):
    pool, t0 = seeds(), time.process_time()
    passed = [one_case(seed, pool, tmp_path) for seed in range(2000)]
    assert 200 < sum(passed) < 1800 and time.process_time() - t0 < 45


@pytest.mark.slow
def test_many_mutated_pictures_with_a_fresh_seed(tmp_path):
    pool, first = seeds(), random.SystemRandom().randrange(2**40)
    print('seeds', first, 'to', first + 3000)
    for seed in range(first, first + 3000):
        one_case(seed, pool, tmp_path)
