#!/usr/bin/env python3
"""Load a global model into torch.nn.Sequential and evaluate it on the digits.

    load_in_pytorch.py global.safetensors --digits datasets/assets/digits.csv.gz

Needs torch, safetensors and numpy. The network comes from the file's own metadata.
"""
import argparse
import json

import torch
from check_global import read_test_set
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn


def build(spec):
    make = {
        "flatten": lambda l: nn.Flatten(),
        "relu": lambda l: nn.ReLU(),
        "linear": lambda l: nn.Linear(l["in_features"], l["out_features"]),
        "conv2d": lambda l: nn.Conv2d(
            l["in_channels"], l["out_channels"], l["kernel"], stride=l.get("stride", 1), padding=l.get("padding", 0)
        ),
        "max_pool2d": lambda l: nn.MaxPool2d(l["kernel"], stride=l.get("stride")),
        "dropout": lambda l: nn.Dropout(l["p"]),
        "group_norm": lambda l: nn.GroupNorm(l["groups"], l["channels"]),
    }
    return nn.Sequential(*(make[layer["type"]](layer) for layer in spec["layers"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--digits", required=True, help="digits.csv.gz")
    args = parser.parse_args()
    with safe_open(args.model, "pt") as file:
        meta = file.metadata()
    spec, norm = json.loads(meta["model"]), json.loads(meta["normalization"])
    network = build(spec)
    network.load_state_dict(load_file(args.model), strict=True)
    network.eval()
    x, y = read_test_set(args.digits)
    x = (torch.from_numpy(x) - norm["mean"][0]) / norm["std"][0]
    with torch.no_grad():
        logits = network(x.reshape(len(x), *spec["input_shape"]))
    accuracy = (logits.argmax(1) == torch.from_numpy(y)).float().mean().item()
    print(f"{args.model}: round {meta['round']}, accuracy {accuracy:.4f} on {len(y)} samples")


if __name__ == "__main__":
    main()
