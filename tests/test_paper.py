"The paper's table, end to end, on drawn images in the authors' layout with weights from a folder."

import os, subprocess, sys
import pandas as pd
import pytest
import timm
from PIL import Image
from safetensors.torch import save_file
from conftest import ROOT
from ich_soups.core import BadInput
from ich_soups.train.relatives import RELATIVES
from ich_soups.train.models import create_model
from ich_soups.companion.paper import main
from ich_soups.data.scenes import scenes17

SIZE = 32


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A folder with the photographs, the weights, and room for a home and for results; the name has a space and an accent."
    at = tmp_path_factory.mktemp('đồng bằng')
    s, parts = scenes17(17 * 60, SIZE, noise=0), ('train',) * 8 + ('val',) * 3 + ('test',) * 4
    for c, name in enumerate(s.classes):
        for i, (part, im) in enumerate(zip(parts, s.images[s.labels == c])):
            (to := at / 'ich 17' / part / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(im).save(to / f'ảnh {i}.jpg', quality=95)
    (at / 'weights').mkdir()
    for a in RELATIVES:
        kw = {} if a in ('test_resnet', 'tiny_densenet') else dict(img_size=SIZE)
        save_file(
            timm.create_model(a, num_classes=1000, **kw).state_dict(), at / 'weights' / f'{a}.safetensors'
        )
    return at


def make(at, **over):
    "make paper, as the README has it, in the Python that runs the tests."
    v = (
        dict(
            DATA=at / 'ich 17',
            WEIGHTS=at / 'weights',
            MODELS=','.join(RELATIVES),
            SEEDS=2,
            EPOCHS=2,
            SIZE=SIZE,
            BS=32,
            OUT=at / 'out',
        )
        | over
    )
    cmd = [
        'make',
        '-o',
        'setup',
        'paper',
        f'VENV={sys.prefix}',
        *[f'{k}={x}' for k, x in v.items() if x is not None],
    ]
    return subprocess.run(
        cmd,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ
        | dict(
            ICH_SOUPS_HOME=str(at / 'home'),
            PYTHONWARNINGS='ignore',
            HF_HUB_OFFLINE='1',
            HF_HOME=str(at / 'hub'),
        ),
    )


def in_process(at, monkeypatch, *args):
    monkeypatch.setenv('ICH_SOUPS_HOME', str(at / 'home'))
    with pytest.raises(SystemExit) as e:
        main([str(at / 'ich 17'), *args])
    return e.value.code


@pytest.fixture(scope='module')
def made(place):
    return make(place)


def test_one_command_makes_the_table(place, made):
    assert made.returncode == 0, made.stderr
    df = pd.read_csv(place / 'out' / 'results.csv').set_index('name')
    singles = {'small ResNet': 65.55, 'small DenseNet': 64.35, 'small ViT': 70.09, 'tiny CoAtNet': 70.63}
    assert df.published_accuracy[list(singles)].to_dict() == singles
    assert df.published_accuracy[['tiny CoAtNet + uniform soup', 'tiny CoAtNet + greedy soup']].tolist() == [
        71.30,
        71.03,
    ]
    assert {'EMA', 'SWA', 'annealed, last epoch', 'soft voting, logits'} <= set(df.model) and (
        df.seeds == 2
    ).all()
    assert (
        (df.accuracy_lo <= df.accuracy).all()
        and (df.next_lo <= df.accuracy_lo).all()
        and df.test_pictures.eq(68).all()
    )
    rows = pd.read_csv(place / 'out' / 'rows.csv')
    assert rows.run.nunique() == 8 and rows[
        ['device', 'date', 'dtype', 'training_seconds', 'weights', 'pictures']
    ].notna().all(axis=None)
    assert rows.groupby('run').size().max() > 10 and not rows.duplicated(['run', 'model']).any()
    text = (place / 'out' / 'results.md').read_text(encoding='utf-8')
    assert text.count('The published ') == 6 and 'nan' not in text and '| small ViT | 2 |' in text
    with Image.open(place / 'out' / 'results.png') as im:
        assert min(im.size) > 300


def test_it_says_in_what_that_is_not_the_paper(place, made):
    lines = [l for l in made.stderr.splitlines() if l.startswith('warning: ')]
    for what in (
        '255 images; ICH-17 has 7,406',
        '136 train images',
        '51 val images',
        '68 test images',
        'size is 32, not 224',
        'epochs is 2, not 50',
        "not the paper's networks: small ResNet",
    ):
        assert sum(what in l for l in lines) == 1, (what, made.stderr)
    assert not any('classes' in l for l in lines)  # there are seventeen
    assert 'not** the experiment of the paper' in (place / 'out' / 'results.md').read_text(encoding='utf-8')


def test_the_second_time_trains_nothing_and_a_third_seed_trains_its_own(place, made, monkeypatch, capsys):
    rows = (place / 'out' / 'rows.csv').read_bytes()
    done = {p: p.stat().st_mtime_ns for p in (place / 'home' / 'runs').rglob('DONE')}
    monkeypatch.setenv('ICH_SOUPS_HOME', str(place / 'home'))
    args = [
        str(place / 'ich 17'),
        '--weights',
        str(place / 'weights'),
        '--epochs',
        '2',
        '--size',
        str(SIZE),
        '--bs',
        '32',
        '--out',
        str(place / 'out'),
    ]
    main([*args, '--models', ','.join(RELATIVES), '--seeds', '2'])
    assert (place / 'out' / 'rows.csv').read_bytes() == rows and capsys.readouterr().out.count(
        'in the table'
    ) == 8
    assert (
        len(done) == 10 and {p: p.stat().st_mtime_ns for p in (place / 'home' / 'runs').rglob('DONE')} == done
    )
    main([*args, '--models', 'small ResNet', '--seeds', '3'])
    assert (
        capsys.readouterr().out.count('in the table') == 2
        and len(list((place / 'home' / 'runs').rglob('DONE'))) == 11
    )
    assert pd.read_csv(place / 'out' / 'results.csv').seeds.tolist() == [3, 3]


def test_the_weights_are_those_of_the_folder(place, made):
    from ich_soups.soups.checkpoints import load_weights

    for a in RELATIVES:
        body, theirs = (
            create_model(a, 17, SIZE, str(place / 'weights')).state_dict(),
            load_weights(place / 'weights' / f'{a}.safetensors'),
        )
        other = [k for k, v in body.items() if v.shape != theirs[k].shape or not (v == theirs[k]).all()]
        assert len(other) == 2 and {len(body[k]) for k in other} == {17}


def test_what_cannot_work_is_said_before_anything_is_trained(place, monkeypatch, capsys):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    n = len(list((place / 'home' / 'runs').glob('*')))
    for args, said in (
        (
            ('--models', 'coatnet-0', '--weights', str(place / 'weights')),
            'holds no weights of coatnet_0_rw_224.sw_in1k: looked for coatnet_0_rw_224.sw_in1k.safetensors',
        ),
        (('--models', 'resnet_51'), "unknown architecture 'resnet_51'"),
        (('--weights', str(place / 'nowhere')), 'nowhere does not exist; give a folder of weights'),
        (('--seeds', '0'), 'seeds is a positive number'),
        (('--bs', '33'), 'cannot be computed in 2 equal parts'),
        (('--models', 'small ResNet', '--weights', 'none', '--out', __file__), 'cannot be written to'),
    ):
        assert in_process(place, monkeypatch, *args, '--size', '224') == 2
        err = capsys.readouterr().err.strip().splitlines()
        assert said in err[-1] and not any('Traceback' in l for l in err), err
    assert len(list((place / 'home' / 'runs').glob('*'))) == n


def test_no_download_is_one_sentence(place):
    p = make(place, WEIGHTS=None, MODELS='coatnet-0', SIZE=224)
    said = [l for l in p.stderr.splitlines() if 'could not be fetched' in l]
    assert (
        p.returncode
        and len(said) == 1
        and 'timm/coatnet_0_rw_224.sw_in1k' in said[0]
        and 'python -m ich_soups.train.models FOLDER' in said[0]
        and 'Traceback' not in p.stderr
    )


def test_weights_of_another_network_are_refused(place):
    with pytest.raises(BadInput, match='not weights of test_resnet'):
        create_model('test_resnet', 17, SIZE, str(place / 'weights' / 'test_coatnet.safetensors'))
