#!/usr/bin/env python3
"""Checks the code against ARCHITECTURE.md: what crates and folders must not know, and that modules form no circle.

Usage: python3 .ci/independence.py
Reads the two tables whose last column is headed "must not know". A row of the first names a crate, whose
dependencies come from `cargo tree`; a row of the second names a folder or file below `CRATE/src` (a "room"), in which
no path may begin with a name of its last column: a room of the same crate, or a crate.
"""

import pathlib
import re
import subprocess
import sys

# The packages in a dependency tree that a word of the crates' table stands for.
FAMILIES = {
    "burn": r"burn[\w-]*",
    "tokio": r"tokio[\w-]*",
    "HTTP": r"(hyper|axum|reqwest|tower|http)([\w-]*)",
    "master": r"fl-master",
    "worker": r"fl-worker",
    "cli": r"fl",
}


def tables(text):
    """Rows of every table whose last column is headed `must not know`, as lists of cells."""
    rows, reading = [], False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            reading = False
        elif cells[-1] == "must not know":
            reading = True
            rows.append([])
        elif reading and not set(line) <= set("|- "):
            rows[-1].append(cells)
    return rows


def names(cell):
    """The comma-separated words of a cell, without remarks in parentheses."""
    return [word for word in re.split(r"[,\s]+", re.sub(r"\(.*?\)", "", cell).replace("`", "")) if word not in ("", "-")]


def dependencies(package):
    tree = ["cargo", "tree", "--locked", "-p", package, "-e", "normal", "--prefix", "none", "--no-dedupe"]
    lines = subprocess.run(tree, check=True, capture_output=True, text=True).stdout.splitlines()
    return {line.split()[0] for line in lines if line} - {package}


def without_tests(source):
    """The source up to its test module, without comments."""
    source = re.split(r"(?m)^#\[cfg\((?:all\()?test", source)[0]
    return re.sub(r"//.*", "", source)


def parts(tree):
    """Splits `a, b::{c, d}` at its top-level commas."""
    found, depth, current = [], 0, ""
    for char in tree:
        depth += {"{": 1, "}": -1}.get(char, 0)
        if char == "," and depth == 0:
            found.append(current.strip())
            current = ""
        else:
            current += char
    return [part for part in found + [current.strip()] if part]


def expand(tree):
    """The paths of a use tree."""
    if "{" not in tree:
        return [tree.strip()]
    prefix, rest = tree.split("{", 1)
    return [prefix.strip() + path for part in parts(rest[: rest.rindex("}")]) for path in expand(part)]


def module_of(path, src):
    """`master/src/http/api/task.rs` -> (`http`, `api`, `task`)."""
    steps = list(path.relative_to(src).with_suffix("").parts)
    return tuple(steps[:-1] if steps[-1] == "mod" else steps)


def paths_used(path, src):
    """Absolute paths that a file names: (`crate`, `http`, ...) or (`tokio`, ...)."""
    source = without_tests(path.read_text())
    uses = re.findall(r"(?m)^\s*(?:pub(?:\([^)]*\))?\s+)?use\s+([^;]+);", source)
    found = [path for use in uses for path in expand(use)]
    body = re.sub(r"(?m)^\s*(?:pub(?:\([^)]*\))?\s+)?use\s+[^;]+;", "", source)
    found += re.findall(r"\b(?:crate|super|tokio|axum|hyper|burn|std)(?:::\w+)+", body)
    here = module_of(path, src)
    # `super` in `a/mod.rs` is the crate's root, in `a/b.rs` it is `a`.
    for used in found:
        steps = used.split(" as ")[0].split("::")
        base = here
        if steps[0] == "super":
            while steps and steps[0] == "super":
                steps, base = steps[1:], base[:-1]
            steps = ["crate", *base, *steps]
        elif steps[0] == "self":
            steps = ["crate", *here, *steps[1:]]
        elif any(src.joinpath(*here, steps[0] + ending).exists() for ending in ("", ".rs")):
            steps = ["crate", *here, *steps]
        yield tuple(steps)


def sources(room):
    if room.is_dir():
        beside = [room.with_suffix(".rs")] if room.with_suffix(".rs").exists() else []
        return beside + sorted(room.rglob("*.rs"))
    return [room.with_suffix(".rs")]


def is_test_file(path):
    return path.stem == "tests" or path.stem.endswith("_tests")


def check_crates(rows):
    problems = []
    for cells in rows:
        package = names(cells[1])[0]
        for word in names(cells[-1]):
            pattern = re.compile(FAMILIES.get(word, re.escape(word)) + r"\Z")
            for found in sorted(filter(pattern.match, dependencies(package))):
                problems.append(f"{package} depends on {found}: it must not know {word}")
    return problems


def check_rooms(rows):
    problems = []
    for cells in rows:
        room = pathlib.Path(names(cells[0])[0])
        src = pathlib.Path(room.parts[0], "src")
        forbidden = [tuple(name.split("::")) for name in names(cells[-1])]
        files = [file for file in sources(room) if not is_test_file(file)]
        if not files:
            problems.append(f"{room}: ARCHITECTURE.md names it, and it is not there")
        for file in files:
            for used in paths_used(file, src):
                for name in forbidden:
                    inside = used[0] == "crate" and used[1 : 1 + len(name)] == name
                    if inside or used[: len(name)] == name:
                        problems.append(f"{file} uses {'::'.join(used)}: {room} must not know {'::'.join(name)}")
    return problems


def check_circles(crate):
    """No two modules of a folder need each other, directly or through others of that folder."""
    src = pathlib.Path(crate, "src")
    files = [file for file in src.rglob("*.rs") if not is_test_file(file)]
    modules = {module_of(file, src) for file in files}
    problems = []
    for folder in sorted({module[:depth] for module in modules for depth in range(len(module))}):
        level = len(folder)
        members = {module[: level + 1] for module in modules if module[:level] == folder and len(module) > level}
        arrows = {member: set() for member in members}
        for file in files:
            source = module_of(file, src)
            # Re-exports in a folder's mod.rs are not dependencies of its members.
            if source[:level] != folder or len(source) <= level or source in (("lib",), ("main",)):
                continue
            for used in paths_used(file, src):
                target = used[1 : level + 2]
                if used[0] == "crate" and target in members and target != source[: level + 1]:
                    arrows[source[: level + 1]].add(target)
        circle = find_circle(arrows)
        if circle:
            problems.append(f"{crate}: a circle of modules: {' -> '.join('::'.join(module) for module in circle)}")
    return problems


def find_circle(arrows):
    done, path = set(), []

    def visit(node):
        if node in path:
            return path[path.index(node) :] + [node]
        if node in done:
            return None
        path.append(node)
        for target in sorted(arrows[node]):
            if circle := visit(target):
                return circle
        path.pop()
        done.add(node)
        return None

    return next((circle for node in sorted(arrows) if (circle := visit(node))), None)


def main():
    crates, rooms = tables(pathlib.Path("ARCHITECTURE.md").read_text())
    problems = check_crates(crates) + check_rooms(rooms)
    for cells in crates:
        problems += check_circles(names(cells[0])[0].rstrip("/"))
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{len(crates)} crates and {len(rooms)} rooms checked, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
