"Bad input gets one sentence that names the thing; nothing is lost or left half written."
import os, shutil, warnings
import numpy as np
import pytest
from PIL import Image
from fastai.callback.core import Callback
from ich_soups import training
from ich_soups.core import BadInput, Config, cache_dir
from ich_soups.data import check_folder, decode, image_dls, load_pictures, read_photos
from ich_soups.training import get_run

warnings.simplefilter('ignore')


def message(f, *names):
    "The error of `f`: one line that contains `names`."
    with pytest.raises(BadInput) as e: f()
    text = str(e.value)
    assert '\n' not in text and all(n in text for n in names), text
    return text


def test_text_in_a_jpg(home, photos):
    (photos/'Chợ nổi'/'notes.jpg').write_text('not a picture')
    message(lambda: load_pictures(photos), 'notes.jpg', 'cannot be read')


def test_a_truncated_jpeg(home, photos):
    f = next((photos/'Chợ nổi').glob('*.jpg'))
    f.write_bytes(f.read_bytes()[:len(f.read_bytes())//2])
    message(lambda: load_pictures(photos), f.name, 'cannot be read')
    assert [p.name for p, _ in check_folder(photos).unreadable] == [f.name]
    assert len(read_photos(photos, on_bad='skip')) == 35


def test_a_picture_too_large_to_decode(home, photos):
    Image.new('1', (20_000, 20_000)).save(photos/'Chợ nổi'/'huge.png')
    message(lambda: load_pictures(photos), 'huge.png', 'DecompressionBomb')


def test_odd_names(home, photos):
    d = photos/'tên lạ\n"quoted" & spaced'
    shutil.copytree(photos/'Chợ nổi', d)
    Image.new('RGB', (40, 20), 'red').save(d/'dòng 1\ndòng 2.png')
    pics = load_pictures(photos)
    assert d.name in pics.classes and pics.pixels(32).shape == (len(pics), 32, 32, 3)


def test_an_empty_folder_and_one_class(home, tmp_path, photos):
    (tmp_path/'empty').mkdir()
    message(lambda: load_pictures(tmp_path/'empty'), 'empty', 'no pictures')
    for c in ('Đua ghe ngo', 'Đờn ca tài tử'): shutil.rmtree(photos/c)
    message(lambda: load_pictures(photos), 'only one class', 'Chợ nổi')


def test_a_missing_split(home, tmp_path, photos):
    for s in ('train', 'test'): shutil.copytree(photos, tmp_path/'split'/s)
    message(lambda: load_pictures(tmp_path/'split'), "no 'val' folder")


def test_bad_models_leave_no_run(home, photos):
    for cfg, names in ((Config.tiny(data=str(photos), arch='test_coatnot', epochs=1), ('test_coatnot', 'test_coatnet')), (Config.tiny(data=str(photos), size=80, epochs=1), ('80 px', '64'))):
        message(lambda: get_run(cfg, home/'r'), *names)
        assert not (home/'r'/'DONE').exists()
        shutil.rmtree(home/'r')


def test_changed_photographs_are_noticed(home, photos):
    cfg = Config.tiny(data=str(photos), size=32, epochs=1, bs=8)
    get_run(cfg)
    next((photos/'Chợ nổi').glob('*.jpg')).unlink()
    message(lambda: get_run(cfg), 'have changed')


def test_photographs_that_change_while_a_run_is_interrupted(home, photos, monkeypatch):
    cfg, healthy = Config.tiny(data=str(photos), size=32, epochs=2, bs=8), training.make_learner
    class Crash(Callback):
        def before_train(self):
            if self.epoch == 1: raise KeyError('power cut')
    monkeypatch.setattr(training, 'make_learner', lambda *a: healthy(*a).add_cb(Crash()))
    with pytest.raises(KeyError): get_run(cfg)
    monkeypatch.undo()
    monkeypatch.setenv('ICH_SOUPS_HOME', str(home))
    shutil.copy(next((photos/'Chợ nổi').glob('*.jpg')), photos/'Đua ghe ngo'/'new.jpg')
    message(lambda: get_run(cfg), 'have changed', 'begun')


def test_the_split_of_a_run_is_kept_and_can_be_read_again(home, photos):
    cfg = Config.tiny(data=str(photos), size=32, epochs=1, bs=8)
    run = get_run(cfg)
    again = load_pictures(run.path/'split.csv', split_seed=7)
    assert again.part.tolist() == run.pictures.part.tolist()
    assert get_run(Config.tiny(data=os.path.relpath(photos), size=32, epochs=1, bs=8)).path == run.path


def test_a_broken_cache_entry_is_made_again(home, photos):
    load_pictures(photos)
    for f in (cache_dir()/'digests').glob('*.json'): f.write_text('{"half')
    assert len(load_pictures(photos)) == 36


def test_the_loader_shows_what_the_file_holds(home, photos):
    dls = image_dls(photos, 32, bs=8, device='cpu')
    x, y = dls[2].one_batch()
    i = dls.pictures.idxs('test')[0]
    want = decode(dls.pictures.items[i], 32)
    assert np.abs((x[0].permute(1, 2, 0).numpy()+1)*127.5 - want).max() < .51 and dls.vocab[y[0]] == dls.pictures.items[i].parent.name
