"""Federated learning from Python: trains any model against an fl master.

    import fl_client

    for round in fl_client.rounds("http://127.0.0.1:5000", "edge-1"):
        state = train(round.state)                   # numpy arrays by name; or round.load_into(module) with PyTorch
        round.send(state, num_samples=500, metrics={"accuracy": 0.9})

Updates are quantized and entropy-coded as the Rust worker does it. `run` drives an object with `train` and `evaluate`,
`fl_client.flower.run` one that was written for Flower, `fl_client.torch.build` makes the PyTorch module of a master's
network. Exceptions are those of `fl_client.errors`. The logger is called `fl_client`.
"""

import importlib as _importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING

from . import errors
from .errors import (
    AuthError,
    CodecError,
    DivergedError,
    Error,
    MetricError,
    NotAMaster,
    Refused,
    SettingError,
    StateError,
    TaskError,
    Unreachable,
)

__version__ = "0.1.0"

__all__ = [
    "AuthError",
    "Client",
    "CodecError",
    "DivergedError",
    "Error",
    "MetricError",
    "NotAMaster",
    "Options",
    "Refused",
    "Round",
    "Sent",
    "SettingError",
    "StateError",
    "TaskError",
    "Unreachable",
    "Update",
    "decode",
    "download",
    "encode",
    "errors",
    "flower",
    "history",
    "rounds",
    "run",
    "save",
    "status",
]


# Imported when they are first used: numpy, http.client and ssl take some 0.2 s, PyTorch takes seconds.
_LAZY = {
    "Client": "_run",
    "Options": "_settings",
    "Round": "_rounds",
    "Sent": "_rounds",
    "Update": "_run",
    "decode": "_codec",
    "download": "_records",
    "encode": "_codec",
    "flower": None,
    "history": "_records",
    "rounds": "_rounds",
    "run": "_run",
    "save": "_state",
    "status": "_records",
    "torch": None,
}

if _TYPE_CHECKING:
    from . import flower as flower
    from . import torch as torch
    from ._codec import decode as decode
    from ._codec import encode as encode
    from ._records import download as download
    from ._records import history as history
    from ._records import status as status
    from ._rounds import Round as Round
    from ._rounds import Sent as Sent
    from ._rounds import rounds as rounds
    from ._run import Client as Client
    from ._run import Update as Update
    from ._run import run as run
    from ._settings import Options as Options
    from ._state import save as save


def __getattr__(name):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _importlib.import_module(f"{__name__}.{_LAZY[name] or name}")
    value = module if _LAZY[name] is None else getattr(module, name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(set(globals()) | set(_LAZY))
