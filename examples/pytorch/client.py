#!/usr/bin/env python3
"""A residual network with batch normalisation in PyTorch, trained by a federation whose master knows only its tensors.

    client.py init first.safetensors                    # for a master with MODEL=safetensors:first.safetensors
    client.py train http://127.0.0.1:5000 --part 0 --parts 3

Running means and variances travel and are averaged like weights; the counters `num_batches_tracked` are carried in the
master's file. Needs fl_client, torch and numpy. The data are the repository's digits, 8 x 8 pixels.
"""
import argparse
import gzip
import pathlib

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import fl_client

DIGITS = pathlib.Path(__file__).resolve().parents[2] / "datasets" / "assets" / "digits.csv.gz"


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        return F.relu(self.body(x) + self.shortcut(x))


def network():
    """1.0 million parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, 1, 1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        Block(32, 64, 1),
        Block(64, 128, 2),
        Block(128, 224, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(224, 10),
    )


def samples(part, parts):
    """Images and classes of a part of the digits: for training, and every fifth of them held out."""
    rows = np.loadtxt(gzip.open(DIGITS, "rt"), delimiter=",", dtype=np.float32)[part::parts]
    x, y = torch.from_numpy(rows[:, :-1]).reshape(-1, 1, 8, 8) / 8 - 1, torch.from_numpy(rows[:, -1]).long()
    held_out = torch.arange(len(y)) % 5 == 0
    return x[~held_out], y[~held_out], x[held_out], y[held_out]


@torch.no_grad()
def evaluate(net, x, y):
    net.eval()
    logits = net(x)
    return {"loss": F.cross_entropy(logits, y).item(), "accuracy": (logits.argmax(1) == y).float().mean().item()}


def train(net, x, y, epochs, lr):
    """Mean loss over the steps."""
    net.train()
    optimizer, losses = torch.optim.SGD(net.parameters(), lr, momentum=0.9), []
    for _ in range(epochs):
        for batch in torch.randperm(len(y)).split(32):
            loss = F.cross_entropy(net(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return sum(losses) / len(losses)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    init = commands.add_parser("init", help="write the first model")
    init.add_argument("path")
    work = commands.add_parser("train", help="take part in a federation")
    work.add_argument("master")
    work.add_argument("--part", type=int, default=0)
    work.add_argument("--parts", type=int, default=1)
    args = parser.parse_args()
    torch.manual_seed(1)
    torch.set_num_threads(1)
    net = network()
    if args.command == "init":
        print(f"{fl_client.save(args.path, net.state_dict())} parameters")
        return
    x, y, test_x, test_y = samples(args.part, args.parts)
    for round in fl_client.rounds(args.master, f"torch-{args.part}", evaluate=True):
        round.load_into(net)
        if round.action == "evaluate":
            round.report(num_samples=len(test_y), metrics=evaluate(net, test_x, test_y))
            continue
        loss = train(net, x, y, round.config.get("local_epochs", 1), round.config.get("lr", 0.02))
        sent = round.send(net.state_dict(), num_samples=len(y), loss=loss, metrics=evaluate(net, test_x, test_y))
        print(f"client {args.part}, round {round.number}: loss {loss:.4f}, {sent.bytes} bytes", flush=True)


if __name__ == "__main__":
    main()
