"""A client as an object."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, NamedTuple, Optional, Tuple, Union

from ._rounds import rounds
from .errors import StateError

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._settings import Options


class Update(NamedTuple):
    """What `Client.train` gives back.

    Attributes:
        state: arrays or CPU tensors by name.
        num_samples: samples that it was trained on.
        metrics: at most 32 finite numbers.
        loss: mean training loss.
        local_steps: optimizer steps that were made.
    """

    state: Dict[str, Any]
    num_samples: int
    metrics: Optional[Dict[str, float]] = None
    loss: Optional[float] = None
    local_steps: Optional[int] = None


class Client:
    """Derive from it, and hand an object to `run`. Any object with these methods will do."""

    def train(self, state: Dict[str, Any], config: Dict[str, Any]) -> Union[Update, Tuple[Any, ...]]:
        """Trains the global model on this client's data.

        Args:
            state: the global model as numpy arrays by name; may be changed in place.
            config: the master's proposals and its `CLIENT_CONFIG`: see `Round.config`.

        Returns:
            An `Update`, or a tuple with its first two to five values: `(state, num_samples)`,
            `(state, num_samples, metrics)`, ...
        """
        raise NotImplementedError

    def evaluate(self, state: Dict[str, Any], config: Dict[str, Any]) -> Tuple[int, Dict[str, float]]:
        """Evaluates the global model on this client's held-out data. Leave it out if there are none.

        Returns:
            `(num_samples, metrics)`.
        """
        raise NotImplementedError


def run(
    client: Any, master: Optional[str] = None, worker_id: Optional[str] = None, **options: Unpack[Options]
) -> int:
    """Drives a client until the training is over or SIGTERM comes.

    Args:
        client: an object with `train(state, config)`, and `evaluate(state, config)` if it has data for that.
        master, worker_id, **options: as of `rounds`.

    Returns:
        The number of updates that count.

    Raises:
        As `rounds` and `Round.send`; what `client` raises goes through.
    """
    evaluates = hasattr(client, "evaluate") and getattr(type(client), "evaluate", None) is not Client.evaluate
    accepted = 0
    for round in rounds(master, worker_id, evaluate=evaluates, **options):
        if round.action == "evaluate":
            num_samples, metrics = client.evaluate(round.state, round.config)
            round.report(num_samples=num_samples, metrics=metrics)
            continue
        result = client.train(round.state, round.config)
        if not isinstance(result, tuple) or not 2 <= len(result) <= len(Update._fields):
            raise StateError("train() must return (state, num_samples), (state, num_samples, metrics) or an Update")
        update = Update(*result)
        sent = round.send(
            update.state, num_samples=update.num_samples, metrics=update.metrics, loss=update.loss,
            local_steps=update.local_steps,
        )
        accepted += sent.accepted
    return accepted
