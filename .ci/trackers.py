#!/usr/bin/env python3
"""`fl export` against TensorBoard's own reader and a real MLflow server.

    trackers.py FL RUN OUT     FL: the binary, RUN: the folder of an `fl run`, OUT: a folder for what is written
"""
import json
import pathlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

FL, RUN, OUT = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
SERIES = ["test_accuracy", "test_loss", "train_loss", "bytes_up"]
LOOKS, PAUSE = 240, 0.5


def history():
    return json.loads((RUN / "history.json").read_text())


def export(*flags):
    done = subprocess.run([FL, "export", str(RUN), "--json", *flags], check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def expected(series):
    return {record["round"]: record[series] for record in history() if record.get(series) is not None}


def check(found, series, tolerance, who):
    wanted = expected(series)
    assert found.keys() == wanted.keys(), f"{who}: {series} has {len(found)} rounds, {len(wanted)} were exported"
    for step, value in wanted.items():
        assert abs(found[step] - value) <= tolerance * max(1.0, abs(value)), f"{who}: {series} at {step}"


def tensorboard():
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = OUT / "tensorboard"
    shutil.rmtree(folder, ignore_errors=True)
    export("--tensorboard", str(folder))
    export("--tensorboard", str(folder))  # again: the file is replaced, nothing is doubled
    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    reader.Reload()
    for series in SERIES:
        events = reader.Scalars(series)
        assert len(events) == len({event.step for event in events}), f"TensorBoard: {series} is doubled"
        # An event's value has 24 bits.
        check({event.step: event.value for event in events}, series, 1e-6, "TensorBoard")
    print(f"TensorBoard: {len(reader.Tags()['scalars'])} series of {len(history())} rounds")


def mlflow():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = OUT / "mlflow"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    store = f"sqlite:///{folder.resolve()}/mlflow.db"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", store, "--default-artifact-root", str(folder.resolve())]
    url = f"http://127.0.0.1:{port}"
    with open(OUT / "mlflow.log", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        for _ in range(LOOKS):
            try:
                urllib.request.urlopen(f"{url}/health", timeout=2).read()
                break
            except OSError:
                assert server.poll() is None, "the MLflow server has ended"
                time.sleep(PAUSE)
        run_id = export("--mlflow", url, "--experiment", "a test & more")["mlflow_run_id"]
        assert export("--mlflow", url, "--run-id", run_id)["mlflow_run_id"] == run_id  # again: nothing is doubled
        from mlflow.tracking import MlflowClient

        client = MlflowClient(url)
        run = client.get_run(run_id)
        assert run.info.status == "FINISHED", run.info.status
        assert client.get_experiment(run.info.experiment_id).name == "a test & more"
        assert run.data.params["quantizer"] == json.loads((RUN / "run.json").read_text())["settings"]["quantizer"]
        for series in SERIES:
            logged = client.get_metric_history(run_id, series)
            assert len(logged) == len(expected(series)), f"MLflow: {series} is doubled"
            check({metric.step: metric.value for metric in logged}, series, 1e-9, "MLflow")
        print(f"MLflow: {len(run.data.metrics)} series, {len(run.data.params)} settings")
    finally:
        server.terminate()
        server.wait()


tensorboard()
mlflow()
