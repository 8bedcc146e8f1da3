"""Runs a client that was written for Flower, unchanged and without Flower.

The object has the methods of Flower's `NumPyClient`: `fit(parameters, config)` gives `(parameters, num_examples, metrics)`,
`evaluate(parameters, config)` gives `(loss, num_examples, metrics)`, `get_parameters(config)` gives a list of arrays. Lists
are in the order of the master's tensors, which is that of the file given as `MODEL=safetensors:FILE`: write it with
`fl_client.flower.save_initial`, or with `fl_client.save` and a dictionary in the order of `get_parameters`.
"""

from __future__ import annotations

import inspect
import logging
import math
import re
from typing import TYPE_CHECKING, Any, Dict, List, Optional

import numpy as np

from ._rounds import Round, rounds
from ._state import MAX_METRICS, save
from .errors import StateError

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._settings import Options

log = logging.getLogger("fl_client")


def run(
    client: Any, master: Optional[str] = None, worker_id: Optional[str] = None, **options: Unpack[Options]
) -> int:
    """Drives an object with Flower's `fit` and `evaluate` until the training is over or SIGTERM comes.

    `config` is that of `Round.config` with `server_round` beside it, counted from 1 as Flower does. Metrics that are no
    finite numbers are left out, and characters that the master does not take in their names become `_`.

    Args:
        client: the object. `evaluate` and `get_parameters` may be missing. Integer arrays in its lists (the counters of
            batch normalisation) keep this client's own values: they are not averaged.
        master, worker_id, **options: as of `fl_client.rounds`.

    Returns:
        The number of updates that count.

    Raises:
        StateError: the client's arrays are not the master's, in number, shape or type.
        As `fl_client.rounds`; what `client` raises goes through.
    """
    accepted, template = 0, None
    for round in rounds(master, worker_id, evaluate=callable(getattr(client, "evaluate", None)), **options):
        names = [name for name, array in round.state.items() if array.dtype.kind == "f"]
        config = {**round.config, "server_round": round.number + 1}
        if template is None:
            template = _template(client, config, round, names)
        parameters = _weave([round.state[name] for name in names], template)
        if round.action == "evaluate":
            loss, num_examples, metrics = client.evaluate(parameters, config)
            round.report(num_samples=num_examples, metrics=_metrics({"loss": loss, **(metrics or {})}))
            continue
        result = client.fit(parameters, config)
        if not isinstance(result, tuple) or len(result) != 3:
            raise StateError("fit() must return (parameters, num_examples, metrics)")
        arrays, num_examples, metrics = result
        template = _integers(arrays) or template
        metrics = _metrics(metrics or {})
        sent = round.send(_named(arrays, names), num_samples=num_examples, metrics=metrics, loss=metrics.get("loss"))
        accepted += sent.accepted
    return accepted


def save_initial(client: Any, path: Any, config: Optional[Dict[str, Any]] = None) -> int:
    """Writes the first model of a federation from `client.get_parameters`, as `0`, `1`, ... in its order.

    Returns:
        The number of parameters.

    Raises:
        StateError: the arrays cannot be a model.
    """
    arrays = _call(client.get_parameters, config or {})
    return save(path, {str(index): array for index, array in enumerate(arrays)})


def _call(get_parameters, config) -> List[np.ndarray]:
    """Earlier versions of Flower call it without an argument."""
    takes_config = bool(inspect.signature(get_parameters).parameters)
    return get_parameters(config) if takes_config else get_parameters()


def _template(client, config, round: Round, names) -> Dict[int, np.ndarray]:
    """Places and values of integer arrays in the client's lists; its float arrays must be the master's."""
    if not callable(getattr(client, "get_parameters", None)):
        return {}
    try:
        arrays = _call(client.get_parameters, config)
    except NotImplementedError:
        return {}
    state = _named(arrays, names)
    for name in names:
        expected = round.state[name].shape
        if np.shape(state[name]) != expected:
            raise StateError(
                f"the client's array for `{name}` has the shape {list(np.shape(state[name]))}, the master's model "
                f"{list(expected)}: the order of get_parameters must be that of the master's file (fl_client.flower.save_initial)"
            )
    return _integers(arrays)


def _integers(arrays) -> Dict[int, np.ndarray]:
    return {index: np.asarray(array) for index, array in enumerate(arrays) if np.asarray(array).dtype.kind in "iub"}


def _weave(floats: List[np.ndarray], integers: Dict[int, np.ndarray]) -> List[np.ndarray]:
    """The master's arrays, with the client's integer arrays at their places."""
    result, rest = [], iter(floats)
    for index in range(len(floats) + len(integers)):
        result.append(integers[index] if index in integers else next(rest))
    return result


def _named(arrays, names) -> Dict[str, Any]:
    if isinstance(arrays, np.ndarray) or not isinstance(arrays, (list, tuple)):
        raise StateError(f"the client gave a {type(arrays).__name__} in place of a list of arrays")
    floats = [array for array in arrays if np.asarray(array).dtype.kind not in "iub"]
    if len(floats) != len(names):
        raise StateError(
            f"the client has {len(floats)} arrays of floating-point numbers, the master's model {len(names)} tensors: start "
            "the master with a file that fl_client.flower.save_initial wrote"
        )
    return dict(zip(names, floats))


def _metrics(metrics: Dict[str, Any]) -> Dict[str, float]:
    """The metrics that the master takes."""
    result: Dict[str, float] = {}
    for name, value in metrics.items():
        key = re.sub(r"[^a-z0-9_.]", "_", str(name).lower())[:64]
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if key and math.isfinite(number) and len(result) < MAX_METRICS:
            result[key] = number
        else:
            log.debug("the metric %r is left out", name)
    return result
