"Model soups from one training run: a paper companion, and a tool for folders of photographs."
__version__ = "0.1.0"

import importlib as _importlib
import os as _os

# How long a thread of GNU OpenMP waits for the others by turning in a loop before it sleeps. As torch comes, it
# turns so long that one other busy process takes two thirds of the speed of a training;
# `python -m ich_soups.companion.bench busy` shows both cases. The library reads this once, when torch is imported.
# Whoever has set either variable keeps it.
if not {'GOMP_SPINCOUNT', 'OMP_WAIT_POLICY'} & _os.environ.keys():
    _os.environ['GOMP_SPINCOUNT'] = '1000'

# Nothing is reported to anybody: these libraries would tell their makers how they are used. Who has set one keeps
# it.
_SILENT = dict(
    HF_HUB_DISABLE_TELEMETRY='1',
    GRADIO_ANALYTICS_ENABLED='False',
    RAY_USAGE_STATS_ENABLED='0',
    ORT_DISABLE_TELEMETRY='1',
)
for _k, _v in _SILENT.items():
    _os.environ.setdefault(_k, _v)

# What an Apple GPU cannot do yet, the processor does; torch says so once for each operation.
_os.environ.setdefault('PYTORCH_ENABLE_MPS_FALLBACK', '1')

# What most programs need, imported when it is asked for, so that `import ich_soups` stays quick.
_FACE = dict(
    BadInput='errors',
    Config='config',
    Checkpoint='soups.checkpoints',
    Run='train.finished_run',
    Soup='soups.soup',
    SnapshotCallback='train.learner',
    average='soups.averaging',
    cook='soups.cook',
    find_checkpoints='soups.folders',
    get_run='train.runs',
    load_weights='soups.checkpoints',
)
__all__ = sorted(_FACE)


def __getattr__(name):
    if name not in _FACE:
        raise AttributeError(f'ich_soups has no attribute {name!r}; it offers {", ".join(__all__)}')
    return getattr(_importlib.import_module(f'ich_soups.{_FACE[name]}'), name)


def __dir__():
    return [*globals(), *__all__]
