"The smoke profile: it draws every figure, never where the real ones lie, and what it computed once is only drawn again."

import ast, hashlib, json, os, random, re, subprocess, sys
import pytest
from conftest import ROOT
from ich_soups.companion.bench_clocks import own_environment
from ich_soups.core import BadInput, Config, in_smoke, refuse_smoke
from ich_soups.companion.study_runs import noise_of
from ich_soups.evidence.tables import long_table, one_more, read_rows
from ich_soups.train.runs import get_run

FRESH = ROOT / 'build' / 'figures'
CHAPTERS = sorted((ROOT / 'nbs' / 'chapters').glob('*.ipynb'))
AGAIN = """
import json, os, sys, types
sys.path.insert(0, sys.argv[1])
import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from ich_soups.companion import build
from ich_soups import cache
from ich_soups.app import export
from ich_soups.evidence import plots
from ich_soups.train import runs as training
passes, figures, trained = {}, [], []
now = [None]
def count(): passes[now[0]] = passes.get(now[0], 0) + 1
def network(module, _):      # a metric of torchmetrics is a module too, and has no weights
    if next(module.parameters(), None) is not None: count()
register_module_forward_pre_hook(network)
run_onnx = export.OnnxModel.__call__
export.OnnxModel.__call__ = lambda self, x: (count(), run_onnx(self, x))[1]
plots.save_fig = lambda fig, name, *a, **k: (figures.append(name), plots.plt.close(fig))[1]
learn = training.make_learner
training.make_learner = lambda cfg, *a, **k: trained.append(cfg.key) or learn(cfg, *a, **k)
for path in sys.argv[2:]:
    now[0] = os.path.basename(path)
    build.run_notebook(path, save=False)
print(json.dumps(dict(passes=passes, computed=cache.computed, figures=figures, trained=trained)))
"""


@pytest.fixture(scope='module')
def drawn_before():
    "The figures of the notebooks that ran before the tests, in this very profile."
    if not in_smoke() or not (FRESH / 'results.csv').exists():
        pytest.skip('to run this, use make test: its notebooks draw build/figures in the smoke profile')
    return FRESH


def run_again(tmp_path, *chapters):
    "Run chapters a second time in one process; what was computed and drawn."
    (tmp_path / 'again.py').write_text(AGAIN, encoding='utf-8')
    out = subprocess.run(
        [sys.executable, '-W', 'ignore', tmp_path / 'again.py', ROOT, *chapters],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert out.returncode == 0, out.stderr[-3000:]
    return json.loads(out.stdout.splitlines()[-1])


def test_a_second_run_of_the_chapters_only_draws(drawn_before, tmp_path):
    "No forward pass, no training, no step computed: counted, so that no clock has to be read."
    told = run_again(tmp_path, *CHAPTERS)
    assert told['passes'] == {} and told['computed'] == [] and told['trained'] == []
    assert set(told['figures']) == set(json.loads((ROOT / 'figures' / 'index.json').read_text()))


def test_a_changed_input_is_computed_anew(drawn_before, tmp_path):
    "The same chapter with another question in it: the step that depends on it runs, and models with it."
    chapter = next(p for p in CHAPTERS if p.name == '05_greedy.ipynb')
    changed = tmp_path / chapter.name
    another = random.SystemRandom().randrange(10**9)  # or the next test run would find this one's answer
    text = chapter.read_text(encoding='utf-8').replace(
        'np.linspace(0, 1, 7)', f'np.linspace(0, 1, 7, dtype=(float, {another})[0])'
    )
    assert str(another) in text
    changed.write_text(text, encoding='utf-8')
    told = run_again(tmp_path, changed)
    assert set(told['computed']) == {'along'} and told['passes'][chapter.name] > 0 and told['trained'] == []


def test_the_notebooks_drew_every_figure(drawn_before):
    missing = set(json.loads((ROOT / 'figures' / 'index.json').read_text())) - set(
        json.loads((drawn_before / 'index.json').read_text())
    )
    assert not missing


def test_one_row_of_a_long_table_is_made_anew():
    """The first cycle of a training with the real settings: the smoke profile may not drift from what the tables hold. Accuracy, loss
    and training loss of the third epoch, each in the 95 % prediction interval of the draws."""
    anew = get_run(Config.tiny(epochs=3)).history.iloc[-1]
    rows = read_rows(
        long_table() / 'regime.csv',
        schedule='restarts',
        peak=Config.tiny().lr,
        mixed=Config.tiny().mix,
        bootstrap=0,
        epoch=3,
    )
    rows = rows[rows.data.map(noise_of) == 6]
    assert rows.data.nunique() >= 5
    for column in ('accuracy', 'valid_loss', 'train_loss'):
        lo, hi = one_more(rows[column])
        assert lo <= anew[column] <= hi, (column, anew[column], lo, hi)


@pytest.mark.quick
@pytest.mark.parametrize(
    'to', ['figures', 'figures/long/recipes.csv', 'figures/../figures/results.png', 'build/../figures']
)
def test_a_smoke_run_never_writes_where_the_real_figures_lie(monkeypatch, to):
    monkeypatch.setenv('ICH_SOUPS_PROFILE', 'smoke')
    with pytest.raises(BadInput, match='holds the figures of real runs'):
        refuse_smoke(ROOT / to)
    refuse_smoke(ROOT / 'build' / 'figures')


@pytest.mark.quick
@pytest.mark.parametrize('link', [True, False])
def test_a_smoke_run_of_the_chapters_is_refused_before_anything_is_trained(tmp_path, link):
    "Pointed at the committed figures, directly or by a link: one sentence, and not a byte changes."
    to = ROOT / 'figures'
    if link:
        (tmp_path / 'link').symlink_to(to)
        to = tmp_path / 'link'
    state = lambda: {
        p: (p.stat().st_mtime_ns, hashlib.sha256(p.read_bytes()).hexdigest())
        for p in (ROOT / 'figures').rglob('*')
        if p.is_file()
    }
    before = state()
    env = os.environ | dict(ICH_SOUPS_PROFILE='smoke', ICH_SOUPS_FIGURES=str(to))
    out = subprocess.run(
        [sys.executable, '-m', 'ich_soups.companion.build', 'figures'],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (
        out.returncode == 1
        and out.stderr.startswith('a smoke run does not write')
        and len(out.stderr.splitlines()) == 1
    ), out.stderr
    assert state() == before


# How long a thread turns: set before torch is imported, wherever torch is imported.

SAYS = "import os, sys; import ich_soups; print('torch' in sys.modules, os.environ.get('GOMP_SPINCOUNT'), os.environ.get('OMP_WAIT_POLICY'))"


def says(*args, **variables):
    "What a process finds once it has imported the package."
    return subprocess.run(
        [sys.executable, *(args or ('-c', SAYS))],
        env=own_environment(**variables),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()


@pytest.mark.quick
def test_threads_turn_briefly_unless_the_user_says_otherwise():
    assert says() == ['False', '1000', 'None']  # and importing the package does not import torch
    assert says(GOMP_SPINCOUNT='7') == ['False', '7', 'None']
    assert says(OMP_WAIT_POLICY='passive') == ['False', 'None', 'passive']


@pytest.mark.quick
def test_workers_turn_briefly_too():
    code = "import ich_soups, os\nfrom joblib import Parallel, delayed\nprint(*Parallel(2)(delayed(os.getenv)('GOMP_SPINCOUNT') for _ in range(2)))"
    assert says('-c', code) == ['1000', '1000']


SLOW = {'torch', 'torchvision', 'timm', 'fastai', 'sklearn', 'torchmetrics', 'captum'}  # each brings OpenMP


def imports(source):
    "The packages that a cell imports, in order."
    for node in ast.parse(re.sub(r'^\s*[%!].*$', '', source, flags=re.M)).body:
        if isinstance(node, ast.Import):
            yield from (a.name.split('.')[0] for a in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split('.')[0]


@pytest.mark.quick
def test_in_every_notebook_the_package_comes_before_torch():
    "`nbdev_test` and Jupyter start no process of ours: the first import has to do it."
    for p in sorted((ROOT / 'nbs').rglob('*.ipynb')):
        cells = [
            ''.join(c['source'])
            for c in json.loads(p.read_text(encoding='utf-8'))['cells']
            if c['cell_type'] == 'code'
        ]
        order = [m for s in cells for m in imports(s) if m in SLOW | {'ich_soups'}]
        assert not order or order[0] == 'ich_soups', (
            f'{p.name} imports {order[0]} before ich_soups; put ich_soups first'
        )
