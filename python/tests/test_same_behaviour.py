"""What a client does when things go wrong: the same checks for the Rust worker and for this package."""

import signal
import time

import pytest
from conftest import ended, wait_until
from scripted import Answer

CLIENTS = ["rust", "python"]
pytestmark = pytest.mark.parametrize("kind", CLIENTS)


def test_an_update_that_is_too_late_is_dropped_and_the_next_round_begins(kind, scripted, spawn):
    master = scripted(Answer(409, "stale_round"), Answer())
    assert ended(spawn(kind, master.url)) == 0
    assert len(master.updates) == 2
    # The update is not repeated: it asks what to do, and trains from the newer model.
    assert master.paths("GET").count("/task") == 3
    assert b'"round":"0"' in master.updates[0] and b'"round":"1"' in master.updates[1]


def test_an_update_beyond_the_norm_is_dropped_and_the_client_goes_on(kind, scripted, spawn):
    master = scripted(Answer(422, "norm_too_large"), Answer(200))
    client = spawn(kind, master.url)
    assert ended(client) == 0
    assert len(master.updates) == 2
    assert "MAX_UPDATE_NORM" in client.log.read_text()


@pytest.mark.parametrize("status, code", [(422, "wrong_tensors"), (400, "malformed"), (413, "too_large")])
def test_a_fault_of_the_client_ends_it(kind, status, code, scripted, spawn):
    master = scripted(Answer(status, code), Answer())
    client = spawn(kind, master.url)
    assert ended(client) != 0
    assert len(master.updates) == 1, "it is not sent again"
    assert f"a test says {code}" in client.log.read_text()


@pytest.mark.parametrize("status, code", [(503, "overloaded"), (429, "rate_limited"), (500, "internal")])
def test_an_overloaded_master_gets_the_same_update_again_after_the_pause_that_it_asks_for(
    kind, status, code, scripted, spawn
):
    master = scripted(Answer(status, code, {"Retry-After": "1"}), Answer())
    assert ended(spawn(kind, master.url)) == 0
    first, second = [when for when, method, path, _ in master.calls if method == "POST"]
    assert master.updates[0] == master.updates[1]
    assert second - first >= 1.0


def test_the_token_is_sent_with_every_call(kind, scripted, spawn):
    master = scripted(Answer(), token="secret")
    assert ended(spawn(kind, master.url, FL_TOKEN="secret")) == 0
    assert len(master.updates) == 1


@pytest.mark.parametrize("token", ["", "wrong"])
def test_a_wrong_token_ends_the_client_at_once(kind, token, scripted, spawn):
    master = scripted(Answer(), token="secret")
    client = spawn(kind, master.url, FL_TOKEN=token)
    assert ended(client) != 0
    assert len(master.calls) == 1
    assert "FL_TOKEN" in client.log.read_text()


def test_mutual_tls(kind, scripted, spawn, certificates):
    master = scripted(Answer(), tls=certificates)
    paths = {"CA_CERT": certificates / "ca.pem", "CLIENT_CERT": certificates / "client.pem"}
    assert ended(spawn(kind, master.url, **paths)) == 0
    assert len(master.updates) == 1


def test_a_master_whose_certificate_nobody_signed_gets_nothing(kind, scripted, spawn, certificates):
    master = scripted(Answer(), tls=certificates)
    assert ended(spawn(kind, master.url, GIVE_UP_S="0.5", FL_TOKEN="secret")) != 0
    assert master.calls == []


def test_connections_that_the_master_closes_are_replaced(kind, scripted, spawn):
    master = scripted(Answer(), Answer(), Answer(), hang_up=True)
    assert ended(spawn(kind, master.url, GIVE_UP_S="20")) == 0
    assert len(master.updates) == 3


def test_sigterm_ends_the_waiting_for_work(kind, scripted, spawn):
    master = scripted(Answer())
    master.held = True
    client = spawn(kind, master.url)
    wait_until(lambda: "/task" in master.paths("GET"), "the request for work", client)
    # The request is in flight, and the master does not answer it.
    time.sleep(0.1)
    client.send_signal(signal.SIGTERM)
    assert ended(client) == 0
    assert master.updates == []


def test_sigterm_interrupts_a_training(kind, scripted, spawn):
    master = scripted(Answer())
    client = spawn(kind, master.url, TRAIN_S="60", LOCAL_STEPS="1000000")
    wait_until(lambda: "/global" in master.paths("GET"), "the download", client)
    # The training has begun, or will in a moment.
    time.sleep(0.3)
    client.send_signal(signal.SIGTERM)
    assert ended(client) == 0
    assert master.updates == []


def test_sigterm_lets_an_upload_finish(kind, scripted, spawn):
    master = scripted(Answer(delay_s=1.0), Answer())
    client = spawn(kind, master.url)
    assert master.in_upload.wait(30)
    client.send_signal(signal.SIGTERM)
    assert ended(client) == 0
    assert len(master.updates) == 1, "no further round begins"
    log = client.log.read_text()
    assert "sent_bytes" in log if kind == "rust" else "accepted=True" in log


def test_sigterm_gives_an_upload_no_longer_than_drain_s(kind, scripted, spawn):
    master = scripted(Answer(delay_s=60.0))
    client = spawn(kind, master.url, DRAIN_S="0.3")
    assert master.in_upload.wait(30)
    begun = time.monotonic()
    client.send_signal(signal.SIGTERM)
    assert ended(client) == 0
    assert time.monotonic() - begun < 30


def test_no_master_for_give_up_s_ends_the_client(kind, spawn, binaries):
    client = spawn(kind, "http://127.0.0.1:9", GIVE_UP_S="0.5")
    assert ended(client) != 0


def test_a_master_that_is_killed_and_started_again_is_waited_for(kind, spawn, start_master):
    master = start_master(MODEL="softmax", AGG_MIN_CLIENTS="1", ROUNDS="30", ROUND_PAUSE_S="0.05")
    client = spawn(kind, master.url)
    wait_until(lambda: master.get("/status")["global_round"] >= 5, "five rounds", client)
    master.kill()
    master.start()
    before = master.get("/status")["global_round"]
    assert before >= 5, "what was acknowledged is still there"
    assert ended(client) == 0
    assert master.get("/status")["global_round"] == 30 and master.get("/status")["finished"]
    assert [record["round"] for record in master.get("/history")] == list(range(1, 31))
