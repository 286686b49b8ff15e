"Runs are found by their keys: a changed default, or another way to write JSON, would orphan all of them without a word."

import json
import pytest
from conftest import ROOT
from ich_soups.companion import study_runs
from ich_soups.companion import subsets
from ich_soups.core import Config

pytestmark = pytest.mark.quick

PAPER = dict(data='ich17', pretrained='timm')
KEYS = {
    'the tiny profile': (Config.tiny(), 'small17-test_coatnet-restarts-s0-98520daf'),
    'the smoke profile': (Config.tiny().sketch(), 'small17_500-test_coatnet-restarts-s0-60a66840'),
    'the study of the regime': (
        study_runs.tuned_run(3, 'annealed', 20),
        'small17_3000_3_20-test_coatnet-annealed-s3-a7d263f9',
    ),
    'from scratch': (Config.scratch(), 'scenes17-test_coatnet-restarts-s0-2cc750ce'),
    'its control': (Config.scratch(schedule='annealed'), 'scenes17-test_coatnet-annealed-s0-2b0a354c'),
    'its ResNet': (Config.scratch(arch='test_resnet'), 'scenes17-test_resnet-restarts-s0-70bcde54'),
    'its sketch': (Config.scratch().sketch(), 'scenes17_500-test_coatnet-restarts-s0-0c388b55'),
    'the paper profile': (Config.paper(), 'ich17-coatnet_0_rw_224-restarts-s0-b9969a99'),
    'the larger network of the paper': (
        Config.paper(arch='coatnet_2_rw_224'),
        'ich17-coatnet_2_rw_224-restarts-s0-8ba476cb',
    ),
    'the recipe study': (study_runs.scenes_cfg('restarts', 0), 'scenes17-test_coatnet-restarts-s0-2f31bc11'),
    'its photographs': (study_runs.photos_cfg('flat:1.0', 1), 'ahe10-test_coatnet-flat_1.0-s1-03537285'),
    'its fine-tuned runs': (
        study_runs.lite0_cfg('annealed', 2),
        'groceries14-tf_efficientnet_lite0-annealed-s2-d75aaddf',
    ),
}


@pytest.mark.parametrize('preset', KEYS)
def test_the_key_of_every_preset_is_what_it_was(preset):
    cfg, key = KEYS[preset]
    assert cfg.key == key, (
        f'runs of {preset} on every disk would be trained anew; if that is meant, say it in CHANGELOG.md and write the new key here'
    )


def test_the_study_of_subsets_uses_the_runs_of_the_recipe_study():
    assert set(subsets.subset_runs()) <= {
        cfg for cfg, _ in study_runs.scratch_runs() + study_runs.tuned_plan()
    }


def test_a_run_of_the_command_line_has_its_key():
    cfg = Config.scratch(
        profile='cli', data='scenes17:300', arch='test_coatnet', size=32, epochs=2, bs=16, seed=0
    )
    assert cfg.key == 'scenes17_300-test_coatnet-restarts-s0-fd174dc5'


def test_the_chapters_name_their_presets_by_the_profile():
    "A chapter that trains a `Config.tiny` would do so in a smoke run too."
    for p in sorted((ROOT / 'nbs' / 'chapters').glob('*.ipynb')):
        code = [
            ''.join(c['source'])
            for c in json.loads(p.read_text(encoding='utf-8'))['cells']
            if c['cell_type'] == 'code'
        ]
        own = [s for s in code if not s.startswith('#| export')]
        assert not [
            s for s in own if 'Config.tiny(' in s or 'Config.scratch(' in s or 'Config.paper(' in s
        ], f'{p.name} trains the same in every profile; use Config.chapter'
