#!/usr/bin/env python3
"""Load a global model into PyTorch and evaluate it by its task.

    load_in_pytorch.py global.safetensors
    load_in_pytorch.py global.safetensors --dataset digits
    load_in_pytorch.py global.safetensors --dataset csv:houses.csv --target price --fl target/release/fl
    load_in_pytorch.py global.safetensors --arrays test.npz

Needs torch, safetensors and numpy. The network comes from the file's own metadata (fl_torch.py), the test part of
digits, shakespeare, fashion-mnist, mnist, idx:DIR, csv:FILE, text:FILE and bytes:FILE from fl_data.py; without data
the network is loaded and printed. `test.npz` holds `x`, raw features or tokens with a sample a row, and `y`, classes,
next tokens or numbers. With --fl it fails if `fl eval` finds another loss or accuracy, by more than 0.0001 (of the
loss, if that is above 1).
"""
import argparse
import json
import subprocess
import sys

import numpy as np
import torch
from fl_data import read
from fl_torch import build, input_of, loss, metric, task_of
from safetensors import safe_open
from safetensors.torch import load_file

TOLERANCE = 1e-4


def per_feature(values, shape):
    """One value for all features, for each channel, or for each feature."""
    values = torch.tensor(values)
    if len(values) == 1:
        return values
    if len(values) == shape[0]:
        return values.reshape(-1, *[1] * (len(shape) - 1))
    return values.reshape(shape)


def evaluated_by_fl(args):
    command = [args.fl, "eval", args.model, "--dataset", args.dataset, "--json"]
    for option, value in (("--target", args.target), ("--data-dir", args.data_dir)):
        command += [option, value] if value else []
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--dataset", help="data set whose test part is used, as `fl eval` takes it")
    parser.add_argument("--target", help="columns of a csv file that the model predicts")
    parser.add_argument("--data-dir", help="folder with the data set's files")
    parser.add_argument("--arrays", help="test.npz with x and y")
    parser.add_argument("--fl", help="path of the fl binary to compare with")
    args = parser.parse_args()
    if args.dataset and args.arrays:
        parser.error("give --dataset or --arrays")
    if args.fl and not args.dataset:
        parser.error("--fl needs --dataset")
    with safe_open(args.model, "pt") as file:
        meta = file.metadata()
    spec = json.loads(meta["model"])
    network = build(spec)
    network.load_state_dict(load_file(args.model), strict=True)
    network.eval()
    if not args.dataset and not args.arrays:
        size = sum(parameter.numel() for parameter in network.parameters())
        return print(f"{args.model}: round {meta['round']}, {size} parameters, loaded into\n{network}")
    shape = input_of(spec)["shape"]
    numbers = task_of(spec)["type"] in ("regression", "multilabel")
    if args.dataset:
        names = json.loads(meta.get("labels", "[]"))
        x, y = read(args.dataset, args.data_dir, args.target, names, shape[0], numbers)
    else:
        arrays = np.load(args.arrays)
        x, y = arrays["x"], arrays["y"]
    x = torch.tensor(x).reshape(len(x), *shape)
    if input_of(spec)["kind"] == "tokens":
        x = x.long()
    else:
        norm = json.loads(meta["normalization"])
        x = (x.float() - per_feature(norm["mean"], shape)) / per_feature(norm["std"], shape)
    y = torch.tensor(y).float() if numbers else torch.tensor(y).long()
    with torch.no_grad():
        outputs = torch.cat([network(part) for part in x.split(256)])
        name, value = metric(spec, outputs, y)
        value_of_loss = loss(spec, outputs, y).item()
    print(f"{args.model}: round {meta['round']}, {name} {value:.4f}, loss {value_of_loss:.4f} on {len(y)} samples")
    if not args.fl:
        return
    other = evaluated_by_fl(args)
    off = {"loss": abs(other["loss"] - value_of_loss) / max(1.0, abs(other["loss"]))}
    if name == "accuracy":
        off[name] = abs(other["accuracy"] - value)
    elif "absolute_error" in other:
        off[name] = abs(other["absolute_error"] - value)
    print("fl eval is off by " + ", ".join(f"{key} {value:.1e}" for key, value in off.items()))
    # Written so that a loss that is no number fails too.
    if other["samples"] != len(y) or not max(off.values()) <= TOLERANCE:
        sys.exit(f"fl eval says {json.dumps(other)}")


if __name__ == "__main__":
    main()
