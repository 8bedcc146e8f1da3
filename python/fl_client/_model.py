"""Model files: the master's safetensors, and the first model that a person writes."""

from __future__ import annotations

import json
import math
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import numpy as np

from . import _native
from .errors import NotAMaster

#: Types of tensors that are carried and not averaged.
INTEGERS = {
    "BOOL": "|b1", "I8": "|i1", "I16": "<i2", "I32": "<i4", "I64": "<i8",
    "U8": "|u1", "U16": "<u2", "U32": "<u4", "U64": "<u8",
}


class Tensor(NamedTuple):
    """Name and shape of a tensor that is averaged, and where its f32 begin in the model's data."""

    name: str
    shape: Tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


class Model:
    """A global model: what the master sent, unchanged.

    Attributes:
        round: its round.
        metadata: the file's metadata, strings by name.
        tensors: the float tensors in the model's order.
        data: bytes that hold their values as little-endian f32, each from `Tensor.start` on.
        buffers: the file's integer tensors, which no one averages.
    """

    def __init__(
        self, round: int, metadata: Dict[str, str], tensors: List[Tensor], data: bytes, buffers: Dict[str, np.ndarray]
    ):
        self.round, self.metadata, self.tensors, self.data, self.buffers = round, metadata, tensors, data, buffers

    @property
    def layout(self) -> List[Tuple[str, List[int]]]:
        """Names and shapes, in order."""
        return [(tensor.name, list(tensor.shape)) for tensor in self.tensors]

    @property
    def parameters(self) -> int:
        """Number of values of all float tensors."""
        return sum(tensor.size for tensor in self.tensors)

    def arrays(self) -> Dict[str, np.ndarray]:
        """New arrays of all tensors, f32 or the integer type of a buffer: the caller may write to them."""
        state = {
            tensor.name: np.frombuffer(self.data, "<f4", tensor.size, tensor.start).reshape(tensor.shape).copy()
            for tensor in self.tensors
        }
        state.update({name: buffer.copy() for name, buffer in self.buffers.items()})
        return state


def read(file: bytes, known: Optional[Model] = None) -> Model:
    """Reads a model file of the master. A quantized one needs a `known` model with the same tensors.

    Raises:
        NotAMaster: the bytes are no such file.
    """
    try:
        return _read(file, known)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise NotAMaster(f"the master's model cannot be read: {error}") from None


def _read(file: bytes, known: Optional[Model]) -> Model:
    length = int.from_bytes(file[:8], "little")
    if len(file) < 8 or length > min(_native.MAX_HEADER_BYTES, len(file) - 8):
        raise ValueError("it is no safetensors file")
    header = json.loads(file[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    base = 8 + length
    shapes = {tensor.name: tensor.shape for tensor in known.tensors} if known else {}
    tensors: List[Tensor] = []
    buffers: Dict[str, np.ndarray] = {}
    decoded: List[bytearray] = []
    at = 0
    for name, entry in sorted(header.items(), key=lambda item: (item[1]["data_offsets"], item[0])):
        begin, end = (base + offset for offset in entry["data_offsets"])
        shape, dtype = tuple(entry["shape"]), entry["dtype"]
        if not base <= begin <= end <= len(file):
            raise ValueError(f"tensor `{name}` lies outside of the file")
        if dtype == "U8" and name in shapes and file[begin : begin + 3] == b"FLQ":
            values = _native.decompress(file[begin:end], math.prod(shapes[name]))
            decoded.append(values)
            tensors.append(Tensor(name, shapes[name], at))
            at += len(values)
        elif dtype in INTEGERS:
            buffers[name] = np.frombuffer(file[begin:end], INTEGERS[dtype]).reshape(shape).copy()
        elif dtype == "F32" and end - begin == 4 * math.prod(shape):
            tensors.append(Tensor(name, shape, begin))
        else:
            raise ValueError(f"tensor `{name}` is {dtype} {list(shape)} of {end - begin} bytes")
    if decoded and len(decoded) != len(tensors):
        raise ValueError("only some of its tensors are quantized")
    if known and [t[:2] for t in tensors] != [t[:2] for t in known.tensors]:
        known = None
        if decoded:
            raise ValueError("its tensors are others than before")
    data = b"".join(decoded) if decoded else bytes(file)
    return Model(int(metadata["round"]), metadata, tensors, data, buffers)


def write(path, arrays: Dict[str, np.ndarray]) -> None:
    """Writes f32 and integer arrays as a safetensors file, in the order of the dictionary."""
    header: Dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    types = {numpy_type: name for name, numpy_type in {"F32": "<f4", **INTEGERS}.items()}
    for name, array in arrays.items():
        header[name] = {"dtype": types[array.dtype.str], "shape": list(array.shape), "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(array.tobytes())
