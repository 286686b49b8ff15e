"""Checkpoints of strangers: damaged, made up, or made to hurt.

Whatever a file says, the answer is its weights, as an independent reader has them, or one sentence. The
independent readers are safetensors' own, `zipfile`, and `torch.load(weights_only=True)` on files that this
test wrote."""

import concurrent.futures, gc, io, json, os, pickle, random, struct, subprocess, sys, tarfile, time, zipfile
from pathlib import Path
import numpy as np
import pytest, torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from ich_soups.soups import averaging, file_index, sums
from ich_soups.soups.averaging import average
from ich_soups.soups.side_by_side import side_by_side
from ich_soups.soups.places import MOST
from ich_soups.soups.checkpoints import load_weights
from ich_soups.soups.saving import save_weights
from ich_soups.soups.tensor_names import without_prefix
from ich_soups.core import BadInput

MIB = 1 << 20


# what is tried


def weights(seed, dtype=torch.float32):
    "A small state dict with views, ties, whole numbers and an empty tensor."
    g = torch.Generator().manual_seed(seed)
    base = torch.randn(12, 10, generator=g).to(dtype)
    return {
        'stem.weight': torch.randn(4, 3, 2, 2, generator=g).to(dtype),
        'stem.bias': torch.randn(4, generator=g).to(dtype),
        'base': base,
        'turned': base.t(),
        'rows': base[3:7],
        'tied': base,
        'wide': base[:1].expand(5, 10),
        'count': torch.tensor(seed),
        'ids': torch.arange(6),
        'mask': torch.tensor([True, False]),
        'none': base[:0],
    }


def zipped(obj):
    torch.save(obj, f := io.BytesIO())
    return f.getvalue()


def legacy(obj):
    torch.save(obj, f := io.BytesIO(), _use_new_zipfile_serialization=False)
    return f.getvalue()


def header(head, data):
    "A safetensors file; `head` is an object, or text as it is."
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return len(text).to_bytes(8, 'little') + text + data


def f32(lo, hi, *shape):
    return dict(dtype='F32', shape=list(shape) or [(hi - lo) // 4], data_offsets=[lo, hi])


class P:
    "Pickles written by hand, in pieces that each leave one value on the stack."

    def value(v):
        return pickle.dumps(v, 2)[2:-1]

    def tuple(*parts):
        return b'(' + b''.join(parts) + b't'

    def dict(*parts):
        return b'}(' + b''.join(parts) + b'u'

    def name(module, name):
        return f'c{module}\n{name}\n'.encode()

    def whole(part):
        return b'\x80\x02' + part + b'.'

    def pid(key='0', numel=4, kind='FloatStorage', *more):
        key = key if isinstance(key, bytes) else P.value(key)
        return (
            P.tuple(
                P.value('storage'),
                P.name('torch', kind),
                key,
                P.value('cpu'),
                P.value(numel),
                *map(P.value, more),
            )
            + b'Q'
        )

    def tensor(shape=(4,), stride=(1,), offset=0, pid=None):
        shape, stride = (x if isinstance(x, bytes) else P.value(x) for x in (shape, stride))
        args = P.tuple(pid or P.pid(), P.value(offset), shape, stride, b'\x89', b'}')
        return P.name('torch._utils', '_rebuild_tensor_v2') + args + b'R'


FOUR = np.arange(4, dtype='<f4').tobytes()
W = P.value('w') + P.tensor()


def archive(part, data=None, more=()):
    "A zip archive as torch writes it, with any pickle."
    with zipfile.ZipFile(f := io.BytesIO(), 'w') as z:
        z.writestr('a/data.pkl', P.whole(part))
        for k, v in (data or {'0': FOUR}).items():
            z.writestr(f'a/data/{k}', v)
        for k, v in more:
            z.writestr(k, v)
        z.writestr('a/version', '3\n')
    return f.getvalue()


def old(part, keys=('0',), stored=((4, FOUR),), machine=None, magic=0x1950A86A20F9469CFC6C, version=1001):
    "A file of before torch 1.6, with any pickle, list and storages."
    machine = machine or dict(
        protocol_version=1001, little_endian=True, type_sizes=dict(short=2, int=4, long=4)
    )
    head = b''.join(pickle.dumps(x, 2) for x in (magic, version, machine))
    tail = b''.join(struct.pack('<q', n) + b for n, b in stored)
    return head + P.whole(part) + pickle.dumps(list(keys), 2) + tail


OLD = P.pid('0', 4, 'FloatStorage', None)
OLD_W = P.value('w') + P.tensor(pid=OLD)


# what is asked


def answer(path, read=load_weights):
    "The weights, or the sentence: one line that names the file and is no longer than a reader can bear."
    try:
        return read(path)
    except BadInput as e:
        text = str(e)
    assert '\n' not in text and Path(path).stem in text and len(text) < 400 and 'Error' not in text, text
    return text


def refused(tmp_path, content, says='', suffix='.pt'):
    "The sentence with which a file is refused: alone, and beside a good one."
    f = tmp_path / f'made up{suffix}'
    f.write_bytes(content)
    text = answer(f)
    assert isinstance(text, str), f'was read: {text}'
    assert says in text, text
    good = tmp_path / 'good.pth'
    good.write_bytes(zipped({'w': torch.arange(4.0)}))
    with pytest.raises(BadInput):
        average([good, f], out=tmp_path / 'out.safetensors')
    assert not (tmp_path / 'out.safetensors').exists() and not list(tmp_path.glob('.*'))
    return text


def bits(t):
    return t.detach().contiguous().flatten().view(torch.uint8)


def alike(a, b):
    "Same names, shapes, types and bits."
    if a.keys() != b.keys():
        return False
    return all(
        a[k].shape == b[k].shape and a[k].dtype == b[k].dtype and torch.equal(bits(a[k]), bits(b[k]))
        for k in a
    )


def by_torch(path):
    "What torch reads, or None."
    try:
        obj = torch.load(path, map_location='cpu', weights_only=True)
    except Exception:
        return None
    if not isinstance(obj, dict):
        return None
    try:
        return load_weights(obj)
    except BadInput:
        return None


def by_safetensors(path):
    try:
        with safe_open(path, 'pt') as f:
            return {k: f.get_tensor(k) for k in f.keys()}
    except Exception:
        return None


def by_zipfile(path):
    "Whether all records of an archive are where they should be and have their checksums."
    try:
        with zipfile.ZipFile(path) as z:
            return z.testzip() is None
    except Exception:
        return False


# random mutations

NUMBERS = [
    0,
    1,
    2,
    7,
    127,
    128,
    255,
    256,
    0x7FFF,
    0xFFFF,
    1 << 31,
    (1 << 32) - 1,
    1 << 40,
    (1 << 63) - 1,
    (1 << 64) - 1,
]
WORDS = [
    b'F32',
    b'BF16',
    b'I64',
    b'shape',
    b'null',
    b'NaN',
    b'-1',
    b'1e9',
    b'FloatStorage',
    b'HalfStorage',
    b'DoubleStorage',
    b'cos\nsystem\n',
    b'R.',
    b'state_dict',
    b'model.',
    b'\x81',
    b'\x93',
    b'Q',
    b'data/1',
    b'PK\1\2',
    b'little',
    b'K\x01K\x04',
]


def mutated(r, b, lo=0, hi=None):
    "`b` with a few changes between `lo` and `hi`."
    b, hi = bytearray(b), len(b) if hi is None else hi
    for _ in range(r.choice([1, 1, 1, 2, 3, 6])):
        at, n = r.randrange(lo, max(lo + 1, min(hi, len(b)))), r.choice([1, 1, 2, 4, 8, 32])
        kind = r.randrange(9)
        if kind < 3:
            b[at : at + 1] = bytes([(b[at : at + 1] or b'\0')[0] ^ 1 << r.randrange(8)])
        elif kind == 3:
            b[at : at + 1] = bytes([r.randrange(256)])
        elif kind == 4:
            b[at : at + n] = (r.choice(NUMBERS) % (1 << 8 * n)).to_bytes(n, 'little')
        elif kind == 5:
            b[at : at + n] = b''
        elif kind == 6:
            b[at:at] = b[at : at + n]
        elif kind == 7:
            b[at : at + n] = r.choice(WORDS)
        else:
            b[at:] = b[at:] if r.random() < 0.8 else b''
    return bytes(b)


def seeds():
    "(name, suffix, bytes, ranges to change)."
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        w = weights(3, dtype)
        flat = {k: v.contiguous().clone() for k, v in w.items()}
        b = save(flat)
        yield 'safetensors', '.safetensors', b, [(0, 8 + int.from_bytes(b[:8], 'little')), (0, len(b))]
        for name, obj in (
            ('bare', w),
            ('nested', dict(epoch=3, model={f'module.{k}': v for k, v in w.items()}, lr=[0.1, 0.2])),
        ):
            b = zipped(obj)
            yield (
                f'zip {name}',
                '.pth',
                b,
                [
                    (0, b.index(b'data/0')),
                    (b.rindex(b'serialization_id') - 30, len(b)),
                    (b.index(b'PK\1\2'), len(b)),
                ],
            )
            b = legacy(obj)
            end = b.rindex(b'.', 0, b.index(struct.pack('<q', 48)))
            yield f'legacy {name}', '.pt', b, [(0, end), (0, end), (end, len(b))]


def held(content, sd):
    "Whether every number of a state dict is one that the file holds."
    raw = [(bits(t).numpy().tobytes(), t.dtype.itemsize) for t in sd.values()]
    return all(b[k : k + n] in content for b, n in raw for k in range(0, len(b), n))


def judged(f, kind, original):
    "One mutated file: 'refused', 'read' or 'read alone'; fails if the answer is wrong."
    ours = answer(f)
    if isinstance(ours, str):
        return 'refused'
    theirs = by_safetensors(f) if kind == 'safetensors' else by_torch(f)
    if kind == 'safetensors':
        assert theirs is not None, 'safetensors refuses it'
    if kind.startswith('zip') and not by_zipfile(f):
        assert alike(ours, original), 'a record is damaged'
    if kind.startswith('legacy'):
        assert alike(ours, load_weights(f)), 'another answer at the second reading'
    if theirs is not None and alike(ours, theirs):
        return 'read'
    if kind.startswith('legacy') and theirs is None:  # no checksum, and torch may stumble over something else
        assert held(f.read_bytes(), ours), 'numbers that are not in the file'
        return 'read alone'
    assert alike(ours, original), 'values differ from the independent reader, or it refuses them'
    return 'read alone'


def fuzz(folder, seed, n):
    "Counts of what became of `n` mutated checkpoints."
    r, counts = random.Random(seed), {}
    every = list(seeds())
    originals = {}
    for i in range(n):
        k = r.randrange(len(every))
        kind, suffix, b, ranges = every[k]
        f = folder / f'mutated{suffix}'
        if k not in originals:
            f.write_bytes(b)
            originals[k] = load_weights(f)
        f.write_bytes(mutated(r, b, *r.choice(ranges)))
        try:
            what = judged(f, kind, originals[k])
        except BaseException:
            print(f'seed {seed}, case {i}: {kind}, kept as {f}')
            raise
        counts[what] = counts.get(what, 0) + 1
        if i % 10 == 0:
            answer_of_average(folder, f, originals[k])
    return counts


def answer_of_average(folder, f, original):
    """The average with the unchanged weights is written, and is that of what was read; or there is one
    sentence and no file."""
    out = folder / 'out.safetensors'
    try:
        average([f, original], out=out)
    except BadInput as e:
        assert '\n' not in str(e) and not out.exists()
        return
    both = average([load_weights(f), original])
    got = load_file(out)
    assert all(torch.allclose(got[k].double(), v.double(), equal_nan=True) for k, v in both.items())
    out.unlink()


def edited(r, head, size):
    "A header with a few changes that leave it JSON, and the bytes behind it."
    names = list(head)
    r.shuffle(names)
    head = {k: head[k] for k in names}
    for _ in range(r.choice([0, 1, 1, 1, 2, 3])):
        t, kind = head.get(r.choice(names)), r.randrange(10)
        number = r.choice([0, 1, -1, 4, 16, size, 2**31, 2**63, 10**25, 1.5, True, None, 'x', [], [0, 16]])
        if not isinstance(t, dict):
            continue
        if kind == 0:
            t['dtype'] = r.choice(
                ['F16', 'BF16', 'I32', 'U16', 'F8_E4M3', 'F64', 'C64', 'F4', 'f32', None, 3, []]
            )
        elif kind == 1:
            t['shape'] = r.choice([[], [1] * 70, [2, 2], number, [number], [0, 2**62]])
        elif kind == 2:
            t['data_offsets'] = r.choice([[0, 16], [16, 0], [number, 16], number, [0, 16, 32]])
        elif kind == 3 and isinstance(t.get('data_offsets'), list):
            t['data_offsets'] = [o + r.choice([-4, 4, 8]) if type(o) is int else o for o in t['data_offsets']]
        elif kind == 4:
            a, b = r.choice(names), r.choice(names)
            head[a], head[b] = head.get(b), head.get(a)
        elif kind == 5:
            head[r.choice(['', '__metadata__', 'module.x', '\ud800', 'é'])] = t
        elif kind == 6:
            t.pop(r.choice(['shape', 'dtype', 'data_offsets']), None)
        elif kind == 7:
            head['__metadata__'] = r.choice([{}, None, {'a': 'b'}, {'a': number}, number, 0, 1.5, 'text'])
        elif kind == 8 and isinstance(t.get('shape'), list):
            t['shape'] = [1, *t['shape'], 1]
        else:
            t['extra'] = number
    text = json.dumps(head).encode()
    if r.random() < 0.15:
        text = text[:-1] + b', ' + json.dumps({r.choice(names): f32(0, 16)}).encode()[1:]
    if r.random() < 0.1:
        text = r.choice(
            [
                text.decode().encode('utf-16'),
                b'\xef\xbb\xbf' + text,
                text + b' ' * 9,
                b' ' + text,
                text + b'\0',
            ]
        )
    return text, size + r.choice([0] * 9 + [-4, 4, 1])


# what safetensors lets pass and we do not
STRICTER = ('twice', 'dimensions', 'cannot be averaged', 'no tensors', 'no state dict')


def fuzz_headers(folder, seed, n):
    r, counts = random.Random(seed), dict(read=0, refused=0)
    data = np.random.default_rng(0).bytes(400)
    for i in range(n):
        head, at = {}, 0
        for k in range(r.randrange(1, 6)):
            size = r.choice([0, 4, 16, 24])
            head[f't{k}'] = f32(at, at + size)
            at += size
        text, size = edited(r, head, at)
        f = folder / 'header.safetensors'
        f.write_bytes(header(text, data[: max(0, size)]))
        ours, theirs = answer(f), by_safetensors(f)
        say = f'seed {seed}, case {i}: {text[:300]!r}, {ours}'
        if isinstance(ours, str):
            assert theirs is None or any(s in ours for s in STRICTER), say
        else:
            assert theirs is not None and alike(ours, without_prefix(theirs)), say
        counts['refused' if isinstance(ours, str) else 'read'] += 1
    return counts


def test_mutated_checkpoints(tmp_path):
    counts = fuzz(tmp_path, 'checkpoints', 1500)
    assert min(counts['refused'], counts['read']) > 100 and counts['read alone'] < 100, counts


def test_mutated_headers(tmp_path):
    counts = fuzz_headers(tmp_path, 'headers', 500)
    assert min(counts.values()) > 50, counts


@pytest.mark.slow
def test_many_more_of_them(tmp_path):
    seed = random.SystemRandom().randrange(10**9)
    print('seed', seed)
    print(fuzz(tmp_path, seed, 20_000), fuzz_headers(tmp_path, seed, 10_000))


# the format of before torch 1.6


def test_an_old_file_is_read_without_torch(tmp_path, monkeypatch):
    f = tmp_path / 'old.pt'
    for k, obj in enumerate(
        (weights(1), dict(model=weights(2), optimizer=dict(step=torch.ones(3))), {'w': torch.ones(2).half()})
    ):
        f.write_bytes(legacy(obj))
        theirs = by_torch(f)
        with monkeypatch.context() as m:
            m.setattr(torch, 'load', None)
            assert alike(load_weights(f), theirs), k
    f.write_bytes(old(P.dict(OLD_W)))
    assert torch.equal(load_weights(f)['w'], torch.arange(4.0))


def test_storages_of_an_old_file_that_are_not_what_it_says(tmp_path):
    two = P.dict(OLD_W, P.value('v'), P.tensor(pid=P.pid('1', 4, 'FloatStorage', None)))
    other = P.dict(OLD_W, P.value('v'), P.tensor(pid=P.pid('0', 4, 'IntStorage', None)))
    for content, says in (
        (old(two), 'list of storages'),
        (old(P.dict(OLD_W), keys=('7',)), 'list of storages'),
        (old(P.dict(OLD_W), keys=()), 'list of storages'),
        (old(P.dict(OLD_W), keys=('0', '0')), 'list of storages'),
        (old(P.dict(OLD_W), keys=(0,)), 'is none'),
        (old(P.dict(OLD_W), stored=((5, FOUR),)), 'another length'),
        (old(P.dict(OLD_W), stored=((3, FOUR),)), 'another length'),
        (old(P.dict(OLD_W), stored=((-4, FOUR),)), 'another length'),
        (old(P.dict(OLD_W))[:-1], 'cut short'),
        (old(P.dict(OLD_W), stored=()), 'cut short'),
        (old(other), 'two types'),
        (old(P.dict(OLD_W))[:150], 'cut short'),
    ):
        refused(tmp_path, content, says)


def test_an_old_file_of_another_kind(tmp_path):
    for content, says in (
        (old(P.dict(OLD_W), machine=dict(little_endian=False)), 'big-endian'),
        (old(P.dict(OLD_W), machine=dict(a=1)), 'big-endian'),
        (old(P.dict(OLD_W), machine=[1]), 'big-endian'),
        (old(P.dict(OLD_W), magic=7), 'no checkpoint of torch'),
        (old(P.dict(OLD_W), version=1002), 'version'),
    ):
        refused(tmp_path, content, says)
    for mode in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(fileobj=(f := io.BytesIO()), mode='w', format=mode) as t:
            for n in ('\x80storages', 'tensors', 'pickle'):
                t.addfile(tarfile.TarInfo(n))
        refused(tmp_path, f.getvalue(), 'tar archive')


def test_parts_of_storages_in_an_old_file(tmp_path):
    "Views of storages, which torch knew until 0.4: key, first element, elements."
    f = tmp_path / 'old.pt'
    pid = lambda *view: P.pid('0', 4, 'FloatStorage', view)
    for view, shape, want in (
        (('v', 1, 2), (2,), [1.0, 2.0]),
        (('v', 0, 4), (3,), [0.0, 1.0, 2.0]),
        (('v', 3, 1), (1,), [3.0]),
    ):
        f.write_bytes(old(P.dict(P.value('w'), P.tensor(shape, pid=pid(*view)))))
        assert load_weights(f)['w'].tolist() == want == by_torch(f)['w'].tolist()
    two = P.dict(
        P.value('w'), P.tensor((1,), pid=pid('v', 1, 2)), P.value('x'), P.tensor((1,), pid=pid('v', 2, 2))
    )
    for part, says in (
        (P.dict(P.value('w'), P.tensor((1,), pid=pid('v', 3, 2))), 'beyond'),
        (P.dict(P.value('w'), P.tensor((3,), pid=pid('v', 2, 2))), 'beyond'),
        (P.dict(P.value('w'), P.tensor((1,), pid=pid('v', -1, 2))), 'no sense'),
        (two, 'two parts'),
    ):
        refused(tmp_path, old(part), says)


# layouts of safetensors

TWO = dict(a=f32(0, 16), b=f32(16, 24))
TEXT = json.dumps(TWO).encode()
BYTES = np.arange(12, dtype='<f4').tobytes()


@pytest.mark.parametrize(
    'name, content, says',
    [
        ('overlap', header(TWO | dict(b=f32(8, 16)), BYTES[:16]), 'begin'),
        ('one place', header(TWO | dict(b=f32(0, 8)), BYTES[:16]), 'begin'),
        ('overlap by one', header(TWO | dict(b=f32(12, 20)), BYTES[:20]), 'begin'),
        ('shifted', header(dict(a=f32(4, 20)), BYTES[:20]), 'begin'),
        ('hole', header(TWO | dict(b=f32(20, 28)), BYTES[:28]), 'begin'),
        ('empty inside', header(TWO | dict(e=f32(8, 8, 0)), BYTES[:24]), 'begin'),
        ('trailing byte', header(TWO, BYTES[:25]), '1 bytes at its end'),
        ('trailing', header(TWO, BYTES), '24 bytes at its end'),
        ('only data', header({}, BYTES), 'bytes at its end'),
        ('past the end', header(TWO, BYTES[:20]), '4 bytes behind the end'),
        ('far past', header(dict(a=f32(2**40, 2**40 + 4)), BYTES), 'begin'),
        ('backwards', header(dict(a=f32(16, 0, 4)), BYTES[:16]), 'size'),
        ('name twice', header(TEXT[:-1] + b', ' + TEXT[1:], BYTES[:24]), 'twice'),
        (
            'type twice',
            header(TEXT.replace(b'"dtype": "F32"', b'"dtype": "F32", "dtype": "I32"', 1), BYTES[:24]),
            'twice',
        ),
        (
            'metadata twice',
            header(TEXT[:-1] + b', "__metadata__": {"a": "b", "a": "c"}}', BYTES[:24]),
            'twice',
        ),
        ('utf-16', header(TEXT.decode().encode('utf-16'), BYTES[:24]), 'UTF-8'),
        ('utf-32', header(TEXT.decode().encode('utf-32-le'), BYTES[:24]), 'UTF-8'),
        ('mark', header(b'\xef\xbb\xbf' + TEXT, BYTES[:24]), 'UTF-8'),
        ('number', header(TWO | dict(__metadata__=dict(n=1)), BYTES[:24]), 'metadata'),
        ('list', header(TWO | dict(__metadata__=['a']), BYTES[:24]), 'metadata'),
        ('zero', header(TWO | dict(__metadata__=0), BYTES[:24]), 'metadata'),
        ('half a pair', header(TWO | dict(__metadata__={'a': '\ud800'}), BYTES[:24]), 'metadata'),
        ('name of half a pair', header({'\ud800': f32(0, 16)}, BYTES[:16]), 'no name'),
        ('no tensors', header({}, b''), 'no tensors'),
        ('list header', header(b'[1, 2]', b''), 'no JSON object'),
        ('infinity', header(TEXT.replace(b'[4]', b'[Infinity]'), BYTES[:24]), 'Infinity'),
        ('negative', header(dict(a=f32(-16, 0)), BYTES[:16]), 'impossible'),
        ('huge', header(dict(a=f32(0, 10**30)), BYTES[:16]), 'impossible'),
        ('digits', header(TEXT.replace(b'16', b'1' * 10**6), BYTES), 'impossible'),
    ],
)
def test_layouts_that_safetensors_refuses(tmp_path, name, content, says):
    refused(tmp_path, content, says, '.safetensors')
    if name not in ('name twice', 'metadata twice', 'no tensors'):
        assert by_safetensors(tmp_path / 'made up.safetensors') is None


def test_tensors_of_one_file_are_counted(tmp_path):
    "Three hundred thousand of them without a number took ten seconds and more."
    f = tmp_path / 'many.safetensors'
    f.write_bytes(header({f't{k}': f32(0, 0, 0) for k in range((1 << 17) + 1)}, b''))
    assert 'more than 131,072 tensors' in answer(f)


def test_layouts_that_safetensors_reads(tmp_path):
    "Any order, empty tensors between others, escapes, blanks, further entries."
    f = tmp_path / 'odd.safetensors'
    for head in (
        dict(b=TWO['b'], a=TWO['a']),
        TWO | dict(e=f32(16, 16, 0, 5)),
        TWO | dict(e=f32(0, 0, 0)),
        TWO | dict(e=f32(24, 24, 0)),
        TEXT + b'  \n',
        TEXT.replace(b'"b"', b'"\\u0062"'),
        TWO | dict(__metadata__=None),
        TWO | dict(__metadata__={'x': 'ü'}),
        dict(a=TWO['a'] | dict(more=1.5), b=TWO['b']),
    ):
        f.write_bytes(header(head, BYTES[:24]))
        assert alike(load_weights(f), by_safetensors(f)), head


# zip archives


def changed(b, at, new):
    return b[:at] + new + b[at + len(new) :]


def last_header(b, part):
    "Where the headers of the record of a name are: in front of it, and in the directory."
    return b.index(part) - 30, b.rindex(part) - 46


def test_records_that_are_not_where_the_directory_says(tmp_path):
    "What `zipfile` refuses to open."
    b = archive(P.dict(W, P.value('v'), P.tensor(pid=P.pid('1'))), {'0': FOUR, '1': FOUR})
    for part in (b'a/data/0', b'a/data/1', b'a/data.pkl'):
        local, central = last_header(b, part)
        for content, says in (
            (changed(b, local, b'PK\7\10'), 'not where'),
            (changed(b, local + 30, b'b'), 'not where'),
            (changed(b, local + 6, b'\1\0'), 'not where'),
            (changed(b, central + 8, b'\1\0'), 'not where'),
            (changed(changed(b, central + 8, b'\1\0'), local + 6, b'\1\0'), 'encrypted'),
            (changed(changed(b, central + 8, b'\x20\0'), local + 6, b'\x20\0'), 'encrypted'),
            (changed(b, local + 8, b'\x08\0'), 'not where'),
            (changed(b, central + 42, struct.pack('<I', local + 1)), 'not where'),
            (changed(b, local + 28, b'\4\0'), ''),
        ):
            refused(tmp_path, content, says)
            # it looks at the directory's flags alone
            if content[local + 6 : local + 10] == b[local + 6 : local + 10]:
                assert not by_zipfile(tmp_path / 'made up.pt')
        for bit in (0x10, 0x30, 0xFF):  # torch takes it for a folder, and does not read it
            refused(tmp_path, changed(b, central + 38, bytes([bit])), 'folder')


def test_records_that_overlap_or_leave_the_file(tmp_path):
    part = P.dict(P.value('w'), P.tensor((24,), pid=P.pid(numel=24)), P.value('v'), P.tensor(pid=P.pid('1')))
    inner = archive(W, {'1': FOUR})
    at = inner.index(b'a/data/1') - 30
    inner = inner[at : at + 54]  # header, name and numbers of a record
    for k in range(3):  # a record within another one
        filled = (bytes(4 * k) + inner + bytes(48))[:96]
        b = archive(part, {'0': filled, '1': FOUR})
        _, central = last_header(b, b'a/data/1')
        refused(tmp_path, changed(b, central + 42, struct.pack('<I', b.index(inner))), 'overlap')
    b = archive(part, {'0': FOUR * 6, '1': FOUR})
    for name, size in ((b'a/data/0', 10**6), (b'a/data/1', 10**6), (b'a/data/1', 1 << 31)):
        _, central = last_header(b, name)
        refused(tmp_path, changed(b, central + 20, struct.pack('<2I', size, size)))


def test_archives_that_are_none_of_torch(tmp_path):
    def made(*records):
        with zipfile.ZipFile(f := io.BytesIO(), 'w') as z:
            for name, content, *kind in records:
                z.writestr(name, content, *kind)
        return f.getvalue()

    pkl, deflated = ('a/data.pkl', P.whole(P.dict(W))), zipfile.ZIP_DEFLATED
    for content, says in (
        (made(pkl, ('a/data/0', FOUR), ('a/data/0', FOUR)), 'one name'),
        (made(pkl, pkl, ('a/data/0', FOUR)), 'one name'),
        (made(pkl, ('a/data/0', FOUR), ('a/byteorder', 'little'), ('a/byteorder', 'little')), 'one name'),
        (made(pkl, ('a/data/0', FOUR), ('b/data.pkl', pkl[1])), 'one checkpoint'),
        (made(('a/data/0', FOUR)), 'one checkpoint'),
        (made((*pkl, deflated), ('a/data/0', FOUR)), 'compressed'),
        (made(pkl, ('a/data/0', FOUR, deflated)), 'compressed'),
        (made(pkl, ('a/data/0', FOUR), ('a/byteorder', 'little', zipfile.ZIP_BZIP2)), 'compressed'),
        (made(pkl, ('a/data/0', FOUR), ('a/byteorder', 'big')), 'big-endian'),
        (made(pkl, ('a/data/0', FOUR), ('a/byteorder', 'l' * 10**6)), 'bytes'),
        (made(pkl), 'missing'),
        (made(pkl, ('a/data/0', FOUR[:8])), 'another length'),
        (made(pkl, ('a/data/0', FOUR * 2)), 'another length'),
        (made(('a/data.pkl', b'N0' * (33 << 20) + b'N.'), ('a/data/0', FOUR)), 'are read'),
    ):
        refused(tmp_path, content, says)


def test_a_bit_that_fell_over_is_found_by_its_checksum(tmp_path, monkeypatch):
    "In each kind of record, however averaging cuts it, and without reading a byte twice."
    a = {
        'w': torch.randn(5000),
        'm': torch.randn(40, 60).t(),
        'n': torch.tensor(3),
        'v': torch.randn(900)[100:200],
        'wide': torch.randn(1, 8).expand(4, 8),
    }
    good, bad = tmp_path / 'good.pth', tmp_path / 'bad.pth'
    good.write_bytes(b := zipped(a))
    with zipfile.ZipFile(good) as z:
        records = [i for i in z.infolist() if '/data/' in i.filename]
    for piece, block in ((1 << 17, 1 << 22), (100, 250)):
        monkeypatch.setattr(sums, 'PIECE', piece)
        monkeypatch.setattr(averaging, 'BLOCK', block)
        assert alike(average([good]), {k: v.contiguous() for k, v in a.items()})
        for i in records:
            at = (
                i.header_offset
                + 30
                + len(i.filename)
                + int.from_bytes(b[i.header_offset + 28 : i.header_offset + 30], 'little')
            )
            for where in (at, at + i.file_size - 1):
                bad.write_bytes(changed(b, where, bytes([b[where] ^ 1])))
                assert not by_zipfile(bad)
                reads = [
                    lambda: load_weights(bad),
                    lambda: average([good, bad]),
                    lambda: average([bad, good], out=tmp_path / 'o.safetensors'),
                ]
                # which leaves the counter out
                if i.file_size > 8:
                    reads.append(lambda: list(side_by_side([good, bad])))
                for read in reads:
                    with pytest.raises(BadInput, match='bad.pth is damaged: the checksum'):
                        read()
    assert not (tmp_path / 'o.safetensors').exists()


def test_checksums_cost_no_pass_over_the_file(tmp_path, monkeypatch):
    f, count = tmp_path / 'a.pth', [0]
    torch.save(dict(model={'w': torch.randn(1 << 20)}, optimizer=torch.randn(1 << 20)), f)
    read = file_index._read_at

    def counted(file, view, start):
        n = read(file, view, start)
        count[0] += n
        return n

    monkeypatch.setattr(file_index, '_read_at', counted)
    average([f], out=tmp_path / 'o.safetensors')
    assert 4 << 20 <= count[0] < (4 << 20) + 10_000


def test_archives_without_checksums_are_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(weights(1), tmp_path / 'a.pth')
    finally:
        torch.serialization.set_crc32_options(True)
    assert alike(load_weights(tmp_path / 'a.pth'), by_torch(tmp_path / 'a.pth'))


# keys, bytes, dimensions: what takes memory or time out of nothing

SHARED = {
    f'shared {how} {n}': start + step * n
    for n in (25, 300)
    for how, start, step in (
        ('pairs', b')', b'2\x86'),
        ('triples', b')', b'22\x87'),
        ('lists', b']q\0', b'0]h\0ah\0aq\0'),
    )
}
DEEP = {
    f'deep {how}': b
    for how, b in (
        ('tuples', b')' + b'\x85' * 150_000),
        ('lists', b']' * 150_000 + b'a' * 149_999),
        ('pairs', b')N' + b'\x86N' * 150_000 + b'\x86'),
    )
}


@pytest.mark.parametrize('name', [*SHARED, *DEEP])
def test_keys_are_never_hashed_unless_they_are_plain(tmp_path, name):
    key, f, t0 = (SHARED | DEEP)[name], tmp_path / 'a.pth', time.process_time()
    parts = {
        'key': P.dict(W, key, b'N'),
        'first': P.dict(key, b'N', W),
        'in a set': P.dict(W, P.value('x'), b'\x8f(' + key + b'\x90'),
        'in a frozen set': P.dict(W, P.value('x'), b'(' + key + b'\x91'),
        'old dict': b'(' + W + key + b'Nd',
        'setitem': b'}' + W + b's' + key + b'Ns',
        'ordered': P.dict(
            W,
            P.value('x'),
            P.name('collections', 'OrderedDict') + P.tuple(P.tuple(P.tuple(key, b'N'))) + b'R',
        ),
    }
    for where in parts if name in SHARED else ('key', 'in a set', 'ordered'):
        f.write_bytes(archive(parts[where]))
        assert load_weights(f)['w'].tolist() == [0, 1, 2, 3], where
    for part in (
        P.dict(P.value('w'), P.tensor(pid=P.pid(key))),
        P.dict(P.value('w'), P.tensor(shape=key)),
        P.dict(key, P.tensor()),
        P.name('torch._utils', '_rebuild_tensor') + key + b'R',
    ):
        refused(tmp_path, archive(part))
    refused(tmp_path, old(P.dict(OLD_W), keys=())[:-20] + key + b'.')
    assert time.process_time() - t0 < 40


def test_the_collector_waits_while_a_pickle_is_read(tmp_path):
    "It walks over all containers again and again: of deeply nested values that was most of the time."
    (tmp_path / 'a.pth').write_bytes(archive(P.dict(W, P.value('x'), b')' + b'\x85' * 200_000)))
    ran = []
    told = lambda phase, info: ran.append(info['generation']) if phase == 'start' else None
    gc.callbacks.append(told)
    try:
        assert load_weights(tmp_path / 'a.pth')['w'].tolist() == [0, 1, 2, 3]
    finally:
        gc.callbacks.remove(told)
    assert len(ran) < 10 and gc.isenabled()


def test_the_collector_goes_on_after_the_last_reader(tmp_path):
    (tmp_path / 'a.pth').write_bytes(archive(P.dict(W, P.value('x'), b')' + b'\x85' * 20_000)))
    (tmp_path / 'b.pth').write_bytes(archive(P.dict(W, P.value('x'), b')' + b'\x85' * (3 << 20))))
    with concurrent.futures.ThreadPoolExecutor(4) as ex:
        for f in [ex.submit(answer, tmp_path / n) for n in ('a.pth', 'b.pth') * 4]:
            f.result()
    assert gc.isenabled()


def test_plain_keys_are_kept(tmp_path):
    obj = {3: 'a', 2.5: 'b', None: 'c', True: 'd', b'e': 'e', 'model': {'w': torch.ones(2)}}
    torch.save(obj, tmp_path / 'a.pth')
    assert load_weights(tmp_path / 'a.pth')['w'].tolist() == [1, 1]
    for key in (3, 2.5, None, b'w', ('w',)):
        torch.save({key: torch.ones(2)}, tmp_path / 'b.pth')
        assert 'is no name' in answer(tmp_path / 'b.pth')


@pytest.mark.parametrize('n', [65, 66, 1000, 100_000])
def test_dimensions_are_bounded_before_anything_is_computed(tmp_path, n):
    for d in (b'K\1', b'K\0', b'K\2', b'\x8a\x09' + b'\xff' * 8 + b'\0'):
        sizes = b'(' + d * n + b't'
        assert (
            len(refused(tmp_path, archive(P.dict(P.value('w'), P.tensor(sizes, sizes))), f'{n} dimensions'))
            < 250
        )
        refused(tmp_path, old(P.dict(P.value('w'), P.tensor(sizes, sizes, pid=OLD))), f'{n} dimensions')
    for d in (1, 0, 9):
        refused(tmp_path, header(dict(a=f32(0, 16, *[d] * n)), BYTES[:16]), f'{n} dimensions', '.safetensors')


def test_sizes_are_bounded_before_anything_is_computed(tmp_path):
    big = lambda n: b'\x8b' + struct.pack('<i', n) + b'\x7f' * n
    for size in (
        P.value(1 << 63),
        P.value(1 << 64),
        P.value(-1),
        P.value(4.0),
        b'\x88',
        big(1000),
        big(3_000_000),
    ):
        for part in (
            P.tensor(P.tuple(size, size), (1, 1)),
            P.tensor((2, 2), P.tuple(size, size)),
            P.tensor((1,), (1,), pid=P.pid(numel=0)[:-3] + size + b'tQ'),
        ):
            refused(tmp_path, archive(P.dict(P.value('w'), part)))
    for shape, stride in (
        ((2, 2), (1,)),
        ((4,), (1, 1)),
        ((), (1,)),
        ('4', (1,)),
        ({0: 4}, (1,)),
        (None, None),
    ):
        refused(tmp_path, archive(P.dict(P.value('w'), P.tensor(shape, stride))))
    for shape, stride, offset in (
        ((5,), (1,), 0),
        ((4,), (1,), 1),
        ((2, 2), (3, 1), 0),
        ((1 << 62,), (1,), 0),
        ((1,), (1,), 1 << 62),
        ((2,), (1 << 62,), 0),
    ):
        refused(tmp_path, archive(P.dict(P.value('w'), P.tensor(shape, stride, offset))), 'beyond')
    f = tmp_path / 'most.pth'
    f.write_bytes(archive(P.dict(P.value('w'), P.tensor((1,) * 63 + (4,), (7,) * 63 + (1,)))))
    assert load_weights(f)['w'].shape == (1,) * 63 + (4,) and average([f, f])['w'].flatten().tolist() == [
        0,
        1,
        2,
        3,
    ]


@pytest.mark.parametrize('code', [b'\x96', b'\x8e', b'\x8d'])
def test_lengths_that_are_made_up(tmp_path, code):
    for n in (10**6, 1 << 31, 1 << 40, (1 << 63) - 1, (1 << 64) - 1):
        for part in (
            P.dict(W, P.value('x'), code + struct.pack('<Q', n)),
            code + struct.pack('<Q', n),
            P.dict(code + struct.pack('<Q', n) + b'x' * 1000),
        ):
            refused(tmp_path, archive(part))
            refused(tmp_path, old(part))
    for back in (b'T', b'\x8b'):  # lengths with a sign would lead back
        part = P.dict(W, P.value('x'), back + struct.pack('<i', -5))
        refused(tmp_path, archive(part), 'ends in the middle')
    for n in (0, 3, 100_000):
        (tmp_path / 'a.pth').write_bytes(
            archive(P.dict(W, P.value('x'), code + struct.pack('<Q', n) + b'x' * n))
        )
        assert load_weights(tmp_path / 'a.pth')['w'].tolist() == [0, 1, 2, 3]


def test_one_number_is_no_gigabyte(tmp_path):
    one = lambda shape, kind='FloatStorage', numel=4: P.tensor(
        shape, (0,) * len(shape), pid=P.pid('0', numel, kind)
    )
    named = lambda *tensors: P.dict(*(x for k, t in enumerate(tensors) for x in (P.value(f'w{k}'), t)))
    for part in (
        named(one((1 << 29,))),
        named(one((1 << 26,)), one((1,)), one((1 << 20, 2))),
        named(*[one((1 << 22,))] * 20),
        named(one((1 << 13, 1 << 14))),
        named(one((1 << 27,), 'HalfStorage', 8)),
        named(one((1 << 27,), 'ByteStorage', 16)),
        named(one((1 << 40,), 'DoubleStorage', 2)),
        named(one((1 << 62, 2))),
    ):
        assert 'views' in refused(tmp_path, archive(part))
    f = tmp_path / 'some.pth'
    f.write_bytes(archive(named(one((1 << 20,)), one((3, 5)), P.tensor())))
    assert {k: tuple(v.shape) for k, v in average([f, f]).items()} == {
        'w0': (1 << 20,),
        'w1': (3, 5),
        'w2': (4,),
    }
    f.write_bytes(archive(named(*[P.tensor((MIB,), (1,), pid=P.pid('0', MIB))] * 400), {'0': bytes(4 * MIB)}))
    assert 'views' in answer(f)
    f.write_bytes(
        archive(
            named(*[P.tensor((MIB - k,), (1,), k, pid=P.pid('0', MIB)) for k in range(80)]),
            {'0': bytes(4 * MIB)},
        )
    )
    assert 'views' in answer(f)


LIMITED = '''
import os, resource, sys, time
from ich_soups.soups.averaging import average
from ich_soups.core import BadInput
for f in sys.argv[1:]:
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        print(os.path.basename(f), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        continue
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
    now = next(int(l.split()[1]) << 10 for l in open('/proc/self/status') if l.startswith('VmSize'))
    resource.setrlimit(resource.RLIMIT_AS, (now + os.path.getsize(f) + (256 << 20) + SLACK,)*2)
    code = 3
    try:
        for out in (None, f + '.out'): average([f, f], out=out)
        code = 0
    except BadInput as e: code = 2 if 'MemoryError' in str(e) else 1
    except MemoryError: code = 2
    finally: os._exit(code)
'''


def limited(*files, slack=48 * MIB):
    """By file: 0 read, 1 refused, 2 out of memory, 3 something else; each in a process that has the size of
    the file and 256 MiB more than after its imports (and some for threads and their stacks), and 20 s."""
    env = os.environ | dict(OMP_NUM_THREADS='1', MALLOC_ARENA_MAX='1')  # threads' arenas count as memory
    made = subprocess.run(
        [sys.executable, '-c', LIMITED.replace('SLACK', str(slack)), *map(str, files)],
        capture_output=True,
        text=True,
        env=env,
        timeout=300,
    )
    assert made.returncode == 0, made.stderr
    return {l.rsplit(' ', 1)[0]: int(l.rsplit(' ', 1)[1]) for l in made.stdout.splitlines()}


@pytest.mark.skipif(
    sys.platform != 'linux', reason='to run this, use Linux: it limits the memory of a process'
)
def test_memory_and_time_are_bounded_by_the_file(tmp_path):
    n = 8 * MIB
    fill = lambda b: P.dict(W, P.value('x'), b'(' + b * (n // len(b)) + b'l')
    wide = lambda shape, kind, k: P.dict(
        P.value('w'), P.tensor(shape, (0,) * len(shape), pid=P.pid('0', k, kind))
    )
    hostile = {
        'lists.pth': archive(fill(b']')),
        'dicts.pth': archive(fill(b'}')),
        'nothing.pth': archive(b'N0' * (6 * MIB) + P.dict(W)),
        'items.pth': archive(fill(b'}NNs')),
        'lists.pt': old(fill(b']')),
        'lists.safetensors': header(b'{"a": [' + b'[],' * (3 << 20) + b'[]]}', b''),
        'objects.safetensors': header(b'{' + b','.join(b'"%d":{}' % k for k in range(1 << 20)) + b'}', b''),
        'zeros.safetensors': header(b'{"a": {"shape": [' + b'0,' * (15 << 20) + b'0]}}', b''),
        'deep.safetensors': header(b'[' * (8 << 20), b''),
        'bytes.pth': archive(P.dict(W, P.value('x'), b'\x96' + struct.pack('<Q', 1 << 31))),
        'number.pth': archive(wide((1 << 29,), 'FloatStorage', 4)),
    }
    fair = {
        'emoji.pth': archive(
            P.dict(W, P.value('x'), b'X' + struct.pack('<I', n) + '😀'.encode() + b'a' * (n - 4))
        ),
        'wide.pth': archive(wide((1 << 26,), 'FloatStorage', 4)),
        'wide16.pth': archive(wide((MOST // 6,), 'HalfStorage', 8)),
        'wide8.pth': zipped({'w': torch.ones(1).to(torch.float8_e5m2).expand(5, MOST // 25)}),
        'bytes8.pth': archive(wide((MOST // 5,), 'ByteStorage', 16)),
        'wide64.pth': archive(wide((1 << 25,), 'LongStorage', 2)),
        'large.pth': zipped({'w': torch.zeros(16 * MIB)}),
        'large.pt': legacy({'w': torch.zeros(16 * MIB)}),
        'large.safetensors': save({'w': torch.zeros(16 * MIB)}),
        'turned.pth': zipped({'w': torch.zeros(5 * MIB, 4).t()}),
        'tied.pth': zipped({f'w{k}': t for t in [torch.zeros(16 * MIB)] for k in range(8)}),
        'prefix.pth': archive(
            P.dict(*(x for k in 'ab' for x in (P.value('model.' * 200_000 + k), P.tensor())))
        ),
        'many.safetensors': header({f't{k}': f32(0, 0, 0) for k in range(10_000)}, b''),
    }
    for name, content in (hostile | fair).items():
        (tmp_path / name).write_bytes(content)
    directory(tmp_path / 'records.pth', 1_500_000)
    got = limited(*sorted(tmp_path.iterdir()))
    assert got == {k: int(k not in fair) for k in got} and len(got) == len(hostile) + len(fair) + 1


def directory(path, n):
    "An archive of `n` records, of which only the directory is there."
    entry = struct.pack('<4s6H3I5H2I', b'PK\1\2', 20, 20, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0) + b'name'
    end = struct.pack('<4s4H2IH', b'PK\5\6', 0, 0, 0xFFFF, 0xFFFF, n * len(entry), 4, 0)
    path.write_bytes(b'PK\3\4' + entry * n + end)


def test_time_grows_with_the_file_and_no_faster(tmp_path):
    "Four times the size takes about four times the time, in what could be quadratic."

    def shared(n):  # one dictionary under many names
        items = b''.join(P.value(f'k{i}') + b'Ns' for i in range(n))
        return b'}q\xff' + items + b'0' + P.dict(*(P.value(f'd{i}') + b'h\xff' for i in range(n)))

    def prefixes(n):
        return P.dict(P.value('model.' * n + 'a'), P.tensor(), P.value('model.' * n + 'b'), P.tensor())

    def same_hash(n):
        return P.dict(W, *(x for i in range(n) for x in (P.value(i * (2**61 - 1)), b'N')))

    def remembered(n):
        return P.dict(W, P.value('x'), b''.join(b'Np%d\n0' % (i * (2**61 - 1)) for i in range(n)) + b'N')

    for made in (shared, prefixes, same_hash, remembered):
        took = []
        for n in (10_000, 40_000):
            (tmp_path / 'a.pth').write_bytes(archive(made(n)))
            t0 = time.process_time()
            answer(tmp_path / 'a.pth')
            took.append(time.process_time() - t0)
        assert took[1] < max(10 * took[0], 1), made.__name__


# types

EIGHT = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]
LARGE = [torch.uint16, torch.uint32, torch.uint64]


@pytest.mark.parametrize('dtype', EIGHT, ids=str)
def test_float8_is_averaged_in_float32(tmp_path, dtype):
    a, b = (
        {
            'w': torch.randn(7, 50, generator=torch.Generator().manual_seed(k)).to(dtype),
            's': torch.tensor(k + 1.0).to(dtype),
            'e': torch.zeros(0).to(dtype),
        }
        for k in (1, 2)
    )
    want = {k: ((a[k].float() + b[k].float()) / 2) for k in a}
    turned = {k: v.float().t().to(dtype) if v.ndim > 1 else v for k, v in a.items()}
    assert turned['w'].stride() == (1, 50)
    for x, y, z in ((save, save, '.safetensors'), (zipped, zipped, '.pth')):
        (tmp_path / f'a{z}').write_bytes(x(a))
        (tmp_path / f'b{z}').write_bytes(y(b))
        files = [tmp_path / f'a{z}', tmp_path / f'b{z}']
        for got in (
            average(files),
            load_file(average(files, out=tmp_path / 'o.safetensors')),
            average([files[0], b]),
            average([a, b]),
        ):
            assert alike(got, {k: v.to(dtype) for k, v in want.items()})
        assert alike(average(files, dtype=torch.float32), want)
    (tmp_path / 't.pth').write_bytes(zipped({k: v.t() if v.ndim > 1 else v for k, v in turned.items()}))
    assert average([tmp_path / 't.pth', a])['w'].shape == (7, 50)
    (tmp_path / 'wide.pth').write_bytes(zipped({'w': a['w'][:1].expand(7, 50)}))
    assert torch.equal(average([tmp_path / 'wide.pth'] * 2)['w'].float(), a['w'][:1].expand(7, 50).float())
    bad = {'w': torch.full((3,), float('nan')).to(dtype)}
    with pytest.raises(BadInput, match='NaN'):
        average([bad, bad])


def test_types_that_differ(tmp_path):
    "Averaged in a type that holds both, or one sentence."

    def both(a, b, value=5):
        for k, t in enumerate((a, b)):
            save_file({'w': torch.full((4,), value).to(t)}, tmp_path / f'{k}.safetensors')
        files = [tmp_path / f'{k}.safetensors' for k in (0, 1)]
        got = average(files)['w']
        assert alike({'w': got}, load_file(average(files, out=tmp_path / 'o.safetensors')))
        assert got.double().tolist() == [value] * 4
        return got.dtype

    for a in EIGHT:
        for b in EIGHT[:2] + [torch.float16, torch.bfloat16, torch.float32, torch.float64]:
            assert both(a, b, 1) == (
                a if a == b else torch.promote_types(torch.float32 if b in EIGHT else b, torch.float32)
            )
    for a in LARGE:
        for b in (torch.uint8, torch.uint16, torch.uint32, torch.uint64):
            assert both(a, b) == max(a, b, key=lambda t: t.itemsize)
    for a, want in ((torch.uint16, torch.int32), (torch.uint32, torch.int64)):
        for b in (torch.int8, torch.int16, torch.int32):
            assert both(a, b) == both(b, a) == want
    for b in (torch.int8, torch.int32, torch.int64):
        with pytest.raises(BadInput, match='uint64'):
            both(torch.uint64, b)
    top = (1 << 64) - 1
    assert (
        average([{'n': torch.tensor(top, dtype=torch.uint64)}, {'n': torch.tensor(3, dtype=torch.uint64)}])[
            'n'
        ].item()
        == top
    )
    with pytest.raises(BadInput, match='differ'):
        average(
            [{'n': torch.tensor([1, 2], dtype=torch.uint16)}, {'n': torch.tensor([1, 3], dtype=torch.uint16)}]
        )


def test_types_that_cannot_be_averaged_or_written(tmp_path):
    for t in (
        torch.zeros(2, dtype=torch.complex64),
        torch.eye(2).to_sparse(),
        torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        torch._neg_view(torch.ones(2)),
    ):
        torch.save({'w': t, 'v': torch.ones(2)}, tmp_path / 'a.pth')
        assert 'cannot be averaged' in answer(tmp_path / 'a.pth')
    for kind in ('C64', 'F4', 'F8_E8M0'):
        refused(
            tmp_path,
            header(dict(a=dict(dtype=kind, shape=[4], data_offsets=[0, 4])), bytes(4)),
            'cannot be averaged',
            '.safetensors',
        )
    powers = {'w': torch.tensor([1.0, 2.0, 4.0]).to(torch.float8_e8m0fnu)}
    torch.save(powers, tmp_path / 'b.pth')
    assert average([tmp_path / 'b.pth'] * 2)['w'].float().tolist() == [1, 2, 4]
    with pytest.raises(BadInput, match='cannot hold torch.float8_e8m0fnu'):
        average([tmp_path / 'b.pth'], out=tmp_path / 'o.safetensors')
    assert average([tmp_path / 'b.pth'], out=tmp_path / 'o.safetensors', dtype=torch.float16).exists()
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.float16):
        with pytest.raises(BadInput, match='too large'):
            average([{'w': torch.tensor([1e6])}], dtype=dtype)
    for dtype in (torch.int8, torch.complex64, torch.float8_e8m0fnu):
        with pytest.raises(BadInput, match='floating point'):
            average([powers], dtype=dtype)


def test_files_without_tensors(tmp_path):
    for content, suffix in (
        (header({}, b''), '.safetensors'),
        (header(dict(__metadata__=dict(a='b')), b''), '.safetensors'),
        (zipped({}), '.pth'),
        (zipped(dict(state_dict={}, epoch=3)), '.pth'),
        (zipped([1, 2]), '.pth'),
        (legacy({}), '.pt'),
        (legacy(3), '.pt'),
    ):
        assert 'holds no' in refused(tmp_path, content, suffix=suffix)
    for empty in ({}, {'epoch': 3}):
        with pytest.raises(BadInput, match='no state dict'):
            average([empty])


# names and messages


@pytest.mark.parametrize('name', ['__metadata__', '\ud800', 'half \udfff of one'])
def test_names_that_the_output_cannot_carry(tmp_path, name):
    for write in (zipped, legacy):
        for k in (0, 1):
            (tmp_path / f'{k}.pth').write_bytes(write({name: torch.ones(2) * k, 'w': torch.ones(2)}))
        files = [tmp_path / '0.pth', tmp_path / '1.pth']
        assert average(files)[name].tolist() == [0.5, 0.5]
        with pytest.raises(BadInput, match='cannot hold a tensor called'):
            average(files, out=tmp_path / 'o.safetensors')
        with pytest.raises(BadInput, match='cannot hold a tensor called'):
            save_weights({name: torch.ones(2)}, tmp_path / 'o.safetensors')
    assert sorted(f.name for f in tmp_path.iterdir()) == ['0.pth', '1.pth']
    average([{'w': torch.ones(1)}], out=tmp_path / 'o.safetensors', meta={'a': 'half \ud800'})
    assert by_safetensors(tmp_path / 'o.safetensors')['w'].tolist() == [1]


def test_messages_are_short_whatever_the_file_says(tmp_path):
    many, long = (1,) * 60, 'n' * 1_000_000
    a, b = tmp_path / 'a.pth', tmp_path / 'b.pth'
    cases = [
        ({'w': torch.ones(many)}, {'w': torch.ones(2)}, '60 dimensions'),
        ({long: torch.ones(2)}, {'w': torch.ones(2)}, 'only one of them'),
        ({long: torch.ones(2)}, {long: torch.ones(3)}, 'shape'),
        ({long: torch.ones(2)}, {long: torch.ones(2).int()}, 'int32'),
        ({long: torch.ones(2)}, {long: torch.full((2,), float('nan'))}, 'NaN'),
        ({long: torch.tensor([1, 2])}, {long: torch.tensor([1, 3])}, 'differ'),
        ({long: torch.ones(1, dtype=torch.complex64)}, {}, 'cannot be averaged'),
        ({f'{k}{long[:1000]}': {'w': torch.ones(1)} for k in range(500)}, {}, 'say which'),
    ]
    for x, y, says in cases:
        torch.save(x, a)
        torch.save(y, b)
        with pytest.raises(BadInput, match=says) as e:
            average([a, b])
        assert len(str(e.value)) < 1000 and '\n' not in str(e.value)
    for code in (b'F', b'I', b'L', b'Np', b'g'):
        for n in (1, 500, 10_000):
            refused(tmp_path, archive(P.dict(W, P.value('x'), code + b'1x' * n + b'\n')))
    for part in (
        P.name('os' + '.os' * 10_000, 'system') + b')R',
        P.tensor(pid=P.pid('0' * 10**6)),
        P.dict(P.value(long), P.tensor(pid=P.pid('7'))),
    ):
        refused(tmp_path, archive(part))


# what has always worked


@pytest.mark.parametrize(
    'write, suffix',
    [
        (zipped, '.pth'),
        (legacy, '.pt'),
        (lambda d: save({k: v.contiguous().clone() for k, v in d.items()}), '.safetensors'),
    ],
    ids=['zip', 'legacy', 'safetensors'],
)
def test_every_format_gives_the_same_average(tmp_path, write, suffix):
    sds = [weights(k) for k in (4, 5, 6)]
    for k, d in enumerate(sds):
        (tmp_path / f'{k}{suffix}').write_bytes(write(d))
    files = [tmp_path / f'{k}{suffix}' for k in range(3)]
    want = average(sds)
    assert alike(average(files), want) and alike(
        load_file(average(files, out=tmp_path / 'o.safetensors')), want
    )
    for k in ('base', 'wide', 'turned'):
        torch.testing.assert_close(want[k], sum(d[k] for d in sds) / 3)
    tied = average(files)
    if suffix == '.safetensors':
        return
    alone = load_weights(files[0])
    assert tied['tied'] is tied['base'] and alone['tied'] is alone['base']  # as torch has them


@pytest.mark.parametrize('n', [2, 3, 333])
def test_an_archive_begins_with_its_first_record(tmp_path, n):
    "`zipfile` looks for an archive behind other bytes; torch does not, and writes none."
    refused(
        tmp_path, (b'PK' * n)[:n] + zipped({'w': torch.ones(3)}), 'lies in front of its first record', '.pth'
    )


@pytest.mark.parametrize(
    'sound, torn', [(b'collections\nOrderedDict', b'collections\nOrder.dDict'), (b'\x89c', b'Nc')]
)
def test_what_torch_writes_beside_a_tensor_is_what_torch_writes(tmp_path, sound, torn):
    "The old format has no checksums; a byte that changed in what nobody needs is a reason to refuse all the same."
    content = legacy({'w': torch.ones(3)})
    assert content.count(sound) == 1
    refused(tmp_path, content.replace(sound, torn), 'makes no sense')
