"""Writes the tables of settings in the documents from the --help of both binaries. A table stands between
`<!-- settings:master -->` and `<!-- /settings:master -->`; names in the first mark select rows.

    python3 .ci/settings.py [--check] [FOLDER_OF_THE_BINARIES]
"""
import pathlib
import re
import subprocess
import sys

check = "--check" in sys.argv
folder = pathlib.Path(next((a for a in sys.argv[1:] if not a.startswith("--")), "target/release"))


def settings(role):
    """The table's row of each variable."""
    text = subprocess.run([folder / f"fl-{role}", "--help"], check=True, capture_output=True, text=True,
                          env={"COLUMNS": "4000"}).stdout
    rows = {}
    for block in re.split(r"\n(?=\s+(?:-\w, )?--[a-z])", text)[1:]:
        block = block.split("\n\n", 1)[0] if "[env:" in block.split("\n\n", 1)[0] else block
        variable = re.search(r"\[env: ([A-Z_0-9]+)", block)
        if not variable:
            continue
        lines = block.split("\n", 1)
        words = re.sub(r"\s+", " ", re.sub(r"^\s*--\S+( <[^>]*>)?", "", lines[0]) + " " + (lines[1] if len(lines) > 1 else ""))
        default = re.search(r"\[default: ([^\]]*)\]", words.replace("[default: none]", ""))
        meaning = re.sub(r"\s*\[(env|default|possible values): [^\]]*\]|Possible values:.*", "", words).strip().rstrip(":").replace("|", "\\|")
        values = re.search(r"\[possible values: ([^\]]*)\]", words)
        if values:
            meaning += f": {values.group(1)}"
        value = default.group(1).strip() if default else ""
        shown = f"`{value}`" if value and " " not in value else value
        rows[variable.group(1)] = f"| `{variable.group(1)}` | {shown} | {meaning} |".replace("|  |", "| |")
    assert len(rows) > 15, f"fl-{role} --help was not understood"
    return rows


def table(mark):
    role, names = mark.group(2), mark.group(3).split()
    rows = SETTINGS[role]
    chosen = [rows[name] for name in names] if names else list(rows.values())
    body = "\n".join(["| variable | default | meaning |", "| --- | --- | --- |", *chosen])
    return f"{mark.group(1)}\n{body}\n{mark.group(4)}"


SETTINGS = {role: settings(role) for role in ("master", "worker")}
for document, places in (("README.md", 2), ("docs/operators.md", 2)):
    path = pathlib.Path(document)
    old = path.read_text()
    new, found = re.subn(r"(<!-- settings:(\w+)((?: [A-Z_]+)*) -->)\n.*?(<!-- /settings:\2 -->)", table, old, flags=re.S)
    assert found == places, f"{document} has {found} of {places} places for settings"
    if check and new != old:
        sys.exit(f"{document} is out of date: run python3 .ci/settings.py")
    if new != old:
        path.write_text(new)
    print(f"settings: {document} {'agrees with' if check else 'is written from'} the binaries' --help")
