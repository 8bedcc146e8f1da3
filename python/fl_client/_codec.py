"""One array to bytes and back."""

from __future__ import annotations

from typing import Optional, Sequence, Union

import numpy as np

from . import _native
from ._state import as_array
from .errors import CodecError


def encode(
    array,
    quantizer: str = "MSQ_v2",
    bits: Union[int, str] = 4,
    *,
    entropy: bool = True,
    rdo: bool = False,
    target_nmse: float = 0.0095,
    update_bytes: Optional[int] = None,
    seed: int = 0,
) -> bytes:
    """Compresses an array of floating-point numbers.

    Args:
        array: any shape; also a CPU tensor of PyTorch. Values are taken as f32.
        quantizer: StocQ, MSQ_v2, SDQ, BetaQ, bin, laq8, f16 or none.
        bits: bits per code, 1 to 8. MSQ_v2 with `entropy` takes them as a quality: the error of the best quantizer of
            that width on a Gaussian (0.0095 of the energy for 4), in as few bytes as it takes. "auto": see the next two.
        entropy: entropy-code the codes.
        rdo: choose codes under a trellis: 1 to 5 % fewer bytes, slower (MSQ_v2 with `entropy`).
        target_nmse: with bits="auto", |decoded - array|^2 / |array|^2 at most.
        update_bytes: with bits="auto", bytes at most instead.
        seed: seed of stochastic rounding (StocQ), 0 to 2^64-1.

    Returns:
        A stream of `docs/format.md`. It holds the number of values, not the shape.

    Raises:
        CodecError: values that are not finite, or arguments that cannot be used.
    """
    values = as_array("array", array)
    if values.dtype.kind not in "fiub":
        raise CodecError(f"the array has the type {values.dtype}: give numbers")
    values = np.asarray(values, "<f4", order="C")
    try:
        plan = _native.Plan(
            quantizer=quantizer, bits=str(bits), entropy=entropy, rdo=rdo, target_nmse=target_nmse,
            update_bytes=update_bytes,
        )
        return _native.compress(values.tobytes(), list(values.shape), plan, seed)
    except (ValueError, OverflowError, TypeError) as error:
        raise CodecError(str(error)) from None


def decode(stream: bytes, shape: Union[int, Sequence[int], None] = None) -> np.ndarray:
    """Restores what `encode` wrote.

    Args:
        stream: from anywhere; damage is detected.
        shape: of the array; default: one dimension.

    Returns:
        f32 array that may be written to.

    Raises:
        CodecError: damaged, truncated or foreign bytes, or another number of values than `shape` has.
    """
    try:
        data = bytes(stream)
        count = _native.stream_len(data) if shape is None else int(np.prod(shape, dtype=np.int64))
        values = np.frombuffer(_native.decompress(data, count), "<f4")
        return values if shape is None else values.reshape(shape)
    except (ValueError, TypeError, OverflowError) as error:
        raise CodecError(str(error)) from None
