"What strangers say: headers of soups, metadata, folders for a hub, files of a run. One sentence that names file and field, and no bug."

import copy, json, math, re, shutil
from pathlib import Path
import pytest, torch
from ich_soups.app import cli
from ich_soups.soups.checkpoints import Checkpoint, load_weights
from ich_soups.soups.saving import save_weights
from ich_soups.soups.cook import cook
from ich_soups.core import BadInput, Config, write_json
from ich_soups.app.export import Classifier
from ich_soups.soups.run_files import read_done, read_state
from ich_soups.soups.contents import soup_header
from ich_soups.soups.soup import Soup
from ich_soups.soups.greedy import greedy_soup
from ich_soups.train.finished_run import Run
from ich_soups.train.runs import get_run

NAN, INF, ROOT = float('nan'), float('inf'), Path(__file__).resolve().parent.parent
NESTED = json.loads('[' * 400 + ']' * 400)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A run of two epochs in a home of its own, and its soup."
    at = tmp_path_factory.mktemp('made')
    with pytest.MonkeyPatch.context() as m:
        m.setenv('ICH_SOUPS_HOME', str(at / 'home'))
        run = get_run(
            Config.scratch(data='scenes17:200', size=32, epochs=2, bs=32, ema=0.9, fixed=(1, 2)), at / 'run'
        )
        cook(run).save(at / 'soup.safetensors')
        yield at


@pytest.fixture(scope='module')
def parts(made):
    "Header and weights of that soup."
    return json.loads(Checkpoint(made / 'soup.safetensors').meta['soup']), load_weights(
        made / 'soup.safetensors'
    )


BAD = [
    ('info.classes', 10**9),
    ('info.classes', None),
    ('info.classes', {}),
    ('info.classes', 'abcdefghijklmnopq'),
    ('info.classes', ['a'] * 17),
    ('info.classes', [['a']] * 17),
    ('info.classes', NESTED),
    ('info.size', NAN),
    ('info.size', 10**30),
    ('info.size', True),
    ('info.size', '32'),
    ('info.arch', 5),
    ('info.arch', 'test_coatnet\u202e'),
    ('info.arch', '\x1b[2J'),
    ('info.mean', [NAN] * 3),
    ('info.mean', [0.5]),
    ('info.std', [0, 0, 0]),
    ('info.std', None),
    ('info.temperature', NAN),
    ('info.temperature', 0),
    ('info.temperature', 1e-300),
    ('info.run', '../../etc/passwd'),
    ('info.run', 7),
    ('info.free', NESTED),
    ('info.data', '\ud800'),
    ('info', []),
    ('info', None),
    ('coefs', ['x']),
    ('coefs', [INF]),
    ('ingredients', 5),
    ('recipe', ['x']),
    ('history', 'x'),
]


@pytest.mark.parametrize('field, value', BAD)
def test_a_hostile_header_is_one_sentence(field, value, made, parts, tmp_path, capsys):
    "Through every command that reads a soup; none of them builds a network first."
    head = copy.deepcopy(parts[0])
    at, _, name = field.rpartition('.')
    (head[at] if at else head)[name] = value
    file = tmp_path / 's.safetensors'
    save_weights(parts[1], file, dict(soup=json.dumps(head)))
    with pytest.raises(BadInput, match=re.escape(str(file))):
        soup_header(file)
    photo = ROOT / 'figures' / 'anytime.png'
    for words in (
        ['predict', file, photo],
        ['eval', file],
        ['export', file, '--to', 'timm', '--out', tmp_path / 'm'],
        ['report', made / 'run', '--soup', file, '--out', tmp_path / 'r.html'],
        ['demo', file, '--port', '1'],
    ):
        assert cli.main(words) == 2, words
        said = capsys.readouterr().err.strip()
        assert (
            len(said.splitlines()) == 1 and 's.safetensors' in said and name in said and 'bug' not in said
        ), said


def test_the_header_of_a_soup_is_kept_as_it_was(made, parts):
    head, _ = parts
    s = Soup.load(made / 'soup.safetensors')
    assert (s.ingredients, s.coefs, s.recipe, s.history, s.info) == tuple(
        head[k] for k in ('ingredients', 'coefs', 'recipe', 'history', 'info')
    )


def test_the_folder_for_a_hub(made, tmp_path):
    from ich_soups.app.export import save_pretrained

    folder = save_pretrained(made / 'soup.safetensors', tmp_path / 'm')
    assert len(Classifier.load(folder).classes) == 17
    d = json.loads((folder / 'config.json').read_text())
    for bad in (dict(size=NAN), dict(classes=3), dict(mean='x'), dict(temperature=None)):
        (folder / 'config.json').write_text(json.dumps(d | dict(ich_soups=d['ich_soups'] | bad)))
        with pytest.raises(BadInput, match='config.json.*' + next(iter(bad))):
            Classifier.load(folder)
    (folder / 'config.json').write_text('[' * 100_000)
    with pytest.raises(BadInput, match='config.json'):
        Classifier.load(folder)


RUN = [
    ('config.json', 'size', NAN),
    ('config.json', 'arch', 5),
    ('config.json', 'monitor', 'f1'),
    ('config.json', '../x', 1),
    ('DONE', 'data', 5),
    ('DONE', 'seconds', 'x'),
    ('DONE', 'sizes', []),
    ('DONE', 'device', None),
    ('snapshots/manifest.json', '1', 5),
    ('snapshots/manifest.json', '1e3', {}),
    ('snapshots/manifest.json', '2', dict(scores=5, sha256='')),
]


@pytest.mark.parametrize('name, field, value', RUN)
def test_a_damaged_file_of_a_run_is_one_sentence(name, field, value, made, tmp_path, capsys):
    run = Path(shutil.copytree(made / 'run', tmp_path / 'run'))
    write_json(run / name, json.loads((run / name).read_text()) | {field: value})
    for words in (['cook', run, '--out', tmp_path / 'c.safetensors'], ['eval', run]):
        assert cli.main(words) == 2
        said = capsys.readouterr().err.strip()
        assert len(said.splitlines()) == 1 and name in said and str(field) in said and 'bug' not in said, said


def test_a_renamed_score_and_a_history_of_words(made, tmp_path, capsys):
    run = Path(shutil.copytree(made / 'run', tmp_path / 'run'))
    f = run / 'snapshots' / 'manifest.json'
    d = json.loads(f.read_text())
    d['2']['scores']['accuracx'] = d['2']['scores'].pop('accuracy')
    write_json(f, d)
    assert cli.main(['eval', run]) == 2 and "epoch 2: there is no score 'accuracy'" in capsys.readouterr().err
    shutil.copy(made / 'run' / 'snapshots' / 'manifest.json', f)
    h = run / 'history.csv'
    h.write_text(re.sub(r'\n1,0', '\n1,x', h.read_text()))
    with pytest.raises(BadInput, match='history.csv'):
        Run(run).history


def test_a_run_of_an_older_version_is_read(made, tmp_path):
    "Before sizes were kept, before there were all of today's fields."
    run = Path(shutil.copytree(made / 'run', tmp_path / 'run'))
    for name, gone in (('DONE', ('sizes', 'processes')), ('config.json', ('store', 'bootstrap', 'compile'))):
        write_json(
            run / name, {k: v for k, v in json.loads((run / name).read_text()).items() if k not in gone}
        )
    entries = json.loads((run / 'snapshots' / 'manifest.json').read_text())
    write_json(
        run / 'snapshots' / 'manifest.json',
        {k: {q: x for q, x in v.items() if q != 'sizes'} for k, v in entries.items()},
    )
    old, new = Run(run), Run(made / 'run')
    assert (
        old.cfg.key == new.cfg.key
        and old.best().epoch == new.best().epoch
        and old.history.equals(new.history)
    )


def test_a_state_of_something_else(tmp_path):
    good = dict(epoch=1, model={}, opt={}, averages={}, rows=[dict(epoch=1)], entries={}, data='x')
    torch.save(good, tmp_path / 'state.pt')
    assert read_state(tmp_path) == good
    for bad in (
        [],
        {},
        good | dict(rows=5),
        good | dict(epoch=NAN),
        good | dict(entries={'../x': {}}),
        good | dict(data=5),
    ):
        torch.save(bad, tmp_path / 'state.pt')
        with pytest.raises(BadInput, match='state.pt.*to train'):
            read_state(tmp_path)


def test_a_state_of_another_network(home, tmp_path, monkeypatch):
    "Everything is of its kind, and does not fit all the same."
    from ich_soups.train import runs as training

    cfg = Config.scratch(data='scenes17:200', size=32, epochs=2, bs=32)
    write = training.write_json

    def cut(path, obj):
        if Path(path).name == 'DONE':
            raise KeyboardInterrupt
        write(path, obj)

    monkeypatch.setattr(training, 'write_json', cut)
    with pytest.raises(KeyboardInterrupt):
        get_run(cfg, tmp_path / 'r')
    state = torch.load(tmp_path / 'r' / 'state.pt', weights_only=True)
    torch.save(state | dict(model={'x': torch.zeros(1)}), tmp_path / 'r' / 'state.pt')
    with pytest.raises(BadInput, match='state.pt does not fit this training'):
        get_run(cfg, tmp_path / 'r')


def test_a_duration_is_never_negative(home, tmp_path, monkeypatch):
    "The clock of the machine is put back an hour at each look; and what an older version wrote of one is read as none."
    import time

    hours = iter(range(10**9))
    monkeypatch.setattr(time, 'time', lambda: 4e9 - 3600 * next(hours))
    run = get_run(Config.scratch(data='scenes17:200', size=32, epochs=1, bs=32), tmp_path / 'r')
    assert 0 < run.provenance['seconds'] < 3600
    write_json(tmp_path / 'r' / 'DONE', run.provenance | dict(seconds=-39593.4))
    assert read_done(tmp_path / 'r')['seconds'] == 0


def test_headers_are_read_in_one_place():
    "Nobody else looks for a soup in a header, or takes JSON apart that came from outside."
    for p in sorted((ROOT / 'ich_soups').rglob('*.py')):
        code = p.read_text(encoding='utf-8')
        looks = r"meta\.get\('soup'|meta\['soup'\]|'soup' (not )?in [^\n]*meta"
        if p.stem not in ('records', '_modidx'):
            assert not re.search(looks, code), p.name
        assert not re.search(r'json\.loads?\([^\n]*\)\s*(\[|\.get\()', code), p.name


@pytest.mark.parametrize('dtype', [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bits_are_tried_like_any_others(dtype):
    a, b = ({'w': torch.tensor([x, 2 * x]).to(dtype)} for x in (1.0, 2.0))
    score = lambda w: -abs(float(w['w'].float().sum()) - 4.5)
    soup = greedy_soup([a, b], score)
    assert (
        soup.coefs == [0.5, 0.5]
        and soup.weights['w'].dtype == dtype
        and soup.weights['w'].tolist() == [1.5, 3.0]
    )
    with pytest.raises(BadInput, match='NaN or infinity'):
        greedy_soup([a, {'w': torch.tensor([math.nan, 1.0]).to(dtype)}], score)
