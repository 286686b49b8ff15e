"Checkpoints as other scripts write them: what is in a file, in what order, once, and what is no ingredient."

import functools, json, os, pickle, shutil, sys, time, types, uuid
from pathlib import Path
import pytest, torch
from safetensors.torch import load_file, save_file
from torch import nn
from ich_soups.app import cli
from ich_soups.app.loading import as_classifier
from ich_soups.soups.averaging import average
from ich_soups.soups.checkpoints import Checkpoint, load_weights
from ich_soups.soups.contents import contents
from ich_soups.soups.folders import find_checkpoints
from ich_soups.soups.tensor_names import fit_names
from ich_soups.core import BadInput, Config
from ich_soups.soups.recipes import RECIPES
from ich_soups.soups.soup import Soup
from ich_soups.train.models import blank_model
from ich_soups.soups.weights import ema_soup, last_soup, uniform_soup


def sd(v, **more):
    "A small state dict whose every number is `v`: the mean tells what went in."
    return {
        'conv.weight': torch.full((4, 3, 3, 3), float(v)),
        'conv.bias': torch.full((4,), float(v)),
        'fc.weight': torch.full((3, 4), float(v)),
        **more,
    }


def cook(capsys, *args):
    "Exit code, what was said to people, and to machines."
    code = cli.main(['cook', *map(str, args)])
    out = capsys.readouterr()
    return code, out.err, out.out


def mean(path):
    return load_weights(path)['conv.bias'][0].item()


def foreign(name, monkeypatch):
    "An object of a class of a project that is not installed where the file is read."
    module, cls = name.rsplit('.', 1)
    monkeypatch.setitem(sys.modules, module, m := types.ModuleType(module))
    setattr(m, cls, c := type(cls, (), {'__module__': module}))
    return c()


class Mapped(dict):
    pass


OBJECTS = dict(
    partial=lambda p: functools.partial(torch.optim.Adam, lr=0.1),
    uuid=lambda p: uuid.uuid4(),
    project=lambda p: foreign('project_of_mine.Config', p),
    counter=lambda p: Mapped(a=1),
    logging=lambda p: __import__('logging').getLogger('x'),
    loss=lambda p: nn.CrossEntropyLoss(torch.ones(3)),
    function=lambda p: json.dumps,
    enum=lambda p: __import__('socket').AF_INET,
)


@pytest.mark.parametrize('name', OBJECTS)
@pytest.mark.parametrize('new', [True, False])
def test_objects_beside_the_weights_are_read_over(tmp_path, monkeypatch, name, new):
    f = tmp_path / 'a.pth'
    torch.save(
        {'state_dict': sd(2), 'epoch': 1, 'extra': OBJECTS[name](monkeypatch)},
        f,
        _use_new_zipfile_serialization=new,
    )
    assert mean(f) == 2 and contents(f).epoch == 1


class Runs:
    def __init__(self, f, *args):
        self.f, self.args = f, args

    def __reduce__(self):
        return self.f, self.args


@pytest.mark.parametrize(
    'evil', [Runs(os.system, 'true'), Runs(eval, '1'), Runs(__import__, 'os'), Runs(exec, 'pass')]
)
def test_what_would_run_a_program_is_refused(tmp_path, evil):
    torch.save({'state_dict': sd(1), 'extra': evil}, tmp_path / 'a.pth')
    with pytest.raises(BadInput, match='no use for'):
        load_weights(tmp_path / 'a.pth')


OPTIMIZER = dict(
    state={0: dict(step=torch.tensor(1.0), exp_avg=torch.ones(9))}, param_groups=[dict(lr=0.1, params=[0])]
)


@pytest.mark.parametrize(
    'wrap',
    [
        lambda d: dict(net=d, acc=9.0, optimizer=OPTIMIZER),
        lambda d: dict(run=dict(weights=d)),
        lambda d: dict(generator=d, lr=torch.ones(1)),
        lambda d: dict(encoder=d, stats=dict(loss=torch.ones(()))),
    ],
)
def test_one_choice_is_taken(tmp_path, wrap):
    torch.save(wrap(sd(3)), tmp_path / 'a.pth')
    assert mean(tmp_path / 'a.pth') == 3


def test_one_of_several_is_asked_for(tmp_path, capsys):
    for e in (1, 2):
        torch.save(dict(student=sd(e), teacher=sd(10 * e), epoch=e), tmp_path / f'c{e}.pth')
        torch.save(dict(state_dict=sd(e), state_dict_ema=sd(10 * e)), tmp_path / f'timm{e}.tar.pth')
        save_file(
            {
                **{'student.' + k: v for k, v in sd(e).items()},
                **{'teacher.' + k: v for k, v in sd(10 * e).items()},
            },
            tmp_path / f's{e}.safetensors',
        )
    out = tmp_path / 'out.safetensors'
    for stem, part, want in (
        ('c{}.pth', 'teacher', 15),
        ('timm{}.tar.pth', 'state_dict_ema', 15),
        ('timm{}.tar.pth', 'state_dict', 1.5),
        ('s{}.safetensors', 'student', 1.5),
    ):
        files = [tmp_path / stem.format(e) for e in (1, 2)]
        assert cook(capsys, *files, '--part', part, '--out', out)[0] == 0 and mean(out) == want
    code, said, _ = cook(capsys, tmp_path / 'c1.pth', '--out', out)
    assert code == 2 and '--part student' in said and "'teacher'" in said
    code, said, _ = cook(capsys, tmp_path / 'timm1.tar.pth', tmp_path / 'timm2.tar.pth', '--out', out)
    assert code == 0 and 'state_dict is taken' in said
    assert 'no part' in cook(capsys, tmp_path / 'c1.pth', '--part', 'pupil', '--out', out)[1]


@pytest.mark.parametrize(
    'wrap, epoch',
    [
        (lambda d: (d, dict(epoch=3)), 3),
        (lambda d: [d, OPTIMIZER], None),
        (lambda d: [dict(state_dict=d, model_ema=sd(9), epoch=4), 'notes'], 4),
        (lambda d: dict(models=[d], epoch=5), 5),
        (lambda d: (torch.ones(3), [1, 2], d), None),
    ],
)
def test_a_state_dict_in_a_list_is_found(tmp_path, wrap, epoch):
    torch.save(wrap(sd(3)), tmp_path / 'a.pth')
    assert mean(tmp_path / 'a.pth') == 3 and contents(tmp_path / 'a.pth').epoch == epoch


def test_of_several_in_a_list_one_is_asked_for(tmp_path, capsys):
    for e in (1, 2):
        torch.save([sd(e), sd(10 * e)], tmp_path / f'c{e}.pth')
    files, out = [tmp_path / 'c1.pth', tmp_path / 'c2.pth'], tmp_path / 'out.safetensors'
    assert '--part 0' in cook(capsys, *files, '--out', out)[1]
    assert cook(capsys, *files, '--part', '1', '--out', out)[0] == 0 and mean(out) == 15


@pytest.mark.parametrize(
    'obj, says',
    [
        (torch.ones(3), 'one tensor of shape (3,)'),
        ([torch.ones(3), torch.ones(2)], 'a list of 2 values'),
        ('words', "the value 'words'"),
        (0.93, 'the value 0.93'),
        ({}, 'an empty dictionary'),
        (dict(acc=0.9, loss=[1.0, 0.5]), "a dictionary of 'acc', 'loss'"),
    ],
)
@pytest.mark.parametrize('new', [True, False])
def test_what_holds_no_state_dict_is_told_what_to_save(tmp_path, capsys, obj, says, new):
    torch.save(obj, tmp_path / 'a.pth', _use_new_zipfile_serialization=new)
    code, said, _ = cook(capsys, tmp_path / 'a.pth', '--out', tmp_path / 's.safetensors')
    assert code == 2 and says in said and 'torch.save(model.state_dict(), FILE)' in said


@pytest.mark.parametrize(
    'odd',
    [torch.ones(3, dtype=torch.complex64), torch.eye(3).to_sparse(), torch.ones(3, dtype=torch.complex32)],
)
def test_tensors_of_another_kind_are_told_the_way(tmp_path, odd):
    torch.save(sd(1, odd=odd), tmp_path / 'a.pth')
    with pytest.raises(
        BadInput, match="'odd' is of a kind that cannot be averaged.*; save it as plain floats"
    ):
        load_weights(tmp_path / 'a.pth')


def behind(*starts, **more):
    "The same network behind several prefixes, with other numbers in each."
    return {s + k: (i + 1) * v for i, s in enumerate(starts) for k, v in sd(1).items()} | more


@pytest.mark.parametrize(
    'starts, named',
    [
        (('model.', 'ema_model.module.'), ['model', 'ema_model']),
        (('ema.', 'net.'), ['net', 'ema']),
        (('student.', 'teacher.'), ['student', 'teacher']),
        (('module.student.', 'module.teacher.'), ['student', 'teacher']),
        (('net.online.', 'net.target.'), ['net.online', 'net.target']),
    ],
)
@pytest.mark.parametrize('write, end', [(save_file, 'safetensors'), (torch.save, 'pth')])
def test_one_network_twice_is_asked_for(tmp_path, capsys, starts, named, write, end):
    files, out = [tmp_path / f'{e}.{end}' for e in (1, 2)], tmp_path / 'out' / 's.safetensors'
    for e, f in enumerate(files, 1):
        more = {starts[-1].split('.')[0] + '.n_averaged': torch.tensor(e)} if 'model.' in starts else {}
        write({k: e * v for k, v in behind(*starts).items()} | more, f)
    code, said, _ = cook(capsys, *files, '--out', out)
    assert code == 2 and all(repr(n) in said for n in named) and f'--part {named[0]},' in said
    for n in named:
        assert cook(capsys, *files, '--part', n, '--out', out)[0] == 0
        at = next(i for i, s in enumerate(starts) if n.split('.')[-1] in s.split('.'))
        assert abs(mean(out) - 1.5 * (at + 1)) < 1e-6


@pytest.mark.parametrize('starts', [('left.', 'right.'), ('net.a.', 'net.b.'), ('layers.0.', 'layers.1.')])
def test_two_branches_of_one_network_are_averaged(tmp_path, capsys, starts):
    files, out = [tmp_path / f'{e}.pth' for e in (1, 2)], tmp_path / 'out' / 's.safetensors'
    for e, f in enumerate(files, 1):
        wide = {f'{s}fc.bias': torch.full((3,), float(e)) for s in starts}
        torch.save({k: e * v for k, v in behind(*starts, **wide).items()}, f)
    code, said, _ = cook(capsys, *files, '--out', out)
    assert code == 0 and len(load_file(out)) == 8
    assert ('holds one network 2 times' in said) == ('layers.0.' not in starts)


SOMETHING_ELSE = {
    'git-lfs pointer': b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 77\n',
    'web page': b'<!DOCTYPE html><html></html>',
    'empty file': b'',
    'gzip archive': b'\x1f\x8b\x08' + bytes(99),
    'image': b'\x89PNG\r\n\x1a\n' + bytes(99),
    'other pickle': pickle.dumps(dict(acc=[0.9] * 9)),
    'ONNX file': b'\x08\x08\x12\x07pytorch\x1a\x052.8.0:' + bytes(99),
}


@pytest.mark.parametrize('kind', SOMETHING_ELSE)
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors', '.bin'])
def test_files_that_are_something_else(tmp_path, kind, suffix):
    f = tmp_path / f'a{suffix}'
    f.write_bytes(SOMETHING_ELSE[kind])
    assert contents(f).kind == kind
    with pytest.raises(BadInput, match='; ') as e:
        load_weights(f)
    assert 'damaged' not in str(e.value) and 'cannot be read' not in str(e.value)


@pytest.mark.parametrize(
    'content',
    [
        bytes(4096),
        pickle.dumps([1, 2], protocol=2),
        pickle.dumps(dict(w=torch.ones(3).numpy()), protocol=5),
        pickle.dumps({}),
        b'GIF89a' + bytes(99),
        b'II*\0' + bytes(99),
    ],
)
def test_by_the_first_bytes_it_is_said_what_a_file_is(tmp_path, capsys, content):
    (tmp_path / 'a.pth').write_bytes(content)
    code, said, _ = cook(capsys, tmp_path / 'a.pth', '--out', tmp_path / 's.safetensors')
    assert code == 2 and 'a.pth was refused: it ' in said and '; ' in said and 'cannot be read' not in said


def test_an_onnx_file_of_another_name_is_known(tmp_path):
    onnx = pytest.importorskip('onnx')
    h = onnx.helper
    x, y = (h.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in 'xy')
    graph = h.make_graph([h.make_node('Relu', ['x'], ['y'])], 'g', [x], [y])
    for i, named in enumerate((dict(producer_name='pytorch'), dict(), dict(doc_string='d'))):
        onnx.save(h.make_model(graph, **named), str(tmp_path / f'{i}.pth'))
        assert contents(tmp_path / f'{i}.pth').kind == 'ONNX file'


@pytest.mark.parametrize('inside', ['snapshots/epoch_001.safetensors', 'DONE', 'snapshots/manifest.json'])
def test_a_run_is_cooked_before_it_predicts(tmp_path, inside):
    run = tmp_path / 'r'
    (run / inside).parent.mkdir(parents=True)
    (run / inside).touch()
    (run / 'config.json').write_text('{}')
    with pytest.raises(BadInput, match=f'cooked first: ich-soups cook {run} --out soup.safetensors'):
        as_classifier(run)


@pytest.mark.parametrize('k, said', [(5, 'last 3'), (3, 'last 3'), (2, 'last 2')])
def test_the_last_are_as_many_as_there_are(k, said):
    assert last_soup([sd(e) for e in (1, 2, 3)], k=k).recipe == said


def test_pickles_that_are_no_weights(tmp_path):
    net = nn.Sequential(nn.Linear(2, 2))
    for name, obj, kind in (
        ('whole', net, 'pickled network'),
        ('inside', dict(epoch=1, model=net), 'pickled network'),
        ('opt', OPTIMIZER, 'state of an optimizer'),
        ('sched', dict(last_epoch=3), 'state of a training'),
        ('rng', dict(cpu=torch.get_rng_state()), 'state of a training'),
    ):
        torch.save(obj, tmp_path / f'{name}.pt')
        assert contents(tmp_path / f'{name}.pt').kind == kind, name
    assert 'torch.nn.modules.container.Sequential' in contents(tmp_path / 'whole.pt').why
    torch.jit.save(torch.jit.trace(net, torch.ones(1, 2)), tmp_path / 'script.pt')
    assert contents(tmp_path / 'script.pt').kind == 'TorchScript'
    torch.save(dict(state_dict=sd(4), model=net), tmp_path / 'both.pt')
    assert mean(tmp_path / 'both.pt') == 4


def test_a_file_is_described(tmp_path, capsys):
    torch.save(
        dict(arch='resnet18', epoch=7, global_step=70, state_dict=sd(1), optimizer=OPTIMIZER),
        tmp_path / 'a.pth',
    )
    save_file(sd(1), tmp_path / 'b.safetensors', {'epoch': '8'})
    uniform_soup([sd(1), sd(2)]).save(tmp_path / 'soup.safetensors')
    (tmp_path / 'c.pth').write_bytes(SOMETHING_ELSE['web page'])
    code, _, out = cook(capsys, '--what', tmp_path)
    a, b, c, s = out.splitlines()
    assert code == 0 and all(
        w in a for w in ('weights', 'torch', 'epoch 7', 'step 70', 'resnet18', '3 tensors', '124 numbers')
    )
    assert 'epoch 8' in b and 'safetensors' in b and 'web page' in c and ': soup' in s
    found = json.loads(cook(capsys, '--what', tmp_path, '--json')[2])['files']
    assert [f['kind'] for f in found] == ['weights', 'weights', 'web page', 'soup'] and found[0]['epoch'] == 7


def test_the_order_is_that_of_training(tmp_path, capsys):
    out = tmp_path / 'out' / 's.safetensors'

    def last(*names):
        return cook(capsys, *[tmp_path / n for n in names], '--recipe', 'last', '--out', out), Soup.load(out)

    for e in (2, 9, 10):
        torch.save(sd(e), tmp_path / f'epoch_{e}.pth')
    for e in (2, 9, 10):
        save_file(sd(e), tmp_path / f'{"abc"[e % 3]}.safetensors', {'step': str(e)})
    for e, n in ((1, 'zeta'), (2, 'beta'), (3, 'best')):
        torch.save(dict(state_dict=sd(e), epoch=e), tmp_path / f'{n}.pt')
    (said, soup) = last('epoch_10.pth', 'epoch_2.pth', 'epoch_9.pth')
    assert soup.ingredients == ['epoch_2', 'epoch_9', 'epoch_10'] and 'the number in their names' in said[1]
    (said, soup) = last('a.safetensors', 'b.safetensors', 'c.safetensors')
    assert [mean(tmp_path / f'{n}.safetensors') for n in soup.ingredients] == [
        2,
        9,
        10,
    ] and 'the step in the files' in said[1]
    (said, soup) = last('beta.pt', 'best.pt', 'zeta.pt')
    assert soup.ingredients == ['zeta', 'beta', 'best'] and 'the epoch in the files' in said[1]
    files = [tmp_path / f'epoch_{e}.pth' for e in (10, 2, 9)]
    with pytest.warns(UserWarning, match='order of training'):
        assert last_soup(files, k=1).ingredients == ['epoch_10']


def test_an_order_that_cannot_be_told(tmp_path, capsys):
    for n in ('good', 'better'):
        torch.save(sd(len(n)), tmp_path / f'{n}.pth')
    out = tmp_path / 's.safetensors'
    for r in ('ema', 'last', 'swa'):
        code, said, _ = cook(
            capsys, tmp_path / 'good.pth', tmp_path / 'better.pth', '--recipe', r, '--out', out
        )
        assert code == 2 and 'order of training' in said and not out.exists()
    assert (
        cook(capsys, tmp_path / 'good.pth', tmp_path / 'better.pth', '--out', out)[0] == 0 and mean(out) == 5
    )


def test_the_same_weights_count_once(tmp_path, capsys):
    for e in (1, 2):
        torch.save(dict(state_dict=sd(e), epoch=e), tmp_path / f'epoch_{e}.pth')
    shutil.copy(tmp_path / 'epoch_2.pth', tmp_path / 'copy.pth')
    os.link(tmp_path / 'epoch_2.pth', tmp_path / 'last.pth')
    save_file(sd(2), tmp_path / 'best.safetensors')
    torch.save(
        dict(state_dict={'module.' + k: v for k, v in sd(2).items()}, best=0.9),
        tmp_path / 'written again.pth',
    )
    code, said, _ = cook(capsys, tmp_path, '--out', tmp_path / 's.safetensors')
    assert code == 0 and mean(tmp_path / 's.safetensors') == 1.5 and 'counted once' in said
    files = [tmp_path / n for n in ('epoch_1.pth', 'copy.pth', 'epoch_2.pth', 'best.safetensors')]
    cook(capsys, *files, '--out', tmp_path / 't.safetensors')
    assert mean(tmp_path / 't.safetensors') == 1.5


def test_what_lies_in_a_folder_and_is_no_ingredient(tmp_path, capsys):
    for e in (1, 2):
        torch.save(sd(e), tmp_path / f'epoch_{e}.pth')
    uniform_soup([sd(70), sd(80)]).save(tmp_path / 'soup.safetensors')
    torch.save(OPTIMIZER, tmp_path / 'optimizer.pt')
    (tmp_path / 'notes.bin').write_bytes(b'no checkpoint at all')
    code, said, _ = cook(capsys, tmp_path, '--out', tmp_path / 'new.safetensors')
    assert code == 0 and mean(tmp_path / 'new.safetensors') == 1.5 and 'soup.safetensors (soup)' in said
    cook(
        capsys,
        tmp_path / 'epoch_1.pth',
        tmp_path / 'soup.safetensors',
        '--out',
        tmp_path / 'named.safetensors',
    )
    assert mean(tmp_path / 'named.safetensors') == 38
    for f in (*tmp_path.glob('epoch*'), tmp_path / 'notes.bin'):
        f.unlink()
    assert 'name the files' in cook(capsys, tmp_path, '--out', tmp_path / 'x.safetensors')[1]


def sharded(folder, w, write, end):
    "A checkpoint in two files with an index."
    folder.mkdir(parents=True)
    names = sorted(w)
    where = {k: f'm-{1 + (k == names[-1]):05d}-of-00002{end}' for k in names}
    for f in set(where.values()):
        write({k: w[k] for k in names if where[k] == f}, folder / f)
    (folder / f'm{end}.index.json').write_text(json.dumps(dict(metadata={}, weight_map=where)))


@pytest.mark.parametrize('write, end', [(save_file, '.safetensors'), (torch.save, '.bin')])
def test_shards_are_one_checkpoint(tmp_path, capsys, write, end):
    for e in (1, 2):
        sharded(tmp_path / f'in/checkpoint-{e}', sd(e), write, end)
    out = tmp_path / 's.safetensors'
    each = [tmp_path / f'in/checkpoint-{e}' for e in (1, 2)]
    for what in ([tmp_path / 'in'], each, [f for d in each for f in sorted(d.glob(f'm-*{end}'))]):
        assert cook(capsys, *what, '--recipe', 'ema', '--out', out)[0] == 0
        assert abs(mean(out) - (2 + 0.8) / 1.8) < 1e-6 and len(load_file(out)) == 3
    next(each[0].glob('m-00002*')).unlink()
    assert 'not beside it' in cook(capsys, tmp_path / 'in', '--out', out)[1]


@pytest.mark.parametrize(
    'write, end', [(save_file, '.safetensors'), (torch.save, '.bin'), (torch.save, '.pth')]
)
def test_shards_without_their_index_are_one_checkpoint(tmp_path, capsys, write, end):
    each = [tmp_path / f'in/checkpoint-{e}' for e in (1, 2)]
    for e, d in enumerate(each, 1):
        sharded(d, sd(e), write, end)
        (d / f'm{end}.index.json').unlink()
    out = tmp_path / 's.safetensors'
    second = [d / f'm-00002-of-00002{end}' for d in each]
    for what in ([tmp_path / 'in'], each, second, [f for d in each for f in sorted(d.iterdir())]):
        code, said, _ = cook(capsys, *what, '--recipe', 'ema', '--out', out)
        assert code == 0, said
        assert abs(mean(out) - (2 + 0.8) / 1.8) < 1e-6 and len(load_file(out)) == 3
    assert contents(second[0]).files == 2
    for f in (each[0] / f'm-00001-of-00002{end}', second[1]):
        f.unlink()
        for what in (f.parent, next(f.parent.iterdir())):
            code, said, _ = cook(capsys, what, '--out', out)
            assert code == 2 and f'{f.name} is not beside it; copy' in said


def test_a_shard_that_is_the_only_one(tmp_path):
    for e in (1, 2):
        (tmp_path / str(e)).mkdir()
        save_file(sd(e), tmp_path / str(e) / 'model-00001-of-00001.safetensors')
    save_file(sd(7), tmp_path / 'odd-00003-of-00002.safetensors')
    assert mean(tmp_path / 'odd-00003-of-00002.safetensors') == 7
    assert [contents(f).kind for f in find_checkpoints(tmp_path / '1')] == ['weights']


def test_folders_of_folders(tmp_path, capsys):
    for e in (500, 1000):
        d = tmp_path / f'checkpoint-{e}'
        d.mkdir()
        save_file(sd(e), d / 'model.safetensors')
        torch.save(OPTIMIZER, d / 'optimizer.pt')
        (d / 'trainer_state.json').write_text(json.dumps(dict(global_step=e)))
    assert [f.parent.name for f in find_checkpoints(tmp_path)] == ['checkpoint-500', 'checkpoint-1000']
    code, said, _ = cook(capsys, tmp_path, '--recipe', 'last', '--out', tmp_path / 's.safetensors')
    assert code == 0 and Soup.load(tmp_path / 's.safetensors').ingredients == [
        'checkpoint-500/model',
        'checkpoint-1000/model',
    ]


@pytest.mark.parametrize(
    'places',
    [
        ['lightning_logs/version_0/checkpoints'],
        ['runs/a/b/c'],
        ['logs/version_2/checkpoints', 'logs/version_10/checkpoints'],
        [f'multirun/{n}/lightning_logs/version_0/checkpoints' for n in range(5)],
    ],
)
def test_checkpoints_that_lie_deep_are_pointed_at(tmp_path, capsys, places):
    for p in places:
        (tmp_path / p).mkdir(parents=True)
        for e in (1, 2):
            torch.save(sd(e), tmp_path / p / f'epoch={e}.ckpt')
    code, said, _ = cook(capsys, tmp_path, '--out', tmp_path / 's.safetensors')
    named = [p for p in places if str(tmp_path / p) in said]
    assert code == 2 and 'they lie deeper' in said and named == places[:3] and '; they end in' not in said
    assert cook(capsys, tmp_path / named[0], '--out', tmp_path / 's.safetensors')[0] == 0


@pytest.mark.parametrize('wide, deep', [(3, 20), (500, 2), (30_000, 0)])
def test_a_large_folder_is_not_searched_for_ever(tmp_path, wide, deep):
    for i in range(wide if deep else 0):
        (tmp_path / str(i) / '/'.join('d' * deep)).mkdir(parents=True)
    for i in range(0 if deep else wide):
        (tmp_path / f'{i}.txt').touch()
    start = time.monotonic()
    with pytest.raises(BadInput, match='holds no checkpoints; they end in'):
        find_checkpoints(tmp_path)
    assert time.monotonic() - start < 20


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(2, 2), nn.Linear(2, 3)


@pytest.mark.parametrize('pre', ['net.', 'backbone.', 'module.net._orig_mod.', 'a.b.c.', 'model.', ''])
@pytest.mark.parametrize(
    'beside', [{}, {'criterion.weight': torch.ones(3)}, {'train_acc.total': torch.ones(())}]
)
def test_any_prefix_fits(pre, beside):
    m, w = Net(), Net().state_dict()
    given = load_weights({pre + k: v for k, v in w.items()} | beside)
    got = fit_names(given, m)
    assert got.keys() == w.keys() and all(torch.equal(got[k], w[k]) for k in w)


def test_names_that_do_not_fit():
    m, w = Net(), Net().state_dict()
    for given in (
        {**w, 'stem.0.weight': torch.ones(1)},
        {'net.' + k: v for k, v in w.items()} | {'net.more.weight': torch.ones(1)},
        {k: v for k, v in w.items() if k != 'stem.bias'},
        {'stem.w': torch.ones(1)},
    ):
        with pytest.raises(BadInput, match='not weights of this Net: (it has|they)'):
            fit_names(given, m)
    twice = {p + k: v for p in ('a.', 'b.') for k, v in w.items()}
    with pytest.raises(BadInput, match='--part a'):
        fit_names(twice, m)


@pytest.mark.parametrize('trained, asked', [(96, 64), (48, 96), (128, 32)])
@pytest.mark.parametrize('arch', ['vit_tiny_patch16_224', 'deit_tiny_distilled_patch16_224'])
def test_the_size_that_a_network_was_trained_at_is_said(arch, trained, asked):
    weights = blank_model(arch, 3, trained).state_dict()
    with pytest.raises(
        BadInput, match=f'trained at {trained} pixels: give --size {trained}, or size={trained}'
    ):
        fit_names(weights, blank_model(arch, 3, asked))
    with pytest.raises(BadInput, match="'head.*; give images of the classes"):
        fit_names(weights, blank_model(arch, 4, trained))


@pytest.mark.parametrize(
    'weights', [sd(1), {'net.' + k: v for k, v in sd(1).items()}, {'conv1.weight': torch.ones(1)}]
)
def test_what_is_no_network_of_that_name_is_said_once(tmp_path, weights):
    torch.save(weights, tmp_path / 'e1.pth')
    with pytest.raises(BadInput, match='e1.pth is not a test_resnet of 3 classes: it has') as e:
        as_classifier(tmp_path / 'e1.pth', arch='test_resnet', classes=3, size=32)
    assert 'not weights of this' not in str(e.value)


def test_partly_compiled_and_prefixed_files_are_one_model():
    a, b = sd(1), sd(3)
    for other in (
        {'conv._orig_mod.' + k[5:] if k.startswith('conv.') else k: v for k, v in b.items()},
        {'net.' + k: v for k, v in b.items()},
        {'net._orig_mod.' + k: v for k, v in b.items()},
        b | {'criterion.weight': torch.ones(3)},
    ):
        got = average([a, other])
        assert got.keys() == a.keys() and got['conv.bias'][0] == 2
    with pytest.raises(BadInput, match='not checkpoints of one model'):
        average([a, b | {'more.weight': torch.ones(1)}])


@pytest.mark.parametrize(
    'mask',
    [
        torch.full((5, 5), -torch.inf).triu(1),
        torch.tensor(torch.inf),
        torch.full((5, 5), torch.inf).t().triu(),
        torch.tensor([-torch.inf, torch.inf, 1.0]).half(),
    ],
)
def test_equal_infinities_pass(tmp_path, mask):
    files = []
    for e in (1, 2):
        torch.save(sd(e, mask=mask), tmp_path / f'{e}.pth')
        files.append(tmp_path / f'{e}.pth')
    assert torch.equal(average(files)['mask'], mask)
    assert torch.equal(load_weights(average(files, out=tmp_path / 'o.safetensors'))['mask'], mask)
    assert torch.equal(average(files, [2.0, -1.0])['mask'], mask)
    for name in ('greedy', 'pruned', 'stock', 'ema', 'greedy_passes'):
        soup = RECIPES[name](files, lambda w: -float((w['conv.bias'] - 1.6).abs().sum()))
        assert torch.equal(soup.weights['mask'], mask) and soup.weights['conv.bias'].isfinite().all(), name
    with pytest.raises(BadInput, match='2: tensor .mask. holds NaN'):
        average([files[0], files[0], _with(files[1], 'nan')])
    with pytest.raises(BadInput, match='holds NaN or infinity'):
        average([files[0], _with(files[1], 'inf')])


@pytest.mark.parametrize(
    'pad',
    [
        torch.full((5, 5), torch.nan).triu(1),
        torch.tensor(torch.nan),
        torch.full((5, 5), torch.nan).t().triu(),
        torch.tensor([torch.nan, torch.inf, 1.0]).half(),
        torch.full((200, 1000), torch.nan),
    ],
)
def test_a_nan_in_a_constant_passes(tmp_path, pad):
    files = [tmp_path / f'{e}.pth' for e in (1, 2)]
    for e, f in enumerate(files, 1):
        torch.save(sd(e, mask=pad), f)
    equal = functools.partial(torch.testing.assert_close, pad, rtol=0, atol=0, equal_nan=True)
    equal(average(files)['mask'])
    equal(average([load_weights(f) for f in files])['mask'])
    equal(load_weights(average(files, out=tmp_path / 'o.safetensors'))['mask'])
    equal(average(files, [2.0, -1.0], dtype=torch.float16)['mask'].to(pad.dtype))
    for name in ('uniform', 'greedy', 'pruned', 'stock', 'ema', 'last', 'greedy_passes', 'posthoc_ema'):
        for given in (files, [load_weights(f) for f in files]):
            soup = RECIPES[name](given, lambda w: -float((w['conv.bias'] - 1.6).abs().sum()))
            equal(soup.weights['mask'])
            assert soup.weights['conv.bias'].isfinite().all(), name
    one = last_soup(files, k=1)
    one.save(tmp_path / 'one.safetensors')
    equal(load_weights(tmp_path / 'one.safetensors')['mask'])


@pytest.mark.parametrize(
    'rows, says',
    [
        ([[1.0, torch.nan], [1.0, 2.0]], '1: tensor .w. holds NaN or infinity; leave that'),
        ([[1.0, 2.0], [1.0, torch.nan]], '2: tensor .w. holds NaN or infinity; leave that'),
        ([[1.0, torch.nan], [2.0, torch.nan]], 'NaN or infinity'),
        ([[torch.nan, 1.0], [1.0, torch.nan]], 'NaN or infinity'),
        ([[1.0, torch.nan]], '1: tensor .w. holds NaN or infinity; leave that'),
    ],
)
def test_a_nan_in_a_trained_weight_is_refused(tmp_path, rows, says):
    files = [tmp_path / f'{i}.safetensors' for i, _ in enumerate(rows, 1)]
    for e, (f, row) in enumerate(zip(files, rows), 1):
        pad = dict(pad=torch.tensor([torch.nan])) if len(rows) > 1 else {}
        save_file(sd(e, w=torch.tensor(row), **pad), f)
    for make in (
        lambda: average(files),
        lambda: average(files, out=tmp_path / 'o.safetensors'),
        lambda: RECIPES['greedy'](files, lambda w: -float(w['conv.bias'].sum())),
        lambda: RECIPES['stock'](files).weights,
    ):
        with pytest.raises(BadInput, match=says):
            make()


@pytest.mark.parametrize(
    'finite', [{}, {'stem.weight': torch.ones(4, 3)}, {'stem.bias': torch.ones(4), 'n': torch.tensor(3)}]
)
def test_a_training_that_diverged_is_no_constant(tmp_path, finite):
    files = [tmp_path / f'{e}.safetensors' for e in (1, 2, 3)]
    for f in files:
        save_file(sd(torch.nan, **finite), f)
    for make in (
        lambda: average(files),
        lambda: average([load_weights(f) for f in files]),
        lambda: average(files, out=tmp_path / 'o.safetensors'),
        lambda: RECIPES['greedy'](files, lambda w: 1.0),
    ):
        with pytest.raises(BadInput, match='holds NaN or infinity'):
            make()


def _with(f, what):
    w = load_weights(f)
    if what == 'nan':
        w['mask'] = torch.full_like(w['mask'], torch.nan)
    else:
        w['conv.bias'][0] = torch.inf
    torch.save(w, f)
    return f


@pytest.mark.parametrize(
    'names',
    [
        ('q.lora_A.weight', 'q.lora_B.weight'),
        ('lora_unet_q.lora_down.weight', 'lora_unet_q.lora_up.weight'),
        ('base.q.lora_A.default.weight', 'base.q.lora_B.default.weight'),
        ('q.hada_w1_a', 'q.hada_w1_b'),
    ],
)
def test_low_rank_factors_are_refused(tmp_path, names):
    files = []
    for e in (1, 2):
        save_file({n: torch.randn(4, 4) for n in names}, tmp_path / f'{e}.safetensors')
        files.append(tmp_path / f'{e}.safetensors')
    assert contents(files[0]).kind == 'adapter'
    with pytest.raises(BadInput, match='merge each adapter'):
        average(files)
    assert len(average(files[:1])) == 2


def test_eight_bits(tmp_path):
    kinds = torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float32
    for a in kinds:
        for b in kinds:
            for e, t in ((1, a), (3, b)):
                save_file({'w': torch.full((4, 4), float(e)).to(t)}, tmp_path / f'{e}.safetensors')
            files = [tmp_path / '1.safetensors', tmp_path / '3.safetensors']
            got = average(files)['w'], load_weights(average(files, out=tmp_path / 'o.safetensors'))['w']
            assert all(g.dtype == (a if a == b else torch.float32) and g.float().eq(2).all() for g in got)


@pytest.mark.parametrize('name', ['float8_e8m0fnu', 'float8_e4m3fn', 'float8_e5m2'])
def test_a_type_that_no_soup_can_hold_is_told_the_way(tmp_path, capsys, name):
    if not hasattr(torch, name):
        pytest.skip('needs a newer torch')
    for e in (1, 2):
        torch.save(
            dict(w=torch.full((4, 4), 2.0).to(getattr(torch, name)), b=torch.ones(e + 1)[:2] * e),
            tmp_path / f'{e}.pth',
        )
    files, out = [tmp_path / '1.pth', tmp_path / '2.pth'], tmp_path / 's.safetensors'
    code, said, _ = cook(capsys, *files, '--out', out)
    assert code == 0 or 'convert the files to float32, or call average(..., dtype=torch.float32)' in said
    assert average(files, out=out, dtype=torch.float32) == out and load_file(out)['w'].eq(2).all()


def test_paths_begin_at_home(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'in').mkdir()
    for e in (1, 2):
        torch.save(sd(e), tmp_path / f'in/epoch_{e}.pth')
    monkeypatch.chdir(tmp_path / 'in')
    for args in (
        ('~/in', '--out=~/a.safetensors'),
        ('~/in/epoch_1.pth', '~/in/epoch_2.pth', '-o', '~/b.safetensors'),
    ):
        assert cook(capsys, *args)[0] == 0
    assert (
        mean(tmp_path / 'a.safetensors') == mean(tmp_path / 'b.safetensors') == 1.5 and not Path('~').exists()
    )


def test_a_soup_of_files_is_read_when_asked(tmp_path, monkeypatch):
    files = []
    for e in (1, 2):
        torch.save(sd(e), tmp_path / f'epoch_{e}.pth')
        files.append(tmp_path / f'epoch_{e}.pth')
    soups = [f(files) for f in (uniform_soup, ema_soup, last_soup)]
    for s in soups:
        s.save(tmp_path / 's.safetensors')
        assert not isinstance(s._weights, dict)  # file to file
        assert all(torch.equal(v, s.weights[k]) for k, v in load_file(tmp_path / 's.safetensors').items())
        assert Soup.load(tmp_path / 's.safetensors').coefs == s.coefs and isinstance(s._weights, dict)
    held = uniform_soup([w := sd(1), sd(3)])
    w['conv.bias'].zero_()
    assert held.weights['conv.bias'][0] == 2


@pytest.mark.parametrize(
    'odd',
    [dict(lr=-1.0), dict(lr=float('nan')), dict(lr=0.0), dict(lr=float('inf')), dict(wd=-1.0), dict(bs=0)],
)
def test_rates_that_cannot_be(odd):
    with pytest.raises(BadInput, match=next(iter(odd))):
        Config(**odd)


def test_checkpoints_stay_what_was_opened(tmp_path):
    sharded(tmp_path / 'a', sd(5), save_file, '.safetensors')
    c = Checkpoint(tmp_path / 'a' / 'm.safetensors.index.json')
    assert c.name == 'a' and {k: v.shape for k, v in load_weights(c).items()} == {
        k: v.shape for k, v in sd(5).items()
    }
    assert all(v.eq(5).all() for v in load_weights(c).values())


def test_a_checkpoint_is_called_as_its_network(tmp_path):
    m, w = Net(), Net().state_dict()
    torch.save(
        dict(state_dict={'net.' + k: v for k, v in w.items()} | {'criterion.weight': torch.ones(3)}),
        tmp_path / 'a.ckpt',
    )
    c = Checkpoint(tmp_path / 'a.ckpt')
    with pytest.warns(UserWarning, match='criterion.weight'):
        c.fit(m)
    assert all(torch.equal(load_weights(c)[k], v) for k, v in w.items()) and c.keys() == w.keys()


def learner(metrics=(), n=24, bs=8, **kw):
    "A fastai Learner of a line, or of three classes of it."
    import fastai.callback.all  # noqa: F401  which adds no_bar, lr_find and the like
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from fastai.learner import Learner

    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 2, generator=g)
    items = [(a, int(a[0] > 0) + int(a[1] > 0)) for a in x]
    dls = DataLoaders(
        DataLoader(items, bs=bs, shuffle=True, num_workers=0, **kw), DataLoader(items, bs=bs, num_workers=0)
    )
    body = nn.Sequential(nn.Linear(2, 4), nn.ReLU())
    return Learner(
        dls,
        nn.Sequential(body, nn.Linear(4, 3)),
        nn.CrossEntropyLoss(),
        metrics=list(metrics),
        lr=0.1,
        splitter=lambda m: [list(m[0].parameters()), list(m[1].parameters())],
    )


def fitted(learn, *fits):
    "Run them without output; the epochs that its snapshots are of."
    with learn.no_bar(), learn.no_logging():
        for f in fits:
            f(learn)
    return [s.epoch for s in learn.snapshot_store.snapshots()]


def test_one_callback_for_several_fits(tmp_path):
    from ich_soups import SnapshotCallback
    from ich_soups.train.snapshots import SnapshotStore

    keep = lambda name, **kw: SnapshotCallback(tmp_path / name, k=9, **kw)
    learn, cb = learner(), keep('a')
    assert fitted(learn, lambda l: l.fine_tune(2, cbs=cb)) == [1, 2, 3]
    assert fitted(learn, lambda l: l.fit(2, cbs=cb)) == [1, 2, 3, 4, 5]
    assert len(learn.soup().ingredients) >= 1
    learn = learner()
    learn.add_cb(keep('b'))
    assert fitted(
        learn,
        lambda l: l.fit_one_cycle(1),
        lambda l: l.unfreeze(),
        lambda l: l.lr_find(show_plot=False, num_it=5),
        lambda l: l.fit_one_cycle(2),
    ) == [1, 2, 3]
    learn, store = learner(), SnapshotStore(tmp_path / 'c')
    assert fitted(learn, *[lambda l: l.fit(1, cbs=SnapshotCallback(store, k=9))] * 3) == [1, 2, 3]
    assert [s.epoch for s in SnapshotStore(tmp_path / 'c').snapshots()] == [1, 2, 3]


def test_a_new_training_does_not_eat_the_old(tmp_path):
    from ich_soups import SnapshotCallback

    cb = SnapshotCallback(tmp_path / 'a')
    fitted(learner(), lambda l: l.fit(2, cbs=cb))
    for again in (cb, SnapshotCallback(tmp_path / 'a')):
        with pytest.raises(BadInput, match='already holds'):
            fitted(learner(), lambda l: l.fit(1, cbs=again))
    assert fitted(learner(), lambda l: l.fit(1, cbs=SnapshotCallback(tmp_path / 'b'))) == [1]


@pytest.mark.parametrize('rate', [-1.0, float('nan'), float('inf')])
def test_a_learner_is_told_at_the_start(tmp_path, rate):
    from ich_soups import SnapshotCallback

    with pytest.raises(BadInput, match='learning rate is a positive number'):
        fitted(learner(), lambda l: l.fit(1, rate, cbs=SnapshotCallback(tmp_path / 'a')))
    with pytest.raises(BadInput, match='no batch to train on'):
        fitted(learner(bs=64, drop_last=True), lambda l: l.fit(1, cbs=SnapshotCallback(tmp_path / 'b')))
