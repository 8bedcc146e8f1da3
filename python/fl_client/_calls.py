"""Calls to the master with patience: each is repeated until it has a result, a shutdown, or `give_up_s` is over."""

from __future__ import annotations

import json
import logging
import random
import time
from typing import NamedTuple, Optional

from . import _native
from ._http import MAX_MODEL_BYTES, Answer, Link
from ._settings import Settings
from ._signals import Stop
from .errors import AuthError, Error, NotAMaster, Refused, Unreachable

log = logging.getLogger("fl_client")

#: How long a request for work waits at the master, and the longest wait for its answer.
WAIT_S, TASK_TIMEOUT_S = 25, 60
#: Longest `Retry-After` that is obeyed.
LONGEST_ASKED_S = 120.0
ACTIONS = ("train", "wait", "stop", "evaluate")
TRANSIENT = (408, 425, 429)


class Backoff:
    """Exponential back-off with full jitter, so that clients which failed together do not return together."""

    def __init__(self, seed: str, first_s: float, longest_s: float):
        self._random, self._first, self._longest = random.Random(seed), first_s, longest_s
        self._attempts = 0

    def reset(self) -> None:
        """Forgets the failures."""
        self._attempts = 0

    def next(self, asked_s: float = 0.0) -> float:
        """Seconds to wait: what the server asked for, and on top of it any time up to a ceiling that doubles."""
        ceiling = min(self._first * 2 ** min(self._attempts, 16), self._longest)
        self._attempts += 1
        return min(asked_s, LONGEST_ASKED_S) + self._random.uniform(0, ceiling)


class Refusal(NamedTuple):
    """An answer that is no success."""

    status: int
    code: Optional[str]
    message: str
    retry_after: float


def refusal(answer: Answer) -> Refusal:
    """What an answer that is no success says."""
    body = answer.json()
    body = body if isinstance(body, dict) else {}
    code = body.get("code") if body.get("code") in _native.ERROR_CODES else None
    return Refusal(answer.status, code, str(body.get("msg") or f"HTTP {answer.status}"), answer.retry_after)


class Verdict(NamedTuple):
    """The master's answer to an update: its acknowledgement, or why it does not count."""

    ack: Optional[dict]
    refusal: Optional[Refusal]


class Calls:
    """The master's API with retries."""

    def __init__(self, settings: Settings, stop: Stop):
        self._settings, self._stop = settings, stop
        self._backoff = Backoff(f"{settings.seed}/{settings.worker_id}", 0.2, 10.0)
        self._silent_since: Optional[float] = None
        self.link = Link(settings)

    def task(self) -> dict:
        """What to do next; waits at the master while there is nothing to do."""
        path = f"/task?worker_id={self._settings.worker_id}&wait={WAIT_S}"
        return self._repeat(lambda: self._task(self.link.request("GET", path, timeout=TASK_TIMEOUT_S)))

    def model(self, exact: bool) -> bytes:
        """The newest model's file; quantized if the settings say so, unless `exact`."""
        path = "/global"
        if self._settings.down_bits and not exact:
            path += f"?quantizer={self._settings.down_quantizer or 'SDQ'}&bits={self._settings.down_bits}"
        headers = {"Accept": "application/octet-stream"}
        return self._repeat(
            lambda: self._success(self.link.request("GET", path, headers=headers, limit=MAX_MODEL_BYTES)).body
        )

    def update(self, body: bytes) -> Verdict:
        """Hands an update or a notice in."""
        headers = {"Content-Type": "application/octet-stream"}
        return self._repeat(lambda: self._verdict(self.link.request("POST", "/update", body, headers)))

    def evaluation(self, body: dict) -> Verdict:
        """Hands the result of an evaluation in."""
        headers, data = {"Content-Type": "application/json"}, json.dumps(body).encode()
        return self._repeat(lambda: self._verdict(self.link.request("POST", "/evaluation", data, headers)))

    def get_json(self, path: str) -> object:
        """An answer without patience, for scripts.

        Raises:
            Unreachable, NotAMaster, Refused
        """
        answer = self.link.request("GET", path, limit=64 << 20)
        try:
            content = self._success(answer).json()
        except _Transient as error:
            raise Unreachable(str(error)) from None
        if content is None:
            raise self._foreign(path, answer)
        return content

    def pause(self, seconds: float) -> None:
        """Waits, but not beyond a shutdown."""
        with self._stop.interruptible():
            time.sleep(max(0.0, seconds))

    def _task(self, answer: Answer) -> dict:
        task = self._success(answer).json()
        if not isinstance(task, dict) or task.get("action") not in ACTIONS or not isinstance(task.get("round"), int):
            raise self._foreign("/task", answer)
        self.link.is_known = True
        return task

    def _verdict(self, answer: Answer) -> Verdict:
        if answer.status != 200:
            refused = refusal(answer)
            if refused.status == 409 or refused.code in ("norm_too_large", "no_last_update"):
                return Verdict(None, refused)
        ack = self._success(answer).json()
        if not isinstance(ack, dict):
            raise self._foreign("/update", answer)
        return Verdict(ack, None)

    def _success(self, answer: Answer) -> Answer:
        if answer.status == 200:
            return answer
        refused, url = refusal(answer), self._settings.address.url
        if refused.status in TRANSIENT or refused.status >= 500:
            raise _Transient(f"{url} answers {refused.status}: {refused.message}", refused.retry_after)
        if refused.status in (401, 403):
            raise AuthError(
                f"{url} refuses this client ({refused.message}): give the master's token as token=... or in FL_TOKEN",
                refused.status,
                refused.code,
            )
        if refused.code is None and not self.link.is_known:
            raise self._foreign("", answer)
        raise Refused(f"{url} answers {refused.status} {refused.code or ''}: {refused.message}", refused.status, refused.code)

    def _foreign(self, path, answer) -> Error:
        url, what = self._settings.address.url, f"status {answer.status} and no answer of the API"
        if self.link.is_known:
            return _Transient(f"{url}{path} answers with {what}", 0.0)
        return NotAMaster(f"{url}{path} answers with {what}: it is no fl master, check address and port")

    def _repeat(self, call):
        while True:
            try:
                with self._stop.waiting():
                    result = call()
            except (_Transient, Unreachable) as error:
                failure = error
            else:
                self._backoff.reset()
                self._silent_since = None
                return result
            now = time.monotonic()
            if self._silent_since is None:
                self._silent_since = now
            silent, limit = now - self._silent_since, self._settings.give_up_s
            if limit and silent >= limit:
                raise Unreachable(f"gave up after {silent:.0f} s: {failure}") from None
            pause = self._backoff.next(getattr(failure, "retry_after", 0.0))
            if limit:
                pause = min(pause, limit - silent)
            log.warning("%s; trying again in %.1f s", failure, pause)
            self._stop.check()
            self.pause(pause)


class _Transient(Error):
    """A refusal that may be a success later."""

    def __init__(self, message: str, retry_after: float):
        super().__init__(message)
        self.retry_after = retry_after
