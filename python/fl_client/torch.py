"""torch.nn modules from the networks of model files: `build(spec)`, with the file's keys.

    network = fl_client.torch.build(round.spec)
    round.load_into(network)

The file needs torch alone and nothing of the package: `examples/fl_torch.py` loads it by its path.
"""
import torch
from torch import nn
from torch.nn import functional as F


class Residual(nn.Module):
    def __init__(self, body, shortcut):
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x):
        return self.body(x) + self.shortcut(x)


class Branches(nn.Module):
    def __init__(self, branches, join):
        super().__init__()
        self.branches, self.join = nn.ModuleList(branches), join

    def forward(self, x):
        results = [branch(x) for branch in self.branches]
        if self.join == "add":
            return sum(results[1:], results[0])
        # Channels: after the samples in an image, last elsewhere.
        return torch.cat(results, 1 if results[0].dim() == 4 else -1)


class Conv1d(nn.Conv1d):
    """On [samples, length, channels]."""

    def forward(self, x):
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class AlongSequence(nn.Module):
    """A pooling of PyTorch's on [samples, length, channels]."""

    def __init__(self, pool):
        super().__init__()
        self.pool = pool

    def forward(self, x):
        return self.pool(x.transpose(1, 2)).transpose(1, 2)


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """On vectors, sequences (channels last) and images; without `num_batches_tracked`, which no file has."""

    def __init__(self, channels, eps, momentum):
        super().__init__(channels, eps, momentum)
        self.num_batches_tracked = None

    def _check_input_dim(self, x):
        pass

    def _load_from_state_dict(self, *args):
        nn.Module._load_from_state_dict(self, *args)

    def forward(self, x):
        if x.dim() == 3:
            return super().forward(x.transpose(1, 2)).transpose(1, 2)
        return super().forward(x)


class Lstm(nn.LSTM):
    def forward(self, x):
        return super().forward(x)[0]


class Gru(nn.GRU):
    def forward(self, x):
        return super().forward(x)[0]


class Attention(nn.MultiheadAttention):
    def __init__(self, dim, heads, causal, bias):
        super().__init__(dim, heads, bias=bias, batch_first=True)
        self.causal = causal

    def forward(self, x):
        length = x.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1) if self.causal else None
        # Told that the mask is causal, PyTorch may take a kernel that needs none.
        return super().forward(x, x, x, attn_mask=mask, need_weights=False, is_causal=self.causal)[0]


class PositionalEmbedding(nn.Module):
    def __init__(self, length, dim):
        super().__init__()
        self.weight = nn.Parameter(0.02 * torch.randn(length, dim))

    def forward(self, x):
        return x + self.weight[: x.shape[1]]


class MeanTokens(nn.Module):
    def forward(self, x):
        return x.mean(1)


class LastToken(nn.Module):
    def forward(self, x):
        return x[:, -1]


def pair(value):
    return tuple(value) if isinstance(value, list) else value


def convolution(make, l):
    sizes = [pair(l.get(key, default)) for key, default in (("stride", 1), ("padding", 0), ("dilation", 1))]
    return make(l["in_channels"], l["out_channels"], pair(l["kernel"]), *sizes, l.get("groups", 1), l.get("bias", True))


def pooling(make, l):
    return make(pair(l["kernel"]), pair(l.get("stride") or l["kernel"]), pair(l.get("padding", 0)))


EPS = 1e-5
LAYERS = {
    "conv2d": lambda l: convolution(nn.Conv2d, l),
    "conv1d": lambda l: convolution(Conv1d, l),
    "linear": lambda l: nn.Linear(l["in_features"], l["out_features"], l.get("bias", True)),
    "batch_norm": lambda l: BatchNorm(l["channels"], l.get("eps", EPS), l.get("momentum", 0.1)),
    "group_norm": lambda l: nn.GroupNorm(l["groups"], l["channels"], l.get("eps", EPS)),
    "layer_norm": lambda l: nn.LayerNorm(l["features"], l.get("eps", EPS)),
    "relu": lambda l: nn.ReLU(),
    "leaky_relu": lambda l: nn.LeakyReLU(l.get("negative_slope", 0.01)),
    "gelu": lambda l: nn.GELU(l.get("approximate", "none")),
    "silu": lambda l: nn.SiLU(),
    "tanh": lambda l: nn.Tanh(),
    "sigmoid": lambda l: nn.Sigmoid(),
    "max_pool2d": lambda l: pooling(nn.MaxPool2d, l),
    "avg_pool2d": lambda l: pooling(nn.AvgPool2d, l),
    "adaptive_avg_pool2d": lambda l: nn.AdaptiveAvgPool2d(pair(l.get("size", 1))),
    "max_pool1d": lambda l: AlongSequence(pooling(nn.MaxPool1d, l)),
    "avg_pool1d": lambda l: AlongSequence(pooling(nn.AvgPool1d, l)),
    "adaptive_avg_pool1d": lambda l: AlongSequence(nn.AdaptiveAvgPool1d(l.get("size", 1))),
    "dropout": lambda l: nn.Dropout(l.get("p", 0.5)),
    "embedding": lambda l: nn.Embedding(l["vocab"], l["dim"]),
    "positional_embedding": lambda l: PositionalEmbedding(l["length"], l["dim"]),
    "lstm": lambda l: Lstm(l["input_size"], l["hidden_size"], l.get("num_layers", 1), batch_first=True),
    "gru": lambda l: Gru(l["input_size"], l["hidden_size"], l.get("num_layers", 1), batch_first=True),
    "attention": lambda l: Attention(l["dim"], l["heads"], l.get("causal", False), l.get("bias", True)),
    "flatten": lambda l: nn.Flatten(),
    "mean_tokens": lambda l: MeanTokens(),
    "last_token": lambda l: LastToken(),
    "residual": lambda l: Residual(sequential(l["body"]), sequential(l.get("shortcut", []))),
    "branches": lambda l: Branches([sequential(branch) for branch in l["branches"]], l["join"]),
    "sequential": lambda l: sequential(l["layers"]),
}


def sequential(layers):
    return nn.Sequential(*(LAYERS[layer["type"]](layer) for layer in layers))


def build(spec):
    """The network of a spec of version 1 or 2, whose state dictionary has the keys of the model file.

    Its input has a sample a row: [samples, *shape] with the shape of `input_of(spec)`, f32 or int64 tokens.
    """
    return sequential(spec["layers"])


def load_into(module, state):
    """Loads tensors by name into a module. Its buffers that `state` does not have keep their values, and so do parameters
    that are not trained (`requires_grad` off).

    Raises:
        StateError: see `fl_client.Round.load_into`.
    """
    from .errors import StateError

    own = module.state_dict()
    unknown = [name for name in state if name not in own]
    wrong = [name for name in state if name in own and own[name].shape != state[name].shape]
    missing = [name for name, value in module.named_parameters() if value.requires_grad and name not in state]
    for names, what in (
        (unknown, "the master's model has tensors that the module has not: {}"),
        (wrong, "tensors of the master's model have other shapes in the module: {}"),
        (missing, "the module has trained parameters that the master's model has not: {}"),
    ):
        if names:
            raise StateError(what.format(", ".join(f"`{name}`" for name in names[:3])))
    module.load_state_dict(state, strict=False)


def task_of(spec):
    return spec.get("task") or {"type": "classification", "classes": spec["num_classes"]}


def input_of(spec):
    return spec.get("input") or {"kind": "image", "shape": spec["input_shape"]}


def noise(spec, samples):
    """Random inputs and targets of a batch, of the kinds that the network takes."""
    given, task = input_of(spec), task_of(spec)
    shape, kind = (samples, *given["shape"]), task["type"]
    x = torch.randint(0, given["vocab"], shape) if given["kind"] == "tokens" else torch.rand(shape) * 2 - 1
    if kind == "language_model":
        return x, torch.randint(0, given["vocab"], shape)
    if kind == "classification":
        return x, torch.randint(0, task["classes"], (samples,))
    return x, torch.randint(0, 2, (samples, task["outputs"])).float()


def loss(spec, outputs, targets):
    """Mean loss of a batch: classes or tokens (int64), or numbers (float32)."""
    kind = task_of(spec)["type"]
    if kind in ("classification", "language_model"):
        return F.cross_entropy(outputs.reshape(-1, outputs.shape[-1]), targets.reshape(-1))
    if kind == "regression":
        return F.mse_loss(outputs, targets)
    return F.binary_cross_entropy_with_logits(outputs, targets)


def metric(spec, outputs, targets):
    """Name and value of the task's metric."""
    kind = task_of(spec)["type"]
    if kind in ("classification", "language_model"):
        return "accuracy", (outputs.argmax(-1) == targets).float().mean().item()
    if kind == "regression":
        return "mean absolute error", (outputs - targets).abs().mean().item()
    return "accuracy", ((outputs > 0) == (targets > 0.5)).float().mean().item()
