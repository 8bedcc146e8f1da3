#!/usr/bin/env python3
"""PyTorch's losses and gradients for a small network of every kind of layer, for the tests of fl-model.

    golden_gradients.py model/tests/data/gradients.json

Parameters, inputs and targets are not stored: `noise` makes them from their indices, and
model/tests/golden.rs does the same.
"""
import json
import sys

import numpy as np
import torch
from fl_torch import build, loss

BATCH = 3
CLASSES = {"type": "classification", "classes": 3}


def noise(first, count):
    """`count` numbers in [-0.5, 0.5) and the integers that they were made of."""
    i = np.arange(first, first + count, dtype=np.uint64)
    h = ((i + np.uint64(1)) * np.uint64(2654435761) + np.uint64(974711)) % np.uint64(1 << 32)
    h = (h ^ (h >> np.uint64(15))) * np.uint64(2246822519) % np.uint64(1 << 32)
    h = h ^ (h >> np.uint64(13))
    return h.astype(np.float64) / 2.0**32 - 0.5, h >> np.uint64(8)


def parameter(name, shape, first):
    u, _ = noise(first, int(np.prod(shape)))
    if len(shape) > 1:
        u = u * 3.0 / np.sqrt(np.prod(shape[1:]))
    elif name.endswith("weight") or name.endswith("running_var"):
        u = 1.0 + u
    return torch.from_numpy(u.reshape(shape).astype(np.float32)).double()


def batch(spec):
    given, task = spec["input"], spec["task"]
    size = BATCH * int(np.prod(given["shape"]))
    u, h = noise(1_000_000, size)
    shape = [BATCH, *given["shape"]]
    if given["kind"] == "tokens":
        x = torch.from_numpy((h % given["vocab"]).astype(np.int64).reshape(shape))
    else:
        x = torch.from_numpy((3.0 * u).astype(np.float32).reshape(shape)).double()
    if task["type"] == "classification":
        y = torch.from_numpy((noise(2_000_000, BATCH)[1] % task["classes"]).astype(np.int64))
    elif task["type"] == "language_model":
        y = torch.from_numpy((noise(2_000_000, size)[1] % given["vocab"]).astype(np.int64))
    else:
        u, h = noise(2_000_000, BATCH * task["outputs"])
        u = 2.0 * u if task["type"] == "regression" else (h % 2).astype(np.float64)
        y = torch.from_numpy(u.astype(np.float32).reshape(BATCH, task["outputs"])).double()
    return x, y


def image(channels, height, width):
    return {"kind": "image", "shape": [channels, height, width]}


def series(length, channels):
    return {"kind": "vector", "shape": [length, channels]}


def layer(kind, **fields):
    return {"type": kind, **fields}


def linear(inputs, outputs=3, **fields):
    return layer("linear", in_features=inputs, out_features=outputs, **fields)


def conv2d(inputs, outputs, kernel, **fields):
    return layer("conv2d", in_channels=inputs, out_channels=outputs, kernel=kernel, **fields)


FLATTEN = layer("flatten")


def cases():
    def case(name, given, *layers, task=CLASSES):
        return {"name": name, "input": given, "task": task, "layers": list(layers)}

    def on_image(name, *layers, features, channels=2):
        return case(name, image(channels, 6, 5), *layers, FLATTEN, linear(features))

    yield case("softmax", {"kind": "vector", "shape": [7]}, linear(7))
    yield on_image("conv2d", conv2d(2, 3, 3, padding=1), features=90)
    yield on_image("rectangular", conv2d(2, 3, [3, 2], padding=[1, 0], stride=[2, 1]), features=36)
    yield on_image("dilated", conv2d(2, 4, [2, 3], dilation=[2, 1], padding=[1, 1], bias=False), features=120)
    yield on_image("grouped", conv2d(4, 6, 3, groups=2, stride=2), channels=4, features=24)
    yield on_image("depthwise", conv2d(4, 4, 3, groups=4, padding=1), channels=4, features=120)
    yield on_image("pointwise", conv2d(2, 5, 1, stride=2), features=45)
    for name in ("relu", "leaky_relu", "gelu", "silu", "tanh", "sigmoid"):
        yield case(name, {"kind": "vector", "shape": [5]}, linear(5, 6), layer(name), linear(6))
    yield case("gelu_tanh", {"kind": "vector", "shape": [5]}, linear(5, 6), layer("gelu", approximate="tanh"), linear(6))
    yield on_image("batch_norm", conv2d(2, 3, 3), layer("batch_norm", channels=3), features=36)
    yield on_image("group_norm", conv2d(2, 4, 3), layer("group_norm", groups=2, channels=4, eps=1e-3), features=48)
    yield case("batch_norm_vector", {"kind": "vector", "shape": [5]}, linear(5, 4),
               layer("batch_norm", channels=4, momentum=0.3, eps=0.1), linear(4))
    yield case("group_norm_vector", {"kind": "vector", "shape": [5]}, linear(5, 6),
               layer("group_norm", groups=2, channels=6), linear(6))
    yield case("layer_norm_vector", {"kind": "vector", "shape": [5]}, linear(5, 6), layer("layer_norm", features=6), linear(6))
    yield on_image("max_pool2d", conv2d(2, 3, 1), layer("max_pool2d", kernel=[3, 2], stride=[2, 1], padding=[1, 1]), features=54)
    yield on_image("avg_pool2d", conv2d(2, 3, 1), layer("avg_pool2d", kernel=[3, 2], stride=[2, 1], padding=[1, 1]), features=54)
    yield on_image("max_pool2d_plain", conv2d(2, 3, 1), layer("max_pool2d", kernel=2), features=18)
    yield on_image("adaptive_avg_pool2d", conv2d(2, 3, 1), layer("adaptive_avg_pool2d", size=[4, 3]), features=36)
    yield on_image("global_avg_pool", conv2d(2, 3, 2), layer("adaptive_avg_pool2d"), features=3)
    yield case("linear_on_sequence", series(5, 3), linear(3, 4, bias=False), FLATTEN, linear(20))
    conv1d = layer("conv1d", in_channels=4, out_channels=6, kernel=3, padding=2, stride=2, dilation=2, groups=2)
    yield case("conv1d", series(7, 4), conv1d, FLATTEN, linear(24))
    to_4 = layer("conv1d", in_channels=3, out_channels=4, kernel=1)
    yield case("max_pool1d", series(7, 3), to_4, layer("max_pool1d", kernel=3, stride=2, padding=1), FLATTEN, linear(16))
    yield case("avg_pool1d", series(7, 3), to_4, layer("avg_pool1d", kernel=3, stride=2, padding=1), FLATTEN, linear(16))
    yield case("adaptive_avg_pool1d", series(7, 3), to_4, layer("adaptive_avg_pool1d", size=3), FLATTEN, linear(12))
    yield case("batch_norm_sequence", series(6, 3), to_4, layer("batch_norm", channels=4), layer("mean_tokens"), linear(4))
    yield case("layer_norm_sequence", series(6, 3), to_4, layer("layer_norm", features=4), FLATTEN, linear(24))
    yield case("last_token", series(6, 3), linear(3, 4), layer("tanh"), layer("last_token"), linear(4))
    yield case("lstm", series(6, 3), layer("lstm", input_size=3, hidden_size=4), FLATTEN, linear(24))
    yield case("stacked_lstm", series(5, 2), layer("lstm", input_size=2, hidden_size=3, num_layers=2), layer("last_token"), linear(3))
    yield case("gru", series(6, 3), layer("gru", input_size=3, hidden_size=4), FLATTEN, linear(24))
    yield case("stacked_gru", series(5, 2), layer("gru", input_size=2, hidden_size=3, num_layers=2), layer("last_token"), linear(3))
    yield case("attention", series(5, 6), layer("attention", dim=6, heads=2), FLATTEN, linear(30))
    yield case("causal_attention", series(5, 6), layer("attention", dim=6, heads=3, causal=True, bias=False), FLATTEN, linear(30))
    text = {"kind": "tokens", "shape": [6], "vocab": 7}
    yield case("embedding", text, layer("embedding", vocab=7, dim=4), layer("mean_tokens"), linear(4))
    block = [
        layer("residual", body=[layer("layer_norm", features=4), layer("attention", dim=4, heads=2, causal=True)]),
        layer("residual", body=[layer("layer_norm", features=4), linear(4, 8), layer("gelu"), linear(8, 4)]),
    ]
    yield case("transformer", text, layer("embedding", vocab=7, dim=4), layer("positional_embedding", length=8, dim=4),
               *block, layer("layer_norm", features=4), linear(4, 7), task={"type": "language_model"})
    yield case("char_lstm", text, layer("embedding", vocab=7, dim=3), layer("lstm", input_size=3, hidden_size=4, num_layers=2),
               linear(4, 7), task={"type": "language_model"})
    down = layer("residual", body=[conv2d(2, 4, 3, padding=1, stride=2, bias=False), layer("batch_norm", channels=4), layer("relu"),
                                   conv2d(4, 4, 3, padding=1, bias=False), layer("batch_norm", channels=4)],
                 shortcut=[conv2d(2, 4, 1, stride=2, bias=False), layer("batch_norm", channels=4)])
    same = layer("residual", body=[conv2d(4, 4, 3, padding=1), layer("group_norm", groups=2, channels=4)], shortcut=[])
    yield on_image("resnet", down, layer("relu"), same, layer("relu"), layer("adaptive_avg_pool2d"), features=4)
    inner = layer("branches", branches=[[conv2d(2, 2, 1)], []], join="add")
    ways = layer("branches", branches=[[conv2d(2, 3, 3, padding=1), layer("silu")], [inner], [layer("sequential", layers=[conv2d(2, 1, 1)])]],
                 join="concat")
    yield on_image("branches", ways, layer("avg_pool2d", kernel=2), features=36)
    yield case("regression", {"kind": "vector", "shape": [4]}, linear(4, 5), layer("tanh"), linear(5, 2),
               task={"type": "regression", "outputs": 2})
    yield case("multilabel", {"kind": "vector", "shape": [4]}, linear(4, 5), layer("relu"), linear(5, 4),
               task={"type": "multilabel", "outputs": 4})


def numbers(tensor):
    return [float(f"{value:.8g}") for value in tensor.detach().reshape(-1).tolist()]


def golden(spec):
    # Double precision of f32 parameters: what any order of f32 operations should come close to.
    network, first, state = build(spec).double(), 0, {}
    for name, tensor in network.state_dict().items():
        state[name] = parameter(name, list(tensor.shape), first)
        first += tensor.numel()
    network.load_state_dict(state, strict=True)
    x, y = batch(spec)
    network.eval()
    evaluation = loss(spec, network(x), y)
    network.train()
    value = loss(spec, network(x), y)
    value.backward()
    gradients = {name: numbers(parameter.grad) for name, parameter in network.named_parameters()}
    buffers = {name: numbers(buffer) for name, buffer in network.named_buffers()}
    return {"spec": spec, "loss": value.item(), "evaluation_loss": evaluation.item(), "gradients": gradients, "buffers": buffers}


def main():
    torch.set_num_threads(1)
    results = [golden(spec) for spec in cases()]
    with open(sys.argv[1], "w") as file:
        json.dump(results, file, separators=(",", ":"))
    print(f"{len(results)} networks, {sum(len(g) for r in results for g in r['gradients'].values())} values")


if __name__ == "__main__":
    main()
