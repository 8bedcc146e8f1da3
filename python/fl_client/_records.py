"""What a master tells about its federation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List, Optional

from ._calls import Calls
from ._settings import check
from ._signals import Stop
from .errors import NotAMaster

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._settings import Options


def _get(master, path, options) -> Any:
    settings = check(master, "reader", options)
    calls = Calls(settings, Stop())
    try:
        return calls.get_json(path)
    finally:
        calls.link.close()


def history(master: Optional[str] = None, **options: Unpack[Options]) -> List[Dict[str, Any]]:
    """The finished rounds, a dictionary each: `pandas.DataFrame(fl_client.history(master))` is a table.

    Keys are those of `GET /history` in `docs/protocol.md`: `round`, `participants`, `train_loss`, `test_accuracy`,
    `duration_s`, `bytes_up`, ...

    Raises:
        Unreachable, NotAMaster, Refused
    """
    records = _get(master, "/history", options)
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise NotAMaster("the answer to /history is no list of rounds: check the master's address")
    return records


def status(master: Optional[str] = None, **options: Unpack[Options]) -> Dict[str, Any]:
    """The state of the federation: the body of `GET /status`.

    Raises:
        Unreachable, NotAMaster, Refused
    """
    body = _get(master, "/status", options)
    if not isinstance(body, dict) or "global_round" not in body:
        raise NotAMaster("the answer to /status is none of a master: check its address")
    return body


def download(master: Optional[str] = None, **options: Unpack[Options]) -> Dict[str, Any]:
    """The newest global model as numpy arrays by name.

    Raises:
        Unreachable, NotAMaster, Refused
    """
    from . import _model

    settings = check(master, "reader", options)
    calls = Calls(settings, Stop())
    try:
        return _model.read(calls.model(exact=True)).arrays()
    finally:
        calls.link.close()
