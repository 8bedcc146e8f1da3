"""Clients that were written for Flower."""

import fl_client
import numpy as np
import pytest
from conftest import accuracy, digits, softmax_steps
from scripted import Answer, ScriptedMaster


class NumPyClient:
    """Stands for `flwr.client.NumPyClient`, which has these methods and nothing that a subclass needs."""


class Softmax(NumPyClient):
    def __init__(self):
        self.x, self.y, self.test_x, self.test_y = digits()
        self.w, self.b = np.zeros((10, 64), np.float32), np.zeros(10, np.float32)

    def get_parameters(self, config):
        return [self.w, self.b]

    def fit(self, parameters, config):
        self.w, self.b = (array.copy() for array in parameters)
        loss = softmax_steps(self.w, self.b, self.x, self.y, config["steps"] if "steps" in config else 10)
        return self.get_parameters(config), len(self.y), {"loss": loss, "Top-1": 0.5, "note": "fine", "nan": float("nan")}

    def evaluate(self, parameters, config):
        return 0.25, len(self.test_y), {"accuracy": accuracy(*parameters, self.test_x, self.test_y)}


def test_a_numpy_client_learns_the_digits(start_master, tmp_path):
    client = Softmax()
    assert fl_client.flower.save_initial(client, tmp_path / "init.safetensors") == 650
    master = start_master(MODEL=f"safetensors:{tmp_path}/init.safetensors", AGG_MIN_CLIENTS="1", ROUNDS="20")
    assert fl_client.flower.run(client, master.url, "flower") == 20
    assert accuracy(*fl_client.download(master.url).values(), client.test_x, client.test_y) > 0.9
    assert fl_client.history(master.url)[0]["train_loss"] > fl_client.history(master.url)[-1]["train_loss"] > 0


def test_evaluations_carry_the_loss_and_the_metrics(softmax_file):
    master = ScriptedMaster(softmax_file, [Answer()], tasks=[{"action": "evaluate", "round": 0, "etag": ""}])
    fl_client.flower.run(Softmax(), master.url, "flower")
    master.close()
    (evaluation,) = master.evaluations
    assert evaluation["num_samples"] > 300 and set(evaluation["metrics"]) == {"loss", "accuracy"}
    assert evaluation["metrics"]["loss"] == 0.25
    body = master.updates[0].decode("latin1")
    # What is no finite number is left out, and names become those that the master takes.
    assert "top_1" in body and "note" not in body and "nan" not in body


def test_integer_arrays_stay_with_the_client(softmax_file):
    class Counting(Softmax):
        steps = np.int64(3)

        def get_parameters(self, config):
            return [self.w, self.steps, self.b]

        def fit(self, parameters, config):
            assert [np.shape(array) for array in parameters] == [(10, 64), (), (10,)]
            assert parameters[1] == self.steps
            self.steps = parameters[1] + 1
            return [parameters[0], self.steps, parameters[2]], 5, {}

    master = ScriptedMaster(softmax_file, [Answer(), Answer()])
    client = Counting()
    assert fl_client.flower.run(client, master.url, "flower") == 2
    master.close()
    assert client.steps == 5


def test_a_client_of_another_model_is_told_so(softmax_file):
    class Wrong(Softmax):
        def get_parameters(self, config):
            return [self.b, self.w]

    class Fewer(Softmax):
        def get_parameters(self, config):
            return [self.w]

    class Nonsense(Softmax):
        def fit(self, parameters, config):
            return parameters

    for client, text in ((Wrong(), "order"), (Fewer(), "save_initial"), (Nonsense(), "num_examples")):
        master = ScriptedMaster(softmax_file, [Answer()])
        with pytest.raises(fl_client.StateError, match=text):
            fl_client.flower.run(client, master.url, "flower")
        master.close()
        assert master.updates == []


def test_a_client_without_get_parameters(softmax_file):
    class Bare:
        def fit(self, parameters, config):
            assert config["server_round"] == config["round"] + 1
            return parameters, 1, {}

    master = ScriptedMaster(softmax_file, [Answer()])
    assert fl_client.flower.run(Bare(), master.url, "flower") == 1
    master.close()
