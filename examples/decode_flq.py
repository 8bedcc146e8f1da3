#!/usr/bin/env python3
"""Reference decoder of fl-quant streams, written from docs/format.md with numpy alone
(flq_entropy.py beside it holds the entropy coder).

    decode_flq.py STREAM             print the values of one stream
    decode_flq.py --golden DIR       decode every DIR/*.flq and compare with the .f32 beside it
"""
import argparse
import math
import pathlib
import struct
import sys
import zlib

import numpy as np

from flq_entropy import decode_levels

F32 = np.float32
SCHEMES = ["none", "f16", "StocQ", "MSQ_v2", "SDQ", "BetaQ", "bin", "laq8"]
# Version, coding, reserved byte.
VERSIONS = [(1, 0, 0), (2, 1, 0), (2, 2, 0), (3, 3, 0), (3, 4, 0)]
FRACTION = np.array([2.0 ** (-i / 8) for i in range(8)]).astype(F32)
GAUSSIAN_STEP = np.array([1.596, 0.9957, 0.586, 0.3352, 0.1881, 0.1041, 0.0569, 0.0308], F32)


def scale_table(base):
    """The scale of each byte."""
    table = np.zeros(256, F32)
    for s in range(255):
        table[s] = F32(base) * FRACTION[s % 8] * F32(2.0 ** -(s // 8))
    return table


def step_table(deviation, bits):
    """The signed SDQ step of each byte."""
    table = scale_table(F32(deviation) * GAUSSIAN_STEP[bits - 1] * F32(256))
    table[127] = 0
    table[128:] = -table[:128]
    return table


def symmetric_grid(bits):
    """Levels of StocQ, laq8 and bin."""
    half = F32(0.5) if bits == 1 else F32(2 ** (bits - 1) - 1)
    return (np.arange(2**bits).astype(F32) - half) / half


def natural_log(x):
    """The series of docs/format.md; a library's logarithm may differ in the last bit."""
    mantissa, exponent = math.frexp(x)
    mantissa, exponent = mantissa * 2, exponent - 1
    z = (mantissa - 1) / (mantissa + 1)
    total = 0.0
    for k in reversed(range(20)):
        total = total * (z * z) + 1 / (2 * k + 1)
    return 2 * z * total + exponent * math.log(2)


def exponential(x):
    if x < -700:
        return 0.0
    small, result = x / 1024, 1.0
    for k in range(12, 0, -1):
        result = 1 + result * small / k
    for _ in range(10):
        result *= result
    return result


def snap(levels):
    levels[min(range(len(levels)), key=lambda i: abs(levels[i]))] = 0.0


def centroids(sums, levels):
    """Moves each level to the centroid of its cell; returns the error before the move."""
    cells, error, last = 1024, 0.0, (0.0, 0.0)
    old = list(levels)
    for i, level in enumerate(old):
        upper = (level + old[i + 1]) * 0.5 if i + 1 < len(old) else 1.0
        position = min(max((upper + 1) * 0.5 * cells, 0.0), float(cells))
        cell = min(int(position), cells - 1)
        part = position - cell
        below = tuple(s[cell] + part * (s[cell + 1] - s[cell]) for s in sums)
        weight, moment = below[0] - last[0], below[1] - last[1]
        error += level * level * weight - 2.0 * level * moment
        if weight > 0:
            levels[i] = min(max(moment / weight, -1.0), 1.0)
        last = below
    return error


def beta_levels(alpha, beta, bits):
    """Lloyd-Max levels of a Beta density over 1024 cells."""
    cells, n = 1024, 2**bits
    a, b = float(alpha) - 1, float(beta) - 1
    points = [(c + 0.5) / cells for c in range(cells)]
    logs = [a * natural_log(t) + b * natural_log(1 - t) for t in points]
    top = max(logs)
    sums = ([0.0], [0.0])
    for c, value in enumerate(logs):
        weight = exponential(value - top)
        sums[0].append(weight + sums[0][-1])
        sums[1].append(weight * ((c + 0.5) / 512 - 1) + sums[1][-1])
    best, levels = math.inf, [0.0] * n
    for clip in (1.0, 0.8, 0.64, 0.5, 0.36, 0.25):
        trial = [i * (2 * clip / (n - 1)) - clip for i in range(n)]
        if bits > 1:
            snap(trial)
        error = centroids(sums, trial)
        if error < best:
            best, levels = error, trial
    for _ in range(60):
        if bits > 1:
            snap(levels)
        error = centroids(sums, levels)
        if abs(best - error) <= 1e-5 * abs(best):
            break
        best = error
    if bits > 1:
        snap(levels)
    return np.array(sorted(levels)).astype(F32)


def unpack(data, bits, count):
    every_bit = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[: count * bits]
    return every_bit.reshape(count, bits) @ (1 << np.arange(bits))


def uniform_values(take, integers, count):
    """The values of a stream of coding 2 or 4: "Uniform indices" in docs/format.md."""
    step, largest = struct.unpack("<fI", take(8))
    offsets = struct.unpack("3b", take(3))
    (quantizers,) = take(1)
    if quantizers not in (1, 2) or largest > 1 << 20:
        raise ValueError("the side information is out of range")
    levels = integers(None, count, trellis=quantizers == 2)
    levels = np.clip(levels, -largest * quantizers, largest * quantizers)
    shift = np.array([0, *offsets], F32)[np.minimum(np.abs(levels), 3)] * F32(1 / 64)
    positions = np.abs(levels).astype(F32) + shift
    return np.where(levels < 0, -positions, positions).astype(F32) * F32(step)


def decode(stream):
    """The values of one stream, as float32."""
    magic, version, scheme, bits, coding, reserved, count, crc = struct.unpack_from("<3s5BII", stream)
    if magic != b"FLQ" or (version, coding, reserved) not in VERSIONS or not 1 <= bits <= 8:
        raise ValueError("not a stream of version 1, 2 or 3")
    if zlib.crc32(stream[16:], zlib.crc32(stream[:12])) != crc:
        raise ValueError("wrong checksum")
    name, rest = SCHEMES[scheme], stream[16:]

    def take(length):
        nonlocal rest
        if len(rest) < length:
            raise ValueError("truncated stream")
        head, rest = rest[:length], rest[length:]
        return head

    def floats(n):
        return np.frombuffer(take(4 * n), "<f4")

    def integers(length, count, trellis=False):
        if length is None and coding in (3, 4):
            return segments(count, trellis)
        cols, stride, lanes, shift = layout = struct.unpack("<HHBB", take(6))
        if not 1 <= cols <= max(count, 1) or stride == 1 or stride > cols or not 5 <= shift <= 8:
            raise ValueError("the row layout is out of range")
        if not 1 <= lanes <= max(1, min(4, -(-count // cols))):
            raise ValueError("the row layout is out of range")
        if length is not None and length < 6:
            raise ValueError("truncated stream")
        payload = take(len(rest) if length is None else length - 6)
        return np.array(decode_levels(payload, layout, count, trellis), np.int64)

    def segments(count, trellis):
        """Integers in segments: codings 3 and 4."""
        (size,) = struct.unpack("<I", take(4))
        if not 1024 <= size < count:
            raise ValueError("the length of the segments is out of range")
        counts = [min(size, count - first) for first in range(0, count, size)]
        lengths = struct.unpack(f"<{len(counts)}I", take(4 * len(counts)))
        return np.concatenate([integers(length, n, trellis) for length, n in zip(lengths, counts)])

    if coding in (2, 4):
        values = uniform_values(take, integers, count)
    elif name == "none":
        values = floats(count)
    elif name == "f16":
        values = np.frombuffer(take(2 * count), "<f2").astype(F32)
    else:
        block, centre = 64, F32(0)
        if name == "SDQ":
            centre, deviation = floats(2)
            block, table = 32, step_table(deviation, bits)
            half = F32(2 ** (bits - 1))
            levels = np.arange(2**bits).astype(F32) - half if bits > 1 else np.array([-0.5, 0.5], F32)
        else:
            base = floats(1)[0]
            table = scale_table(base)
            if name == "MSQ_v2":
                levels = np.frombuffer(take(2 << bits), "<f2").astype(F32)
            elif name == "BetaQ":
                levels = beta_levels(*floats(2), bits)
            else:
                levels = symmetric_grid(bits)
        if name == "bin":
            scales = np.full(count, base, F32)
        else:
            blocks = -(-count // block)
            if coding in (1, 3):
                (length,) = struct.unpack("<I", take(4))
                scale_bytes = np.cumsum(integers(length, blocks)) % 256
            else:
                scale_bytes = np.frombuffer(take(blocks), np.uint8)
            scales = np.repeat(table[scale_bytes], block)[:count]
        if coding in (1, 3):
            zero = int(np.argmin(np.abs(levels)))
            codes = np.clip(integers(None, count) + zero, 0, len(levels) - 1)
        else:
            codes = unpack(take(-(-count * bits // 8)), bits, count)
        values = levels[codes] * scales
        if centre != 0:
            values = values + centre
    if rest:
        raise ValueError("bytes after the end")
    return values


def check_golden(folder):
    files = sorted(folder.glob("*.flq"))
    if not files:
        sys.exit(f"{folder} holds no .flq files: give the folder quant/assets")
    wrong = 0
    for file in files:
        expected = np.fromfile(file.with_suffix(".f32"), "<f4")
        if not np.array_equal(decode(file.read_bytes()), expected):
            print(f"{file.name}: differs")
            wrong += 1
    print(f"{len(files) - wrong} of {len(files)} golden streams decode to the stored values")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stream", nargs="?", type=pathlib.Path)
    parser.add_argument("--golden", type=pathlib.Path, metavar="DIR")
    args = parser.parse_args()
    if args.golden:
        check_golden(args.golden)
    elif args.stream:
        print(*decode(args.stream.read_bytes()), sep="\n")
    else:
        parser.error("give a stream or --golden DIR")
