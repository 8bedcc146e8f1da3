"""Writes the settings of both binaries, as their --help tells them, into docs/operators.md.

    python3 .ci/settings.py [--check] [FOLDER_OF_THE_BINARIES]
"""
import pathlib
import re
import subprocess
import sys

check = "--check" in sys.argv
folder = pathlib.Path(next((a for a in sys.argv[1:] if not a.startswith("--")), "target/release"))
document = pathlib.Path("docs/operators.md")


def table(role):
    text = subprocess.run([folder / f"fl-{role}", "--help"], check=True, capture_output=True, text=True,
                          env={"COLUMNS": "4000"}).stdout
    rows = ["| variable | default | meaning |", "| --- | --- | --- |"]
    for block in re.split(r"\n(?=\s+(?:-\w, )?--[a-z])", text)[1:]:
        block = block.split("\n\n", 1)[0] if "[env:" in block.split("\n\n", 1)[0] else block
        variable = re.search(r"\[env: ([A-Z_0-9]+)", block)
        if not variable:
            continue
        lines = block.split("\n", 1)
        words = re.sub(r"\s+", " ", re.sub(r"^\s*--\S+( <[^>]*>)?", "", lines[0]) + " " + (lines[1] if len(lines) > 1 else ""))
        default = re.search(r"\[default: ([^\]]*)\]", words.replace("[default: none]", ""))
        meaning = re.sub(r"\[(env|default|possible values): [^\]]*\]|Possible values:.*", "", words).strip().rstrip(":")
        values = re.search(r"\[possible values: ([^\]]*)\]", words)
        if values:
            meaning += f": {values.group(1)}"
        value = default.group(1).strip() if default else ""
        shown = f"`{value}`" if value and " " not in value else value
        rows.append(f"| `{variable.group(1)}` | {shown} | {meaning} |".replace("|  |", "| |"))
    assert len(rows) > 15, f"fl-{role} --help was not understood"
    return "\n".join(rows)


old = text = document.read_text()
for role in ("master", "worker"):
    begin, end = f"<!-- settings:{role} -->", f"<!-- /settings:{role} -->"
    head, rest = text.split(begin)
    text = f"{head}{begin}\n{table(role)}\n{end}{rest.split(end)[1]}"
if check and text != old:
    sys.exit("docs/operators.md does not tell the settings of today: run python3 .ci/settings.py")
if text != old:
    document.write_text(text)
print(f"settings: docs/operators.md {'agrees with' if check else 'tells'} the binaries' --help")
