"""Every wrong argument is an exception of a documented class whose text says what to do; nothing is half-sent."""

import http.server
import socket
import threading

import fl_client
import numpy as np
import pytest
from scripted import Answer, ScriptedMaster


@pytest.fixture
def refused(softmax_file):
    """A function that sends in a round and gives the exception; nothing may have been sent."""
    master = ScriptedMaster(softmax_file, [Answer(), Answer()])

    def attempt(change, **arguments):
        for round in fl_client.rounds(master.url, "w"):
            state = dict(round.state)
            replaced = change(state)
            with pytest.raises(fl_client.Error) as caught:
                round.send(state if replaced is None else replaced, **{"num_samples": 1, **arguments})
            assert master.updates == []
            # The round is still open for a right one.
            assert round.send(round.state, num_samples=1).accepted
            return caught.value

    yield attempt
    master.close()


def put(name, value):
    return lambda state: state.__setitem__(name, value)


@pytest.mark.parametrize(
    "change, text",
    [
        (lambda state: {"1.weight": state["1.weight"]}, "lacks `1.bias`"),
        (put("2.weight", np.zeros(3)), "no `2.weight`"),
        (put("1.bias", np.zeros(9, "f")), r"shape \[9\], the master's model \[10\]"),
        (put("1.bias", np.zeros((10, 1), "f")), "shape"),
        (put("1.bias", np.zeros(10, int)), "int64"),
        (put("1.bias", np.zeros(10, complex)), "complex"),
        (put("1.bias", np.array(["a"] * 10)), "floating-point"),
        (put("1.bias", [[1.0], [1.0, 2.0]]), "1.bias"),
        (put("1.bias", None), "1.bias"),
        (lambda state: list(state.values()), "not a dictionary"),
        (lambda state: type("Module", (), {"state_dict": None})(), "module.state_dict()"),
    ],
)
def test_a_state_that_is_not_the_models(refused, change, text):
    error = refused(change)
    assert isinstance(error, fl_client.StateError) and isinstance(error, ValueError)
    with pytest.raises(fl_client.StateError, match=text):
        raise error


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_values_that_are_not_finite(refused, value):
    error = refused(lambda state: state.__setitem__("1.bias", np.full(10, value)))
    assert isinstance(error, fl_client.DivergedError)
    assert "`1.bias`" in str(error) and "learning rate" in str(error)


@pytest.mark.parametrize(
    "metrics, text",
    [
        ({"Accuracy": 1.0}, "a-z"),
        ({"": 1.0}, "1 to 64"),
        ({"a" * 65: 1.0}, "1 to 64"),
        ({"a b": 1.0}, "a b"),
        ({"a\n": 1.0}, "a-z"),
        ({3: 1.0}, "3"),
        ({"loss": np.nan}, "finite"),
        ({"loss": "high"}, "give a number"),
        ({"loss": None}, "loss"),
        ({f"m{i}": 1.0 for i in range(33)}, "32"),
        ([("loss", 1.0)], "dictionary"),
    ],
)
def test_metrics_that_the_master_does_not_take(refused, metrics, text):
    error = refused(lambda state: None, metrics=metrics)
    assert isinstance(error, fl_client.MetricError) and text in str(error)


@pytest.mark.parametrize("num_samples", [0, -1, 1.5, "ten", None, True, 10**9])
def test_a_number_of_samples_that_is_none(refused, num_samples):
    assert isinstance(refused(lambda state: None, num_samples=num_samples), fl_client.SettingError)


@pytest.mark.parametrize("steps", [-1, 1.5, "many"])
def test_a_number_of_steps_that_is_none(refused, steps):
    assert isinstance(refused(lambda state: None, local_steps=steps), fl_client.SettingError)


def test_an_evaluation_without_metrics(softmax_file):
    master = ScriptedMaster(softmax_file, [], tasks=[{"action": "evaluate", "round": 0, "etag": ""}])
    for round in fl_client.rounds(master.url, "w", evaluate=True):
        for metrics in ({}, {"A": 1.0}):
            with pytest.raises(fl_client.MetricError):
                round.report(num_samples=1, metrics=metrics)
        with pytest.raises(fl_client.SettingError, match="report"):
            round.send(round.state, num_samples=1)
    master.close()
    assert master.evaluations == []


def test_a_loss_that_is_not_finite(refused):
    assert isinstance(refused(lambda state: None, loss=float("inf")), fl_client.MetricError)


def test_a_round_takes_one_update(softmax_file):
    master = ScriptedMaster(softmax_file, [Answer()])
    for round in fl_client.rounds(master.url, "w"):
        round.send(round.state, num_samples=1)
        with pytest.raises(fl_client.SettingError, match="one of a client"):
            round.send(round.state, num_samples=1)
        with pytest.raises(fl_client.SettingError, match="send"):
            round.report(num_samples=1, metrics={})
    master.close()


@pytest.mark.parametrize(
    "arguments, text",
    [
        (dict(master="127.0.0.1:5000"), "http://127.0.0.1:5000"),
        (dict(master="ftp://host"), "https://"),
        (dict(master="http://host:x"), "address"),
        (dict(worker_id="a b"), "A-Z a-z 0-9"),
        (dict(bits=9), "1 to 8"),
        (dict(bits=True), "1 to 8"),
        (dict(quantizer="zip"), "StocQ"),
        (dict(target_nmse=3), "1e-09 to 0.9"),
        (dict(update_bytes=10), "auto"),
        (dict(give_up_s="soon"), "no number"),
        (dict(entropy="perhaps"), "True or False"),
        (dict(token="two words"), "printable"),
        (dict(ca_cert="/nowhere.pem"), "no such file"),
        (dict(down_quantizer="SDQ"), "down_bits"),
        (dict(tokens="x"), "no option `tokens`"),
    ],
)
def test_arguments_are_checked_before_anything_is_opened(arguments, text):
    arguments = {"master": "http://127.0.0.1:9", "worker_id": "w", **arguments}
    with pytest.raises(fl_client.SettingError) as caught:
        fl_client.rounds(**arguments)
    assert text in str(caught.value)


def test_certificates_that_are_none(tmp_path):
    (tmp_path / "no.pem").write_text("nothing")
    for name in ("ca_cert", "client_cert"):
        with pytest.raises(fl_client.SettingError, match="PEM"):
            fl_client.rounds("https://127.0.0.1:9", "w", **{name: tmp_path / "no.pem"})


def serve(handle):
    """A server of another kind on loopback; its address."""
    server = socket.create_server(("127.0.0.1", 0))

    def work():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                connection.recv(4096)
                connection.sendall(handle)

    threading.Thread(target=work, daemon=True).start()
    return server, f"http://127.0.0.1:{server.getsockname()[1]}"


def reply(status, body, extra=""):
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{extra}\r\n{body}".encode()


@pytest.mark.parametrize(
    "answer",
    [
        reply("200 OK", "<html>hello</html>"),
        reply("200 OK", '{"action": "dance", "round": 1}'),
        reply("200 OK", "{}"),
        reply("404 Not Found", "no such page"),
        reply("302 Found", "", "Location: /login\r\n"),
        reply("200 OK", '{"a": "' + "x" * (1 << 20) + '"}'),
        b"SSH-2.0-OpenSSH_9.2\r\n",
    ],
)
def test_a_server_that_is_no_master(answer):
    server, url = serve(answer)
    with server:
        with pytest.raises(fl_client.NotAMaster, match=url):
            next(fl_client.rounds(url, "w"))
        with pytest.raises((fl_client.NotAMaster, fl_client.Refused)):
            fl_client.history(url)


def test_a_server_of_files_is_no_master():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.raises(fl_client.NotAMaster, match="check address and port"):
        next(fl_client.rounds(f"http://127.0.0.1:{server.server_address[1]}", "w"))
    server.shutdown()
    server.server_close()


def test_nobody_there():
    with pytest.raises(fl_client.Unreachable, match="check the address"):
        fl_client.history("http://127.0.0.1:9")
    with pytest.raises(fl_client.Unreachable, match="gave up"):
        next(fl_client.rounds("http://127.0.0.1:9", "w", give_up_s=0.2))


def test_history_with_a_wrong_token(start_master):
    master = start_master(MODEL="softmax", FL_TOKEN="right")
    with pytest.raises(fl_client.AuthError, match="FL_TOKEN"):
        fl_client.history(master.url, token="wrong")
    assert fl_client.history(master.url, token="right") == []
