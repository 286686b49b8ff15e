"The evidence: what the tables claim, how far the numbers behind them can be trusted, and what they cost."

import time
import numpy as np, pandas as pd
import pytest
from scipy.special import softmax
from conftest import ROOT
from ich_soups.companion.bench_averaging import peak_memory
from ich_soups.evidence.bias_variance import bias_variance
from ich_soups.core import BadInput
from ich_soups.evidence.diversity import DISTANCES, model_distance, q_statistic
from ich_soups.evidence.metrics import ece_interval
from ich_soups.companion.published import VERDICTS, claims


def models(m=3, n=40, c=4, seed=0):
    return softmax(np.random.default_rng(seed).normal(size=(m, n, c)) * 2, -1)


BAD = {
    'does not sum to 1': lambda p, t: (p * 2, t),
    'is negative': lambda p, t: (
        np.concatenate([p[..., :1] + p[..., 1:2] + 0.1, -0.1 + 0 * p[..., :1], p[..., 2:]], -1),
        t,
    ),
    'give probabilities, not logits': lambda p, t: (np.log(p), t),
    'model 1 hold NaN': lambda p, t: (np.where(np.arange(len(p))[:, None, None] == 1, np.nan, p), t),
    'infinity': lambda p, t: (p / 0, t),
    'two models': lambda p, t: (p[:1], t),
    'models, images, classes': lambda p, t: (p[0], t),
    'scored on different images': lambda p, t: ([p[0], p[1, :9]], t),
    'no images': lambda p, t: (p[:, :0], t[:0]),
}
BAD_LABELS = {
    'but there are 7 labels': lambda t: t[:7],
    'label 4 lies outside the 4 classes': lambda t: np.where(t == t[0], 4, t),
    'label -1 lies outside': lambda t: t - 1,
    'whole numbers': lambda t: t + 0.5,
    'float64': lambda t: t * np.nan,
}


@pytest.mark.parametrize('says', BAD)
@pytest.mark.filterwarnings('ignore:divide by zero')
def test_what_are_no_probabilities_gets_one_sentence_everywhere(says):
    p, t = BAD[says](models(), np.arange(40) % 4)
    for f in [
        lambda: q_statistic(p, t),
        *[lambda l=l: bias_variance(p, t, l) for l in ('squared', 'kl', '01')],
        *[lambda k=k: model_distance(p, k) for k in DISTANCES],
    ]:
        with pytest.raises(BadInput, match=says) as e:
            f()
        assert '\n' not in str(e.value) and len(str(e.value)) < 200


@pytest.mark.parametrize('says', BAD_LABELS)
def test_labels_that_are_none_get_one_sentence_everywhere(says):
    t = BAD_LABELS[says](np.arange(40) % 4)
    for f in [
        lambda: q_statistic(models(), t),
        *[lambda l=l: bias_variance(models(), t, l) for l in ('squared', 'kl', '01')],
    ]:
        with pytest.raises(BadInput, match=says):
            f()


@pytest.mark.parametrize('kind', DISTANCES)
def test_sixty_four_models_in_two_seconds(kind):
    "64 models, 5,000 images, 17 classes: seconds of the processor, all threads together, the best of three; on a quiet machine the clock shows no more."
    big, took = models(64, 5000, 17).astype(np.float32), []
    for _ in range(3):
        t0 = time.process_time()
        model_distance(big, kind)
        took.append(time.process_time() - t0)
    assert min(took) < 2, took


def beyond_the_input(kind, n, c):
    "Peak memory of the distances between 64 models, MiB, without that of the probabilities."
    imports = 'import numpy as np; from ich_soups.evidence.diversity import model_distance; p = np.full((64, args[1], args[2]), 1/args[2], np.float32); model_distance(p[:2, :9], args[0])'
    return peak_memory(imports, 'model_distance(p, args[0])', kind, n, c)


def test_sixty_four_models_in_half_a_gigabyte():
    assert beyond_the_input('sqrt_js', 5000, 17) < 500


@pytest.mark.parametrize('kind, n', [('ce', 1000), pytest.param('sqrt_js', 200, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_pictures_or_classes(kind, n):
    "64 models on 10,000 images of 1,000 classes are 2.4 GiB; what is needed beyond that are a few blocks, and no copy: measured on a tenth of the images, or on a fiftieth where every pair of models is gone through."
    assert beyond_the_input(kind, n, 1000) < 64


def test_the_interval_of_the_calibration_error_covers():
    "Of 150 test sets of a calibrated model, and of one whose logits are a quarter too large, at the size of the paper's test set and at a fifth of it."
    r = np.random.default_rng(1)
    l = r.normal(size=(60_000, 7)) * 1.5 + 2.2 * np.eye(7)[r.integers(0, 7, 60_000)]
    t = (softmax(l, 1).cumsum(1) > r.random((len(l), 1))).argmax(1)
    for factor, n in ((1, 150), (1, 749), (1.25, 749)):
        p, hit = softmax(factor * l, 1), (l.argmax(1) == t)
        b = np.minimum((p.max(1) * 15).astype(int), 14)
        true = sum(abs((hit[b == k] - p.max(1)[b == k]).sum()) for k in range(15)) / len(l)
        covered = np.mean(
            [
                lo - 0.004 <= true <= hi
                for j in r.integers(0, len(l), (150, n))
                for lo, hi in [ece_interval(factor * l[j], t[j], n_boot=200)]
            ]
        )  # the truth is itself measured, on 60,000
        assert 0.87 < covered, (factor, n, covered)


def test_every_claim_has_its_verdict_from_the_committed_tables():
    df = claims(ROOT / 'figures')
    assert len(df) >= 9 and df.notna().all(axis=None) and df.verdict.isin(VERDICTS).all()
    readme = (ROOT / 'README.md').read_text(encoding='utf-8')
    for r in df.itertuples():
        assert r.measured in readme and r.verdict in readme, f'the README tells another story of: {r.claim}'


def test_the_committed_evidence_adds_up():
    "The parts are not negative and sum to the error; the changes are those of the parts."
    df = pd.read_csv(ROOT / 'figures' / 'bias_variance.csv')
    wide = df.pivot(index=['panel', 'model'], columns='part', values='value')
    assert (wide.variance > 0).all() and (wide['bias²'] > 0).all()
    assert (abs(wide['bias²'] + wide.variance - wide.total) < 1e-4).all()
    for (panel, model), now in wide.iterrows():
        was = wide.loc[(panel, 'single best')]
        if model == 'single best':
            continue
        assert abs(100 * (now['bias²'] - was['bias²']) / was.total - now['bias, % of the error']) < 0.02
        assert abs(100 * (now.variance / was.variance - 1) - now['variance, % of itself']) < 0.02
    changes = df[df.lo.notna()]
    assert (changes.lo <= changes.value).all() and (changes.value <= changes.hi).all()
