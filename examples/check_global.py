#!/usr/bin/env python3
"""Evaluate a global model with numpy alone: no framework, no fl.

    check_global.py global.safetensors --digits datasets/assets/digits.csv.gz [--expect 0.97]

Builds the network from the file's own metadata and classifies the digits' test samples (of every
class the fifth, tenth, fifteenth ... sample). With --expect it fails if the accuracy differs by more
than 0.002.
"""
import argparse
import gzip
import json
import struct
import sys

import numpy as np


def read_model(path):
    data = open(path, "rb").read()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    meta = header.pop("__metadata__")
    tensors = {}
    for name, info in header.items():
        begin, end = (8 + length + offset for offset in info["data_offsets"])
        tensors[name] = np.frombuffer(data[begin:end], "<f4").reshape(info["shape"])
    return meta, json.loads(meta["model"]), tensors


def read_test_set(path):
    rows = np.loadtxt(gzip.open(path, "rt"), delimiter=",")
    labels = rows[:, -1].astype(int)
    seen = np.zeros(labels.max() + 1, int)
    is_test = []
    for label in labels:
        seen[label] += 1
        is_test.append(seen[label] % 5 == 0)
    return rows[is_test, :-1].astype(np.float32), labels[is_test]


def conv2d(x, weight, bias, layer):
    stride, padding = layer.get("stride", 1), layer.get("padding", 0)
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
    return np.einsum("nchwij,ocij->nohw", windows, weight, optimize=True) + bias[None, :, None, None]


def max_pool2d(x, layer):
    size = layer["kernel"]
    stride = layer.get("stride", size)
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))[:, :, ::stride, ::stride]
    return windows.max(axis=(4, 5))


def forward(spec, tensors, x):
    for index, layer in enumerate(spec["layers"]):
        weight, bias = tensors.get(f"{index}.weight"), tensors.get(f"{index}.bias")
        kind = layer["type"]
        if kind == "flatten":
            x = x.reshape(len(x), -1)
        elif kind == "relu":
            x = np.maximum(x, 0)
        elif kind == "linear":
            x = x @ weight.T + bias
        elif kind == "conv2d":
            x = conv2d(x, weight, bias, layer)
        elif kind == "max_pool2d":
            x = max_pool2d(x, layer)
        elif kind != "dropout":
            sys.exit(f"this script does not know the layer {kind}")
    return x


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--digits", required=True, help="digits.csv.gz")
    parser.add_argument("--expect", type=float, help="accuracy that must come out")
    args = parser.parse_args()
    meta, spec, tensors = read_model(args.model)
    x, y = read_test_set(args.digits)
    norm = json.loads(meta["normalization"])
    x = (x - np.float32(norm["mean"][0])) / np.float32(norm["std"][0])
    logits = forward(spec, tensors, x.reshape(len(x), *spec["input"]["shape"]))
    accuracy = float((logits.argmax(1) == y).mean())
    print(f"{args.model}: round {meta['round']}, accuracy {accuracy:.4f} on {len(y)} samples")
    if args.expect is not None and abs(accuracy - args.expect) > 0.002:
        sys.exit(f"expected {args.expect:.4f}")


if __name__ == "__main__":
    main()
