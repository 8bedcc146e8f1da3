#!/usr/bin/env python3
"""Federated logistic regression with scikit-learn, on its own digits.

    client.py init first.safetensors                    # for a master with MODEL=safetensors:first.safetensors
    client.py train http://127.0.0.1:5000 --part 0 --parts 3

Needs fl_client and scikit-learn.
"""
import argparse

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

import fl_client

CLASSES, FEATURES = 10, 64


class Digits(fl_client.Client):
    def __init__(self, part, parts):
        x, y = load_digits(return_X_y=True)
        x = x[part::parts] / 16.0
        self.split = train_test_split(x, y[part::parts], test_size=0.2, random_state=part)
        self.model = SGDClassifier(loss="log_loss", learning_rate="constant", eta0=0.05, random_state=part)
        # Tells the model its classes, of which this client may not have all.
        self.model.partial_fit(self.split[0][:1], self.split[2][:1], classes=np.arange(CLASSES))

    def load(self, state):
        self.model.coef_ = state["coef"].astype(np.float64)
        self.model.intercept_ = state["intercept"].astype(np.float64)

    def train(self, state, config):
        self.load(state)
        x, _, y, _ = self.split
        for _ in range(config.get("local_epochs", 1)):
            self.model.partial_fit(x, y)
        loss = log_loss(y, self.model.predict_proba(x), labels=np.arange(CLASSES))
        new = {"coef": self.model.coef_, "intercept": self.model.intercept_}
        return fl_client.Update(new, len(y), {"accuracy": self.model.score(x, y)}, loss)

    def evaluate(self, state, config):
        self.load(state)
        _, x, _, y = self.split
        loss = log_loss(y, self.model.predict_proba(x), labels=np.arange(CLASSES))
        return len(y), {"accuracy": self.model.score(x, y), "loss": loss}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    init = commands.add_parser("init", help="write the first model")
    init.add_argument("path")
    train = commands.add_parser("train", help="take part in a federation")
    train.add_argument("master")
    train.add_argument("--part", type=int, default=0)
    train.add_argument("--parts", type=int, default=1)
    args = parser.parse_args()
    if args.command == "init":
        fl_client.save(args.path, {"coef": np.zeros((CLASSES, FEATURES)), "intercept": np.zeros(CLASSES)})
        return
    client = Digits(args.part, args.parts)
    fl_client.run(client, args.master, f"sklearn-{args.part}")
    samples, metrics = client.evaluate(fl_client.download(args.master), {})
    print(f"client {args.part}: accuracy {metrics['accuracy']:.4f}, loss {metrics['loss']:.4f} on {samples} samples")


if __name__ == "__main__":
    main()
