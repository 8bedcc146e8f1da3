"""The programs of README.md that are there to be copied, as they stand."""

import importlib.util
import re
import subprocess
import sys

import fl_client
import pytest
from conftest import CLEAN, PATIENCE_S, ROOT

BLOCKS = re.findall(r"## (\S+)[^\n]*\n```python\n(.*?)```", (ROOT / "python" / "README.md").read_text(), re.S)
STARTS = {title: block for title, block in BLOCKS if "fl_client.save(" in block}
NEEDS = {"PyTorch": "torch", "scikit-learn": "sklearn", "numpy": "numpy"}


def test_there_are_three():
    assert set(STARTS) == set(NEEDS)


@pytest.mark.parametrize("title", sorted(STARTS))
def test_a_start_works_as_it_stands(title, start_master, tmp_path):
    if importlib.util.find_spec(NEEDS[title]) is None:
        pytest.skip(f"no {NEEDS[title]}")

    def run(program):
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, env=CLEAN, capture_output=True, text=True, timeout=PATIENCE_S
        )
        assert done.returncode == 0, done.stderr

    # The line that is there to be run once is a comment.
    before, save, _ = re.split(r"(?m)^# (?:Once: )?(fl_client\.save\(.*)$", STARTS[title])
    run(before + save)
    master = start_master(MODEL=f"safetensors:{tmp_path}/first.safetensors", ROUNDS="3", AGG_MIN_CLIENTS="1")
    run(STARTS[title].replace("http://127.0.0.1:5000", master.url))
    assert len(fl_client.history(master.url)) == 3
