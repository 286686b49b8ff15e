"The project is what it says: notebooks and modules, figures and their notebooks, imports that only look back."

import ast, json, os, re
import pandas as pd
import pytest
from conftest import ROOT
from ich_soups.core import in_smoke

pytestmark = pytest.mark.quick

NOTEBOOKS = sorted((ROOT / 'nbs').glob('*.ipynb'))
COMMITTED = ROOT / 'figures'
FRESH = ROOT / 'build' / 'figures'


def code(nb):
    return [''.join(c['source']) for c in json.loads(nb.read_text())['cells'] if c['cell_type'] == 'code']


def exports(nb):
    return next((m[1] for s in code(nb) if (m := re.match(r'#\|\s*default_exp (\w+)', s))), None)


def test_the_notebooks_are_there():
    assert len(NOTEBOOKS) >= 18  # nbdev_test finds nothing and is content when its path is wrong
    assert all(re.fullmatch(r'\d\d_\w+|index', p.stem) for p in NOTEBOOKS)


def test_every_module_has_its_notebook_and_the_other_way_round():
    made = {exports(p) for p in NOTEBOOKS} - {None}
    have = {p.stem for p in (ROOT / 'ich_soups').glob('*.py')} - {'__init__', '_modidx'}
    assert made == have
    assert not [p.name for p in NOTEBOOKS if p.name >= '2' and exports(p)]  # a chapter is no module


def imported(py):
    "Sibling modules that a module imports at its top."
    tree = ast.parse(py.read_text())
    return {n.module for n in tree.body if isinstance(n, ast.ImportFrom) and n.level == 1}


def test_modules_import_only_lower_numbers():
    number = {exports(p): p.name[:2] for p in NOTEBOOKS if exports(p)}
    bad = [
        (m, s) for m, n in number.items() for s in imported(ROOT / 'ich_soups' / f'{m}.py') if number[s] >= n
    ]
    assert not bad


@pytest.mark.parametrize(
    'module, may',
    [
        ('ensembles', ''),
        ('metrics', ''),
        ('plots', 'core locks'),
        ('scenes', ''),
        ('published', ''),
        ('pickles', ''),
        ('checkpoints', 'core pickles'),
        ('averaging', 'core checkpoints records'),
        ('scorers', 'core checkpoints'),
        ('soups', 'core checkpoints averaging records scorers'),
        ('bias_variance', 'core'),
        ('diversity', 'core bias_variance'),
    ],
)
def test_the_heart_knows_nothing_of_data_and_training(module, may):
    assert imported(ROOT / 'ich_soups' / f'{module}.py') <= set(may.split())


def test_notebooks_are_small_and_have_their_outputs():
    for p in NOTEBOOKS:
        assert p.stat().st_size < 500_000, f'{p.name} has {p.stat().st_size // 1000} kB'
        if p.name >= '2':
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
        n: [p.stem for p in NOTEBOOKS if any(re.search(rf"save_fig\([^)]*'{n}'", s) for s in code(p))]
        for n in index
    }
    assert drawn == {n: [v['notebook']] for n, v in index.items()}
    files = {p.name for p in COMMITTED.iterdir() if not p.name.startswith('.')}
    assert files == {f'{n}.{e}' for n in index for e in ('png', 'svg', 'csv')} | {
        'index.json',
        'README.md',
        'long',
    }


def test_nothing_names_a_machine():
    text = {
        p: p.read_text(errors='ignore')
        for d in ('nbs', 'ich_soups', 'tests')
        for p in (ROOT / d).glob('*.*')
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
