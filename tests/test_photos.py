"Real photographs: Architectural Heritage Elements, where the folder is at hand."

import time
import numpy as np
import pytest
from ich_soups.core import Config
from ich_soups.data.photos import check_folder
from ich_soups.data.loaders import image_dls
from ich_soups.data.collections import load_pictures
from ich_soups.soups.weights import uniform_soup
from ich_soups.train.scoring import evaluate
from ich_soups.train.runs import get_run


def test_the_collection_is_split_and_cached(home, ahe10):
    pics = load_pictures('ahe10')
    assert len(pics) == 11_448 and len(pics.classes) == 10
    assert [len(pics.idxs(s)) for s in ('test', 'val')] == [
        round(11_448 * 749 / 7406),
        round(11_448 * 600 / 7406),
    ]
    first = np.array(pics.pixels(64)[:5])
    t0 = time.process_time()
    again = load_pictures('ahe10')
    assert again.fingerprint == pics.fingerprint and np.array_equal(again.pixels(64)[:5], first)
    assert time.process_time() - t0 < 3  # nothing is decoded twice
    assert check_folder(ahe10).ok


@pytest.mark.parametrize('data', ['ahe10:800', pytest.param('ahe10', marks=pytest.mark.slow)])
def test_three_epochs_see_something(home, ahe10, data):
    run = get_run(Config.scratch(data=data, epochs=3, k=2, bs=32))
    soup = uniform_soup(run.snapshots)
    chance = np.bincount(run.targs('test')).max() / len(run.targs('test'))
    assert evaluate(run, run.best().weights()).value['accuracy'] > (1.3 if ':' in data else 2) * chance
    assert set(soup.weights) == set(run.model.state_dict())


def test_batches_are_photographs(home, ahe10):
    dls = image_dls('ahe10', 64, bs=32, device='cpu')
    x, y = dls.train.one_batch()
    assert x.shape == (32, 3, 64, 64) and x.std() > 0.2 and y.max() < 10
