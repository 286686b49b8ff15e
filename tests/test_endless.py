"What never ends: pipes, devices, and pickles that hold themselves, wherever a stranger's files are read."

import os, time, zipfile
import pytest
import torch
from ich_soups.core import BadInput
from ich_soups.files import check_regular, read_file
from ich_soups.kinds import read_json
from ich_soups.locks import holder
from ich_soups.soups.averaging import average
from ich_soups.soups.checkpoints import load_weights
from ich_soups.soups.folders import find_checkpoints
from ich_soups.soups.progress import said_beside
from ich_soups.soups.run_files import file_sha256, read_history, read_state
from ich_soups.soups.saving import save_weights
from ich_soups.soups.tensor_names import fitting

pytestmark = pytest.mark.skipif(os.name != 'posix', reason='to run this, use a system that has named pipes')


def endless(path, kind):
    "A file that nobody can read to its end."
    path.unlink(missing_ok=True)
    if kind == 'pipe':
        os.mkfifo(path)
    else:
        path.symlink_to(dict(device='/dev/zero', kernel='/proc/kmsg')[kind])
    return path


KINDS = ('pipe', 'device')


def archive(path, pickled):
    "An archive of torch around any pickle."
    with zipfile.ZipFile(path, 'w') as z:
        z.writestr('a/data.pkl', pickled)
        z.writestr('a/byteorder', 'little')
        z.writestr('a/version', '3\n')
    return path


REBUILD = b'ctorch._tensor\n_rebuild_from_type_v2\nq\0'
THEMSELVES = {
    'a list': b'\x80\x02' + REBUILD + b']q\1h\0aNah\1a0(h\0Nh\1NtR.',
    'a table': b'\x80\x02' + REBUILD + b'}q\1(K\0h\0K\2h\1u0(h\0Nh\1NtR.',
    'a list in a tuple': b'\x80\x02' + REBUILD + b']q\1(h\0Nh\1tq\2a0(h\0Nh\2NtR.',
    'a tuple in a list': b'\x80\x02' + REBUILD + b']q\1(h\0aNah\1ah\1e0(h\0Nh\1NtR.',
}


@pytest.mark.parametrize('name', THEMSELVES)
def test_a_checkpoint_that_holds_itself(tmp_path, name):
    with pytest.raises(BadInput):
        load_weights(archive(tmp_path / 'a.pth', THEMSELVES[name]))


STATES = {  # pairs of pairs of pairs: 2 ** 40 of them to be hashed; and a tuple as deep as no stack is
    'hashed for ever': b'\x80\x02}' + b')' + b'q\0h\0\x86' * 40 + b'K\1s.',
    'deeper than a stack': b'\x80\x02}' + b')' + b'\x85' * 200_000 + b'K\1s.',
    'a list that holds itself': b'\x80\x02' + REBUILD + b']q\1h\0aNah\1a0(h\0Nh\1NtR.',
}


@pytest.mark.parametrize('file', ('state.pt', 'end.pt'))
@pytest.mark.parametrize('name', STATES)
def test_a_state_that_keeps_torch_busy(tmp_path, name, file):
    archive(tmp_path / file, STATES[name])
    with pytest.raises(BadInput, match='damaged.*delete .* to train that run anew'):
        read_state(tmp_path, file)


@pytest.mark.parametrize('kind', KINDS)
def test_files_beside_checkpoints(tmp_path, kind):
    "They say a step and a network where they can be read, and nothing where they cannot."
    save_weights({'w': torch.ones(3)}, tmp_path / 'model.safetensors')
    for n in ('trainer_state.json', 'config.json'):
        endless(tmp_path / n, kind)
    assert said_beside(tmp_path / 'model.safetensors') == {}
    assert len(find_checkpoints(tmp_path)) == 1


@pytest.mark.parametrize('kind', (*KINDS, 'kernel'))
def test_checkpoints_indexes_and_shards(tmp_path, kind):
    f = endless(tmp_path / 'a.safetensors', kind)
    index = endless(tmp_path / 'model.safetensors.index.json', kind)
    (tmp_path / 'b').mkdir()
    listed = tmp_path / 'b' / 'model.safetensors.index.json'
    listed.write_text('{"weight_map": {"w": "a.safetensors"}}')
    endless(listed.parent / 'a.safetensors', kind)
    for read in (
        load_weights,
        lambda p: average([p]),
        lambda p: average([p], out=tmp_path / 'o.safetensors'),
    ):
        for path in (f, index, listed):
            with pytest.raises(BadInput):
                read(path)


@pytest.mark.parametrize('kind', KINDS)
def test_files_of_a_run(tmp_path, kind):
    for read in (check_regular, read_file):
        with pytest.raises(BadInput, match='give a regular file'):
            read(endless(tmp_path / 'x', kind), 10)
    for name, read in {
        'x.json': read_json,
        'state.pt': lambda p: read_state(p.parent),
        'history.csv': lambda p: read_history(p, 'train anew'),
        'x.safetensors': file_sha256,
    }.items():
        with pytest.raises(BadInput):
            read(endless(tmp_path / name, kind))
    endless(tmp_path / '.lock.by', kind)
    assert holder(tmp_path / '.lock') == 'another process'


@pytest.mark.parametrize('names', ([''], ['', 'a'], ['a.b', '']), ids=['none', 'none first', 'none last'])
def test_very_many_names(names):
    "One of them empty, which is the end of every name: a hundred thousand are compared in seconds."
    own = {f'layers.{k}.weight' for k in range(100_000)}
    given = [*names, *(f'x{k}' for k in range(100_000 - len(names)))]
    t0 = time.process_time()
    assert fitting(own, given) is None
    assert time.process_time() - t0 < 5
