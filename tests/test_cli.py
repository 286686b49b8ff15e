"The command line, with whatever users and machines do to it: one line that says what is wrong, an exit code, nothing half written."

import json, os, re, resource, shutil, signal, subprocess, sys, time
from pathlib import Path
import pytest, torch
from PIL import Image
from ich_soups.soups.checkpoints import load_weights
from ich_soups.app.cli import main
from ich_soups.soups.soup import Soup

SMALL = ('--size', '32', '--bs', '16', '--epochs', '2')
ODD = 'tên lạ\n"x" [red]'


@pytest.fixture(scope='module')
def kitchen(tmp_path_factory, drawn):
    "A home, photographs, a run of them, soups of it, foreign checkpoints, and files that are none."
    d = tmp_path_factory.mktemp('kitchen')
    with pytest.MonkeyPatch.context() as m:
        m.setenv('ICH_SOUPS_HOME', str(d / 'home'))
        m.chdir(d)
        for folder, classes in (
            ('photos', ('Chợ nổi', 'Đua ghe ngo', 'mặt nạ')),
            ('other', ('a', 'b', 'c')),
            (ODD, ('một\nhai', 'ba bốn', "l'art")),
        ):
            for c, name in enumerate(classes):
                (d / folder / name).mkdir(parents=True)
                for i, im in enumerate(drawn.images[drawn.labels == c][:12]):
                    Image.fromarray(im).save(d / folder / name / f'ảnh {i}.jpg')
        shutil.copytree('photos', 'spoilt')
        (d / 'empty').mkdir()
        good = next((d / 'photos' / 'Chợ nổi').iterdir()).read_bytes()
        (d / 'good.jpg').write_bytes(good)
        (d / 'cut.jpg').write_bytes(good[: len(good) // 2])
        for n in ('text.jpg', 'text.safetensors', 'text.onnx'):
            (d / n).write_text('not an image, nor a model')
        Image.new('1', (20_000, 20_000)).save('huge.png')
        for f in ('text.jpg', 'cut.jpg', 'huge.png'):
            shutil.copy(f, Path('spoilt') / 'Chợ nổi')
        assert main(['train', 'photos', *SMALL, '--out', 'run']) == 0
        assert main(['cook', 'run', '--out', 'soup.safetensors']) == 0
        assert main(['cook', 'run/snapshots', '--out', 'plain.safetensors']) == 0
        yield d


@pytest.fixture
def sh(kitchen, monkeypatch, capsys):
    "Run a command there: `(code, stdout, lines of stderr)`."
    monkeypatch.chdir(kitchen)
    monkeypatch.setenv('ICH_SOUPS_HOME', str(kitchen / 'home'))

    def run(*args):
        capsys.readouterr()
        code = main([str(a) for a in args])
        out, err = capsys.readouterr()
        return code, out, err.splitlines()

    return run


def files(d):
    return {str(p.relative_to(d)) for p in d.rglob('*') if 'home' not in p.parts}


def refused(sh, kitchen, *args, says=()):
    "Exit code 2, one line, nothing on stdout, nothing new in the folder."
    before = files(kitchen)
    code, out, err = sh(*args)
    assert (code, out, len(err)) == (2, '', 1), (code, out, err)
    assert err[0].startswith('ich-soups: ') and all(s in err[0] for s in says), err[0]
    assert files(kitchen) == before
    return err[0]


COMMANDS = {
    'check': ('check', '*'),
    'train': ('train', '*', *SMALL),
    'cook': ('cook', '*'),
    'cook on': ('cook', 'plain.safetensors', '--data', '*', '--arch', 'test_coatnet', '--size', '32'),
    'eval': ('eval', '*'),
    'eval on': ('eval', 'soup.safetensors', '--data', '*'),
    'predict': ('predict', 'soup.safetensors', '*'),
    'predict with': ('predict', '*', 'good.jpg'),
    'report': ('report', '*'),
    'report with': ('report', 'run', '--soup', '*'),
    'export': ('export', '*', '--to', 'onnx'),
    'export on': ('export', 'soup.safetensors', '--to', 'int8', '--data', '*'),
    'demo': ('demo', '*'),
    'demo with': ('demo', 'soup.safetensors', '--run', '*'),
}


@pytest.mark.parametrize('what', ['nowhere', 'empty', 'text.jpg', 'text.safetensors', 'no\nway'])
@pytest.mark.parametrize('command', COMMANDS)
def test_what_is_not_there_or_is_something_else(sh, kitchen, command, what):
    refused(sh, kitchen, *(what if a == '*' else a for a in COMMANDS[command]))


@pytest.mark.parametrize('what', ['text.jpg', 'cut.jpg', 'huge.png'])
def test_a_picture_that_is_none(sh, kitchen, what):
    shutil.rmtree('spoilt')
    shutil.copytree('photos', 'spoilt')
    shutil.copy(what, Path('spoilt') / 'Chợ nổi')
    for args in (
        ('train', 'spoilt', *SMALL),
        ('eval', 'soup.safetensors', '--data', 'spoilt'),
        ('cook', 'plain.safetensors', '--data', 'spoilt', '--arch', 'test_coatnet', '--size', '32'),
    ):
        refused(sh, kitchen, *args, says=[what, 'ich-soups check'])
    refused(sh, kitchen, 'predict', 'soup.safetensors', what, says=[what])
    code, out, err = sh('check', 'spoilt')
    assert code == 0 and what in out
    words = 'soup.safetensors', 'spoilt', '--csv', 'table.csv', '--json', '--accept-all'
    code, out, err = sh('predict', *words)
    doc = json.loads(out)
    assert (
        code == 0
        and doc['unreadable'] == 1
        and len(doc['pictures']) == 37
        and what in err[-1]
        and len(err) == 1
    )
    os.unlink('table.csv')


def test_training_without_the_bad_ones(sh, kitchen):
    for again in range(2):
        code, out, err = sh('train', 'spoilt', *SMALL, '--skip-bad', '--out', 'skipped', '--json')
        assert code == 0 and any('left out' in l for l in err), err
    assert json.loads(out)['snapshots'] == 2
    assert not any('about' in l for l in err)  # the second call trained nothing
    code, out, err = sh('check', 'spoilt', '--fix', 'clean.csv')
    assert code == 0 and out.splitlines()[-1] == 'next: ich-soups train clean.csv'
    refused(sh, kitchen, 'check', 'spoilt', '--fix', 'clean.csv', says=['clean.csv', 'there already'])


def test_odd_names_all_the_way(sh, kitchen):
    for args in (
        ('train', ODD, *SMALL, '--out', 'rün\n2'),
        ('cook', 'rün\n2', '--out', 's\né.safetensors'),
        ('eval', 'rün\n2', 's\né.safetensors'),
        ('predict', 's\né.safetensors', ODD, '--csv', 't\n.csv'),
        ('export', 's\né.safetensors', '--to', 'timm'),
        ('export', 's\né.safetensors', '--to', 'safetensors', '--out', 'w\n.safetensors'),
        ('check', ODD),
    ):
        code, out, err = sh(*args)
        assert code == 0, err
        assert not re.search(r'^(2|é|x)', out, re.M)  # a name never breaks a line
    assert Path('t\n.csv').exists() and Path('s\né-timm').is_dir()
    assert sorted(Soup.load('s\né.safetensors').info['classes']) == sorted(('một\nhai', 'ba bốn', "l'art"))


def test_wrong_classes_and_wrong_networks(sh, kitchen):
    refused(sh, kitchen, 'eval', 'soup.safetensors', '--data', 'other', says=["'a'", 'Chợ nổi'])
    refused(sh, kitchen, 'export', 'soup.safetensors', '--to', 'int8', '--data', 'other', says=["'a'"])
    refused(sh, kitchen, 'train', 'photos', '--arch', 'resnet5O', says=['resnet5O'])
    refused(
        sh, kitchen, 'train', 'photos', '--arch', 'coatnet_0_rw_224', '--size', '50', says=['50 px', '224']
    )
    refused(
        sh,
        kitchen,
        'cook',
        'plain.safetensors',
        '--data',
        'photos',
        '--arch',
        'resnet18',
        '--size',
        '32',
        says=['ResNet'],
    )
    refused(sh, kitchen, 'cook', 'plain.safetensors', '--data', 'other', '--arch', 'nope', says=["'nope'"])
    refused(
        sh,
        kitchen,
        'eval',
        'plain.safetensors',
        '--data',
        'photos',
        '--arch',
        'resnet18',
        says=['resnet18', 'plain.safetensors'],
    )
    for args in (
        ('predict', 'plain.safetensors', 'good.jpg'),
        ('export', 'plain.safetensors', '--to', 'onnx'),
    ):
        refused(sh, kitchen, *args, says=['--data and --arch'])


@pytest.mark.parametrize(
    'args, says',
    [
        (('cook', 'run', '--recipe', 'gumbo'), 'greedy'),
        (('cook', 'run', '--metric', 'x'), 'neg_nll'),
        (('cook',), '--help'),
        (('cook', 'run', '--out', 'x.pth'), '.safetensors'),
        (('cook', 'plain.safetensors', '--data', 'photos'), '--arch is missing'),
        (('cook', 'plain.safetensors', '--recipe', 'greedy'), '--data and --arch'),
        (('train',), "'DATA'"),
        (('train', 'photos', '--epochs', '0'), 'epochs'),
        (('train', 'photos', '--schedule', 'x'), 'annealed'),
        (('train', 'photos', '--out', 'good.jpg'), 'good.jpg'),
        (('train', 'photos', '--out', 'run', '--seed', '1', *SMALL), 'another run'),
        (('train', 'photos', '--log', 'x'), 'wandb'),
        (('train', 'photos', '--where', 'moon'), 'ray://'),
        (('train', 'photos', '--device', 'abacus'), 'abacus'),
        (('train', 'photos', '--pretrained', 'no.pth'), 'no.pth'),
        (('eval', 'soup.safetensors', '--split', 'x'), 'val'),
        (('predict', 'soup.safetensors', 'good.jpg', '--csv', 'empty'), 'empty is a folder'),
        (('export', 'soup.safetensors', '--to', 'pdf'), 'onnx'),
        (('cook', 'run', '--out', 'good.jpg/soup.safetensors'), 'cannot be written'),
        (('cook', 'run', '--out', 'run/averages/ema.safetensors'), 'is no soup'),
        (('nope',), "'nope'"),
        (('train', 'photos', '--bs', 'many'), '--bs'),
    ],
)
def test_words_that_mean_nothing(sh, kitchen, args, says):
    refused(sh, kitchen, *args, says=[says])


@pytest.mark.parametrize(
    'room, args',
    [
        (100_000, ('train', 'photos', '--size', '96', '--epochs', '2', '--out', 'full')),
        (700_000, ('train', 'photos', *SMALL, '--seed', '9', '--out', 'full')),
        (100_000, ('cook', 'run', '--out', 'full.safetensors')),
        (10, ('predict', 'soup.safetensors', 'good.jpg', '--csv', 'full.csv')),
        (100_000, ('export', 'soup.safetensors', '--to', 'safetensors', '--out', 'full.safetensors')),
        (100_000, ('export', 'soup.safetensors', '--to', 'timm', '--out', 'full')),
    ],
)
def test_a_full_disk(sh, kitchen, room, args):
    "No file may grow beyond `room` bytes: what a full disk says, wherever the test runs."
    was = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, was[1]))
    try:
        code, out, err = sh(*args)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, was)
    assert (
        code == 2 and not out and 'disk is full' in err[-1] and not any('disk is full' in l for l in err[:-1])
    ), (code, out, err)
    left = [
        p
        for p in kitchen.rglob('*')
        if p.name.startswith('full') and p.is_file() or re.match(r'\.\d+\.\d+\.', p.name)
    ]
    assert not left, left
    if args[0] == 'train' and room > 100_000:  # and with room again, the same command goes on
        assert sh(*args)[0] == 0
    shutil.rmtree('full', ignore_errors=True)


def test_a_bug_is_called_one(sh, kitchen, monkeypatch):
    monkeypatch.setattr('ich_soups.data.collections.load_pictures', lambda *a, **k: 1 / 0)
    code, out, err = sh('train', 'photos')
    assert (code, out, len(err)) == (1, '', 1) and 'ZeroDivisionError' in err[0]
    f = Path(re.search(r'the traceback is in (\S+\.txt)', err[0])[1])
    assert 'ZeroDivisionError' in f.read_text()
    f.unlink()
    code, out, err = sh('train', 'photos', '--debug')
    assert code == 1 and err[0].startswith('Traceback')


def test_one_seed_more(sh, kitchen):
    code, out, err = sh(
        'train', 'photos', *SMALL, '--seeds', '2', '--out', 'many', '--device', 'cpu', '--json'
    )
    runs = json.loads(out)['runs']
    assert (
        code == 0
        and [r['seed'] for r in runs] == [0, 1]
        and [r['path'] for r in runs] == ['many/s0', 'many/s1']
        and 'ICH_SOUPS_DEVICE' not in os.environ
    )
    same = [load_weights(f'{r}/averages/last.safetensors') for r in ('run', 'many/s0')]
    assert all((v == same[1][k]).all() for k, v in same[0].items())


def test_a_report(sh, kitchen):
    code, out, err = sh('report', 'run', '--soup', 'soup.safetensors', '--out', 'r.html')
    page = Path('r.html').read_text()
    assert (
        code == 0
        and 'r.html' in out
        and page.count('<html') == 1
        and 'ich-soups report run --soup soup.safetensors --out r.html' in page
    )


def test_help_teaches_by_example(sh, kitchen, monkeypatch):
    code, out, err = sh('cook', '--list')
    assert code == 0 and 'posthoc_ema' in out and not err
    for args in (
        (),
        ('--help',),
        *((c, '--help') for c in ('check', 'train', 'cook', 'eval', 'predict', 'report', 'export', 'demo')),
    ):
        code, out, err = sh(*args)
        assert code == 0 and 'Examples' in out and 'ich-soups' in out and not err
    p = cli(args=(), env=dict(_ICH_SOUPS_COMPLETE='complete_bash', COMP_WORDS='ich-soups tr', COMP_CWORD='1'))
    assert p.communicate()[0].split() == ['train']


def cli(args, env={}, **kw):
    "A process that hears Ctrl-C, even where the tests themselves run in the background and do not."
    return subprocess.Popen(
        [sys.executable, '-m', 'ich_soups.app.cli', *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | env,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **kw,
    )


def test_help_is_quick():
    code = "import sys; from ich_soups.app.cli import main; main(sys.argv[1:]); print([m for m in ('torch', 'fastai', 'timm', 'numpy', 'pandas', 'statsmodels', 'gradio') if m in sys.modules], file=sys.stderr)"
    spent = lambda: sum(
        resource.getrusage(resource.RUSAGE_CHILDREN)[:2]
    )  # of the processor: other programs may want it too
    t0 = spent()
    for words in ([], ['train'], ['demo']):
        assert (
            subprocess.run(
                [sys.executable, '-c', code, *words, '--help'], capture_output=True, text=True
            ).stderr.strip()
            == '[]'
        )
    assert (spent() - t0) / 3 < 1.5


@pytest.mark.parametrize(
    'words, unneeded',
    [
        (['check', 'photos'], ['timm', 'torchvision', 'fastai', 'matplotlib', 'seaborn', 'sklearn']),
        (['cook', '--what', 'soup.safetensors'], ['timm', 'torchvision', 'fastai', 'matplotlib', 'pandas']),
    ],
)
def test_a_look_imports_little(kitchen, words, unneeded):
    "What takes seconds to import is imported by the commands that use it."
    code = 'import sys; from ich_soups.app.cli import main; main(sys.argv[1:])'
    code += f'; print([m for m in {unneeded!r} if m in sys.modules], file=sys.stderr)'
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code, *words], cwd=kitchen, capture_output=True, text=True
    )
    assert done.stderr.splitlines()[-1] == '[]', done.stderr


def test_ctrl_c_keeps_everything(kitchen):
    args, env = (
        ('train', 'photos', '--size', '32', '--bs', '16', '--epochs', '400', '--out', 'long'),
        dict(ICH_SOUPS_HOME=str(kitchen / 'home')),
    )
    p, t0 = cli(args, env, cwd=kitchen), time.time()
    while not (kitchen / 'long' / 'state.pt').exists() and p.poll() is None and time.time() - t0 < 200:
        time.sleep(0.02)
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=300)
    assert p.returncode == 130 and not out and 'Traceback' not in err, (p.returncode, err)
    last = err.splitlines()[-1]
    n = int(re.search(r'interrupted after epoch (\d+) of 400', last)[1])
    assert n >= 1 and 'the same command goes on' in last
    assert torch.load(kitchen / 'long' / 'state.pt', weights_only=True)['epoch'] == n and not [
        f for f in (kitchen / 'long').rglob('.*') if f.name != '.lock'
    ]
    p = cli(('cook', 'long'), env, cwd=kitchen)
    out, err = p.communicate(timeout=300)
    assert p.returncode == 2 and 'not finished' in err and len(err.splitlines()) == 1


def test_a_watched_training_goes_on_where_it_stopped(sh, kitchen):
    from fastai.callback.core import Callback
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from ich_soups.train.finished_run import Run
    from ich_soups.train.runs import get_run

    class Stop(Callback):
        order = 99

        def after_epoch(self):
            raise KeyboardInterrupt

    whole = Run('run')
    with pytest.raises(KeyboardInterrupt):
        get_run(whole.cfg, 'watched', [Stop()])
    code, out, err = sh('train', 'photos', *SMALL, '--out', 'watched', '--log', 'tensorboard')
    assert code == 0 and any('1 of 2 epochs are done' in l for l in err)
    assert [s.sha256 for s in Run('watched').snapshots] == [s.sha256 for s in whole.snapshots]
    events, n = EventAccumulator('watched/logs').Reload(), len(whole.dls[0])
    assert [e.step for e in events.Scalars('val/f1')] == [2] and [
        e.step for e in events.Scalars('train_loss')
    ] == list(range(n + 1, 2 * n + 1))


def test_the_reader_goes_away():
    p = cli(('cook', '--list'))
    p.stdout.close()  # as `| head -0` does
    err = p.stderr.read()
    assert p.wait(60) == 141 and not err, err


@pytest.mark.parametrize('command', ('train photos --out r', 'cook run', 'eval run', 'check photos'))
@pytest.mark.parametrize('seed', ('-1', str(2**32), '1.5'))
def test_a_seed_that_is_none_is_said_at_the_start(sh, kitchen, command, seed):
    code, out, err = sh(*command.split(), '--seed', seed)
    assert code == 2 and len(err) == 1 and '--seed' in err[0] and not Path('r').exists()


def test_a_part_that_was_drawn_here_is_noted_for_checkpoints_of_others(sh, kitchen):
    "Nobody knows what they were trained on; where the part was given, or the model says it, there is no note."
    from ich_soups.train.models import create_model

    torch.save(create_model('test_resnet', 3, 32).state_dict(), 'foreign.pth')
    for p in ('train', 'val', 'test'):
        shutil.copytree('photos', f'parts/{p}')
    ask = ('eval', 'foreign.pth', '--arch', 'test_resnet', '--size', '32', '--data')
    for words, noted in (
        ((*ask, 'photos'), 'test'),
        ((*ask, 'photos', '--split', 'val'), 'val'),
        ((*ask, 'parts'), ''),
        ((*ask, 'photos', '--split', 'all'), ''),
        (('eval', 'run'), ''),
    ):
        code, out, err = sh(*words)
        said = [l for l in err if 'was drawn here' in l]
        assert code == 0 and len(said) == bool(noted), (words, err)
        assert not noted or f'the {noted} part of photos' in said[0]
