"""The ways to a model beside one training, from the command line: a first model, more photographs, folds, rare classes, the unknown."""

import csv
import json
from pathlib import Path
import numpy as np
import pytest
from PIL import Image
from ich_soups.app.cli import main
from ich_soups.data.collections import load_pictures
from ich_soups.soups.soup import Soup

NETWORK = ['--arch', 'test_coatnet', '--pretrained', 'bundled', '--size', '32']


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "A folder of 360 drawn scenes in five classes, the first of them with the most images."
    root, pics = tmp_path_factory.mktemp('photos'), load_pictures('scenes17:2000')
    counts = np.bincount(pics.labels)
    for rank, c in enumerate(np.argsort(-counts)[:5]):
        folder = root / pics.classes[c]
        folder.mkdir()
        for i in np.where(pics.labels == c)[0][: 120 - 24 * rank]:
            Image.fromarray(pics.array[i]).save(folder / f'{i}.png')
    return root


@pytest.fixture(scope='module')
def first(photos, tmp_path_factory):
    "The run of a first model of them."
    out = tmp_path_factory.mktemp('runs') / 'first'
    assert main(['train', photos, '--fast', *NETWORK, '--out', out]) == 0
    return out


def test_a_first_model_comes_with_its_soup_and_its_report(first, capsys):
    soup = Soup.load(first / 'soup.safetensors')
    assert soup.info['temperature'] > 0 and soup.info['unknown']['keeps'] == 0.95
    assert (first / 'report.html').stat().st_size > 100_000
    assert json.loads((first / 'DONE').read_text())['head']['strength'] > 0


def test_it_knows_more_than_chance_and_a_second_call_trains_nothing(first, photos, capsys):
    before = (first / 'DONE').stat().st_mtime_ns
    assert main(['train', photos, '--fast', *NETWORK, '--out', first, '--json']) == 0
    scores = json.loads(capsys.readouterr().out)['scores']
    assert scores['accuracy']['value'] > 0.45 and (first / 'DONE').stat().st_mtime_ns == before


def test_strangers_are_called_unknown_unless_all_are_accepted(first, photos, tmp_path, capsys):
    "The threshold is put above everything, so that every image is a stranger."
    soup = Soup.load(first / 'soup.safetensors')
    soup.info['unknown'] |= dict(threshold=1e5)
    soup.save(tmp_path / 'strict.safetensors')
    images = sorted(photos.rglob('*.png'))[:3]
    assert main(['predict', tmp_path / 'strict.safetensors', *images, '--csv', tmp_path / 'a.csv']) == 0
    rows = list(csv.DictReader(open(tmp_path / 'a.csv')))
    assert [r['unknown'] for r in rows] == ['yes'] * 3 and all(r['set'] for r in rows)
    assert main(['predict', tmp_path / 'strict.safetensors', images[0]]) == 0
    assert 'unknown, nearest to' in capsys.readouterr().out
    assert main(['predict', tmp_path / 'strict.safetensors', images[0], '--accept-all', '--json']) == 0
    assert json.loads(capsys.readouterr().out)['pictures'][0]['unknown'] is None


def test_a_soup_without_a_threshold_names_a_class_and_says_so(first, photos, tmp_path, capsys):
    soup = Soup.load(first / 'soup.safetensors')
    del soup.info['unknown']
    soup.save(tmp_path / 'old.safetensors')
    assert main(['predict', tmp_path / 'old.safetensors', next(photos.rglob('*.png'))]) == 0
    said = capsys.readouterr()
    assert 'does not say from when on' in said.err and 'unknown' not in said.out


@pytest.mark.parametrize('threshold', ['high', None, [1], 1e9])
def test_an_odd_threshold_is_refused_in_one_sentence(first, photos, tmp_path, capsys, threshold):
    soup = Soup.load(first / 'soup.safetensors')
    soup.info['unknown'] |= dict(threshold=threshold)
    soup.save(tmp_path / 'odd.safetensors')
    assert main(['predict', tmp_path / 'odd.safetensors', next(photos.rglob('*.png'))]) == 2
    assert 'odd.safetensors' in capsys.readouterr().err


def test_cook_balances_what_costs_little(first, tmp_path, capsys):
    assert main(['cook', first, '--balance', '--out', tmp_path / 'soup.safetensors', '--json']) == 0
    told = json.loads(capsys.readouterr().out)['info']['balance']
    assert told['f1_after'] >= told['f1_before'] and told['accuracy_after'] >= told['accuracy_before'] - 0.005


def test_balance_of_files_needs_images(first, tmp_path, capsys):
    soup = str(first / 'soup.safetensors')
    assert main(['cook', soup, '--balance', '--out', tmp_path / 'b.safetensors']) == 2
    assert '--balance counts images' in capsys.readouterr().err


def test_a_run_goes_on_with_more_photographs(first, photos, tmp_path, capsys):
    import shutil

    grown, made = tmp_path / 'grown', load_pictures('scenes17:2000:7')
    shutil.copytree(photos, grown)
    for folder in sorted(grown.iterdir()):
        label = made.classes.index(folder.name)
        for i in np.where(made.labels == label)[0][:12]:
            Image.fromarray(made.array[i]).save(folder / f'new {i}.png')
    out = tmp_path / 'more'
    assert main(['train', grown, '--more', first, '--epochs', '1', '--out', out, '--json']) == 0
    doc = json.loads(capsys.readouterr().out)
    assert Path(doc['soup']).exists() and {'before', 'after'} <= set(doc['old_classes'][0])


def test_folds_judge_every_image(photos, tmp_path, capsys):
    words = [
        'train',
        photos,
        '--folds',
        '2',
        *NETWORK,
        '--epochs',
        '1',
        '--out',
        tmp_path / 'folds',
        '--json',
    ]
    assert main(words) == 0
    doc = json.loads(capsys.readouterr().out)
    assert sum(f['n'] for f in doc['folds']) == len(list(photos.rglob('*.png')))
    assert Path(doc['soup']).exists()


@pytest.mark.parametrize(
    'words, said',
    [
        (['--fast', '--folds', '3'], '--fast does not go with --folds'),
        (['--fast', '--epochs', '3'], '--fast does not go with --epochs'),
        (['--fast', '--pretrained', ''], 'there is none'),
        (['--more', 'nowhere'], 'nowhere does not exist'),
        (['--more', 'nowhere', '--schedule', 'annealed'], '--more does not go with --schedule'),
        (['--folds', '1'], 'fold'),
        (['--folds', '99'], 'fold'),
        (['--balance', 'twice'], 'unknown balance'),
    ],
)
def test_what_cannot_be_meant_is_said_before_anything_is_trained(photos, tmp_path, capsys, words, said):
    assert main(['train', photos, *words, '--out', tmp_path / 'run']) == 2
    assert said in capsys.readouterr().err and not (tmp_path / 'run' / 'DONE').exists()
