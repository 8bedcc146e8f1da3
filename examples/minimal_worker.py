#!/usr/bin/env python3
"""A worker in another language: softmax regression on the digits with the predecessor's JSON API.

    minimal_worker.py http://127.0.0.1:5000 digits.csv.gz [--rounds 5]

Needs numpy. The master must run MODEL=softmax. `docs/protocol.md` describes each call.
"""
import argparse
import json
import time
import urllib.error
import urllib.request

import numpy as np
from check_global import read_test_set  # any samples will do; these are the file's test samples


def call(url, body=None):
    """Sends a request, and repeats it after a pause if the master asks for that. A repeated update counts once."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Accept": "application/json", "Content-Type": "application/json"}
    for _ in range(20):
        request = urllib.request.Request(url, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code not in (429, 503):
                raise
            time.sleep(float(error.headers.get("Retry-After", 1)))
    raise SystemExit(f"{url}: the master is overloaded")


def train(weights, x, y, steps=20, lr=0.05):
    classes = 10
    w, b = weights[:-classes].reshape(classes, -1).copy(), weights[-classes:].copy()
    for _ in range(steps):
        logits = x @ w.T + b
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        loss = -np.log(p[np.arange(len(y)), y] + 1e-12).mean()
        p[np.arange(len(y)), y] -= 1
        w -= lr * p.T @ x / len(y)
        b -= lr * p.mean(0)
    return np.concatenate([w.ravel(), b]), float(loss)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("master")
    parser.add_argument("digits")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worker-id", default="python")
    args = parser.parse_args()
    x, y = read_test_set(args.digits)
    x = (x - 4.884165) / 6.016788
    done = 0
    while done < args.rounds:
        task = call(f"{args.master}/task?worker_id={args.worker_id}&wait=20")
        if task["action"] == "stop":
            break
        if task["action"] in ("wait", "evaluate"):  # this one has no data to evaluate on
            continue
        model = call(f"{args.master}/global")
        weights = np.array(model["weights"], np.float32)
        started = time.time()
        local, loss = train(weights, x, y)
        update = {"worker_id": args.worker_id, "round": model["round"], "num_samples": len(y), "loss": loss,
                  "delta": (local - weights).tolist(), "compute_factor": time.time() - started}
        try:
            answer = call(f"{args.master}/update", update)
        except urllib.error.HTTPError as error:
            if error.code != 409:
                raise
            continue  # the round closed without this update: go on with the next one
        done += 1
        print(f"round {model['round']}: loss {loss:.4f}, {answer}", flush=True)


if __name__ == "__main__":
    main()
