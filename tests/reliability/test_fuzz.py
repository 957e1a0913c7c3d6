"""T3: random damage, by seed. `SEGSCSE_FUZZ=full` runs the numbers of the battery, some minutes, instead of a few."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("hypothesis", reason="makes the documents; part of the extra `test`")

HERE = Path(__file__).resolve().parent
FEW = {"headers": 500, "flips": 150, "configs": 150, "datasets": 150, "models": 100}
FULL = {"headers": 10_000, "flips": 1000, "configs": 1000, "datasets": 1000, "models": 1000}
NUMBERS = FULL if os.environ.get("SEGSCSE_FUZZ") == "full" else FEW
# Of each kind some must be accepted and some refused: pieces that are all refused would show little.
LEAST = {
    "headers": (0.2, 0.2),
    "flips": (0.0, 0.9),
    "configs": (0.03, 0.3),
    "datasets": (0.05, 0.3),
    "models": (0.01, 0.3),
}


@pytest.fixture(scope="module")
def found():
    """Return the counts of every kind, from one process."""
    path = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(HERE / "fuzz.py"), *(f"{kind}={number}" for kind, number in NUMBERS.items())]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=7200, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["kind"]: line for line in lines}


@pytest.mark.parametrize("kind", NUMBERS)
def test_each_is_accepted_or_refused_with_a_named_error_soon_and_in_little_memory(kind, found):
    counts = found[kind]
    total = counts["accepted"] + counts["refused"] + counts["strange"]
    assert counts["examples"] == []
    assert total >= 0.9 * NUMBERS[kind]  # hypothesis stops when it has tried what there is
    assert counts["accepted"] >= LEAST[kind][0] * total
    assert counts["refused"] >= LEAST[kind][1] * total
    assert counts["slowest_s"] < 2
    assert counts["memory_mb"] < 500
