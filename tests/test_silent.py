"What would be wrong without a word: each kind of it is refused, or said in a sentence."

import json, os, shutil, time, warnings
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from fastai.callback.core import Callback
from ich_soups.app import export, loading
from ich_soups.data import scan
from ich_soups.soups.checkpoints import Checkpoint, load_weights
from ich_soups.soups.folders import find_checkpoints
from ich_soups.app.cli import main
from ich_soups.evidence.comparison import Candidate, table
from ich_soups.soups.cook import cook
from ich_soups.train.candidates import fresh_logits
from ich_soups.core import BadInput, Config, keep_array, kept_array
from ich_soups.data.collections import load_pictures
from ich_soups.train.snapshots import Snapshot
from ich_soups.train.best_epochs import kept_epochs
from ich_soups.soups.recipes import RECIPES
from ich_soups.soups.saving import save_weights
from ich_soups.soups.soup import Soup
from ich_soups.soups.averaging import average
from ich_soups.soups.greedy import greedy_soup
from ich_soups.train.finished_run import Run
from ich_soups.train.runs import get_run

NAN = float('nan')
CFG = Config.scratch(data='scenes17:300', size=32, epochs=4, bs=32, schedule='flat:1.0', fixed=(2, 3, 4))


class Spoil(Callback):
    "Weights that become NaN in an epoch."

    def __init__(self, epoch):
        self.at = epoch

    def before_epoch(self):
        if self.epoch + 1 == self.at:
            next(self.model.parameters()).data.fill_(NAN)


class Stop(Callback):
    "A power cut at the beginning of an epoch."

    def __init__(self, epoch):
        self.at = epoch

    def before_epoch(self):
        if self.epoch + 1 == self.at:
            raise RuntimeError('power cut')


def notes(f):
    "What `f` returns, and the notes that it gave."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        out = f()
    return out, [str(w.message) for w in said if w.category is UserWarning and 'ich_soups' in w.filename]


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "A home with a finished run in it."
    d = tmp_path_factory.mktemp('lab')
    with pytest.MonkeyPatch.context() as m:
        m.setenv('ICH_SOUPS_HOME', str(d / 'home'))
        get_run(CFG, d / 'run')
        yield d


@pytest.fixture
def copy(lab, tmp_path):
    "A copy of the run, to be damaged."
    import shutil

    return shutil.copytree(lab / 'run', tmp_path / 'run')


@pytest.fixture
def sh(lab, capsys, monkeypatch):
    "Run a command: `(code, stdout, stderr)`."
    monkeypatch.setenv('ICH_SOUPS_HOME', str(lab / 'home'))

    def run(*args):
        capsys.readouterr()
        code = main([str(a) for a in args])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def refused(sh, *args, says):
    code, out, err = sh(*args)
    assert (code, out) == (2, ''), (code, out, err)
    assert says in err and 'a bug' not in err, err
    return err


# what is no number


@pytest.mark.parametrize('at', (1, 2, 3, 4, 5))
def test_an_epoch_that_is_no_number_is_never_among_the_best(at):
    losses = {1: 0.9, 2: 0.65, 3: 0.7, 4: 0.8, 5: 0.6}
    scores = {
        e: dict(valid_loss=NAN if e == at else v, accuracy=1.0 if e == at else 1 - v)
        for e, v in losses.items()
    }
    left = sorted((e for e in losses if e != at), key=losses.get)
    for m in ('valid_loss', 'accuracy'):
        for k in (1, 3, 5):
            assert kept_epochs(scores, (m,), k, (at,)) == set(left[:k])


@pytest.mark.parametrize('name', ('valid_loss', 'accuracy'))
def test_the_best_of_a_run_is_a_number(copy, name):
    d = json.loads((copy / 'snapshots' / 'manifest.json').read_text())
    first = min(d, key=int)
    best = Run(copy).best(name)
    d[first]['scores'] |= dict(valid_loss=NAN, accuracy=1.0)
    (copy / 'snapshots' / 'manifest.json').write_text(json.dumps(d))
    found, said = notes(lambda: Run(copy).best(name))
    sound = [s for s in Run(copy).snapshots if s.epoch != int(first)]
    assert found.epoch == (
        best.epoch
        if best.epoch != int(first)
        else min(
            sound,
            key=lambda s: (s.scores['valid_loss'] if name == 'valid_loss' else -s.scores[name], s.epoch),
        ).epoch
    )
    assert found.epoch != int(first) and f'epoch_{int(first):03d}' in said[0]


def test_ingredients_in_order_and_candidates_in_a_table():
    w = [dict(a=torch.full((2, 2), v)) for v in (1.0, 2.0, 3.0)]
    score = lambda x: -abs(float(x['a'][0, 0]) - 2)
    assert greedy_soup(w, score, singles=[NAN, 0.0, -1.0]).ingredients[0] == '#1'
    t = np.array([0, 1, 0])
    good, bad = np.eye(2)[t] * 4, np.full((3, 2), NAN)
    df, said = notes(
        lambda: table(
            {
                'lost': Candidate('control', bad),
                'single best': Candidate('control', good),
                'x': Candidate('soup', good),
            },
            t,
        )
    )
    assert (
        df.model.tolist() == ['single best', 'x', 'lost']
        and df.accuracy.tolist()[:2] == [1, 1]
        and np.isnan(df.accuracy.iloc[2])
    )
    assert said == ['the logits of lost are no numbers: last in the table, without scores']


def test_logits_that_are_no_numbers_never_look_like_a_score(copy):
    r = Run(copy)
    score, (a, *rest) = r.scorer('accuracy'), r.snapshots
    np.save(copy / 'lost.npy', np.full_like(a.logits(), NAN))
    lost = Snapshot(a.path, a.epoch, a.scores, a.sha256, copy / 'lost.npy')
    hits = r.targs('val') == 0
    assert hits.any()  # so many would the first class get right
    from ich_soups.soups.soup import kept_logits, single_scores

    assert single_scores([lost, *rest], score, None, kept_logits([lost, *rest], score))[0] == -np.inf


def test_a_training_that_diverges_from_the_start(sh, tmp_path):
    train = ('train', 'scenes17:300', '--size', 32, '--epochs', 5, '--lr', 1e30, '--out', tmp_path / 'lost')
    refused(
        sh, *train, says='diverged in epoch 1: its loss is no number; train again with a lower learning rate'
    )
    assert len(pd.read_csv(tmp_path / 'lost' / 'history.csv')) == 1  # nothing can come of the others
    refused(sh, *train, says='diverged in epoch 1')
    refused(sh, 'eval', tmp_path / 'lost', says='(--lr)')
    refused(sh, 'report', tmp_path / 'lost', '--out', tmp_path / 'r.html', says='(--lr)')
    refused(sh, 'cook', tmp_path / 'lost', '--out', tmp_path / 's.safetensors', says='(--lr)')
    assert not (tmp_path / 'r.html').exists() and not (tmp_path / 's.safetensors').exists()


def test_a_training_that_diverges_later_keeps_what_was_good(sh, lab, tmp_path):
    run, said = notes(lambda: get_run(CFG, tmp_path / 'later', [Spoil(3)]))
    assert (
        run.diverged == 3
        and [s.epoch for s in run.snapshots] == [1, 2]
        and 'NaN' not in (tmp_path / 'later' / 'snapshots' / 'manifest.json').read_text()
    )
    assert [s.split(':')[0] for s in said] == ['epoch 3', f'the training of {run.path} diverged in epoch 3']
    whole = Run(lab / 'run').snapshots
    assert [s.sha256 for s in run.snapshots] == [s.sha256 for s in whole if s.epoch < 3]
    assert sh('cook', run.path, '--out', tmp_path / 's.safetensors')[0] == 0 and sh('eval', run.path)[0] == 0
    refused(sh, 'report', run.path, '--out', tmp_path / 'r.html', says='diverged in epoch 3')


def test_an_older_run_that_kept_a_lost_epoch_is_cooked_without_it(copy):
    r = Run(copy)
    lost, *rest = r.snapshots
    want = cook(r, 'uniform', snapshots=rest).weights
    w = load_weights(lost.path)
    from ich_soups.train.snapshots import SnapshotStore

    SnapshotStore(copy / 'snapshots').put(
        lost.epoch,
        {k: v * NAN if v.is_floating_point() else v for k, v in w.items()},
        lost.scores | dict(valid_loss=NAN),
        lost.logits(),
    )
    soup, said = notes(lambda: cook(Run(copy), 'uniform'))
    assert all(torch.equal(soup.weights[k], want[k]) for k in want)
    assert said == [f'left out, since their loss is no number: {lost.name}']


# files that have changed


def _flip(f, at):
    b = bytearray(f.read_bytes())
    b[at] ^= 0x20
    f.write_bytes(b)


@pytest.mark.parametrize('name', ('epoch_003.safetensors', 'epoch_003.logits.npy'))
def test_a_flipped_bit_is_found_by_whoever_reads_it(copy, sh, tmp_path, name):
    _flip(copy / 'snapshots' / name, -400)
    says = f'{name} has changed since it was written; restore it'
    refused(
        sh,
        'cook',
        copy,
        '--recipe',
        'greedy',
        '--metric',
        'accuracy',
        '--out',
        tmp_path / 's.safetensors',
        says=says,
    )
    refused(sh, 'report', copy, '--out', tmp_path / 'r.html', says=says)
    s = next(s for s in Run(copy).snapshots if s.epoch == 3)
    for read in (
        (lambda: average([s]), s.weights, lambda: RECIPES['uniform']([s]))
        if name.endswith('safetensors')
        else (s.logits, Run(copy).logits)
    ):
        with pytest.raises(BadInput, match='has changed'):
            read()


def test_eval_notices_too(copy, sh):
    best = Run(copy).best()
    _flip(best.path, -400)
    refused(sh, 'eval', copy, says=f'{best.path.name} has changed')


def test_averages_and_history_are_compared_too(copy):
    _flip(copy / 'averages' / 'ema.safetensors', -400)
    with pytest.raises(BadInput, match='ema.safetensors has changed'):
        Run(copy).weights('ema')


def test_of_an_older_manifest_nothing_is_claimed(copy):
    d = json.loads((copy / 'snapshots' / 'manifest.json').read_text())
    for e in d.values():
        e.pop('logits_sha256')
    (copy / 'snapshots' / 'manifest.json').write_text(json.dumps(d))
    done = json.loads((copy / 'DONE').read_text())
    for k in ('hashes', 'ich_soups', 'threads'):
        done.pop(k)
    (copy / 'DONE').write_text(json.dumps(done))
    _flip(copy / 'snapshots' / 'epoch_003.logits.npy', -400)
    r = Run(copy)
    assert r.best() and len(r.logits()) == len(r.snapshots) and r.weights('ema')


def _rewritten(f, change):
    np.save(f, change(np.load(f)))


LOGITS = dict(
    a_bit=lambda f: _flip(f, 300),
    cut=lambda f: f.write_bytes(f.read_bytes()[:-5000]),
    no_end=lambda f: f.write_bytes(f.read_bytes()[:-20]),
    empty=lambda f: f.write_bytes(b''),
    reversed=lambda f: _rewritten(f, lambda a: a[:, ::-1]),
    fewer=lambda f: _rewritten(f, lambda a: a[:1]),
    words=lambda f: f.write_text('no array'),
)


@pytest.mark.parametrize('fresh', (False, True))
@pytest.mark.parametrize('damage', LOGITS)
def test_logits_that_are_kept_beside_a_run_are_compared(copy, damage, fresh):
    run = Run(copy)
    bn = run.calibrator(64)
    read = (lambda r: fresh_logits(r, 'test', bn)) if fresh else (lambda r: r.logits('test'))
    want, said = notes(lambda: read(run))
    (f,) = (copy / 'logits').glob('*.npy')
    assert not said and f.name.startswith('test') and (np.load(f) == want).all()
    LOGITS[damage](f)
    got, said = notes(lambda: read(Run(copy)))
    assert (got == want).all() and len(said) == 1 and f'{f} ' in said[0] and 'computed anew' in said[0]
    assert notes(lambda: read(Run(copy)))[1] == []


def test_kept_logits_belong_to_their_snapshots(copy, other):
    want, theirs = Run(copy).logits('test'), Run(other).logits('test')
    assert theirs.shape == want.shape
    (copy / 'logits' / 'test.npy').write_bytes((other / 'logits' / 'test.npy').read_bytes())
    got, said = notes(lambda: Run(copy).logits('test'))
    assert (got == want).all() and 'is not what was written there' in said[0]


def test_comparing_kept_logits_costs_little(tmp_path):
    import time

    a = np.random.default_rng(0).normal(size=(20, 2000, 17)).astype(np.float32)
    keep_array(tmp_path / 'a.npy', a, 'of')
    t0 = time.process_time()
    for _ in range(10):
        kept_array(tmp_path / 'a.npy', 'of')
    assert time.process_time() - t0 < 1  # 27 MB; the forward passes would take minutes


def test_logits_of_an_older_manifest_that_are_cut_short(copy):
    d = json.loads((copy / 'snapshots' / 'manifest.json').read_text())
    for e in d.values():
        e.pop('logits_sha256')
        e.pop('sizes')
    (copy / 'snapshots' / 'manifest.json').write_text(json.dumps(d))
    f = copy / 'snapshots' / 'epoch_003.logits.npy'
    f.write_bytes(f.read_bytes()[:-400])
    with pytest.raises(BadInput, match='epoch_003.logits.npy is damaged'):
        Run(copy).logits()


# snapshots that are named one by one


FILES = dict(
    average=lambda fs: average(fs),
    load_weights=lambda fs: [load_weights(f) for f in fs],
    as_text=lambda fs: average([str(f) for f in fs]),
    opened=lambda fs: average([Checkpoint(f) for f in fs]),
    recipe=lambda fs: RECIPES['uniform'](fs),
    a_file=lambda fs: [find_checkpoints(f) for f in fs],
    a_folder=lambda fs: find_checkpoints(fs[0].parent),
    a_run=lambda fs: find_checkpoints(fs[0].parent.parent),
)


@pytest.mark.parametrize('way', FILES)
def test_snapshots_that_are_named_as_files_are_compared(copy, way):
    files = [s.path for s in Run(copy).snapshots]
    FILES[way](files)
    _flip(files[1], -400)
    with pytest.raises(BadInput, match=f'{files[1].name} has changed since it was written'):
        FILES[way](files)
    for f in files:
        f.rename(f.with_name('x' + f.name))  # under another name nothing is known of them
    renamed = [f.with_name('x' + f.name) for f in files]
    if way not in ('a_folder', 'a_run'):
        FILES[way](renamed)
        return
    with (
        pytest.warns(UserWarning, match='not in its manifest'),
        pytest.raises(BadInput, match='no checkpoints'),
    ):
        FILES[way](renamed)


def test_the_command_line_compares_named_snapshots(copy, sh, tmp_path):
    files = [s.path for s in Run(copy).snapshots]
    _flip(files[1], -400)
    out = tmp_path / 's.safetensors'
    refused(sh, 'cook', *files, '--out', out, says=f'{files[1].name} has changed since it was written')
    refused(sh, 'cook', files[0].parent, '--out', out, says=f'{files[1].name} has changed')
    assert sh('cook', files[0], files[2], '--out', out)[0] == 0


STRAYS = 'epoch_099.safetensors', 'epoch_0002.safetensors', 'more.safetensors'


@pytest.fixture
def strays(copy):
    "Files among the snapshots of a run that its manifest does not list."
    for n in STRAYS:
        f = copy / 'snapshots' / n
        w = load_weights(copy / 'snapshots' / 'epoch_003.safetensors')
        save_weights({k: v + 1 if v.is_floating_point() else v for k, v in w.items()}, f)
    return copy


def test_files_that_a_manifest_does_not_list_are_left_out(strays, lab, sh, tmp_path):
    "Each command answers as if they were not there."
    want, said = notes(lambda: average(find_checkpoints(lab / 'run')))
    assert not said
    for folder in (strays, strays / 'snapshots'):
        found, said = notes(lambda: find_checkpoints(folder))
        assert [f.name for f in found] == [f'epoch_00{e}.safetensors' for e in (1, 2, 3, 4)]
        assert len(said) == 1 and all(n in said[0] for n in STRAYS) and 'not in its manifest' in said[0]
        got = notes(lambda: average(find_checkpoints(folder)))[0]
        assert all(torch.equal(got[k], want[k]) for k in want)
    for k, at in enumerate((lab / 'run', strays)):
        assert sh('cook', at, '--recipe', 'uniform', '--out', tmp_path / f'{k}.safetensors')[0] == 0
        assert sh('report', at, '--out', tmp_path / f'{k}.html')[0] == 0
    a, b = [load_weights(tmp_path / f'{k}.safetensors') for k in (0, 1)]
    assert all(torch.equal(a[k], b[k]) for k in a)
    scores = [sh('eval', at)[1].split('accuracy', 1)[1] for at in (strays, lab / 'run')]
    assert scores[0] == scores[1]
    assert not any(n in (tmp_path / '1.html').read_text() for n in STRAYS)
    code, out, err = sh('cook', strays / 'snapshots', '--out', tmp_path / 's.safetensors')
    assert code == 0 and 'epoch_099' not in out and 'not in its manifest' in err, (code, out, err)


@pytest.mark.parametrize('name', STRAYS[:2])
def test_a_snapshot_that_no_manifest_lists_is_refused_by_every_command(strays, sh, tmp_path, name):
    f = strays / 'snapshots' / name
    says = f'{name} is none of the snapshots that the manifest beside it lists'
    refused(sh, 'cook', f, '--out', tmp_path / 's.safetensors', says=says)
    refused(sh, 'eval', f, '--arch', CFG.arch, '--size', CFG.size, '--data', CFG.data, says=says)
    says = f'{name}'  # these ask first for a soup, which says what it is of
    refused(sh, 'export', f, '--to', 'safetensors', '--out', tmp_path / 'w.safetensors', says=says)
    refused(sh, 'report', strays, '--soup', f, '--out', tmp_path / 'r.html', says=says)
    from PIL import Image

    Image.new('RGB', (40, 30)).save(tmp_path / 'p.png')
    refused(sh, 'predict', f, tmp_path / 'p.png', says=says)


def test_logits_that_a_manifest_does_not_list_are_not_read(copy):
    f = copy / 'snapshots' / 'manifest.json'
    d = json.loads(f.read_text())
    d['3'].pop('logits_sha256')
    d['3']['sizes'].pop('epoch_003.logits.npy')
    f.write_text(json.dumps(d))
    assert [s.epoch for s in Run(copy).snapshots if s.logits_path] == [1, 2, 4]
    with pytest.raises(BadInput, match='no logits are listed for .*epoch_003.safetensors'):
        Run(copy).logits()


def test_a_manifest_of_somebody_else_says_nothing(copy, tmp_path):
    f = Run(copy).snapshots[0].path
    there = tmp_path / 'theirs'
    there.mkdir()
    (there / f.name).write_bytes(f.read_bytes())
    for words in ('{"name": "an app", "icons": []}', '[1]', 'no JSON', '{"1": 2}'):
        (there / 'manifest.json').write_text(words)
        assert len(load_weights(there / f.name)) > 3
    (copy / 'snapshots' / 'manifest.json').write_text('no JSON')
    with pytest.raises(BadInput, match='manifest.json is not readable'):
        load_weights(f)


# photographs that have changed


def _as_before(f, content):
    "Other content of the same length and time."
    was = f.stat()
    f.write_bytes(content[: was.st_size].ljust(was.st_size, b'\0'))
    os.utime(f, ns=(was.st_atime_ns, was.st_mtime_ns))
    now = f.stat()
    assert (now.st_size, now.st_mtime_ns) == (was.st_size, was.st_mtime_ns)


def _replaced(f, content):
    "The same through another file that takes its name."
    twin = f.with_name('twin')
    shutil.copy2(f, twin)
    _as_before(twin, content)
    os.replace(twin, f)


needs_ctime = pytest.mark.skipif(
    os.name != 'posix',
    reason='to run this, use Linux or macOS: Windows does not tell when a file was changed',
)


@needs_ctime
@pytest.mark.quick
@pytest.mark.parametrize('change', (_as_before, _replaced))
def test_a_photograph_that_changes_under_its_time_is_noticed(home, photos, change):
    a, b = sorted(photos.rglob('*.jpg'), key=lambda f: f.stat().st_size)[:2]
    time.sleep(0.2)
    first = load_pictures(photos)
    pixels = first.pixels(32).copy()
    assert load_pictures(photos).fingerprint == first.fingerprint
    change(b, a.read_bytes())
    now = load_pictures(photos)
    i = [Path(p) for p in now.items].index(b)
    assert now.fingerprint != first.fingerprint and (now.pixels(32)[i] != pixels[i]).any()


@needs_ctime
def test_a_cache_of_pixels_that_changes_under_its_time_is_noticed(home, photos):
    want = load_pictures(photos).pixels(32).copy()
    (f,) = (home / 'cache' / 'pixels').glob('*.npy')
    time.sleep(0.2)
    load_pictures(photos).pixels(32)
    _as_before(f, f.read_bytes()[:-500] + bytes(500))
    got, said = notes(lambda: load_pictures(photos).pixels(32))
    assert (got == want).all() and 'has changed since it was written' in said[0]


@needs_ctime
def test_a_snapshot_that_changes_under_its_time_is_noticed(copy):
    s = Run(copy).snapshots[0]
    time.sleep(0.2)
    s.check()
    raw = bytearray(s.path.read_bytes())
    raw[-400] ^= 0x20
    _as_before(s.path, bytes(raw))
    with pytest.raises(BadInput, match='has changed since it was written'):
        s.check()


def test_what_is_known_of_pictures_stays_known(home, photos, monkeypatch):
    read, looked = [], scan._looked_at
    monkeypatch.setattr(scan, '_looked_at', lambda p, see=None: read.append(p) or looked(p, see))
    time.sleep(0.2)
    want, n = load_pictures(photos).fingerprint, len(read)
    assert load_pictures(photos).fingerprint == want and len(read) == n
    (memo,) = (home / 'cache' / 'digests').glob('*.json')
    older = {p: [' '.join(v[0].split()[:2]), *v[1:]] for p, v in json.loads(memo.read_text()).items()}
    memo.write_text(json.dumps(older))  # as before: without the time of the last change
    assert load_pictures(photos).fingerprint == want and len(read) == 2 * n  # looked at again, once
    assert load_pictures(photos).fingerprint == want and len(read) == 2 * n


def test_a_copy_of_the_pictures_is_the_same(home, photos, tmp_path):
    there = shutil.copytree(photos, tmp_path / 'there' / photos.name)
    assert load_pictures(there).fingerprint == load_pictures(photos).fingerprint


def test_a_photograph_that_changes_while_it_is_read(home, photos):
    pics = load_pictures(photos)
    a, b = sorted(photos.rglob('*.jpg'))[:2]
    b.write_bytes(a.read_bytes())
    with pytest.raises(BadInput, match=f'{b.name} changes while it is read; run the command again'):
        pics.pixels(32)


# a training that goes on elsewhere


def test_a_run_that_goes_on_with_other_threads_says_so(lab, tmp_path):
    with pytest.raises(RuntimeError):
        get_run(CFG, tmp_path / 'moved', [Stop(3)])
    was = torch.get_num_threads()
    try:
        torch.set_num_threads(was + 1)
        run, said = notes(lambda: get_run(CFG, tmp_path / 'moved'))
    finally:
        torch.set_num_threads(was)
    assert [s.split(':')[0] for s in said] == [
        f'goes on after epoch 2 with threads {was + 1} instead of {was}'
    ]
    assert (
        run.provenance['moved'] == [dict(after=2, changed=dict(threads=[was, was + 1]))]
        and run.provenance['threads'] == was + 1
    )
    assert {'torch', 'timm', 'fastai', 'ich_soups', 'threads', 'device'} <= run.provenance.keys()


def test_a_run_that_goes_on_where_it_was_says_nothing(lab, tmp_path):
    with pytest.raises(RuntimeError):
        get_run(CFG, tmp_path / 'same', [Stop(3)])
    state = torch.load(tmp_path / 'same' / 'state.pt', weights_only=True)
    assert (
        state['where']['threads'] == torch.get_num_threads() and state['where']['torch'] == torch.__version__
    )
    run, said = notes(lambda: get_run(CFG, tmp_path / 'same'))
    assert not said and 'moved' not in run.provenance
    assert [s.sha256 for s in run.snapshots] == [s.sha256 for s in Run(lab / 'run').snapshots]


def test_a_state_of_an_older_version_goes_on(lab, tmp_path):
    with pytest.raises(RuntimeError):
        get_run(CFG, tmp_path / 'old', [Stop(3)])
    state = torch.load(tmp_path / 'old' / 'state.pt', weights_only=True)
    torch.save({k: v for k, v in state.items() if k not in ('where', 'moved')}, tmp_path / 'old' / 'state.pt')
    run, said = notes(lambda: get_run(CFG, tmp_path / 'old'))
    assert not said and [s.sha256 for s in run.snapshots] == [s.sha256 for s in Run(lab / 'run').snapshots]


# what files say of themselves


@pytest.fixture(scope='module')
def soup(lab):
    cook(Run(lab / 'run'), 'uniform').save(lab / 'soup.safetensors')
    return lab / 'soup.safetensors'


@pytest.fixture
def stranger(soup, tmp_path):
    "A copy of the soup that says something else of itself."

    def write(**said):
        s = Soup.load(soup)
        s.info |= said
        s.save(tmp_path / 'stranger.safetensors')
        return tmp_path / 'stranger.safetensors'

    return write


TOLD = dict(
    classes=(dict(classes=10**9), "'classes' is 1000000000, not a list"),
    names=(dict(classes=[1, 2, 3]), "'classes' is .*a text"),
    twice=(dict(classes=['a'] * 17), "'classes' is .*different items"),
    few=(dict(classes=['a', 'b']), 'of 2 classes'),
    large=(dict(arch='vit_giant_patch14_224'), 'is not a vit_giant_patch14_224'),
    unknown=(dict(arch='no_net'), 'unknown architecture'),
    size=(dict(size=10**9), "'size' is 1000000000, not a whole number from 1 to 4096"),
    cold=(dict(temperature=0), 'temperature'),
    warm=(dict(temperature=NAN), 'temperature'),
    mean=(dict(mean=[0.5]), "'mean' is .*a list of 3 items"),
    std=(dict(std=[1, 1, 0]), "'std' is .*a number from 1e-06"),
)


@pytest.mark.parametrize('case', TOLD)
def test_what_a_stranger_says_is_compared_before_anything_is_built(stranger, monkeypatch, case):
    said, why = TOLD[case]
    monkeypatch.setattr(loading, 'create_model', lambda *a, **k: pytest.fail('a model was built'))
    with pytest.raises(BadInput, match=why):
        export.Classifier.load(stranger(**said))


@pytest.mark.parametrize(
    'key, value, why',
    (
        ('temperature', '0', 'temperature'),
        ('temperature', 'NaN', 'temperature'),
        ('classes', '["a"]', 'names 1 classes for its 3 outputs'),
        ('classes', '["a", "a", "b"]', 'different items'),
        ('mean', '[0.5]', 'a list of 3 items'),
        ('std', '[1, 1, 0]', 'a number from 1e-06'),
    ),
)
def test_metadata_of_onnx_are_checked(tmp_path, key, value, why):
    onnx = pytest.importorskip('onnx', reason="to run this, pip install 'ich_soups[onnx]'")
    from onnx import TensorProto, helper

    io = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
        for n, s in (('pixels', ['b', 3, 8, 8]), ('logits', ['b', 3]))
    ]
    nodes = [
        helper.make_node('GlobalAveragePool', ['pixels'], ['a']),
        helper.make_node('Flatten', ['a'], ['logits']),
    ]
    m = helper.make_model(
        helper.make_graph(nodes, 'g', io[:1], io[1:]),
        opset_imports=[helper.make_opsetid('', 18)],
        ir_version=9,
    )
    told = dict(
        classes='["a", "b", "c"]', size='8', mean='[0.5, 0.5, 0.5]', std='[0.5, 0.5, 0.5]', temperature='1.5'
    )

    def write(told):
        del m.metadata_props[:]
        for k, v in told.items():
            m.metadata_props.add(key=k, value=v)
        onnx.save(m, tmp_path / 'm.onnx')
        return export.Classifier.load(tmp_path / 'm.onnx')

    assert write(told).temperature == 1.5
    with pytest.raises(BadInput, match=why):
        write(told | {key: value})


@pytest.mark.quick
def test_pixels_that_have_changed_are_decoded_anew(home, photos):
    want = load_pictures(photos).pixels(32).copy()
    (f,) = (home / 'cache' / 'pixels').glob('*.npy')
    f.write_bytes(f.read_bytes()[:-500] + bytes(500))
    got, said = notes(lambda: load_pictures(photos).pixels(32))
    assert (
        (got == want).all()
        and len(said) == 1
        and 'has changed since it was written; the images are decoded anew' in said[0]
    )
    assert notes(lambda: load_pictures(photos).pixels(32))[1] == []
    f.with_suffix('.sum').unlink()  # of an older cache nothing is claimed
    f.write_bytes(f.read_bytes()[:-500] + bytes(500))
    assert notes(lambda: load_pictures(photos).pixels(32))[1] == []


# models that do not belong together


@pytest.fixture(scope='module')
def other(lab):
    "A run of another seed, with another split of the same images, and its soup."
    with pytest.MonkeyPatch.context() as m:
        m.setenv('ICH_SOUPS_HOME', str(lab / 'home'))
        cook(get_run(CFG.replace(seed=1, split_seed=1), lab / 'other'), 'uniform').save(
            lab / 'other.safetensors'
        )
        return lab / 'other'


def test_models_that_know_the_test_pictures_are_not_compared(sh, lab, soup, other):
    a, b = Run(lab / 'run').pictures, Run(other).pictures
    known = np.isin(a.idxs('test'), b.idxs('train')).mean()
    assert known > 0.5
    for second in (other, lab / 'other.safetensors'):
        for first in (lab / 'run', soup):
            code, out, err = sh('eval', first, second)
            assert code == 0 and f'{second} was trained on {100 * known:.0f} % of these images' in err
            assert f'{second} and {first} are not compared' in out and ' p = ' not in out
    d = json.loads(sh('eval', soup, lab / 'other.safetensors', '--json')[1])
    assert list(d['comparisons'][0]) == ['model', 'against', 'refused']


def test_models_of_one_split_are_compared_without_a_note(sh, lab, soup):
    code, out, err = sh('eval', lab / 'run', soup)
    assert code == 0 and 'McNemar p' in out and 'note' not in err


def test_a_model_that_does_not_say_what_it_knows_is_noted(sh, lab, soup):
    s = Soup.load(soup)
    s.info = {k: v for k, v in s.info.items() if k not in ('pictures', 'run', 'split_seed')}
    s.save(lab / 'silent.safetensors')
    code, out, err = sh('eval', soup, lab / 'silent.safetensors')
    assert (
        code == 0
        and f"whether {lab / 'silent.safetensors'} was trained on some of these images is not known" in err
    )


def test_a_report_of_a_soup_of_another_split_is_refused(sh, lab, other):
    refused(
        sh,
        'report',
        lab / 'run',
        '--soup',
        lab / 'other.safetensors',
        '--out',
        lab / 'r.html',
        says='another split of them, so it may know the test part',
    )
    assert not (lab / 'r.html').exists()


@pytest.mark.parametrize(
    'said', (dict(arch='test_resnet'), dict(size=64), dict(std=[1, 1, 1]), 'order', 'names')
)
def test_soups_whose_headers_differ_are_not_averaged(sh, soup, stranger, said, tmp_path):
    classes = Soup.load(soup).info['classes']
    if said == 'order':
        said = dict(classes=classes[::-1])
    if said == 'names':
        said = dict(classes=[c + 's' for c in classes])
    refused(
        sh, 'cook', soup, stranger(**said), '--out', tmp_path / 'x.safetensors', says='are not of one model'
    )
    with pytest.raises(BadInput, match='are not of one model'):
        average([soup, stranger(**said)])


def test_a_soup_of_soups_says_what_all_of_them_say(sh, soup, stranger, tmp_path):
    assert sh('cook', soup, stranger(), '--out', tmp_path / 'x.safetensors')[0] == 0
    one, both = Soup.load(soup).info, Soup.load(tmp_path / 'x.safetensors').info
    assert both == {k: one[k] for k in ('arch', 'classes', 'mean', 'size', 'std')}
    assert export.Classifier.load(tmp_path / 'x.safetensors').classes == one['classes']


def test_different_trainings_are_noted_with_what_the_mean_loses(lab, other, soup):
    a, b = Run(lab / 'run'), Run(other)
    assert notes(lambda: RECIPES['uniform'](a.snapshots))[1] == []
    mixed = [a.snapshots[-1], b.snapshots[-1]]
    kernels = [{k: v.double() for k, v in s.weights().items() if v.ndim > 1} for s in mixed]
    x, y = (torch.cat([v.flatten() for v in w.values()]) for w in kernels)
    assert abs(float(x @ y / x.norm() / y.norm())) < 0.1  # an independent look: at right angles
    _, said = notes(lambda: RECIPES['uniform'](mixed))
    assert (
        len(said) == 1
        and 'seem to be of different trainings' in said[0]
        and 'their mean may be worse' in said[0]
    )
    score = a.scorer('neg_nll')
    _, said = notes(lambda: RECIPES['posthoc_ema'](mixed, score))
    assert (
        f'scores {score(average(mixed)):.3f}, alone they score {score(load_weights(mixed[0])):.3f}' in said[0]
    )


QUIET = ('uniform', 'last', 'swa', 'ema', 'stock')


@pytest.mark.parametrize('name', QUIET)
def test_recipes_that_do_not_choose_say_what_the_mean_loses(lab, other, name):
    a, mixed = Run(lab / 'run'), [Run(lab / 'run').snapshots[-1], Run(other).snapshots[-1]]
    _, said = notes(lambda: RECIPES[name](mixed))
    assert len(said) == 1 and 'their mean may be worse' in said[0]
    score = a.scorer('neg_nll')
    _, said = notes(lambda: RECIPES[name](mixed, score))
    assert len(said) == 1
    mean, *alone = (score(average_of(o)) for o in (mixed, mixed[:1], mixed[1:]))
    assert f'scores {mean:.3f}, alone they score {alone[0]:.3f} and {alone[1]:.3f}' in said[0]
    assert notes(lambda: RECIPES[name](a.snapshots, score))[1] == []


def average_of(snapshots):
    return notes(lambda: average(snapshots))[0]


def test_an_average_alone_says_it_too(lab, other, tmp_path):
    a, b = (Run(r).snapshots[-1].path for r in (lab / 'run', other))
    ways = (
        lambda: average([a, b]),
        lambda: average([a, b], [0.9, 0.1]),
        lambda: average([load_weights(a), load_weights(b)], lambda k: [0.5, 0.5]),
        lambda: average([a, b], out=tmp_path / 'm.safetensors'),
        lambda: average([a, b], iter([0.5, 0.5])),
    )
    for f in ways:
        _, said = notes(f)
        assert len(said) == 1 and 'seem to be of different trainings' in said[0], said
    assert notes(lambda: average([s.path for s in Run(lab / 'run').snapshots]))[1] == []
    assert notes(lambda: average([a, b], [1.0, 0.0]))[1] == []  # of one alone


def test_the_command_line_measures_what_the_mean_loses(lab, other, sh, tmp_path):
    files = [tmp_path / f'epoch_{i}.safetensors' for i in (1, 2)]
    for f, r in zip(files, (lab / 'run', other)):
        shutil.copy(Run(r).snapshots[-1].path, f)
    how = ('--data', CFG.data, '--arch', CFG.arch, '--size', CFG.size, '--out', tmp_path / 'm.safetensors')
    for name in QUIET:
        code, out, err = sh('cook', *files, '--recipe', name, *how)
        assert code == 0 and 'alone they score' in err and err.count('seem to be of different') == 1, err


def test_runs_of_two_networks_are_not_cooked_together(sh, lab, tmp_path):
    import shutil

    shutil.copytree(lab / 'run', tmp_path / 'wide')
    c = json.loads((tmp_path / 'wide' / 'config.json').read_text())
    (tmp_path / 'wide' / 'config.json').write_text(json.dumps(c | dict(size=64)))
    refused(
        sh,
        'cook',
        lab / 'run',
        tmp_path / 'wide',
        '--out',
        tmp_path / 'x.safetensors',
        says='they differ in size',
    )
