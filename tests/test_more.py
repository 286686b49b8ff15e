"A finished training that goes on with more photographs: what is kept, what is refused, what survives a kill."

import json, os, shutil, warnings
import numpy as np
import pandas as pd
import pytest
from conftest import put
import torch
from ich_soups.core import BadInput, Config
from ich_soups.data.collections import load_pictures
from ich_soups.soups.checkpoints import load_weights
from ich_soups.soups.cook import cook
from ich_soups.train.grown import grown, images_of
from ich_soups.train.more import epochs_for, go_on, plan_more
from ich_soups.train.runs import get_run
from ich_soups.train.finished_run import Run


def config(data, **over):
    return Config(**dict(data=str(data), size=32, epochs=1, bs=8, lr=2e-3, schedule='flat:1.0', k=1) | over)


@pytest.fixture(scope='module')
def made(tmp_path_factory, drawn):
    "A folder of three classes, eight images each, and a run of it; the tests work on copies."
    at = tmp_path_factory.mktemp('more')
    with pytest.MonkeyPatch.context() as m:
        m.setenv('ICH_SOUPS_HOME', str(at / 'home'))
        put(at / 'photos', drawn, range(8), range(3))
        get_run(config(at / 'photos'), at / 'run')
    return at


@pytest.fixture
def here(tmp_path, made, home):
    "A copy of the photographs and of the run, side by side as they were."
    for n in ('photos', 'run'):
        shutil.copytree(made / n, tmp_path / n)
    c = tmp_path / 'run' / 'config.json'
    c.write_text(json.dumps(json.loads(c.read_text()) | dict(data=str(tmp_path / 'photos'))))
    return tmp_path


def parts(run):
    return images_of(run).set_index('digest')


def test_more_photographs_and_a_new_class(here, drawn):
    put(here / 'photos', drawn, range(8, 12), range(3))
    put(here / 'photos', drawn, range(6), [3])
    res = go_on(here / 'run', here / 'photos', here / 'out')
    was, now = parts(Run(here / 'run')), parts(res.run)
    assert len(now) == 24 + 12 + 6 and (now.loc[was.index, 'split'] == was.split).all()
    assert res.run.classes == [f'class {c}' for c in range(4)] and res.soup.info['classes'] == res.run.classes
    assert set(now[now.label == 'class 3'].split) == {'train', 'val', 'test'}
    assert res.run.cfg.head == 'given' and res.run.cfg.arch == 'test_coatnet'
    t = res.table.set_index(['images', 'classes'])
    assert t.n['old test images', 'all'] == (was.split == 'test').sum()
    assert t.n['all test images', 'all'] == (now.split == 'test').sum()
    assert (t.lo <= t['diff']).all() and (t['diff'] <= t.hi).all()
    assert 'old test images' in res.said


def test_the_classifier_keeps_the_rows_that_it_has(here, drawn):
    put(here / 'photos', drawn, range(6), [12, 3])  # 'class 12' comes between the old ones
    plan_more(here / 'run', here / 'photos', here / 'out')
    before, start = (load_weights(here / 'out' / 'more' / f'{n}.safetensors') for n in ('before', 'start'))
    pics = load_pictures(str(next((here / 'out' / 'more').glob('photos.csv'))))
    assert pics.classes == ['class 0', 'class 1', 'class 12', 'class 2', 'class 3']
    w, b = 'head.fc.weight', 'head.fc.bias'
    assert torch.equal(start[w][[0, 1, 3]], before[w]) and torch.equal(start[b][[0, 1, 3]], before[b])
    assert start[w][[2, 4]].abs().sum() > 0
    assert all(torch.equal(start[k], before[k]) for k in before if k not in (w, b))


def test_only_the_new_ones_are_given(here, drawn):
    put(here / 'new', drawn, range(8, 12), range(3))
    cfg = plan_more(here / 'run', here / 'new', here / 'out')
    pics = load_pictures(cfg.data)
    assert len(pics) == 24 + 12
    assert sum(here / 'photos' in p.resolve().parents for p in pics.items) == 24


def test_images_are_told_by_their_contents(here, drawn):
    "Renamed, moved and partly deleted: each keeps its part."
    was = parts(Run(here / 'run'))
    os.rename(here / 'photos', here / 'elsewhere')
    for c in range(3):
        for i in range(8):
            f = here / 'elsewhere' / f'class {c}' / f'{i}.png'
            os.rename(f, f.with_name(f'IMG {7 - i}.png'))
    put(here / 'elsewhere', drawn, [8], range(3))
    (here / 'elsewhere' / 'class 0' / 'IMG 0.png').unlink()
    with pytest.warns(UserWarning, match='1 of the 24 images .* are gone'):
        cfg = plan_more(here / 'run', here / 'elsewhere', here / 'out')
    pics = load_pictures(cfg.data)
    now = pd.Series(pics.part, pics.digests)
    assert len(pics) == 23 + 3
    both = now.index.intersection(was.index)
    assert len(both) == 23 and (now[both] == was.split[both]).all()


def test_a_copy_of_an_old_image_is_no_new_one(here, drawn):
    put(here / 'photos', drawn, range(8), range(3), 'copy of {}.png')
    with pytest.raises(BadInput, match='holds no image that .* has not seen'):
        plan_more(here / 'run', here / 'photos', here / 'out')
    put(here / 'photos', drawn, [9, 9], [0])
    put(here / 'photos', drawn, [9], [0], 'again {}.png')
    g = grown(Run(here / 'run'), load_pictures(here / 'photos'))
    assert g.images.new.sum() == 1 and len(g.images) == 25


def test_a_run_without_digests(here, drawn):
    "Of an earlier version: its images are read where they were."
    (here / 'run' / 'digests.json').unlink()
    put(here / 'photos', drawn, [8, 9], range(3))
    assert len(load_pictures(plan_more(here / 'run', here / 'photos', here / 'out').data)) == 30
    os.rename(here / 'photos', here / 'elsewhere')
    with pytest.raises(BadInput, match='did not note the contents of its images'):
        plan_more(here / 'run', here / 'elsewhere', here / 'other')


def split_folders(here, drawn, spoil=None):
    "The photographs of the run in folders of its parts, and new ones; one of the part `spoil` is moved."
    at = here / 'parts'
    pics = Run(here / 'run').pictures
    moved = pics.idxs(spoil)[0] if spoil else -1
    for i, (p, l, s) in enumerate(zip(pics.items, pics.labels, pics.part)):
        s = {'test': 'train', 'train': 'val', 'val': 'train'}[s] if i == moved else s
        to = at / s / pics.classes[l] / p.name
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(p, to)
    put(at / 'test', drawn, [10, 11], range(3))
    return at


def test_a_split_of_the_source_holds_for_its_new_images(here, drawn):
    g = grown(Run(here / 'run'), load_pictures(split_folders(here, drawn)))
    assert set(g.images[g.images.new].split) == {'test'} and g.images.new.sum() == 6


def test_a_test_image_in_another_part_is_refused(here, drawn):
    at = split_folders(here, drawn, 'test')
    with pytest.raises(BadInput, match='1 images of the test part .* lie in the train part'):
        plan_more(here / 'run', at, here / 'out')


def test_a_training_image_in_another_part_stays_where_it_was(here, drawn):
    with pytest.warns(UserWarning, match='stay in their old part'):
        g = grown(Run(here / 'run'), load_pictures(split_folders(here, drawn, 'train')))
    was = parts(Run(here / 'run'))
    assert (g.images.set_index('digest').split[was.index] == was.split).all()


def test_another_name_of_a_class_is_refused(here, drawn):
    os.rename(here / 'photos' / 'class 1', here / 'photos' / 'Class one')
    put(here / 'photos', drawn, [9], [0])
    with pytest.raises(BadInput, match="the class 'class 1' of .* is called 'Class one'"):
        plan_more(here / 'run', here / 'photos', here / 'out')


def test_another_label_of_an_image_counts(here, drawn):
    f = here / 'photos' / 'class 1' / '3.png'
    os.rename(f, here / 'photos' / 'class 0' / 'was 1.png')
    put(here / 'photos', drawn, [9], [0])
    with pytest.warns(UserWarning, match='1 images have another label'):
        cfg = plan_more(here / 'run', here / 'photos', here / 'out')
    assert (load_pictures(cfg.data).labels == 0).sum() == 10


@pytest.mark.parametrize(
    'asked, words',
    [
        (dict(arch='tiny_vit8'), 'can only go on as such, not as a tiny_vit8 at 32 px'),
        (dict(size=64), 'not as a test_coatnet at 64 px'),
        (dict(soup='nowhere.safetensors'), 'nowhere'),
    ],
)
def test_what_is_asked_must_fit_the_run(here, drawn, asked, words):
    put(here / 'photos', drawn, [9], range(3))
    with pytest.raises(BadInput, match=words):
        plan_more(here / 'run', here / 'photos', here / 'out', **asked)
    assert plan_more(here / 'run', here / 'photos', here / 'out', arch='test_coatnet', size=32)


def test_what_is_no_finished_run(here, drawn):
    put(here / 'photos', drawn, [9], range(3))
    with pytest.raises(BadInput, match='is no run'):
        plan_more(here / 'photos', here / 'photos', here / 'out')
    with pytest.raises(BadInput, match='choose another directory'):
        plan_more(here / 'run', here / 'photos', here / 'run')
    (here / 'run' / 'DONE').unlink()
    with pytest.raises(BadInput, match='is not finished'):
        plan_more(here / 'run', here / 'photos', here / 'out')


def test_without_the_old_photographs_it_does_not_go_on(here, drawn):
    shutil.rmtree(here / 'photos')
    put(here / 'new', drawn, [8, 9], range(3))
    with pytest.raises(BadInput, match='give a folder that holds the old photographs too'):
        plan_more(here / 'run', here / 'new', here / 'out')


def test_a_drawn_collection_has_no_photographs(home, tmp_path):
    run = get_run(config('scenes17:100'), tmp_path / 'run')
    with pytest.raises(BadInput, match='no files'):
        plan_more(run, 'scenes17:120', tmp_path / 'out')


class Stop(Exception):
    pass


@pytest.mark.parametrize('where', ['grown_weights', 'write_json', 'get_run', 'cook'])
def test_it_resumes_wherever_it_was_stopped(here, drawn, monkeypatch, where):
    from ich_soups.train import more

    put(here / 'photos', drawn, [8, 9], range(4))
    go = lambda: go_on(here / 'run', here / 'photos', here / 'out', epochs=1)
    calls = dict(cook=2).get(where, 1)  # the first one is that of the old run

    def stop(*a, was=getattr(more, where), left=[calls], **k):
        left[0] -= 1
        if not left[0]:
            raise Stop
        return was(*a, **k)

    with monkeypatch.context() as m, pytest.raises(Stop):
        m.setattr(more, where, stop)
        go()
    res = go()
    whole = go_on(here / 'run', here / 'photos', here / 'whole', epochs=1)
    assert res.table.equals(whole.table)
    a, b = res.run.weights('last'), whole.run.weights('last')
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_directory_is_of_one_plan(here, drawn):
    put(here / 'photos', drawn, [8, 9], range(3))
    plan_more(here / 'run', here / 'photos', here / 'out')
    assert plan_more(here / 'run', here / 'photos', here / 'out').epochs == 2
    with pytest.raises(BadInput, match=r'settings \(lr\)'):
        plan_more(here / 'run', here / 'photos', here / 'out', lr=1e-4)
    put(here / 'photos', drawn, [10], range(3))
    with pytest.raises(BadInput, match='other new images'):
        plan_more(here / 'run', here / 'photos', here / 'out')


def test_it_can_go_on_again(here, drawn):
    "The run that went on is a run like any other."
    put(here / 'photos', drawn, [8, 9], range(3))
    first = go_on(here / 'run', here / 'photos', here / 'out', epochs=1)
    put(here / 'photos', drawn, [10, 11], range(4))
    second = go_on(here / 'out', here / 'photos', here / 'again', epochs=1)
    was, now = parts(first.run), parts(second.run)
    assert len(now) == 24 + 6 + 8 and (now.loc[was.index, 'split'] == was.split).all()


def test_a_run_of_the_classifier_alone_goes_on_as_such(here, drawn):
    cfg = config(here / 'photos', schedule='head', head='fitted', pretrained='bundled', size=64)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        get_run(cfg, here / 'fast')
    put(here / 'photos', drawn, [8, 9], range(4))
    res = go_on(here / 'fast', here / 'photos', here / 'out')
    assert res.run.cfg.schedule == 'head' and len(res.run.classes) == 4


def test_epochs_follow_from_images_seen(here):
    run = Run(here / 'run')
    n = (images_of(run).split == 'train').sum()
    run.cfg = run.cfg.replace(epochs=50)
    assert epochs_for(run, n) == 10 and epochs_for(run, 2 * n) == 5 and epochs_for(run, 100 * n) == 2


@pytest.mark.slow
def test_photographs_of_a_collection_are_not_forgotten(home, tmp_path, ahe10):
    "A fifth more of AHE-10: the old test part loses at most a point, as far as so few images can tell."
    pics = load_pictures(ahe10)
    keep = np.sort(np.random.default_rng(0).permutation(len(pics))[:4000])
    rows = [(str(pics.items[i]), pics.classes[pics.labels[i]]) for i in keep]
    pd.DataFrame(rows, columns=['path', 'label']).to_csv(tmp_path / 'all.csv', index=False)
    pd.DataFrame(rows[::5] + rows[1::5] + rows[2::5] + rows[3::5], columns=['path', 'label']).to_csv(
        tmp_path / 'old.csv', index=False
    )
    over = dict(
        pretrained='bundled',
        head='fitted',
        size=64,
        epochs=10,
        bs=64,
        lr=1e-3,
        k=8,
        fixed=tuple(range(6, 11)),
    )
    get_run(config(tmp_path / 'old.csv', **over), tmp_path / 'run')
    res = go_on(tmp_path / 'run', tmp_path / 'all.csv', tmp_path / 'out')
    assert res.table.hi[0] > -0.01


def put_json(path, **over):
    path.write_text(json.dumps(json.loads(path.read_text()) | over))


DAMAGED = {
    'digests.json lacks them': ('digests.json', '{}'),
    'digests.json: a number': ('digests.json', '{"digests": 5}'),
    'digests.json: tables': ('digests.json', '{"digests": [{}, {}]}'),
    'digests.json: a list': ('digests.json', '[]'),
    'split.csv is empty': ('split.csv', ''),
    'split.csv lacks label': ('split.csv', 'path,split\na,train\n'),
    'split.csv lacks split': ('split.csv', 'path,label\na,b\n'),
    'split.csv: another part': ('split.csv', 'path,label,split\na,b,weird\n'),
    'split.csv is no text': ('split.csv', '\0\udcff\0'),
}


@pytest.mark.parametrize('name', DAMAGED)
def test_damaged_notes_of_a_run_get_one_sentence(here, drawn, name):
    put(here / 'photos', drawn, range(8, 12), range(3))
    file, words = DAMAGED[name]
    (here / 'run' / file).write_bytes(words.encode(errors='surrogateescape'))
    with pytest.raises(BadInput, match=f'{file}.*(restore|delete)'):
        plan_more(here / 'run', here / 'photos', here / 'out')


@pytest.mark.parametrize(
    'classes', (['class 2', 'class 1', 'class 0'], ['a', 'b', 'c'], ['class 0', 'class 1'])
)
def test_classes_that_are_not_those_of_the_list(here, drawn, classes):
    "DONE says in which order the rows of the classifier are."
    put(here / 'photos', drawn, range(8, 12), range(3))
    put_json(here / 'run' / 'DONE', classes=classes)
    with pytest.raises(BadInput, match='DONE do not belong to'):
        plan_more(here / 'run', here / 'photos', here / 'out')


@pytest.mark.parametrize(
    'spoil',
    [
        lambda w: w.pop('head.fc.weight'),
        lambda w: w.update({'head.fc.weight': w['head.fc.weight'][:2]}),
        lambda w: (w.clear(), w.update(x=torch.ones(2))),
    ],
    ids=['no classifier', 'two rows', 'one tensor'],
)
def test_a_soup_of_another_network(here, drawn, spoil):
    soup = cook(Run(here / 'run'))
    put(here / 'photos', drawn, range(6), [3])  # whose row is fitted with this classifier
    spoil(soup.weights)
    soup.save(here / 'run' / 'soup.safetensors')
    with pytest.raises(BadInput, match='soup.safetensors is not a soup of .*leave it out'):
        plan_more(here / 'run', here / 'photos', here / 'out')


def test_damaged_plans_and_tables(here, drawn):
    "A plan that makes no sense is refused; a table is made again."
    put(here / 'photos', drawn, range(8, 12), range(3))
    whole = go_on(here / 'run', here / 'photos', here / 'out')
    plan, table = here / 'out' / 'more' / 'plan.json', here / 'out' / 'more' / 'table.csv'
    for words in (b'\xff\xfe\0', b'', b'a,b\n1,2\n'):
        table.write_bytes(words)
        again = go_on(here / 'run', here / 'photos', here / 'out')
        assert again.table.equals(whole.table)
    good = json.loads(plan.read_text())
    for over in (
        dict(cfg=None),
        dict(cfg=[]),
        dict(cfg=good['cfg'] | dict(x=1)),
        dict(old=3),
        dict(new=[{}]),
    ):
        plan.write_text(json.dumps(good | over))
        with pytest.raises(BadInput, match='plan.json.*(delete|another version)'):
            go_on(here / 'run', here / 'photos', here / 'out')
    plan.write_text(json.dumps({k: v for k, v in good.items() if k != 'cfg'}))
    with pytest.raises(BadInput, match='plan.json.*cfg'):
        go_on(here / 'run', here / 'photos', here / 'out')


def test_a_network_that_the_weights_are_not_of_is_not_built(here):
    "One of a billion parameters, in the configuration of a small run: told from the headers of its files."
    put_json(here / 'run' / 'config.json', arch='vit_giant_patch14_dinov2', size=224)
    run = Run(here / 'run')
    with pytest.raises(BadInput, match='not weights of this VisionTransformer'):
        cook(run)
    assert 'model' not in vars(run)


@pytest.mark.parametrize(
    'change',
    [
        lambda at, drawn: put(at, drawn, range(6), [3]),
        lambda at, drawn: put(at, drawn, range(8, 10), [0]),
        lambda at, drawn: next((at / 'class 1').glob('*.png')).unlink(),
        lambda at, drawn: put(at, drawn, range(1, 2), [2], '{}0.png'),
    ],
    ids=['a class', 'two images', 'one less', 'a copy'],
)
def test_a_folder_that_has_changed_is_not_scored_on(here, drawn, change):
    "Another image, and others are in the val part than those that the run was chosen with."
    change(here / 'photos', drawn)
    for use in (cook, lambda r: r.targs('val'), lambda r: r.logits('test'), lambda r: r.dls):
        with pytest.raises(BadInput, match='have changed since .* --more'):
            use(Run(here / 'run'))
