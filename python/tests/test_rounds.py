"""The loop, the class and the records against a real master; what is sent, against a scripted one."""

import json
import math
import os
import signal
import threading

import fl_client
import numpy as np
import pytest
from conftest import accuracy, digits, ended, softmax_steps
from fl_client import _model, _native
from scripted import Answer


def header(body):
    """Tensors and metadata of a container."""
    parsed = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
    return parsed, parsed.pop("__metadata__")


def tensor(body, name):
    entries, _ = header(body)
    base = 8 + int.from_bytes(body[:8], "little")
    begin, end = entries[name]["data_offsets"]
    return body[base + begin : base + end]


def test_a_loop_of_three_lines_learns_the_digits_beside_a_rust_worker(start_master, spawn):
    master = start_master(MODEL="softmax", AGG_MIN_CLIENTS="2", ROUNDS="25", LR="0.1", LOCAL_STEPS="20")
    rust = spawn("rust", master.url, PARTITION_ID="1", NUM_PARTITIONS="2")
    x, y, test_x, test_y = digits(0, 2)
    for round in fl_client.rounds(master.url, "python"):
        w, b = round.state.values()
        loss = softmax_steps(w, b, x, y)
        assert round.send(round.state, num_samples=len(y), loss=loss).accepted
    assert ended(rust) == 0
    history = fl_client.history(master.url)
    assert [record["participants"] for record in history] == [2] * 25
    assert set(master.get("/status")["workers"]) == {"python", "edge-1"}
    w, b = fl_client.download(master.url).values()
    assert accuracy(w, b, test_x, test_y) > 0.93
    assert fl_client.status(master.url)["finished"]


def test_a_class_is_driven_by_run(start_master):
    master = start_master(MODEL="softmax", AGG_MIN_CLIENTS="1", ROUNDS="3", LR="0.3")
    before, seen = fl_client.download(master.url)["1.bias"], []

    class Mine(fl_client.Client):
        def train(self, state, config):
            seen.append((config["round"], round(config["lr"], 4)))
            for array in state.values():
                array += 0.01
            return state, 7, {"accuracy": 0.5}

    assert fl_client.run(Mine(), master.url, "w") == 3
    assert seen == [(0, 0.3), (1, 0.3), (2, 0.3)]
    assert fl_client.history(master.url)[-1]["num_samples"] == 7
    assert np.allclose(fl_client.download(master.url)["1.bias"] - before, 0.03, atol=2e-3)

    class Wrong:
        def train(self, state, config):
            return state

    master = start_master(MODEL="softmax", AGG_MIN_CLIENTS="1", ROUNDS="3")
    with pytest.raises(fl_client.StateError, match="num_samples"):
        fl_client.run(Wrong(), master.url, "w")


def test_any_tensors_without_a_network(start_master, tmp_path):
    first = {"b.scalar": np.float32(2.0), "a": np.zeros((3, 4), np.float64), "empty_dim": np.ones((1, 7))}
    assert fl_client.save(tmp_path / "init.safetensors", first) == 20
    master = start_master(MODEL=f"safetensors:{tmp_path}/init.safetensors", AGG_MIN_CLIENTS="1", ROUNDS="2")
    for round in fl_client.rounds(master.url, "w", quantizer="none"):
        assert list(round.state) == ["b.scalar", "a", "empty_dim"] and round.spec is None
        assert round.state["b.scalar"].shape == ()
        round.send({**{name: array + 1 for name, array in round.state.items()}, "steps": np.int64(6)}, num_samples=1)
    state = fl_client.download(master.url)
    assert state["b.scalar"] == 4 and (state["a"] == 2).all() and (state["empty_dim"] == 3).all()


@pytest.mark.parametrize("down_bits", [0, 4])
def test_integer_buffers_come_from_the_masters_file(evaluating, down_bits, start_master, tmp_path):
    first = {
        "w": np.zeros((30, 4), np.float32), "steps": np.int64(5), "mask": np.array([[True, False]]), "b": np.zeros(3),
        "bytes": np.arange(4, dtype=np.uint8), "halves": np.ones(2, np.float16),
    }
    assert fl_client.save(tmp_path / "init.safetensors", first) == 125
    master = start_master(MODEL=f"safetensors:{tmp_path}/init.safetensors", AGG_MIN_CLIENTS="1", ROUNDS="3")
    for round in fl_client.rounds(master.url, "w", quantizer="none", down_bits=down_bits):
        state = round.state
        assert state["steps"] == 5 and state["steps"].dtype == np.int64 and state["mask"].tolist() == [[True, False]]
        assert state["bytes"].tolist() == [0, 1, 2, 3] and state["halves"].dtype == np.float32
        for name in ("w", "b", "halves"):
            state[name] += 1
        state["steps"] += 7  # carried from the file, not from here
        assert round.send(state, num_samples=1).accepted
    state = fl_client.download(master.url)
    assert np.allclose(state["w"], 3) and np.allclose(state["halves"], 4) and state["steps"] == 5


def test_clients_evaluate_and_report_metrics(evaluating, start_master):
    master = start_master(
        MODEL="softmax", AGG_MIN_CLIENTS="2", ROUNDS="3", EVALUATE_EVERY="1", CLIENT_CONFIG='{"local_epochs": 2, "deep": {"a": [1]}}'
    )

    class Mine(fl_client.Client):
        def __init__(self, accuracy):
            self.accuracy = accuracy

        def train(self, state, config):
            assert config["local_epochs"] == 2 and config["deep"] == {"a": [1]}
            return state, 10, {"f1": self.accuracy}, 0.5

        def evaluate(self, state, config):
            assert config["local_epochs"] == 2
            return 10, {"accuracy": self.accuracy}

    accepted = []
    threads = [
        threading.Thread(target=lambda a=a: accepted.append(fl_client.run(Mine(a), master.url, f"w{a}"))) for a in (0.5, 1.0)
    ]
    [thread.start() for thread in threads]
    [thread.join(60) for thread in threads]
    assert accepted == [3, 3]
    last = fl_client.history(master.url)[-1]
    assert last["evaluation"]["metrics"]["accuracy"]["mean"] == 0.75
    assert last["evaluation"]["metrics"]["accuracy"]["worst_client"] == "w0.5"
    assert last["update_metrics"]["f1"]["mean"] == 0.75


def test_a_quantized_download_is_what_the_update_starts_from(start_master):
    master = start_master(MODEL="softmax", AGG_MIN_CLIENTS="1", ROUNDS="3")
    before = fl_client.download(master.url)["1.bias"]
    for round in fl_client.rounds(master.url, "w", down_bits=4, quantizer="none"):
        for array in round.state.values():
            array += 0.5
        assert round.send(round.state, num_samples=1).accepted
    bias = fl_client.download(master.url)["1.bias"]
    # The errors of the quantized models do not accumulate in the exact one.
    assert np.allclose(bias - before, 1.5, atol=1e-5)


def test_lazy_upload_sends_notices(start_master):
    master = start_master(MODEL="softmax", AGG_MIN_CLIENTS="1", ROUNDS="8", LAZY="100")
    direction, sent = None, []
    for round in fl_client.rounds(master.url, "w"):
        if direction is None:
            noise = np.random.default_rng(0)
            direction = {name: noise.standard_normal(array.shape).astype("f") for name, array in round.state.items()}
        sent.append(round.send({name: array + 0.01 * direction[name] for name, array in round.state.items()}, num_samples=1))
    assert all(one.accepted for one in sent)
    notices = [one for one in sent if one.reused]
    assert notices and all(one.bytes < 400 for one in notices)
    assert sum(record.get("reused", 0) for record in master.get("/history")) == len(notices)


def test_a_part_of_the_model_is_trained_and_sent(start_master):
    master = start_master(MODEL="softmax", AGG_MIN_CLIENTS="1", ROUNDS="2", TRAINABLE="bias")
    before = fl_client.download(master.url)
    for round in fl_client.rounds(master.url, "w", quantizer="bin", entropy=False):
        sent = round.send({name: array + 1 for name, array in round.state.items()}, num_samples=1)
        assert sent.bytes < 450
    after = fl_client.download(master.url)
    assert np.array_equal(before["1.weight"], after["1.weight"])
    assert np.allclose(after["1.bias"], before["1.bias"] + 2, atol=0.01)


def test_the_metadata_of_an_update(scripted):
    master = scripted(Answer())
    for round in fl_client.rounds(master.url, "w"):
        round.send(
            round.state, num_samples=np.int64(12), loss=np.float32(0.5), accuracy=0.25, local_steps=5,
            metrics={"accuracy": np.float32(0.5), "f1.macro_2": 1},
        )
    _, meta = header(master.updates[0])
    assert meta.pop("compute_factor")
    assert json.loads(meta.pop("metrics")) == {"accuracy": 0.5, "f1.macro_2": 1.0}
    assert meta == {
        "worker_id": "w", "round": "0", "num_samples": "12", "loss": "0.5", "accuracy": "0.25", "local_steps": "5",
    }


def test_own_settings_win_over_the_tasks(scripted, monkeypatch):
    def sizes(**options):
        master = scripted(Answer(), tasks=[{"action": "train", "round": 0, "etag": "", "quantizer": "SDQ", "bits": 8}])
        noise = np.random.default_rng(3)
        for round in fl_client.rounds(master.url, "w", **options):
            state = {name: array + noise.standard_normal(array.shape) for name, array in round.state.items()}
            round.send(state, num_samples=1)
        stream = tensor(master.updates[0], "1.weight")
        return stream[4], stream[5]

    assert sizes() == (4, 8), "the scheme and the bits of the task"
    assert sizes(quantizer="msq_v2", bits=3, entropy=False) == (3, 3)
    assert sizes(bits="auto", target_nmse=0.02, quantizer="MSQ_v2")[0] == 3
    monkeypatch.setenv("QUANTIZER", "BetaQ")
    monkeypatch.setenv("BITS", "5")
    assert sizes() == (5, 5)
    assert sizes(quantizer="none")[0] == 0


def test_rules_of_error_feedback_are_the_rust_workers():
    def rule(**options):
        return _native.Plan(**options).feedback

    assert rule() == "silenced" and rule(bits="2") == "everything" and rule(entropy=False) == "everything"
    assert rule(error_feedback=True) == "everything" and rule(error_feedback=False) == "nothing"
    assert rule(error_feedback=False, lazy_below=1.0) == "everything"
    assert rule(quantizer="StocQ", bits="2") == "nothing" == rule(quantizer="StocQ", lazy_below=1.0)
    assert rule(task_bits=2) == "everything" and rule(task_bits=2, bits="4") == "silenced"


def test_what_quantization_lost_is_sent_later_also_after_a_restart(scripted, tmp_path):
    noise = np.random.default_rng(5)
    wanted, sent = np.zeros((10, 64)), np.zeros((10, 64))
    options = dict(bits=2, entropy=False, error_feedback=True, state_dir=str(tmp_path))
    master = scripted(*[Answer()] * 8)
    for _ in range(4):  # each a process of its own, as far as the package can tell
        for count, round in enumerate(fl_client.rounds(master.url, "w", **options)):
            delta = {name: noise.standard_normal(array.shape).astype("f") for name, array in round.state.items()}
            wanted += delta["1.weight"]
            round.send({name: array + delta[name] for name, array in round.state.items()}, num_samples=1)
            if count == 1:
                break
    assert len(master.updates) == 8
    for body in master.updates:
        sent += fl_client.decode(tensor(body, "1.weight"), (10, 64))
    relative = np.square(sent - wanted).sum() / np.square(wanted).sum()
    assert relative < 0.05, "an error of 12 % an update would be left without it"
    residual = np.load(tmp_path / "w.residual.npz")["residual"][:640].reshape(10, 64)
    assert np.allclose(sent + residual, wanted, atol=1e-3)


def test_a_refused_update_leaves_the_residual_as_it_was(scripted, tmp_path):
    master = scripted(Answer(), Answer(409, "stale_round"))
    options = dict(bits=2, entropy=False, state_dir=str(tmp_path))
    residuals, noise = [], np.random.default_rng(5)
    for round in fl_client.rounds(master.url, "w", **options):
        sent = round.send({name: a + noise.standard_normal(a.shape) for name, a in round.state.items()}, num_samples=1)
        residuals.append((sent.accepted, round._session._encoder.residual()))
    assert [accepted for accepted, _ in residuals] == [True, False]
    assert residuals[0][1] == residuals[1][1] != b""


def test_a_damaged_or_foreign_residual_is_ignored(scripted, tmp_path, caplog):
    (tmp_path / "w.residual.npz").write_bytes(b"PK\x03\x04 nothing")
    master = scripted(Answer())
    for round in fl_client.rounds(master.url, "w", state_dir=str(tmp_path)):
        assert round.send(round.state, num_samples=1).accepted
    assert "is ignored" in caplog.text


def test_evaluation_tasks_are_for_those_who_ask(scripted):
    tasks = [{"action": "evaluate", "round": 0, "etag": '"e"', "config": {"split": "test"}}]
    master = scripted(Answer(), tasks=list(tasks))
    assert [round.action for round in fl_client.rounds(master.url, "w") if round.send(round.state, num_samples=1)] == ["train"]
    assert master.evaluations == []

    class Both(fl_client.Client):
        def train(self, state, config):
            return state, 5

        def evaluate(self, state, config):
            assert config == {"round": 0, "split": "test"} and state["1.bias"].shape == (10,)
            return 12, {"accuracy": 0.5}

    master = scripted(Answer(), tasks=list(tasks))
    assert fl_client.run(Both(), master.url, "w") == 1
    assert master.evaluations == [{"worker_id": "w", "round": 0, "num_samples": 12, "metrics": {"accuracy": 0.5}}]


def test_a_model_that_is_here_is_not_downloaded_again(scripted):
    task = {"round": 0, "etag": '"same"'}
    master = scripted(Answer(), tasks=[{"action": "evaluate", **task}, {"action": "train", **task}])
    for round in fl_client.rounds(master.url, "w", evaluate=True):
        if round.action == "evaluate":
            round.state["1.bias"][:] = math.nan  # what a client does to its arrays harms no one
            round.report(num_samples=1, metrics={"loss": 1.0})
        else:
            assert np.isfinite(round.state["1.bias"]).all()
            round.send(round.state, num_samples=1)
    assert master.paths("GET").count("/global") == 1


def test_sigterm_is_given_back_and_ends_forked_children(scripted):
    before = signal.getsignal(signal.SIGTERM)
    master = scripted(Answer())
    for round in fl_client.rounds(master.url, "w"):
        assert signal.getsignal(signal.SIGTERM) != before
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        round.send(round.state, num_samples=1)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_client_can_run_in_a_thread(start_master):
    master = start_master(MODEL="softmax", AGG_MIN_CLIENTS="3", ROUNDS="4")
    sent = []

    def work(name):
        for round in fl_client.rounds(master.url, name):
            sent.append(round.send(round.state, num_samples=1).accepted)

    threads = [threading.Thread(target=work, args=(f"w{index}",)) for index in range(3)]
    [thread.start() for thread in threads]
    [thread.join(60) for thread in threads]
    assert sent == [True] * 12


def test_a_strategy_with_control_variates_is_refused_in_a_sentence(start_master):
    master = start_master(MODEL="softmax", STRATEGY="scaffold:1", AGG_MIN_CLIENTS="1")
    with pytest.raises(fl_client.TaskError, match="another strategy"):
        for round in fl_client.rounds(master.url, "w"):
            round.send(round.state, num_samples=1)


def test_too_many_updates_beyond_the_norm_end_the_loop(scripted, monkeypatch):
    from fl_client import _rounds

    monkeypatch.setattr(_rounds, "MAX_DROPPED", 2)
    master = scripted(*[Answer(422, "norm_too_large")] * 3)
    with pytest.raises(fl_client.Refused, match="learning rate") as caught:
        for round in fl_client.rounds(master.url, "w"):
            assert not round.send(round.state, num_samples=1).accepted
    assert caught.value.code == "norm_too_large" and len(master.updates) == 2


def test_files_of_models_are_read_with_care(softmax_file):
    model = _model.read(softmax_file)
    assert model.layout == [("1.weight", [10, 64]), ("1.bias", [10])] and model.parameters == 650
    for end in [*range(0, 400, 7), len(softmax_file) - 1]:
        with pytest.raises(fl_client.NotAMaster):
            _model.read(softmax_file[:end])
    for old, new in ((b"[10,64]", b"[99,64]"), (b'"F32"', b'"F31"'), (b'"round":"0"', b'"round":"x"')):
        with pytest.raises(fl_client.NotAMaster):
            _model.read(softmax_file.replace(old, new))
