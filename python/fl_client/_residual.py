"""`state_dir`: the residual of error feedback, in a file that survives the process."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from typing import Optional

import numpy as np

from ._model import Model
from ._settings import Settings

log = logging.getLogger("fl_client")


def _path(settings: Settings) -> str:
    return os.path.join(settings.state_dir or "", f"{settings.worker_id}.residual.npz")


def _layout(model: Model) -> str:
    return hashlib.sha256(json.dumps(model.layout).encode()).hexdigest()


def save(settings: Settings, model: Model, residual: bytes) -> None:
    """Replaces the file. A failure is no reason to end: only a restart would lose by it."""
    path = _path(settings)
    if not residual and not os.path.exists(path):
        return
    buffer = io.BytesIO()
    np.savez(buffer, layout=_layout(model), round=model.round, residual=np.frombuffer(residual, "<f4"))
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        descriptor = os.open(path + ".tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(path + ".tmp", path)
    except OSError as error:
        log.warning("%s cannot be written, a restart would go on with an older residual: %s", path, error)


def load(settings: Settings, model: Model) -> Optional[bytes]:
    """What was saved for this model; None if there is nothing that can be used."""
    path = _path(settings)
    try:
        with np.load(path, allow_pickle=False) as saved:
            residual = saved["residual"].astype("<f4")
            fits = str(saved["layout"]) == _layout(model) and int(saved["round"]) <= model.round
    except FileNotFoundError:
        return None
    except Exception as error:  # a damaged archive raises errors of several kinds
        log.warning("%s is ignored: %s", path, error)
        return None
    if not fits or residual.size not in (0, model.parameters) or not np.isfinite(residual).all():
        log.warning("%s is ignored: it is of another model or of a later round", path)
        return None
    log.info("going on with the residual of the last run")
    return residual.tobytes()
