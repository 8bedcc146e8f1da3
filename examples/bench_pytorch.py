#!/usr/bin/env python3
"""Train a preset with PyTorch in the loop of `fl bench train`, to compare speeds on one machine.

    bench_pytorch.py --model mcmahan_cnn --threads 2
    bench_pytorch.py --model mlp --fl target/release/fl     # alternates with `fl bench train`

Needs torch. With --fl both programs take turns, ROUNDS times; `ratio` is the median ratio of images per
second, `cpu_ratio` that of processor time per image, which is meaningful on a busy machine too. Set
OMP_WAIT_POLICY=passive for the latter: otherwise PyTorch's threads are charged for waiting.
"""
import argparse
import json
import statistics
import subprocess
import time

import torch
from torch import nn


def conv(inputs, outputs, kernel):
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)


def build(name, dim):
    relu, flat = nn.ReLU, nn.Flatten
    if name == "softmax":
        return nn.Sequential(flat(), nn.Linear(784, 10))
    if name == "mlp":
        hidden = (dim - 10) // (784 + 1 + 10)
        return nn.Sequential(flat(), nn.Linear(784, hidden), relu(), nn.Linear(hidden, 10))
    if name == "cnn":
        layers = []
        for inputs, outputs in ((1, 32), (32, 64)):
            layers += [conv(inputs, outputs, 3), relu(), conv(outputs, outputs, 3), relu(), nn.MaxPool2d(2)]
        return nn.Sequential(*layers, flat(), nn.Linear(3136, 128), relu(), nn.Linear(128, 10))
    layers = [conv(1, 32, 5), relu(), nn.MaxPool2d(2), conv(32, 64, 5), relu(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, flat(), nn.Linear(3136, 512), relu(), nn.Linear(512, 10))


def measure(network, batch, seconds):
    """Median seconds, and mean processor seconds, of a step of plain SGD on one batch of noise."""
    x, y = torch.rand(batch, 1, 28, 28) * 2 - 1, torch.randint(0, 10, (batch,))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    loss_of = nn.CrossEntropyLoss()
    times, began, cpu = [], time.perf_counter(), 0.0
    while len(times) < 15 or time.perf_counter() - began < seconds:
        if len(times) == 5:
            cpu = time.process_time()
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss_of(network(x), y).backward()
        optimizer.step()
        times.append(time.perf_counter() - start)
    return statistics.median(times[5:]), (time.process_time() - cpu) / len(times[5:])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mlp", choices=["softmax", "mlp", "cnn", "mcmahan_cnn"])
    parser.add_argument("--model-dim", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--fl", help="path of the fl binary to alternate with")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    network = build(args.model, args.model_dim)
    params = sum(p.numel() for p in network.parameters())
    ours, theirs, cpu = [], [], []
    for _ in range(args.rounds if args.fl else 1):
        step, step_cpu = measure(network, args.batch_size, args.seconds)
        theirs.append(args.batch_size / step)
        if args.fl:
            command = [args.fl, "bench", "train", "--json", "--skip-burn", "--model", args.model]
            command += ["--threads", str(args.threads), "--batch-size", str(args.batch_size)]
            command += ["--model-dim", str(args.model_dim), "--seconds", str(args.seconds)]
            result = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            assert result["params"] == params, (result["params"], params)
            ours.append(result["images_per_s"])
            cpu.append(1e3 * step_cpu / result["step_cpu_ms"])
    row = {"model": args.model, "threads": args.threads, "params": params}
    row["pytorch_images_per_s"] = round(statistics.median(theirs))
    if ours:
        row["fl_images_per_s"] = round(statistics.median(ours))
        row["ratio"] = round(statistics.median(a / b for a, b in zip(ours, theirs)), 3)
        row["cpu_ratio"] = round(statistics.median(cpu), 3)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
