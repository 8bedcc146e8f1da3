"""The loop: ask for work, hand out the model, send what was made of it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, NamedTuple, Optional

from . import _model, _native, _residual, _state
from ._calls import Backoff, Calls
from ._settings import Settings, check
from ._signals import Stop, Stopped
from .errors import CodecError, DivergedError, MetricError, Refused, SettingError, TaskError

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._settings import Options

log = logging.getLogger("fl_client")

#: Least seconds between two requests for work that give nothing new to do.
ASK_EVERY_S = 0.5
#: Updates in a row that may be refused for their norm.
MAX_DROPPED = 10
#: Parameters from which updates are encoded by several threads.
LARGE = 1_000_000


class Sent(NamedTuple):
    """What became of an update or an evaluation.

    Attributes:
        accepted: whether it counts. If not, the loop goes on with the next round.
        reason: why it does not count, as a sentence; empty if it does.
        aggregated: whether a published model contains it already.
        duplicate: whether the master had it already; it counts once.
        global_round: the master's round after it, None if unknown.
        bytes: size of what was sent.
        reused: lazy upload: the last update counts once more, and only a notice was sent.
    """

    accepted: bool
    reason: str = ""
    aggregated: bool = False
    duplicate: bool = False
    global_round: Optional[int] = None
    bytes: int = 0
    reused: bool = False


class Round:
    """One thing to do for the master.

    Attributes:
        action: "train", or "evaluate" if the loop was told to yield those.
        number: the round; its model has been aggregated that many times.
        config: the task's proposals (`local_steps`, `local_epochs`, `batch_size`, `lr`, `mu`), the master's
            `CLIENT_CONFIG`, and `round`.
        task: the task as the master sent it.
    """

    def __init__(self, session: Session, task: Dict[str, Any], model: _model.Model):
        self._session, self._model = session, model
        self._arrays: Optional[Dict[str, Any]] = None
        self._is_done = False
        self._started = time.monotonic()
        self.task = task
        self.action: str = task["action"]
        self.number: int = model.round if self.action == "train" else task["round"]
        self.config: Dict[str, Any] = _config(task, self.number)

    def __repr__(self):
        return f"<Round {self.number}: {self.action}, {self._model.parameters} parameters>"

    @property
    def state(self) -> Dict[str, Any]:
        """The global model as numpy arrays by name: f32, and the integer buffers that the master's file has.

        They are yours: train in place and send them, if you like.
        """
        if self._arrays is None:
            self._arrays = self._model.arrays()
        return self._arrays

    @property
    def metadata(self) -> Dict[str, str]:
        """Metadata of the model's file: `labels`, `features`, `normalization`, ... as JSON, where they are known."""
        return dict(self._model.metadata)

    @property
    def spec(self) -> Optional[Dict[str, Any]]:
        """The network as `fl_client.torch.build` takes it; None if the master does not know it."""
        text = self._model.metadata.get("model")
        return None if text is None else json.loads(text)

    def torch_state(self) -> Dict[str, Any]:
        """The global model as PyTorch tensors on the CPU, by name. They share memory with nothing."""
        import torch

        return {name: torch.from_numpy(array) for name, array in self._model.arrays().items()}

    def load_into(self, module: Any) -> None:
        """Loads the global model into a PyTorch module.

        Buffers of the module that the master's model does not have, such as `num_batches_tracked`, keep their values.
        So do parameters that it does not have if the module's `requires_grad` is off for them: a frozen base model
        under adapters.

        Raises:
            StateError: a tensor of the model is not in the module, or has another shape there, or a trained parameter
                of the module is not in the model.
        """
        from .torch import load_into

        load_into(module, self.torch_state())

    def send(
        self,
        state: Any,
        *,
        num_samples: int,
        metrics: Optional[Dict[str, float]] = None,
        loss: Optional[float] = None,
        accuracy: Optional[float] = None,
        local_steps: Optional[int] = None,
        local_norm: Optional[float] = None,
        compute_factor: Optional[float] = None,
    ) -> Sent:
        """Sends the trained model: its difference to the global one, quantized and entropy-coded.

        Everything is checked before the first byte is sent. Waits for a master that is overloaded or restarts.

        Args:
            state: arrays or CPU tensors by name, with the names and shapes of `self.state`. Floating-point types become
                f32. Integer tensors that the model does not have are left out.
            num_samples: samples that it was trained on: its weight in the average, 1 to 100,000,000.
            metrics: at most 32 finite numbers, names of a-z 0-9 _ . (1 to 64 characters).
            loss: mean training loss.
            accuracy: training accuracy, 0 to 1.
            local_steps: optimizer steps that were made; `STRATEGY=fednova` needs it.
            local_norm: what they are worth in plain SGD steps, if that differs.
            compute_factor: seconds of training; default: the time since the round was handed out.

        Returns:
            Whether it counts. An update that came too late does not, and is no error.

        Raises:
            StateError, DivergedError, MetricError, SettingError: the arguments cannot be sent; nothing was.
            Refused: the master refuses the update for good.
        """
        if self.action != "train":
            raise SettingError("this round asks for an evaluation: call report(num_samples=..., metrics=...)")
        if self._is_done:
            raise SettingError(f"round {self.number} has its update: a round takes one of a client")
        if compute_factor is None:
            compute_factor = time.monotonic() - self._started
        meta = {
            "worker_id": self._session.settings.worker_id,
            "round": self.number,
            "num_samples": _state.check_samples(num_samples),
            "loss": _state.check_optional("loss", loss),
            "accuracy": _state.check_optional("accuracy", accuracy),
            "compute_factor": round(_state.check_number("compute_factor", compute_factor), 6),
            "local_steps": None if local_steps is None else _state.check_steps(local_steps),
            "local_norm": _state.check_optional("local_norm", local_norm),
            "metrics": None if metrics is None else _state.check_metrics(metrics),
        }
        sent = self._session.send(self, self._model, state, _state.metadata(meta))
        self._is_done = True
        return sent

    def report(self, *, num_samples: int, metrics: Dict[str, float]) -> Sent:
        """Sends the result of an evaluation of `self.state` on this client's held-out samples.

        Args:
            num_samples: samples that it was evaluated on, 1 to 100,000,000: its weight in the mean.
            metrics: 1 to 32 finite numbers, such as `{"accuracy": 0.9, "loss": 0.3}`.

        Returns:
            Whether it counts.

        Raises:
            MetricError, SettingError: the arguments cannot be sent; nothing was.
            Refused: the master refuses it.
        """
        if self.action != "evaluate":
            raise SettingError("this round asks for training: call send(state, num_samples=...)")
        checked = _state.check_metrics(metrics)
        if not checked:
            raise MetricError("there are no metrics: give at least one, such as {'accuracy': 0.9}")
        body = {"worker_id": self._session.settings.worker_id, "round": self.number}
        body.update(num_samples=_state.check_samples(num_samples), metrics=checked)
        self._is_done = True
        return self._session.report(body)


class Session:
    """A client's connection to its master, and what it carries from round to round."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.stop = Stop(settings.drain_s)
        self.calls = Calls(settings, self.stop)
        self._model: Optional[_model.Model] = None
        self._etag: Optional[str] = None
        self._encoder: Optional[_native.UpdateEncoder] = None
        self._layout: Optional[list] = None
        self._dropped = 0
        self._drop_backoff = Backoff(f"{settings.seed}/{settings.worker_id}/dropped", 2.0, 120.0)

    def rounds(self, evaluate: bool) -> Iterator[Round]:
        """Yields what there is to do until the training is over or SIGTERM comes."""
        self.stop.install(self.calls.link.abort)
        last = None
        try:
            while True:
                self.stop.check()
                asked = time.monotonic()
                with self.stop.in_mode("wait"):
                    task = self.calls.task()
                    if task["action"] == "stop":
                        log.info("the training is over after %d rounds", task["round"])
                        return
                    this = (task["action"], task["round"])
                    if task["action"] == "wait" or this == last or task["action"] == "evaluate" and not evaluate:
                        # A master holds the request; one that answers at once must not be asked in a loop.
                        self.calls.pause(ASK_EVERY_S - (time.monotonic() - asked))
                        if task["action"] == "wait" or task["action"] == "evaluate" and not evaluate:
                            continue
                    model = self._pull(task)
                last = this
                if task["action"] == "evaluate" and model.round != task["round"]:
                    continue  # the master is further by now: there is nothing to evaluate
                yield Round(self, task, model)
        except Stopped:
            log.info("stopping: SIGTERM")
        finally:
            self.stop.restore()
            self.calls.link.close()

    def _pull(self, task: Dict[str, Any]) -> _model.Model:
        """The model that the task names, downloaded unless it is here."""
        if self._model is not None and task.get("etag") and task["etag"] == self._etag:
            return self._model
        # The shapes of a quantized model are those of the exact one, which comes first.
        model = _model.read(self.calls.model(exact=self._model is None), self._model)
        # A later model than the task's may have been served: its ETag is not known.
        self._etag = task.get("etag") if model.round == task["round"] else None
        self._model = model
        return model

    def send(self, which: Round, model: _model.Model, state: Any, meta: Dict[str, str]) -> Sent:
        """See `Round.send`."""
        task = which.task
        if task.get("control"):
            raise TaskError(
                "the master's STRATEGY=scaffold needs control variates, which this client does not train with: choose "
                "another strategy"
            )
        encoder = self._encoder_of(model)
        frozen = self._frozen(task, model)
        plan = plan_of(self.settings, task)
        _state.fill(encoder, model, state, frozen)
        try:
            body, notice = encoder.encode(plan, self._seed(model.round), model.round, meta, frozen)
        except ValueError as error:
            index = encoder.non_finite()
            if index is None:
                raise CodecError(f"the update cannot be encoded: {error}") from None
            raise DivergedError(
                f"`{model.tensors[index].name}` has values that are not finite: the training diverged (a lower learning "
                "rate or clipped gradients may help)"
            ) from None
        try:
            with self.stop.in_mode("upload"):
                return self._hand_in(encoder, model, body, notice)
        except Stopped:
            return Sent(False, "stopped by SIGTERM before the master had the update")

    def _hand_in(self, encoder, model, body: bytes, notice: Optional[bytes]) -> Sent:
        data = body if notice is None else notice
        verdict = self.calls.update(data)
        if verdict.refusal is not None and verdict.refusal.code == "no_last_update" and notice is not None:
            # A master that was set back, say. The update itself is needed then.
            notice, data = None, body
            verdict = self.calls.update(data)
        refused = verdict.refusal
        if refused is None:
            encoder.settle(notice is not None)
            self._dropped = 0
            self._drop_backoff.reset()
            if self.settings.state_dir:
                _residual.save(self.settings, model, encoder.residual())
            ack = verdict.ack or {}
            return Sent(
                True, "", bool(ack.get("aggregated")), bool(ack.get("duplicate")), ack.get("global_round"), len(data),
                notice is not None,
            )
        if refused.code == "norm_too_large":
            self._drop(encoder, refused)
        elif refused.status != 409:
            raise Refused(f"the master answers {refused.status}: {refused.message}", refused.status, refused.code)
        else:
            log.info("the update is dropped, the next round begins: %s", refused.message)
        return Sent(False, refused.message, bytes=len(data))

    def _drop(self, encoder, refused) -> None:
        """An update beyond `MAX_UPDATE_NORM`. The same model trained again most likely gives the same, so a second one in
        a row is followed by a pause, and a tenth ends the training."""
        log.warning(
            "the update is dropped, and with it what was carried over from earlier ones (a lower learning rate, or a "
            "higher MAX_UPDATE_NORM on the master, may help): %s",
            refused.message,
        )
        # The residual may be what makes the update too large, and no update would ever reduce it.
        encoder.forget()
        self._dropped += 1
        if self._dropped >= MAX_DROPPED:
            raise Refused(
                f"{self._dropped} updates in a row were refused ({refused.message}): lower the learning rate, or raise "
                "MAX_UPDATE_NORM on the master",
                refused.status,
                refused.code,
            )
        if self._dropped > 1:
            self.calls.pause(self._drop_backoff.next())

    def report(self, body: Dict[str, Any]) -> Sent:
        """See `Round.report`."""
        try:
            with self.stop.in_mode("upload"):
                verdict = self.calls.evaluation(body)
        except Stopped:
            return Sent(False, "stopped by SIGTERM before the master had the evaluation")
        if verdict.refusal is not None:
            log.info("the evaluation is dropped: %s", verdict.refusal.message)
            return Sent(False, verdict.refusal.message)
        return Sent(True)

    def _encoder_of(self, model: _model.Model):
        if self._encoder is None or self._layout != model.layout:
            threads = self.settings.threads or (1 if model.parameters < LARGE else min(os.cpu_count() or 1, 8))
            self._encoder = _native.UpdateEncoder(model.layout, threads)
            self._layout = model.layout
            residual = _residual.load(self.settings, model) if self.settings.state_dir else None
            if residual is not None:
                self._encoder.restore(residual)
        return self._encoder

    def _frozen(self, task, model) -> List[int]:
        try:
            return _state.frozen(model, task.get("trainable"))
        except re.error as error:
            raise TaskError(f"the master's TRAINABLE={task.get('trainable')!r} cannot be read: {error}") from None

    def _seed(self, number: int) -> int:
        """The same for a worker and round in every process, so that a repeated round gives the same bytes."""
        text = f"{self.settings.seed}/{self.settings.worker_id}/{number}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def plan_of(settings: Settings, task: Dict[str, Any]) -> _native.Plan:
    """How the task's update is encoded: the client's own settings win.

    Raises:
        TaskError: the task proposes what this client does not know.
    """
    try:
        return _native.Plan(
            quantizer=settings.quantizer,
            bits=settings.bits,
            entropy=settings.entropy,
            rdo=settings.rdo,
            error_feedback=settings.error_feedback,
            target_nmse=settings.target_nmse,
            update_bytes=settings.update_bytes,
            task_quantizer=task.get("quantizer"),
            task_bits=task.get("bits"),
            task_target_nmse=task.get("target_nmse"),
            task_update_bytes=task.get("update_bytes"),
            lazy_below=task.get("lazy_below"),
        )
    except (ValueError, TypeError, OverflowError) as error:
        raise TaskError(f"the master's task cannot be done: {error}") from None


def _config(task: Dict[str, Any], number: int) -> Dict[str, Any]:
    names = ("local_steps", "local_epochs", "batch_size", "lr", "mu")
    config: Dict[str, Any] = {name: task[name] for name in names if task.get(name) is not None}
    config["round"] = number
    own = task.get("config")
    if isinstance(own, dict):
        config.update(own)
    return config


def rounds(
    master: Optional[str] = None, worker_id: Optional[str] = None, *, evaluate: bool = False, **options: Unpack[Options]
) -> Iterator[Round]:
    """Takes part in a federation: yields a `Round` whenever there is something to do, until the training is over.

        for round in fl_client.rounds("http://127.0.0.1:5000", "edge-1"):
            state = train(round.state)
            round.send(state, num_samples=500)

    Waits for a master that is not there yet, that restarts or is overloaded. SIGTERM ends the loop.

    Args:
        master: address, http:// or https:// (`MASTER_ADDR`).
        worker_id: this client's name, 1 to 64 of A-Z a-z 0-9 . _ - (`WORKER_ID`; default: the host's name). It must be
            unique in the federation and stay the same over a restart.
        evaluate: also yield rounds whose `action` is "evaluate". Without it such tasks are passed over.
        **options: see `Options`.

    Raises:
        SettingError: at once, for arguments that cannot be used.
        AuthError, NotAMaster, Refused, Unreachable, TaskError: from the loop.
    """
    return Session(check(master, worker_id, options)).rounds(evaluate)
