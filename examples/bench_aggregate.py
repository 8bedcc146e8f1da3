#!/usr/bin/env python3
"""Compare how fast updates are averaged: `fl bench aggregate` and numpy's weighted sum of plain f32.

    bench_aggregate.py --fl target/release/fl                 # take turns, print the medians
    bench_aggregate.py --fl target/release/fl --json

Both use one core and count 4 bytes a parameter. The master's figure includes checking and decoding a
4-bit update; numpy adds vectors that are decoded in memory already, in the fastest of three ways. The
master's sum does not depend on the order of the updates, numpy's does. Needs numpy.
"""
import argparse
import json
import os
import statistics
import subprocess
import time

# One core each: numpy's matrix product would use all of them.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import numpy as np


def in_place(x, weights, total, scratch):
    """total += w * x, with one vector of scratch memory."""
    total.fill(0)
    for row, weight in zip(x, weights):
        np.multiply(row, weight, out=scratch)
        np.add(total, scratch, out=total)


def as_written(x, weights, total, _scratch):
    """total = total + w * x, in the straightforward form."""
    total.fill(0)
    for row, weight in zip(x, weights):
        total += row * weight


def product(x, weights, total, _scratch):
    """A vector times the matrix of all updates: needs all of them in memory at once."""
    np.dot(weights, x, out=total)


WAYS = {"in place": in_place, "as written": as_written, "matrix product": product}


def numpy_rates(x, weights, seconds):
    total, scratch = np.zeros(x.shape[1], np.float32), np.zeros(x.shape[1], np.float32)
    rates = {}
    for name, way in WAYS.items():
        way(x, weights, total, scratch)
        done, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            way(x, weights, total, scratch)
            done += 1
        rates[name] = done * x.nbytes / (time.perf_counter() - start) / 1e9
    return rates


def fl_rates(arguments):
    command = [arguments.fl, "bench", "aggregate", "--json", "--seconds", str(arguments.seconds)]
    command += ["--params", str(arguments.params), "--bits", str(arguments.bits)]
    command += ["--quantizer", arguments.quantizer]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fl", required=True, help="path of the fl binary")
    parser.add_argument("--params", type=int, default=100_180)
    parser.add_argument("--clients", type=int, default=64, help="vectors that numpy adds")
    parser.add_argument("--quantizer", default="MSQ_v2")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=1.0, help="time of one turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()

    rng = np.random.default_rng(0)
    x = rng.standard_normal((arguments.clients, arguments.params), dtype=np.float32)
    weights = rng.integers(100, 1000, arguments.clients).astype(np.float32)
    ours, theirs = [], []
    for _ in range(arguments.turns):
        ours.append(fl_rates(arguments))
        theirs.append(numpy_rates(x, weights, arguments.seconds / len(WAYS)))
    result = {"params": ours[0]["params"], "bits": arguments.bits}
    for key in ("gb_per_s", "check_gb_per_s", "decode_gb_per_s", "add_gb_per_s"):
        result[key] = statistics.median(turn[key] for turn in ours)
    for name in WAYS:
        key = "numpy_" + name.replace(" ", "_") + "_gb_per_s"
        result[key] = statistics.median(turn[name] for turn in theirs)
    best = max(value for key, value in result.items() if key.startswith("numpy"))
    result["ratio_to_best_numpy"] = result["gb_per_s"] / best
    if arguments.json:
        print(json.dumps(result))
        return
    for key, value in result.items():
        print(f"{key:32} {value:.2f}" if isinstance(value, float) else f"{key:32} {value}")


if __name__ == "__main__":
    main()
