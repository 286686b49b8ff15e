"The project is what it says: notebooks and modules, figures and their notebooks, imports that only look back."

import ast, json, os, re, subprocess
from importlib.util import resolve_name
import pandas as pd
import pytest
from conftest import ROOT
from ich_soups.config import COLLECTIONS
from ich_soups.core import in_smoke
from ich_soups.data import collections

pytestmark = pytest.mark.quick

NBS, PACKAGE = ROOT / 'nbs', ROOT / 'ich_soups'
NOTEBOOKS = sorted(p for p in NBS.rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
COMMITTED = ROOT / 'figures'
FRESH = ROOT / 'build' / 'figures'
TOLD = ('chapters', 'howto')  # folders of notebooks that are read and make no module

# Which room may import which; its own always. Nothing imports the companion, and the heart knows no training.
MAY = {
    '': '',
    'data': ' ',
    'evidence': ' ',
    'soups': ' ',
    'train': ' data evidence soups',
    'app': ' data evidence soups train',
    'companion': ' data evidence soups train app',
}


def name(p):
    return str(p.relative_to(NBS).with_suffix(''))


def code(nb):
    return [''.join(c['source']) for c in json.loads(nb.read_text())['cells'] if c['cell_type'] == 'code']


def exports(nb):
    return next((m[1] for s in code(nb) if (m := re.match(r'#\|\s*default_exp ([\w.]+)', s))), None)


def modules():
    "Every module by its dotted name below the package."
    files = [p for p in PACKAGE.rglob('*.py') if not p.stem.startswith('_')]
    return {'.'.join(p.relative_to(PACKAGE).with_suffix('').parts): p for p in files}


def test_the_notebooks_are_there():
    assert len(NOTEBOOKS) >= 50  # nbdev_test finds nothing and is content when its path is wrong
    assert all(re.fullmatch(r'\d\d_\w+|index', p.stem) for p in NOTEBOOKS)
    assert {p.parent.name for p in NOTEBOOKS} == {'nbs', *MAY, *TOLD} - {''}
    numbers = [(p.parent, p.stem[:2]) for p in NOTEBOOKS]
    assert len(set(numbers)) == len(numbers), 'two notebooks of a folder have one number'


def test_every_module_has_its_notebook_and_the_other_way_round():
    made = {exports(p): p for p in NOTEBOOKS if exports(p)}
    assert made.keys() == modules().keys()
    assert not [name(p) for p in NOTEBOOKS if p.parent.name in TOLD and exports(p)]
    room = {m: p.parent.name.replace('nbs', '') for m, p in made.items()}
    assert not [m for m, r in room.items() if m.rpartition('.')[0] != r]


def imported(module, path, lazy=True):
    "Modules of the package that a module imports: at its top, and with `lazy` inside of its functions too."
    tree = ast.parse(path.read_text())
    found, room = set(), 'ich_soups.' + module.rpartition('.')[0] if '.' in module else 'ich_soups'
    for n in ast.walk(tree) if lazy else tree.body:
        if isinstance(n, ast.ImportFrom):
            package = resolve_name('.' * n.level + (n.module or ''), room) if n.level else n.module
            found |= {package.rstrip('.'), *(f"{package.rstrip('.')}.{a.name}" for a in n.names)}
    return {f.removeprefix('ich_soups.') for f in found} & modules().keys()


@pytest.mark.parametrize('room', MAY)
def test_rooms_import_only_what_lies_below_them(room):
    "Inside of functions too: a lazy import upward hides a cycle."
    allowed = {'', room, *MAY[room].split()}
    for m, p in modules().items():
        if m.rpartition('.')[0] == room:
            up = {i for i in imported(m, p) if i.rpartition('.')[0] not in allowed}
            assert not up, f'{m} imports {up}'


def test_modules_import_only_lower_numbers_of_their_room():
    number = {exports(p): p.stem[:2] for p in NOTEBOOKS if exports(p)}
    same = lambda a, b: a.rpartition('.')[0] == b.rpartition('.')[0]
    bad = [
        (m, s) for m, p in modules().items() for s in imported(m, p) if same(m, s) and number[s] >= number[m]
    ]
    assert not bad


def defined(path):
    "Names that a module offers and defines itself, without those that it only passes on."
    tree = ast.parse(path.read_text())
    offers = next(
        ast.literal_eval(n.value)
        for n in tree.body
        if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == '__all__'
    )
    passed_on = {a.asname or a.name for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names}
    return set(offers) - passed_on


def test_a_public_name_means_one_thing():
    where = {}
    for m, p in modules().items():
        for n in defined(p):
            where.setdefault(n, []).append(m)
    assert len(where) > 500
    assert not {n: ms for n, ms in where.items() if len(ms) > 1}, 'rename one, or make it #| exporti'


def test_collections_with_a_name_are_named_in_the_configuration_too():
    "Else a folder of that name would be trained on, and the collection loaded elsewhere."
    made = {k for k, f in collections._MADE.items() if f.__module__ == collections.__name__}
    assert set(COLLECTIONS) == made | set(collections._NAMED)  # other modules may have made more by now


def test_notebooks_that_are_named_are_there():
    "In other notebooks, tests and the texts beside them; the history of the project may name old ones."
    there = {p.stem for p in NOTEBOOKS}
    texts = {p.name: p.read_text() for p in [*ROOT.glob('*.md'), *NBS.glob('*.md'), ROOT / 'Makefile']}
    texts |= {
        name(p): '\n'.join(''.join(c['source']) for c in json.loads(p.read_text())['cells'])
        for p in NOTEBOOKS
    }
    texts.pop('CHANGELOG.md')
    gone = {f: set(re.findall(r'(?<![\w.])\d\d_[a-z]\w+', t)) - there for f, t in texts.items()}
    assert not {f: g for f, g in gone.items() if g}


def test_notebooks_are_small_and_have_their_outputs():
    for p in NOTEBOOKS:
        assert p.stat().st_size < 500_000, f'{p.name} has {p.stat().st_size // 1000} kB'
        if p.parent.name in TOLD:
            assert any(c.get('outputs') for c in json.loads(p.read_text())['cells']), (
                f'{p.name} has no outputs; make figures'
            )


def test_the_front_page_has_its_numbers():
    cells = [
        c
        for c in json.loads((ROOT / 'nbs' / 'index.ipynb').read_text())['cells']
        if ''.join(c['source']).startswith('#| echo: false')
    ]
    assert len(cells) >= 4 and all(c['outputs'] for c in cells), (
        'index.ipynb has cells without outputs; make figures'
    )


def test_figures_are_complete_and_each_has_one_notebook():
    index = json.loads((COMMITTED / 'index.json').read_text())
    drawn = {
        n: [name(p) for p in NOTEBOOKS if any(re.search(rf"save_fig\([^)]*'{n}'", s) for s in code(p))]
        for n in index
    }
    assert drawn == {n: [v['notebook']] for n, v in index.items()}
    files = {p.name for p in COMMITTED.iterdir() if not p.name.startswith('.')}
    assert files == {f'{n}.{e}' for n in index for e in ('png', 'svg', 'csv')} | {
        'index.json',
        'README.md',
        'long',
        'screens',
    }


def test_nothing_names_a_machine():
    text = {
        p: p.read_text(errors='ignore')
        for d in ('nbs', 'ich_soups', 'tests')
        for p in (ROOT / d).rglob('*.*')
        if p.suffix in ('.ipynb', '.py')
    }
    home = os.path.expanduser('~')
    bad = [p.name for p, t in text.items() if str(ROOT) in t or (len(home) > 5 and f'{home}/' in t)]
    assert not bad


@pytest.fixture
def fresh():
    "Figures drawn by the notebooks in this very test run, as they are made."
    if in_smoke() or not (FRESH / 'results.csv').exists():
        pytest.skip(
            'to run this, use make test-all: its notebooks draw build/figures with the settings of the committed ones'
        )
    return FRESH


@pytest.mark.slow
def test_the_committed_results_can_be_had_again(fresh):
    "Same rows, and every score inside the committed interval: another processor may round otherwise, but not tell another story."
    for name, keys in (('results', ['model']), ('photos', ['data', 'model'])):
        old, new = (pd.read_csv(d / f'{name}.csv').set_index(keys) for d in (COMMITTED, fresh))
        assert list(old.index) == list(new.index) and list(old.columns) == list(new.columns)
        for m in ('accuracy', 'f1', 'nll'):
            assert old[[f'{m}_lo', f'{m}_hi']].notna().all(axis=None)
            out = new.index[~((new[m] >= old[f'{m}_lo']) & (new[m] <= old[f'{m}_hi']))]
            assert not len(out), f'{name}: {m} of {list(out)} left its committed interval'


@pytest.mark.slow
def test_the_committed_drawings_are_the_drawings(fresh):
    "What depends on no training is the same number for number."
    for name in ('class_counts', 'coatnet_stages', 'samples'):
        pd.testing.assert_frame_equal(
            pd.read_csv(COMMITTED / f'{name}.csv'), pd.read_csv(fresh / f'{name}.csv')
        )


def test_what_is_drawn_from_long_tables_is_the_same_in_every_profile():
    "Number for number, in a smoke run too: no training is behind it."
    if not (FRESH / 'recipes.csv').exists():
        pytest.skip('to run this, use make test: its notebooks draw build/figures')
    for name in (
        'regime',
        'results_seeds',
        'bias_variance',
        'recipes',
        'permutation',
        'scratch',
        'tails',
        'anytime',
    ):
        pd.testing.assert_frame_equal(
            pd.read_csv(COMMITTED / f'{name}.csv'), pd.read_csv(FRESH / f'{name}.csv')
        )


def test_the_commands_let_byte_code_be_kept():
    "Or each of a hundred processes compiles torch anew, which doubles the time of a test run."
    words = ['make', '-s', '--eval', 'told: ; @echo "<$$PYTHONDONTWRITEBYTECODE>"', 'told']
    env = os.environ | dict(PYTHONDONTWRITEBYTECODE='1')
    out = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
    assert out.stdout.strip() == '<>', out.stderr
