"""The single-fault inputs through the verbs: every pair of fault and verb is one test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from broken_files import FLIP_PLACES
from fault_table import FAULTS, GROUPS, OTHERS, STRICTER, Fault
from stand import attempt, complaints

PAIRS = [(fault, verb) for fault in FAULTS for verb in fault.expected]
# A command in a process of its own, as a person runs it: refused, warned and accepted, one of each verb.
SAMPLE = [("F06", "check"), ("G06", "evaluate"), ("F05", "predict"), ("G02", "predict")]


@pytest.mark.parametrize(("fault", "verb"), PAIRS, ids=[f"{fault.id}-{fault.what}-{verb}" for fault, verb in PAIRS])
def test_a_single_fault_ends_as_the_table_says(fault: Fault, verb: str, models: dict[str, Path], tmp_path: Path):
    ended, stand = attempt(fault, verb, tmp_path / "stand", models)
    assert complaints(fault, verb, ended, stand) == [], ended.stderr


@pytest.mark.parametrize(("number", "verb"), SAMPLE)
def test_a_process_of_its_own_ends_in_the_same_way(number: str, verb: str, models: dict[str, Path], tmp_path: Path):
    def run_process(command: list[str]) -> int:
        done = subprocess.run(
            [sys.executable, "-c", "from segscse.cli import main; main()", *command], capture_output=True, check=False
        )
        sys.stdout.write(done.stdout.decode())
        sys.stderr.write(done.stderr.decode())
        return done.returncode

    fault = next(fault for fault in FAULTS if fault.id == number)
    ended, stand = attempt(fault, verb, tmp_path / "stand", models, run_verb=run_process)
    assert complaints(fault, verb, ended, stand) == [], ended.stderr


def test_the_table_holds_every_number_of_the_battery():
    ranges = {"S": 16, "V": 15, "G": 17, "F": 22, "L": 16, "P": 18, "E": 14}
    expected = {f"{letter}{number:02d}" for letter, last in ranges.items() for number in range(1, last + 1)}
    assert ranges.keys() == GROUPS.keys()
    assert {fault.id for fault in FAULTS} | set(OTHERS) == expected
    assert len(expected) == 118
    assert set(STRICTER) <= expected
    assert sum(fault.id == "F07" for fault in FAULTS) == len(FLIP_PLACES) == 20
