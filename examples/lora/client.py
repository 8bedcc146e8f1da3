#!/usr/bin/env python3
"""Fine-tunes a small transformer by low-rank adapters (LoRA): only the adapters travel, 1.4 % of the parameters.

    client.py init DIR                                  # trains a base model, writes DIR/base.pt and DIR/adapters.safetensors
    client.py train http://127.0.0.1:5000 DIR --part 0 --parts 3

The base model predicts the next character of Shakespeare. The clients' text is the same in capitals, each has other
passages; every client has the file of the base model already. The master runs with MODEL=safetensors:DIR/adapters.safetensors
and never sees more. Needs fl_client, torch and numpy. Adapters: Hu et al. 2021, arXiv:2106.09685.
"""
import argparse
import gzip
import pathlib

import torch
from torch import nn
from torch.nn import functional as F

import fl_client

TEXT = pathlib.Path(__file__).resolve().parents[2] / "datasets" / "assets" / "shakespeare.txt.gz"
WIDTH, HEADS, BLOCKS, LENGTH, RANK = 96, 4, 3, 48, 2


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        samples, length, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(samples, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(samples, length, WIDTH))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Logits of the next character, [samples, length, vocabulary]."""

    def __init__(self, vocabulary):
        super().__init__()
        self.token, self.place = nn.Embedding(vocabulary, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, vocabulary)

    def forward(self, tokens):
        x = self.token(tokens) + self.place.weight[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(x)))


class Adapter(nn.Module):
    """A frozen linear layer plus a trained one of low rank, which is zero at first."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.lora_a = nn.Parameter(torch.randn(RANK, linear.in_features) / linear.in_features**0.5)
        self.lora_b = nn.Parameter(torch.zeros(linear.out_features, RANK))

    def forward(self, x):
        return self.linear(x) + x @ self.lora_a.T @ self.lora_b.T


def with_adapters(base):
    base.requires_grad_(False)
    for block in base.blocks:
        block.qkv, block.down = Adapter(block.qkv), Adapter(block.down)
    return base


def adapters(net):
    return {name: value for name, value in net.state_dict().items() if "lora_" in name}


def texts():
    """The base model's text, the clients' text, and the characters of both."""
    text = gzip.open(TEXT, "rt").read()
    half = len(text) // 2
    vocabulary = sorted(set(text) | set(text.upper()))
    place = {character: index for index, character in enumerate(vocabulary)}
    tokens = [torch.tensor([place[c] for c in part]) for part in (text[:half], text[half:].upper())]
    return *tokens, len(vocabulary)


def batch(tokens, samples):
    starts = torch.randint(0, len(tokens) - LENGTH - 1, (samples,))
    rows = torch.stack([tokens[start : start + LENGTH + 1] for start in starts])
    return rows[:, :-1], rows[:, 1:]


def loss_of(net, tokens, samples=32):
    x, y = batch(tokens, samples)
    return F.cross_entropy(net(x).flatten(0, 1), y.flatten())


def train(net, tokens, steps, lr):
    """Mean loss over the steps."""
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr)
    total = 0.0
    for _ in range(steps):
        loss = loss_of(net, tokens)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total / steps


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    init = commands.add_parser("init", help="train the base model, write the first adapters")
    init.add_argument("dir", type=pathlib.Path)
    init.add_argument("--steps", type=int, default=300)
    work = commands.add_parser("train", help="take part in a federation")
    work.add_argument("master")
    work.add_argument("dir", type=pathlib.Path)
    work.add_argument("--part", type=int, default=0)
    work.add_argument("--parts", type=int, default=1)
    work.add_argument("--steps", type=int, default=10, help="optimizer steps of a round")
    args = parser.parse_args()
    torch.manual_seed(1)
    torch.set_num_threads(1)
    before, after, vocabulary = texts()
    base = Transformer(vocabulary)
    if args.command == "init":
        loss = train(base, before, args.steps, 1e-3)
        torch.save(base.state_dict(), args.dir / "base.pt")
        net = with_adapters(base)
        sent = fl_client.save(args.dir / "adapters.safetensors", adapters(net))
        whole = sum(value.numel() for value in net.state_dict().values())
        print(f"base model: loss {loss:.3f}; {sent} of {whole} parameters travel ({100 * sent / whole:.1f} %)")
        return
    base.load_state_dict(torch.load(args.dir / "base.pt", weights_only=True))
    net = with_adapters(base)
    torch.manual_seed(100 + args.part)
    size = len(after) // args.parts
    own = after[args.part * size : (args.part + 1) * size]
    held_out, own = own[: size // 10], own[size // 10 :]
    for round in fl_client.rounds(args.master, f"lora-{args.part}", evaluate=True):
        round.load_into(net)
        with torch.no_grad():
            metrics = {"loss": loss_of(net, held_out, 64).item()}
        if round.action == "evaluate":
            round.report(num_samples=len(held_out), metrics=metrics)
            continue
        print(f"client {args.part}, round {round.number}: loss of the global model {metrics['loss']:.4f}", flush=True)
        loss = train(net, own, args.steps, 1e-2)
        round.send(adapters(net), num_samples=len(own), loss=loss, metrics=metrics)


if __name__ == "__main__":
    main()
