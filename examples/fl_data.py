"""Test parts of data sets, read and divided as fl does it, with numpy alone. `read(...)` is the entrance."""
import csv
import gzip
import pathlib

import numpy as np
from check_global import read_test_set

ROOT = pathlib.Path(__file__).resolve().parent.parent
ASSETS = ROOT / "datasets" / "assets"
SYSTEM = pathlib.Path("/usr/share/datasets")
LABEL_NAMES = ["label", "class", "target", "y"]


def read_bytes(path):
    data = pathlib.Path(path).read_bytes()
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def idx(path):
    data = read_bytes(path)
    shape = np.frombuffer(data, ">u4", data[3], 4).astype(int)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


def idx_test(folder):
    def find(kind):
        for name in sorted(folder.iterdir()):
            if kind in name.name and name.name.startswith(("t10k", "test")):
                return idx(name)
        raise SystemExit(f"{folder} has no test {kind}")

    return find("images"), find("labels")


def text_test(tokens, length):
    """The last tenth in sequences that do not overlap, and the token after each of their tokens."""
    test = tokens[len(tokens) - -(-len(tokens) // 10) :]
    count = (len(test) - 1) // length
    return test[: count * length].reshape(count, length), test[1 : count * length + 1].reshape(count, length)


def characters(data, names):
    """Numbers of a text's characters in the model's vocabulary."""
    text = data.decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n")
    ids = {name: number for number, name in enumerate(names or sorted(set(text)))}
    unknown = set(text) - set(ids)
    if unknown:
        raise SystemExit(f"the model does not know the characters {sorted(unknown)}")
    return np.array([ids[c] for c in text], np.int64)


def every_fifth(groups):
    """Of every group the fifth, tenth, fifteenth ... sample."""
    seen, is_test = {}, []
    for group in groups:
        seen[group] = seen.get(group, 0) + 1
        is_test.append(seen[group] % 5 == 0)
    return np.array(is_test)


def is_number(field):
    try:
        float(field)
        return True
    except ValueError:
        return False


def csv_test(path, target, names, numbers):
    """Features and targets of a table; `names` are the model's classes, if they have names."""
    with open(path, newline="") as file:
        rows = [[field.strip() for field in row] for row in csv.reader(file) if row]
    first = [field.lower() for field in rows[0]]
    named = [i for i, field in enumerate(first) if field in LABEL_NAMES]
    is_header = any(first[i] != "y" for i in named) or not any(map(is_number, first))
    if target:
        columns = [rows[0].index(name) for name in target.split("?")[0].split(",")]
    else:
        columns = [named[0] if is_header and named else len(first) - 1]
    if target or is_header:
        rows = rows[1:]
    x = np.array([[float(v) for i, v in enumerate(row) if i not in columns] for row in rows], np.float32)
    if numbers:
        y = np.array([[float(row[i]) for i in columns] for row in rows], np.float32)
        is_test = every_fifth([0] * len(y))
    else:
        labels = [row[columns[0]] for row in rows]
        y = np.array([names.index(v) if names else int(v) for v in labels], np.int64)
        is_test = every_fifth(y)
    return x[is_test], y[is_test]


def read(dataset, data_dir, target, names, length, numbers):
    """`x`, raw features or tokens with a sample a row, and `y` of the test part of `dataset`, as `fl --dataset` names it.

    `names` are the model's names of classes or characters, or none; `length` is that of its sequences; `numbers` says
    whether it predicts numbers.
    """
    kind, _, path = dataset.partition(":")
    if kind == "digits":
        return read_test_set(ASSETS / "digits.csv.gz")
    if kind == "shakespeare":
        return text_test(characters(read_bytes(ASSETS / "shakespeare.txt.gz"), names), length)
    if kind == "text":
        return text_test(characters(pathlib.Path(path).read_bytes(), names), length)
    if kind == "bytes":
        return text_test(np.frombuffer(pathlib.Path(path).read_bytes(), np.uint8).astype(np.int64), length)
    if kind == "csv":
        return csv_test(path, target, names, numbers)
    if kind == "idx":
        return idx_test(pathlib.Path(path))
    if kind in ("fashion-mnist", "mnist"):
        given = [pathlib.Path(data_dir), pathlib.Path(data_dir) / kind] if data_dir else []
        for folder in [*given, SYSTEM / kind]:
            if folder.is_dir() and any("images" in file.name for file in folder.iterdir()):
                return idx_test(folder)
        raise SystemExit(f"{kind} is not on this machine: give --data-dir")
    raise SystemExit(f"this script does not read {dataset}: give its test part with --arrays")
