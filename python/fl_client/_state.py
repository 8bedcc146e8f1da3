"""States: dictionaries of numpy arrays or PyTorch tensors, checked against the master's model before anything is sent."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Mapping
from typing import Any, Dict, List, Optional, Union

import numpy as np

from . import _native
from ._model import Model, write
from .errors import DivergedError, MetricError, SettingError, StateError

#: Values that are handed to Rust at a time: small enough to stay in the cache.
PIECE = 16_384
#: Names that a message lists.
LISTED = 3
METRIC_NAME = re.compile(r"[a-z0-9_.]{1,64}\Z")
MAX_METRICS = 32


def as_array(name: str, value: Any) -> np.ndarray:
    """A numpy array of a tensor or an array-like, without a copy where that is possible.

    Raises:
        StateError: a tensor that is not in the processor's memory, or no numbers.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        if value.device.type != "cpu":
            raise StateError(f"tensor `{name}` is on the device {value.device}: call .cpu() on it first")
        value = value.detach()
        if value.dtype == torch.bfloat16:
            value = value.float()
        try:
            return value.numpy()
        except (TypeError, RuntimeError) as error:
            raise StateError(f"tensor `{name}` cannot become an array: {error}") from None
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise StateError(f"`{name}` is a {type(value).__name__}, not an array of numbers: {error}") from None


def as_floats(name: str, value: Any, shape: tuple) -> np.ndarray:
    """A contiguous little-endian f32 array of exactly this shape.

    Raises:
        StateError: another shape, or no floating-point numbers.
    """
    array = as_array(name, value)
    if array.dtype.kind != "f":
        raise StateError(f"`{name}` has the type {array.dtype}, the master's model has f32: give floating-point numbers")
    if array.shape != tuple(shape):
        raise StateError(f"`{name}` has the shape {list(array.shape)}, the master's model {list(shape)}")
    # Larger numbers of f64 become infinite, which is found and named when the delta is made.
    with np.errstate(over="ignore"):
        return np.asarray(array, "<f4", order="C")


def is_integer(name: str, value: Any) -> bool:
    """Whether a value is a buffer such as `num_batches_tracked`, which is not averaged."""
    return as_array(name, value).dtype.kind in "iub"


def fill(encoder, model: Model, state: object, frozen: List[int]) -> None:
    """Sets the encoder's delta: `state` minus `model`, zero for the `frozen` tensors.

    Raises:
        StateError: names, shapes or types are not the model's.
    """
    if not isinstance(state, Mapping):
        hint = ": give module.state_dict()" if hasattr(state, "state_dict") else ""
        raise StateError(f"the state is a {type(state).__name__}, not a dictionary of arrays{hint}")
    skipped = {model.tensors[index].name for index in frozen}
    names = {tensor.name for tensor in model.tensors}
    missing = [tensor.name for tensor in model.tensors if tensor.name not in state and tensor.name not in skipped]
    unknown = [
        name for name, value in state.items()
        if name not in names and name not in model.buffers and not is_integer(str(name), value)
    ]
    if missing or unknown:
        parts = [f"it lacks {_list(missing)}"] * bool(missing) + [f"the model has no {_list(unknown)}"] * bool(unknown)
        raise StateError(
            f"the state is not of the master's model: {'; '.join(parts)}. The model's tensors are {_list(sorted(names))}; "
            "send only those"
        )
    for index, tensor in enumerate(model.tensors):
        if tensor.name in skipped:
            encoder.set_zero(index)
            continue
        values = as_floats(tensor.name, state[tensor.name], tensor.shape).reshape(-1)
        for at in range(0, tensor.size, PIECE):
            encoder.set(index, at, values[at : at + PIECE].tobytes(), model.data, tensor.start + 4 * at)


def _list(names) -> str:
    names = list(names)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(f"`{name}`" for name in names[:LISTED]) + more


def frozen(model: Model, trainable: Optional[str]) -> List[int]:
    """Indices of the tensors that the task's regular expression leaves untrained."""
    if not trainable:
        return []
    pattern = re.compile(trainable)
    return [index for index, tensor in enumerate(model.tensors) if not pattern.search(tensor.name)]


def check_samples(num_samples: Any) -> int:
    """The weight of an update or an evaluation.

    Raises:
        SettingError: it is no whole number of the range that the master takes.
    """
    try:
        number = int(num_samples)  # also of numpy and PyTorch
    except (TypeError, ValueError):
        number = 0
    if isinstance(num_samples, bool) or number != num_samples or not 1 <= number <= _native.MAX_NUM_SAMPLES:
        raise SettingError(f"num_samples={num_samples!r}: give a whole number from 1 to {_native.MAX_NUM_SAMPLES}")
    return number


def check_steps(steps: Any) -> int:
    """A number of optimizer steps.

    Raises:
        SettingError: it is no whole number from 0 to 2^32-1.
    """
    try:
        number = int(steps)
    except (TypeError, ValueError):
        number = -1
    if number != steps or not 0 <= number < 2**32:
        raise SettingError(f"local_steps={steps!r}: give a whole number")
    return number


def check_optional(name: str, value: Any) -> Optional[float]:
    """A finite number, or none."""
    return None if value is None else check_number(name, value)


def check_number(name: str, value: Any) -> float:
    """A finite number.

    Raises:
        MetricError
    """
    try:
        number = float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, RuntimeError):
        raise MetricError(f"`{name}` is {value!r}: give a number") from None
    if not math.isfinite(number):
        raise MetricError(f"`{name}` is {number}: give a finite number")
    return number


def check_metrics(metrics: Any) -> Dict[str, float]:
    """Metrics as the master takes them: at most 32, names of a-z 0-9 _ . with 1 to 64 characters, finite values.

    Raises:
        MetricError
    """
    if not isinstance(metrics, Mapping):
        raise MetricError(f"metrics are a {type(metrics).__name__}: give a dictionary such as {{'accuracy': 0.9}}")
    if len(metrics) > MAX_METRICS:
        raise MetricError(f"{len(metrics)} metrics: at most {MAX_METRICS} are possible")
    for name in metrics:
        if not isinstance(name, str) or not METRIC_NAME.match(name):
            raise MetricError(f"a metric is called {name!r}: use 1 to 64 of a-z 0-9 _ .")
    return {name: check_number(name, value) for name, value in metrics.items()}


def metadata(values: Dict[str, Any]) -> Dict[str, str]:
    """The container's metadata: strings, without what is none."""
    metrics = values.pop("metrics", None)
    texts = {name: repr(value) if isinstance(value, float) else str(value) for name, value in values.items() if value is not None}
    if metrics:
        texts["metrics"] = json.dumps(metrics)
    return texts


def save(path: Union[str, os.PathLike], state: Mapping[str, Any]) -> int:
    """Writes the first model of a federation, for a master with `MODEL=safetensors:PATH`.

    Keeps the order of `state` and writes its floating-point tensors as f32. Integer and boolean buffers, such as
    `num_batches_tracked` of PyTorch's batch normalisation, are written as they are: the master hands them to every client
    unchanged, and no one averages them.

    Args:
        path: where to write; replaced if it is there.
        state: arrays or CPU tensors by name, such as `module.state_dict()`.

    Returns:
        The number of parameters in the file, without buffers.

    Raises:
        StateError: a value is no array of numbers, is on a GPU, or is not finite; or no tensor is left.
    """
    if not isinstance(state, Mapping):
        raise StateError(f"the state is a {type(state).__name__}, not a dictionary of arrays")
    arrays = {}
    for name, value in state.items():
        array = as_array(str(name), value)
        if array.dtype.kind in "iub":
            arrays[str(name)] = array.astype(array.dtype.newbyteorder("<"))
            continue
        arrays[str(name)] = as_floats(str(name), value, array.shape)
        if not np.isfinite(arrays[str(name)]).all():
            raise DivergedError(f"`{name}` has values that are not finite")
    parameters = sum(array.size for array in arrays.values() if array.dtype.kind == "f")
    if not parameters:
        raise StateError("the state has no tensor of floating-point numbers")
    write(path, arrays)
    return parameters
