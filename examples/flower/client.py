#!/usr/bin/env python3
"""A client that was written for Flower, in a federation of an fl master: only the last line is not Flower's.

    client.py http://127.0.0.1:5000 --data datasets/assets/digits.csv.gz --part 0 --parts 2

Softmax regression on the digits in numpy. Needs fl_client; flwr may be installed or not.
"""
import argparse
import gzip

import numpy as np

import fl_client

try:
    from flwr.client import NumPyClient
except ImportError:
    NumPyClient = object  # its methods are all that counts


class SoftmaxClient(NumPyClient):
    def __init__(self, data, part, parts):
        rows = np.loadtxt(gzip.open(data, "rt"), delimiter=",")
        # Mean and deviation of the master's model file.
        x = ((rows[:, :-1] - 4.884165) / 6.016788).astype(np.float32)
        y = rows[:, -1].astype(int)
        rank = np.zeros(len(y), int)
        for label in range(10):
            rank[y == label] = np.arange(1, 1 + (y == label).sum())
        # Every fifth sample of a class is for tests; this client has its part of the others.
        own = np.flatnonzero(rank % 5 != 0)[part::parts]
        self.x, self.y = x[own], y[own]
        self.x_test, self.y_test = x[rank % 5 == 0], y[rank % 5 == 0]
        self.weight, self.bias = np.zeros((10, 64), np.float32), np.zeros(10, np.float32)

    def get_parameters(self, config):
        return [self.weight, self.bias]

    def set_parameters(self, parameters):
        self.weight, self.bias = (np.array(array) for array in parameters)

    def probabilities(self, x):
        logits = x @ self.weight.T + self.bias
        p = np.exp(logits - logits.max(1, keepdims=True))
        return p / p.sum(1, keepdims=True)

    def fit(self, parameters, config):
        self.set_parameters(parameters)
        for _ in range(config.get("local_steps", 10)):
            p = self.probabilities(self.x)
            loss = -np.log(p[np.arange(len(self.y)), self.y] + 1e-12).mean()
            p[np.arange(len(self.y)), self.y] -= 1
            self.weight -= config.get("lr", 0.1) * (p.T @ self.x / len(self.y)).astype(np.float32)
            self.bias -= config.get("lr", 0.1) * p.mean(0).astype(np.float32)
        return self.get_parameters(config), len(self.y), {"loss": float(loss)}

    def evaluate(self, parameters, config):
        self.set_parameters(parameters)
        p = self.probabilities(self.x_test)
        loss = -np.log(p[np.arange(len(self.y_test)), self.y_test] + 1e-12).mean()
        return float(loss), len(self.y_test), {"accuracy": float((p.argmax(1) == self.y_test).mean())}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("master")
    parser.add_argument("--data", default="datasets/assets/digits.csv.gz")
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--worker-id", default="flower")
    args = parser.parse_args()
    client = SoftmaxClient(args.data, args.part, args.parts)
    fl_client.flower.run(client, args.master, args.worker_id)
    loss, _, metrics = client.evaluate(fl_client.download(args.master).values(), {})
    print(f"{fl_client.status(args.master)['global_round']} rounds: loss {loss:.4f}, accuracy {metrics['accuracy']:.4f}")
