"The README's blocks of Python are run as they stand, on small things: only the length of the training is cut."

import re
import numpy as np
import pytest
import torch
from fastai.basics import DataLoaders, Learner, accuracy
from PIL import Image
from torch import nn
from conftest import ROOT
from ich_soups.data.scenes import scenes17
from ich_soups.soups.saving import save_weights

README = (ROOT / 'README.md').read_text(encoding='utf-8')
BLOCKS = re.findall(r'```python\n(.*?)```', README, re.S)


def block(word):
    (found,) = [b for b in BLOCKS if word in b]
    return found


def test_no_block_is_forgotten():
    assert len(BLOCKS) == 3


def test_a_folder_of_photographs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('ICH_SOUPS_HOME', str(tmp_path / 'home'))
    s = scenes17(200, 48, noise=0)
    for i in np.flatnonzero(s.labels < 3):
        (f := tmp_path / 'path/to/photos' / s.classes[s.labels[i]] / f'{i}.png').parent.mkdir(
            parents=True, exist_ok=True
        )
        Image.fromarray(s.images[i]).save(f)
    code = block('get_run')
    assert 'epochs=15' in code
    names = {}
    exec(code.replace('epochs=15', 'epochs=2, size=32, bs=16'), names)
    assert (tmp_path / 'soup.safetensors').exists() and names['soup'].ingredients


@pytest.mark.quick
def test_a_learner(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    xy = torch.utils.data.TensorDataset(x := torch.randn(64, 3), (x.sum(1) > 0).long())
    dls = DataLoaders(*[torch.utils.data.DataLoader(xy, 16) for _ in 'tv'])
    learn = Learner(dls, nn.Linear(3, 2), nn.CrossEntropyLoss(), metrics=accuracy, path=tmp_path)
    code = block('learn.soup()')
    assert '(20,' in code
    with learn.no_bar(), learn.no_logging():
        exec(code.replace('(20,', '(3,'), names := dict(learn=learn))
    for k, v in names['soup'].weights.items():
        assert torch.equal(learn.model.state_dict()[k], v)


@pytest.mark.quick
def test_checkpoints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models = [nn.Linear(3, 2) for _ in range(3)]
    (tmp_path / 'path/to/checkpoints').mkdir(parents=True)
    for i, m in enumerate(models):
        save_weights(m.state_dict(), tmp_path / f'path/to/checkpoints/epoch_{i}.safetensors')
    x = torch.randn(50, 3)
    names = dict(model=nn.Linear(3, 2), x_val=x, y_val=(x.sum(1) > 0).long().numpy())
    exec(block('find_checkpoints'), names)
    assert 'greedy' in names['soup'].recipe and (tmp_path / 'soup.safetensors').exists()
