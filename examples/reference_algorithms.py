#!/usr/bin/env python3
"""Reference implementation of every strategy and client algorithm, in numpy and in double precision.

    reference_algorithms.py --digits datasets/assets/digits.csv.gz --check worker/tests/golden/algorithms.json
    reference_algorithms.py --digits datasets/assets/digits.csv.gz --write worker/tests/golden/algorithms.json

Written from the papers named at each function, not from the Rust code. `worker/tests/algorithms.rs` runs the
same problem through the engine, the container, the exact sum and the server's step, and compares each of 20
rounds with the file, to 1e-5.

The problem: softmax regression on the digits from zero; client k of 5 owns the first 40 + 30 k of the training
samples whose number leaves k when divided by 5, and makes 2 + k full-batch steps.
"""
import argparse
import gzip
import json
import sys

import numpy as np

CLIENTS, ROUNDS, LR, CLASSES, PIXELS = 5, 20, 0.1, 10, 64
BETA1, BETA2, TAU = 0.9, 0.99, 1e-3
LAZY = 0.8
# Which parameters the file keeps: every 41st.
KEPT = slice(0, CLASSES * PIXELS + CLASSES, 41)


def training_set(path):
    rows = np.loadtxt(gzip.open(path, "rt"), delimiter=",")
    labels = rows[:, -1].astype(int)
    seen = np.zeros(CLASSES, int)
    keep = []
    for label in labels:
        seen[label] += 1
        keep.append(seen[label] % 5 != 0)
    return (rows[keep, :-1] - 4.884165) / 6.016788, labels[keep]


def parts(x, y):
    for k in range(CLIENTS):
        own = np.arange(k, len(y), CLIENTS)[: 40 + 30 * k]
        yield x[own], y[own]


def gradient(w, x, y):
    """Gradient of the mean cross-entropy; w holds the weight [10, 64], row-major, and then the bias."""
    weight, bias = w[: CLASSES * PIXELS].reshape(CLASSES, PIXELS), w[CLASSES * PIXELS :]
    logits = x @ weight.T + bias
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    p /= len(y)
    return np.concatenate([(p.T @ x).ravel(), p.sum(axis=0)])


def train(w_global, data, steps, lr=LR, mu=0.0, momentum=0.0, clip=None, drift=0.0):
    """Local SGD. FedProx: Li et al. 2020, eq. 2, the gradient of the proximal term is mu (w - w_global)."""
    w, v = w_global.copy(), 0.0
    for _ in range(steps):
        g = gradient(w, *data)
        if clip is not None:
            g = g * min(1.0, clip / np.linalg.norm(g))
        v = momentum * v + g + drift + mu * (w - w_global)
        w = w - lr * v
    return w - w_global


def steps_of(k):
    return 2 + k


def federate(data, server, **local):
    """Synchronous rounds: `server(w, deltas, n)` gives the next parameters."""
    w, sizes, history = np.zeros(CLASSES * PIXELS + CLASSES), np.array([len(y) for _, y in data]), []
    schedule = local.pop("schedule", lambda t: 1.0)
    for t in range(ROUNDS):
        deltas = [train(w, data[k], steps_of(k), lr=LR * schedule(t), **local) for k in range(CLIENTS)]
        w = server(w, np.array(deltas), sizes)
        history.append(w)
    return history


def mean(deltas, n):
    """McMahan et al. 2017, algorithm 1: weighted by samples."""
    return (n / n.sum()) @ deltas


def fedavg(w, deltas, n):
    return w + mean(deltas, n)


class FedAvgM:
    """Hsu et al. 2019, section 4.3: v = beta v + delta, w = w + v."""

    def __init__(self):
        self.v = 0.0

    def __call__(self, w, deltas, n):
        self.v = BETA1 * self.v + mean(deltas, n)
        return w + self.v


class Adaptive:
    """Reddi et al. 2021, algorithm 2, with v_{-1} = tau^2."""

    def __init__(self, kind, lr=0.01):
        self.kind, self.lr, self.m, self.v = kind, lr, 0.0, TAU**2

    def __call__(self, w, deltas, n):
        d = mean(deltas, n)
        self.m = BETA1 * self.m + (1 - BETA1) * d
        if self.kind == "adagrad":
            self.v = self.v + d**2
        elif self.kind == "yogi":
            self.v = self.v - (1 - BETA2) * d**2 * np.sign(self.v - d**2)
        else:
            self.v = BETA2 * self.v + (1 - BETA2) * d**2
        return w + self.lr * self.m / (np.sqrt(self.v) + TAU)


def fednova(norms):
    """Wang et al. 2020, eq. 6 and 7: each delta by its |a_k|_1, then times the mean of these norms."""

    def server(w, deltas, n):
        p = n / n.sum()
        return w + (p @ norms) * (p @ (deltas / norms[:, None]))

    return server


def momentum_norm(steps, rho):
    """Wang et al. 2020, section 4: |a|_1 of SGD with momentum."""
    return (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)


def proximal_norm(steps, lr_mu):
    """Wang et al. 2020, section 4: |a|_1 of FedProx."""
    return (1 - (1 - lr_mu) ** steps) / lr_mu


def median(w, deltas, n):
    """Yin et al. 2018, definition 1."""
    return w + np.median(deltas, axis=0)


def trimmed_mean(cut):
    """Yin et al. 2018, definition 2, with `cut` values at each end."""
    return lambda w, deltas, n: w + np.sort(deltas, axis=0)[cut : len(deltas) - cut].mean(axis=0)


def multikrum(hostile, chosen):
    """Blanchard et al. 2017, section 4: scores over the n - f - 2 nearest; section 5: the mean of the best."""

    def server(w, deltas, n):
        distances = ((deltas[:, None] - deltas[None]) ** 2).sum(axis=2)
        near = len(deltas) - hostile - 2
        # The first of a sorted row is the distance to itself.
        scores = np.sort(distances, axis=1)[:, 1 : near + 1].sum(axis=1)
        return w + deltas[np.argsort(scores, kind="stable")[:chosen]].mean(axis=0)

    return server


def scaffold(data):
    """Karimireddy et al. 2020, algorithm 1, option II, with all clients in every round."""
    size = CLASSES * PIXELS + CLASSES
    w, c, own, history = np.zeros(size), np.zeros(size), np.zeros((CLIENTS, size)), []
    for _ in range(ROUNDS):
        deltas, changes = [], []
        for k in range(CLIENTS):
            delta = train(w, data[k], steps_of(k), drift=c - own[k])
            new = own[k] - c - delta / (steps_of(k) * LR)
            deltas.append(delta)
            changes.append(new - own[k])
            own[k] = new
        w = w + np.mean(deltas, axis=0)
        c = c + np.sum(changes, axis=0) / CLIENTS
        history.append(w)
    return history


def fedbuff(data, buffer=2):
    """Nguyen et al. 2022, algorithm 1; staleness weight 1 / sqrt(1 + s) of its section 5.

    Client 0 sends every other update, the others take turns; after sending, a client starts from the newest
    model. A buffer takes one update of a client.
    """
    w, history, versions = np.zeros(CLASSES * PIXELS + CLASSES), [], [0] * CLIENTS
    starts, waiting, arrival = [w] * CLIENTS, [], 0
    while len(history) < ROUNDS:
        k = 0 if arrival % 2 == 0 else 1 + (arrival // 2) % (CLIENTS - 1)
        staleness = len(history) - versions[k]
        waiting.append(train(starts[k], data[k], steps_of(k)) / np.sqrt(1 + staleness))
        arrival += 1
        if len(waiting) == buffer:
            w = w + np.sum(waiting, axis=0) / buffer
            waiting = []
            history.append(w)
        starts[k], versions[k] = w, len(history)
    return history


def lazy(data, factor):
    """Sun et al. 2019, algorithm 2 with the rule (7a), for updates instead of gradients and without its terms of
    quantization errors: xi_1 = ... = xi_10 = factor / 10. The difference of a skipped upload is added to the
    client's next update (error feedback: Seide et al. 2014)."""
    w, sizes, steps, history = np.zeros(CLASSES * PIXELS + CLASSES), np.array([len(y) for _, y in data]), [], []
    last, lost, left_out = [None] * CLIENTS, [0.0] * CLIENTS, 0
    for _ in range(ROUNDS):
        below = factor / 10 * sum(steps[-10:])
        for k in range(CLIENTS):
            x = train(w, data[k], steps_of(k)) + lost[k]
            if last[k] is not None and ((x - last[k]) ** 2).sum() <= below:
                left_out += 1
            else:
                last[k] = x
            lost[k] = x - last[k]
        step = mean(np.array(last), sizes)
        w = w + step
        steps.append((step**2).sum())
        history.append(w)
    assert 20 < left_out < 80, f"{left_out} of 100 uploads are left out: the comparison says little"
    return history


def cosine(t):
    """Loshchilov and Hutter 2017, eq. 5, over 20 rounds, with a floor of 1 % as the setting has it."""
    return max(0.5 * (1 + np.cos(np.pi * t / ROUNDS)), 0.01)


def everything(data):
    steps = np.array([steps_of(k) for k in range(CLIENTS)], float)
    momenta = np.array([momentum_norm(steps_of(k), 0.5) for k in range(CLIENTS)])
    proximal = np.array([proximal_norm(steps_of(k), LR * 0.5) for k in range(CLIENTS)])
    return {
        "fedavg": federate(data, fedavg),
        "fedavgm": federate(data, FedAvgM()),
        "fedadagrad": federate(data, Adaptive("adagrad")),
        "fedyogi": federate(data, Adaptive("yogi")),
        "fedadam": federate(data, Adaptive("adam")),
        "fednova": federate(data, fednova(steps)),
        "fednova momentum": federate(data, fednova(momenta), momentum=0.5),
        "fednova mu": federate(data, fednova(proximal), mu=0.5),
        "scaffold:5": scaffold(data),
        "fedbuff:2": fedbuff(data),
        "median": federate(data, median),
        "trimmed_mean:1": federate(data, trimmed_mean(1)),
        "krum:1": federate(data, multikrum(1, 1)),
        "multikrum:1:3": federate(data, multikrum(1, 3)),
        "fedavg mu": federate(data, fedavg, mu=0.5),
        "fedavg clip": federate(data, fedavg, clip=0.5),
        "fedavg cosine": federate(data, fedavg, schedule=cosine),
        "fedavg lazy": lazy(data, LAZY),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits", required=True)
    parser.add_argument("--write")
    parser.add_argument("--check")
    args = parser.parse_args()
    results = everything(list(parts(*training_set(args.digits))))
    kept = {name: [[round(v, 9) for v in w[KEPT]] for w in history] for name, history in results.items()}
    if args.write:
        with open(args.write, "w") as file:
            rounds = (f"  {json.dumps(name)}: {json.dumps(history)}" for name, history in kept.items())
            file.write("{\n" + ",\n".join(rounds) + "\n}\n")
    if args.check:
        golden = json.load(open(args.check))
        assert golden.keys() == kept.keys(), "other algorithms than in the file"
        worst = max(np.abs(np.array(golden[name]) - np.array(kept[name])).max() for name in kept)
        print(f"{len(kept)} algorithms, largest difference {worst:.1e}")
        sys.exit(int(worst > 1e-7))


if __name__ == "__main__":
    main()
