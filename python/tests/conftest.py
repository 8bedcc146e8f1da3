"""Masters and workers of the tests: real programs on loopback. `FL_BIN` is the folder with fl-master and fl-worker."""

import contextlib
import gzip
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
from scripted import ScriptedMaster

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("FL_BIN", ROOT / "target" / "release"))
DIGITS = ROOT / "datasets" / "assets" / "digits.csv.gz"
PATIENCE_S = 60
# Settings of the person who runs the tests must not reach the programs.
CLEAN = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "PYTHONPATH", "VIRTUAL_ENV") if name in os.environ}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(condition, what, process=None):
    """Polls until `condition()` is true; fails after a minute, or when `process` has ended."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        result = condition()
        if result:
            return result
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE_S} s"
        assert process is None or process.poll() is None, f"{what}: the program ended with {process.poll()}"
        time.sleep(0.02)


class Master:
    """An fl-master on a port of its own, which keeps its state over `kill` and `start`."""

    def __init__(self, folder, **settings):
        self.port, self.folder, self.process = free_port(), folder, None
        self.url = f"http://127.0.0.1:{self.port}"
        self.env = {**CLEAN, "BIND": f"127.0.0.1:{self.port}", "STATE_DIR": str(folder / "state"), "EVAL_EVERY": "0"}
        self.env.update({name: str(value) for name, value in settings.items()})

    def start(self):
        log = open(self.folder / "master.log", "ab")
        self.process = subprocess.Popen([BIN / "fl-master"], env=self.env, stdout=log, stderr=log)
        wait_until(self.is_ready, f"the master, see {self.folder}/master.log", self.process)
        return self

    def is_ready(self):
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(self.url + "/readyz", timeout=5).status == 200

    def get(self, path):
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return json.load(answer)

    def kill(self):
        """As kill -9 does: nothing is written on the way out."""
        self.process.kill()
        self.process.wait()

    def stop(self):
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def binaries():
    if not (BIN / "fl-master").exists():
        pytest.skip(f"no fl-master in {BIN}: cargo build --release, or set FL_BIN")
    return BIN


@pytest.fixture
def evaluating(binaries):
    """Skips a test for a master without evaluation by the clients."""
    if "--evaluate-every" not in subprocess.run([BIN / "fl-master", "--help"], capture_output=True, text=True).stdout:
        pytest.skip("this fl-master has no EVALUATE_EVERY")


@pytest.fixture
def start_master(binaries, tmp_path):
    """A function that starts a master with the given settings."""
    masters = []

    def start(**settings):
        folder = tmp_path / f"master{len(masters)}"
        folder.mkdir()
        masters.append(Master(folder, **settings))
        return masters[-1].start()

    yield start
    for master in masters:
        master.stop()


@pytest.fixture(scope="session")
def softmax_file(tmp_path_factory):
    """The file of a softmax model for the digits, as a master serves it."""
    if not (BIN / "fl-master").exists():
        pytest.skip(f"no fl-master in {BIN}")
    master = Master(tmp_path_factory.mktemp("softmax"), MODEL="softmax").start()
    with urllib.request.urlopen(master.url + "/global", timeout=30) as answer:
        file = answer.read()
    master.stop()
    return file


def digits(part=0, parts=1):
    """Features [n, 64] of mean 0 and deviation 1, and classes [n], of a part of the digits without the test samples; then
    the same of the test samples."""
    rows = np.loadtxt(gzip.open(DIGITS, "rt"), delimiter=",")
    labels, seen, is_test = rows[:, -1].astype(int), np.zeros(10, int), []
    for label in labels:
        seen[label] += 1
        is_test.append(seen[label] % 5 == 0)
    is_test = np.array(is_test)
    x = ((rows[:, :-1] - 4.884165) / 6.016788).astype(np.float32)
    own = np.flatnonzero(~is_test)[part::parts]
    return x[own], labels[own], x[is_test], labels[is_test]


def softmax_steps(w, b, x, y, steps=20, lr=0.1):
    """Full-batch gradient steps of softmax regression, in place; the last loss in nats."""
    for _ in range(steps):
        logits = x @ w.T + b
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        loss = -np.log(p[np.arange(len(y)), y] + 1e-12).mean()
        p[np.arange(len(y)), y] -= 1
        w -= lr * p.T @ x / len(y)
        b -= lr * p.mean(0)
    return float(loss)


def accuracy(w, b, x, y):
    return float(((x @ w.T + b).argmax(1) == y).mean())


@pytest.fixture
def spawn(tmp_path):
    """A function that starts a client: "rust" is fl-worker, "python" the script client.py beside this file."""
    processes = []

    def start(kind, url, **settings):
        env = {**CLEAN, "MASTER_ADDR": url, "WORKER_ID": "edge-1", "MEM_MB": "0", "RUST_LOG": "info"}
        env.update({name: str(value) for name, value in settings.items()})
        command = [BIN / "fl-worker"] if kind == "rust" else [sys.executable, str(pathlib.Path(__file__).with_name("client.py"))]
        log = open(tmp_path / f"client{len(processes)}.log", "wb")
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        process.log = tmp_path / f"client{len(processes)}.log"
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()


def ended(process):
    """The exit code, within a minute."""
    try:
        return process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        pytest.fail(f"the client did not end:\n{process.log.read_text()[-3000:]}")


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """A folder with an authority (ca.pem), a server's and a client's certificate with key (server.pem, client.pem)."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make certificates with")
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    (folder / "v3.cnf").write_text("subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
    openssl("req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=test authority")
    for name in ("server", "client"):
        openssl("req", *new_key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        sign = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "v3.cnf")
        openssl("x509", "-req", "-in", f"{name}.csr", *sign, "-out", f"{name}.crt")
        (folder / f"{name}.pem").write_bytes((folder / f"{name}.crt").read_bytes() + (folder / f"{name}.key").read_bytes())
    return folder


@pytest.fixture
def scripted(softmax_file):
    """A function that starts a scripted master."""
    masters = []

    def start(*answers, **options):
        masters.append(ScriptedMaster(softmax_file, answers, **options))
        return masters[-1]

    yield start
    for master in masters:
        master.close()
