#!/usr/bin/env python3
"""Load a global model into PyTorch and evaluate it by its task.

    load_in_pytorch.py global.safetensors --digits datasets/assets/digits.csv.gz
    load_in_pytorch.py global.safetensors --arrays test.npz

Needs torch, safetensors and numpy. The network comes from the file's own metadata (fl_torch.py). `test.npz` holds
`x`, raw features or tokens with a sample a row, and `y`, classes, next tokens or numbers.
"""
import argparse
import json

import numpy as np
import torch
from check_global import read_test_set
from fl_torch import build, input_of, loss, metric, task_of
from safetensors import safe_open
from safetensors.torch import load_file


def per_feature(values, shape):
    """One value for all features, for each channel, or for each feature."""
    values = torch.tensor(values)
    if len(values) == 1:
        return values
    if len(values) == shape[0]:
        return values.reshape(-1, *[1] * (len(shape) - 1))
    return values.reshape(shape)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--digits", help="digits.csv.gz")
    parser.add_argument("--arrays", help="test.npz with x and y")
    args = parser.parse_args()
    if not args.digits and not args.arrays:
        parser.error("give --digits or --arrays")
    with safe_open(args.model, "pt") as file:
        meta = file.metadata()
    spec = json.loads(meta["model"])
    network = build(spec)
    network.load_state_dict(load_file(args.model), strict=True)
    network.eval()
    if args.digits:
        x, y = read_test_set(args.digits)
    else:
        arrays = np.load(args.arrays)
        x, y = arrays["x"], arrays["y"]
    shape = input_of(spec)["shape"]
    x = torch.from_numpy(x).reshape(len(x), *shape)
    if input_of(spec)["kind"] == "tokens":
        x = x.long()
    else:
        norm = json.loads(meta["normalization"])
        x = (x.float() - per_feature(norm["mean"], shape)) / per_feature(norm["std"], shape)
    numbers = task_of(spec)["type"] in ("regression", "multilabel")
    y = torch.from_numpy(y).float() if numbers else torch.from_numpy(y).long()
    with torch.no_grad():
        outputs = torch.cat([network(part) for part in x.split(256)])
        name, value = metric(spec, outputs, y)
        value_of_loss = loss(spec, outputs, y).item()
    print(f"{args.model}: round {meta['round']}, {name} {value:.4f}, loss {value_of_loss:.4f} on {len(y)} samples")


if __name__ == "__main__":
    main()
