"Cross-validation for small collections: folds, their scores, what is refused, what survives a stop."

import json
import shutil
from pathlib import Path
import numpy as np
import pytest
from conftest import put
from ich_soups.app.cli import main
from ich_soups.core import BadInput, Config
from ich_soups.data.collections import load_pictures
from ich_soups.data.pictures import Pictures
from ich_soups.data.splits import half_width, split_shares
from ich_soups.soups.soup import Soup
from ich_soups.train.finished_run import Run
from ich_soups.train.folds import fold_lists, fold_parts, run_folds, score_folds, with_val


@pytest.fixture
def folder(tmp_path, home, drawn):
    put(tmp_path / 'photos', drawn, range(9), range(3))
    return tmp_path / 'photos'


def config(data, **over):
    return Config(**dict(data=str(data), size=32, epochs=1, bs=8, lr=2e-3, schedule='flat:1.0', k=1) | over)


def test_every_image_is_tested_once_and_the_lists_say_so(folder, tmp_path):
    *lists, every = fold_lists(folder, 3, tmp_path / 'out')
    assert [p.name for p in lists] == ['fold_1.csv', 'fold_2.csv', 'fold_3.csv'] and every.name == 'all.csv'
    pics = [load_pictures(p) for p in lists]
    assert (sum((p.part == 'test').astype(int) for p in pics) == 1).all()
    for p in pics:
        assert all(min(n.values()) >= 1 for n in p.counts().values())
    with pytest.warns(UserWarning, match='no test part'):
        assert set(load_pictures(every).part) == {'train', 'val'}


def test_copies_and_series_stay_together(folder, drawn):
    put(folder, drawn, range(4), [0], 'copy of {}.png')
    pics = load_pictures(folder)
    for part in fold_parts(pics, 3):
        for d in set(pics.digests):
            assert len({s for s, e in zip(part, pics.digests) if e == d}) == 1
    series = np.arange(len(pics)) // 3
    for part in fold_parts(pics, 2, groups=series):
        together = [*series, *pics.digests]
        for g in set(together):
            i = [j for j in range(len(pics)) if g in (series[j], pics.digests[j])]
            assert len(set(part[i])) == 1
    with pytest.raises(BadInput, match='need as many numbers'):
        fold_parts(pics, 2, groups=series[:-1])


def test_a_given_split_does_not_matter(folder, tmp_path):
    for n, s in enumerate(('train', 'val', 'test')):
        for c in range(3):
            for i in range(3 * n, 3 * n + 3):
                to = tmp_path / 'parts' / s / f'class {c}'
                to.mkdir(parents=True, exist_ok=True)
                shutil.copy(folder / f'class {c}' / f'{i}.png', to)
    pics = load_pictures(fold_lists(tmp_path / 'parts', 3, tmp_path / 'out')[0])
    assert len(pics) == 27 and (pics.part == 'test').sum() == 9


@pytest.mark.parametrize('k', [1, 0, -3])
def test_one_fold_is_none(folder, tmp_path, k):
    with pytest.raises(BadInput, match=f'--folds takes 2 or more parts.*got {k}'):
        fold_lists(folder, k, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_a_class_that_is_too_small_is_named(folder, tmp_path, drawn):
    put(folder, drawn, range(4), [5])
    put(folder, drawn, [0, 1], [5], 'copy of {}.png')  # copies are no further images
    with pytest.raises(BadInput, match=r"the class 'class 5' has 4 images .* \(--folds 4\)"):
        fold_lists(folder, 5, tmp_path / 'out')
    assert len(fold_lists(folder, 4, tmp_path / 'out')) == 5
    put(folder, drawn, [7], [6])
    with pytest.raises(BadInput, match="the class 'class 6' has 1 image that is no copy"):
        fold_lists(folder, 2, tmp_path / 'other')


@pytest.mark.parametrize('k', [2, 3, 5])
def test_rare_classes_can_always_be_trained_on(k):
    "Random collections with classes as small as the number of folds."
    for seed in range(20):
        r = np.random.default_rng(seed)
        counts = [k, *r.integers(k, 40, 4)]
        labels = r.permutation(np.repeat(range(5), counts))
        pics = Pictures(
            'x', list('abcde'), labels, np.full(len(labels), 'train'), [], list(map(str, range(len(labels))))
        )
        parts = fold_parts(pics, k, seed)
        assert all(set(labels[p == 'train']) == set(range(5)) for p in parts)
        assert all((p == 'val').any() for p in parts)
        assert sum((p == 'test').sum() for p in parts) == len(labels)


def test_drawn_images_and_one_class_are_refused(folder, home, tmp_path):
    with pytest.raises(BadInput, match='are no files'):
        fold_lists('scenes17:100', 3, tmp_path / 'out')
    for c in (1, 2):
        shutil.rmtree(folder / f'class {c}')
    with pytest.raises(BadInput, match='one class only'):
        fold_lists(folder, 3, tmp_path / 'out')


def test_all_of_it(folder, tmp_path):
    res = run_folds(config(folder), 3, tmp_path / 'out')
    assert res.folds.n.sum() == 27 and list(res.table.index) == ['accuracy', 'f1', 'balanced']
    t = res.table
    assert ((0 <= t.lo) & (t.lo <= t.value) & (t.value <= t.hi) & (t.hi <= 1)).all()
    assert t.value['accuracy'] == pytest.approx((res.folds.accuracy * res.folds.n).sum() / 27)
    soup = Soup.load(tmp_path / 'out' / 'soup.safetensors')
    assert soup.info['cross_validated']['accuracy'] == pytest.approx(
        list(t.loc['accuracy', ['value', 'lo', 'hi']])
    )
    assert soup.info['classes'] == [f'class {c}' for c in range(3)]
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / 'out').glob('*/DONE')}
    again = run_folds(config(folder), 3, tmp_path / 'out')
    assert again.table.equals(t) and before == {p: p.stat().st_mtime_ns for p in before} and len(before) == 4


def test_it_resumes_and_refuses_other_folds(folder, tmp_path, monkeypatch, drawn):
    from ich_soups.train import folds

    made = []

    def some(cfg, path, cbs):
        if len(made) == 1:
            raise KeyboardInterrupt
        made.append(path.name)
        return folds_get_run(cfg, path, cbs)

    folds_get_run = folds.get_run
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(folds, 'get_run', some)
        run_folds(config(folder), 2, tmp_path / 'out')
    assert made == ['fold_1'] and (tmp_path / 'out' / 'fold_1' / 'DONE').exists()
    with pytest.raises(BadInput, match='holds 2 folds .* not 3 of these'):
        fold_lists(folder, 3, tmp_path / 'out')
    assert len(run_folds(config(folder), 2, tmp_path / 'out').folds) == 2
    put(folder, drawn, [10], [0])
    with pytest.raises(BadInput, match='of other images'):
        run_folds(config(folder), 2, tmp_path / 'out')


def test_the_interval_allows_for_trainings_that_differ():
    r = np.random.default_rng(0)
    targs = [r.integers(0, 3, 200) for _ in range(5)]
    wrong = lambda t, share: np.where(np.arange(len(t)) < share * len(t), (t + 1) % 3, t)
    even = score_folds([wrong(t, 0.2) for t in targs], targs, 3)[0].loc['accuracy']
    uneven = score_folds([wrong(t, s) for t, s in zip(targs, (0.1, 0.15, 0.2, 0.25, 0.3))], targs, 3)[0].loc[
        'accuracy'
    ]
    assert even.value == uneven.value == 0.8 and even.sd == 0 and uneven.sd > 0.05
    assert even.hi - even.lo > 0.04  # the images remain
    assert uneven.hi - uneven.lo > 2 * (even.hi - even.lo)


@pytest.mark.parametrize('n', [3, 20, 200, 630, 1000, 2468, 7406, 100_000])
def test_shares_are_those_of_the_paper_or_more(n):
    val, test = split_shares([n // 2, n - n // 2])
    assert 600 / 7406 <= val <= 0.15 and 749 / 7406 <= test <= 0.15
    assert n < 1334 or val * n >= 199.9
    assert half_width(200) < 0.042


def test_val_of_a_tiny_collection_leaves_something_to_train_on():
    for seed in range(10):
        part = with_val(np.array([0, 0, 1]), np.arange(3), seed)
        assert set(np.array([0, 0, 1])[part == 'train']) == {0, 1} and (part == 'val').sum() == 1


def test_a_folder_is_split_by_its_counts_and_models_of_it_remember_how(
    tmp_path, drawn, home, monkeypatch, capsys
):
    "40 images: six to choose by and six to test, where the paper's shares would be three and four."
    monkeypatch.chdir(tmp_path)
    put(tmp_path / 'photos', drawn, range(10), range(4))
    words = ('--size', '32', '--bs', '16', '--epochs', '2')
    assert main(['train', 'photos', *words, '--out', 'run']) == 0
    assert '28 to train on, 6 to choose by, 6 to test' in capsys.readouterr().err
    assert main(['cook', 'run', '--out', 'soup.safetensors']) == 0
    assert Soup.load('soup.safetensors').info['shares'] == 'counts'
    (tmp_path / 'photos').rename('moved')
    shutil.rmtree('run')
    capsys.readouterr()
    assert main(['eval', 'soup.safetensors', '--data', 'moved']) == 0
    assert '6 images' in capsys.readouterr().out


def test_a_directory_keeps_the_split_that_it_was_trained_with(tmp_path, drawn, home, monkeypatch, capsys):
    "A run of a version that knew the paper's shares only is found finished by the same command."
    monkeypatch.chdir(tmp_path)
    put(tmp_path / 'photos', drawn, range(10), range(4))
    words = ('train', 'photos', '--size', '32', '--bs', '16', '--epochs', '2', '--out', 'run')
    with monkeypatch.context() as m:
        m.setattr('ich_soups.app.cli_train._shares', lambda data, course: 'paper')
        assert main([*words]) == 0
    config = json.loads(Path('run/config.json').read_text())
    del config['shares']
    Path('run/config.json').write_text(json.dumps(config))
    before = Path('run/DONE').read_bytes()
    assert main([*words]) == 0
    assert Path('run/DONE').read_bytes() == before
    assert len(Run('run').targs('val')) == 4 and len(Run('run').targs('test')) == 4


def test_collections_with_a_name_keep_the_papers_shares():
    assert (load_pictures('scenes17:200', shares='counts').part == load_pictures('scenes17:200').part).all()


def test_a_list_without_bad_files_keeps_the_split_of_older_runs(tmp_path, drawn, home, monkeypatch, capsys):
    "A run that was trained with --skip-bad before is not orphaned by a new one of the same folder."
    monkeypatch.chdir(tmp_path)
    put(tmp_path / 'photos', drawn, range(10), range(4))
    (tmp_path / 'photos' / 'class 0' / 'cut.jpg').write_bytes(b'\xff\xd8\xff' + bytes(50))
    words = ('train', 'photos', '--skip-bad', '--size', '32', '--bs', '16', '--epochs', '2', '--out')
    with monkeypatch.context() as m:
        m.setattr('ich_soups.app.cli_train._shares', lambda data, course: 'paper')
        assert main([*words, 'old']) == 0
    assert main([*words, 'new']) == 0
    assert [len(Run(p).targs('val')) for p in ('old', 'new')] == [4, 6]
    assert main(['eval', 'old']) == 0 and main([*words, 'old']) == 0


def test_an_unknown_rule_of_splitting_is_refused(tmp_path, drawn, home):
    put(tmp_path / 'photos', drawn, range(9), range(3))
    with pytest.raises(BadInput, match="unknown shares 'count'; did you mean counts"):
        load_pictures(tmp_path / 'photos', shares='count')
