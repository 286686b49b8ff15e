"'I do not know': thresholds keep what they say, sets cover what they say, and a header of strangers is read with care."

import json
import warnings
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import softmax
from ich_soups.app.classifier import Classifier
from ich_soups.core import BadInput
from ich_soups.evidence.likeness import Seen, looks
from ich_soups.evidence.unknown import (
    METHOD,
    METHODS,
    SCORES,
    calibration,
    in_sets,
    refused,
    set_threshold,
    stated,
    threshold_of,
    upper_quantile,
    verdicts,
)
from ich_soups.soups import records
from ich_soups.soups.saving import save_weights
from ich_soups.soups.records import onnx_info, read_info
from ich_soups.soups.soup import Soup

pytestmark = pytest.mark.quick

NAN = float('nan')


def seen(n, features=12, seed=0):
    "What a body sees of images, and how they look."
    r = np.random.default_rng(seed)
    return Seen(r.normal(size=(n, features)).astype(np.float32), r.normal(size=(n, 8)))


def told_by_likeness(n=300):
    "What val says of a model that remembers its training images."
    logits, targs = drawn(n)
    return calibration(logits, targs, seen(n, seed=1), seen(400), np.arange(400) % 6)


UNKNOWN = dict(score='energy', threshold=-1.5, keeps=0.95, val=100)
SETS = dict(coverage=0.9, threshold=0.8, method='lac', val=100)


def drawn(n, classes=6, seed=0):
    "Logits, and labels that are drawn from their probabilities."
    r = np.random.default_rng(seed)
    logits = r.normal(0, 2, (n, classes))
    return logits, (r.random((n, 1)) > softmax(logits, 1).cumsum(1)).sum(1)


@pytest.mark.parametrize('n', [19, 39, 200])
def test_a_threshold_keeps_what_it_says(n):
    "On average over validation parts of any size, exactly as theory has it."
    r = np.random.default_rng(n)
    kept = [1 - refused(r.normal(size=50), threshold_of(r.normal(size=n))).mean() for _ in range(2000)]
    want = np.ceil(round((n + 1) * 0.95, 9)) / (n + 1)
    assert want >= 0.95 and abs(np.mean(kept) - want) < 0.005


def test_too_few_images_promise_nothing():
    assert threshold_of(np.arange(18)) == -np.inf
    assert upper_quantile([], 0.9) == np.inf
    logits, targs = drawn(8)
    assert list(calibration(logits, targs)) == ['temperature']


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('n', [20, 300])
def test_sets_cover_what_they_say(method, n):
    "Also those of a model that is far too sure."
    covered = []
    for seed in range(150):
        logits, targs = drawn(n + 200, seed=seed)
        logits = 3 * logits
        q = set_threshold(logits[:n], targs[:n], 0.9, method=method)
        inside = in_sets(logits[n:], q, method=method)
        covered.append(inside[np.arange(200), targs[n:]].mean())
    want = np.ceil(round((n + 1) * 0.9, 9)) / (n + 1)
    assert abs(np.mean(covered) - want) < 0.015


def test_verdicts_are_plain_and_follow_the_thresholds():
    logits, targs = drawn(2000)
    model = calibration(logits[:1000], targs[:1000])
    said = verdicts(logits[1000:], **model)
    assert json.loads(json.dumps(said)) == said
    assert abs(np.mean([v['unknown'] for v in said]) - 0.05) < 0.03
    assert [v['set'][0] for v in said] == logits[1000:].argmax(1).tolist()
    assert np.mean([c in v['set'] for v, c in zip(said, targs[1000:])]) > 0.87
    assert verdicts(logits[:1]) == [dict(unknown=None, score=None, set=None)]
    assert verdicts(np.full((1, 6), NAN), **model)[0]['unknown']


def test_a_model_without_a_threshold_is_named():
    with pytest.raises(
        BadInput, match='old.safetensors does not say from when on an image is unknown; cook it'
    ):
        stated(dict(temperature=1.0), 'unknown', 'old.safetensors')
    with pytest.raises(BadInput, match='how large its sets of classes are'):
        stated({}, 'sets', 'old.safetensors')
    assert stated(dict(unknown=UNKNOWN), 'unknown', 'a soup') == UNKNOWN


ODD = dict(
    unknown=[
        *(UNKNOWN | dict(threshold=v) for v in (NAN, float('inf'), 'high', None, True, [1])),
        UNKNOWN | dict(score='probability', threshold=7),
        *(UNKNOWN | dict(score=v) for v in ('distance', None, ['energy'])),
        *(UNKNOWN | dict(keeps=v) for v in (0, 1, '95 %')),
        *(UNKNOWN | dict(val=v) for v in (0, 2.5)),
        {k: v for k, v in UNKNOWN.items() if k != 'threshold'},
        *(0.5, [], None),
    ],
    sets=[
        *(SETS | dict(threshold=v) for v in (NAN, -0.1, 'x')),
        SETS | dict(method='best'),
        SETS | dict(coverage=0),
        *(0.9, {}),
    ],
)


@pytest.mark.parametrize('field, value', [(k, v) for k, vs in ODD.items() for v in vs])
def test_an_odd_threshold_in_a_header_is_one_sentence(tmp_path, field, value):
    at = tmp_path / 's.safetensors'
    header = dict(ingredients=['a'], coefs=[1.0], info={field: value})
    save_weights({'w': torch.zeros(2)}, at, dict(soup=json.dumps(header)))
    for read in (lambda: Soup.load(at), lambda: onnx_info(about(provenance={field: value}), at)):
        with pytest.raises(BadInput, match=field) as e:
            read()
        assert 's.safetensors' in str(e.value) and '\n' not in str(e.value)


def about(**more):
    "What an ONNX file says of itself."
    said = dict(classes=['a', 'b'], size=8, mean=[0.5] * 3, std=[0.5] * 3) | more
    return {k: json.dumps(v) for k, v in said.items()}


def test_what_is_computed_can_be_stored_and_read(tmp_path):
    said = calibration(*drawn(300))
    assert read_info(json.loads(json.dumps(said)), 'here') == said
    assert onnx_info(about(provenance=said), 'm.onnx')['provenance'] == said
    soup = Soup({'w': torch.zeros(2)}, ['a'], [1.0], 'uniform', [], said)
    soup.save(tmp_path / 's.safetensors')
    assert Soup.load(tmp_path / 's.safetensors').info == said


def test_both_rooms_know_the_same_names():
    "The reader of headers may not import the scores."
    assert list(records._THRESHOLDS) == [*SCORES, 'likeness']
    for method in METHODS:
        records._sets(SETS | dict(method=method))
    assert METHOD in METHODS


def test_strangers_to_the_eye_and_to_the_body_are_told_and_logits_alone_are_judged_by_their_energy():
    said = told_by_likeness()
    logits, _ = drawn(200, seed=5)
    unknown = lambda images: np.mean([v['unknown'] for v in verdicts(logits, **said, seen=images)])
    known = seen(200, seed=6)
    assert said['unknown']['score'] == 'likeness' and unknown(known) < 0.15
    assert unknown(Seen(known.features + 5, known.looks)) > 0.9
    assert unknown(Seen(known.features, known.looks + 5)) > 0.9
    alone = [v['unknown'] for v in verdicts(logits, **said)]
    by_energy = dict(score='energy', threshold=said['unknown']['energy'], keeps=0.95, val=300)
    assert alone == [v['unknown'] for v in verdicts(logits, unknown=by_energy)]


def test_what_a_model_remembers_of_its_images_is_stored_with_it(tmp_path):
    said = told_by_likeness()
    assert read_info(json.loads(json.dumps(said)), 'here') == said
    assert onnx_info(about(provenance=said), 'm.onnx')['provenance'] == said
    Soup({'w': torch.zeros(2)}, ['a'], [1.0], 'uniform', [], said).save(tmp_path / 's.safetensors')
    again = Soup.load(tmp_path / 's.safetensors').info
    logits, images = drawn(50, seed=7)[0], seen(50, seed=7)
    assert verdicts(logits, **again, seen=images) == verdicts(logits, **said, seen=images)
    assert len(json.dumps(said)) < 20_000


@pytest.mark.parametrize('at', ['seen', 'look'])
@pytest.mark.parametrize(
    'field, value',
    [
        ('origin', ''),
        ('origin', 'AADAfw=='),
        ('origin', 'AACAPw=='),
        ('directions', '!'),
        ('means', 'AACAPw=='),
        ('precision', 'AACAPw=='),
        ('precision', None),
        ('k', 0),
        ('k', 65),
        ('k', 3),
        ('rest', -1),
        ('rest', NAN),
        ('rest', '1'),
    ],
)
def test_memories_of_strangers_are_read_with_care(at, field, value):
    odd = json.loads(json.dumps(told_by_likeness()))
    odd['unknown']['likeness'][at][field] = value
    with pytest.raises(BadInput, match='here.*unknown') as e:
        read_info(odd, 'here')
    assert '\n' not in str(e.value) and len(str(e.value)) < 600


@pytest.mark.parametrize('field', ['energy', 'likeness', 'centre', 'spread', 'look'])
def test_memories_with_a_gap_are_refused(field):
    odd = told_by_likeness()
    of = odd['unknown'] if field in odd['unknown'] else odd['unknown']['likeness']
    del of[field]
    with pytest.raises(BadInput, match='unknown'):
        read_info(odd, 'here')


def test_memories_of_another_network_are_one_sentence():
    c = Classifier(None, list('abcdef'), 8, name='it', info=told_by_likeness())
    with pytest.raises(BadInput, match='what it says of unknown images belongs to another network'):
        c.verdicts(drawn(5)[0], seen=seen(5, features=7))


def test_too_few_training_images_leave_the_energy():
    logits, targs = drawn(100)
    said = calibration(logits, targs, seen(100), seen(19), np.arange(19) % 6)
    assert said['unknown']['score'] == 'energy' and 'likeness' not in said['unknown']


def test_looks_are_taken_only_where_a_threshold_asks_for_them(monkeypatch):
    monkeypatch.setattr('ich_soups.app.classifier.looks', lambda x: pytest.fail('nobody asked'))
    told = told_by_likeness()
    forward = lambda x: (np.zeros((len(x), 6)), np.zeros((len(x), 12)))
    images = [Image.new('RGB', (8, 8))] * 3
    plain = Classifier(forward, list('abcdef'), 8, info=dict(unknown=UNKNOWN))
    assert [seen for *_, seen in plain.answers(images)] == [None]
    asks = Classifier(forward, list('abcdef'), 8, info=told)
    assert asks.logits(images).shape == (3, 6) and asks.features(images).shape == (3, 12)
    with pytest.raises(pytest.fail.Exception, match='nobody asked'):
        next(asks.answers(images))


@pytest.mark.parametrize('size', [1, 3, 5, 64])
def test_images_of_any_size_have_eight_looks(size):
    x = np.random.default_rng(0).normal(size=(2, 3, size, size))
    with np.errstate(all='ignore'), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert looks(x).shape == (2, 8)
