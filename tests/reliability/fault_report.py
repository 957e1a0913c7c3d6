"""Run the single-fault inputs through the verbs without pytest and write the counts as Markdown.

    PYTHONPATH=. python tests/reliability/fault_report.py [--out faults.md] [--list]

`--list` adds a line for every fault. The exit code is 1 when one does not end as the table says.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fault_table import FAULTS, GROUPS, STRICTER, VERBS, Fault
from stand import attempt, complaints, train_models

Results = dict[tuple[int, str], list[str]]


def run_all(root: Path) -> Results:
    """Return, for every pair of fault and verb, in what it did not end as it should."""
    models = train_models(root / "models")
    results: Results = {}
    for number, fault in enumerate(FAULTS):
        for verb in fault.expected:
            ended, stand = attempt(fault, verb, root / f"{number}_{verb}", models)
            results[number, verb] = complaints(fault, verb, ended, stand)
    return results


def counts_table(results: Results) -> str:
    """Return the counts by group: pairs of input and verb that ended as specified, of all."""
    lines = ["| group | numbers | inputs | " + " | ".join(VERBS) + " | all |", "|---|" + "---:|" * (len(VERBS) + 3)]
    for letter, name in [*GROUPS.items(), ("", "all")]:
        chosen = [number for number, fault in enumerate(FAULTS) if fault.id.startswith(letter)]
        cells = [_share(results, ((number, verb) for number in chosen)) for verb in VERBS]
        total = _share(results, ((number, verb) for number in chosen for verb in VERBS))
        n_ids = len({FAULTS[number].id for number in chosen})
        lines.append(f"| {name} | {n_ids} | {len(chosen)} | {' | '.join(cells)} | {total} |")
    return "\n".join(lines) + "\n"


def _share(results: Results, keys: Iterable[tuple[int, str]]) -> str:
    found = [results[key] for key in keys if key in results]
    return f"{sum(not problems for problems in found)} / {len(found)}" if found else "-"


def fault_lines(results: Results) -> str:
    """Return a line for every fault: what it is and how each verb has to end and did."""
    lines = ["| fault | what | " + " | ".join(VERBS) + " |", "|---|---|" + "---|" * len(VERBS)]
    for number, fault in enumerate(FAULTS):
        cells = [_cell(fault, verb, results.get((number, verb))) for verb in VERBS]
        lines.append(f"| {fault.id} | {fault.what} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(fault: Fault, verb: str, problems: list[str] | None) -> str:
    if problems is None:
        return ""
    return fault.expected[verb] + (" (stricter)" if fault.id in STRICTER else "") + (" FAILED" if problems else "")


def main() -> int:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the table to this file")
    parser.add_argument("--list", action="store_true", help="add a line for every fault")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        results = run_all(Path(root))
    text = counts_table(results) + ("\n" + fault_lines(results) if given.list else "")
    if given.out is not None:
        given.out.write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    failed = {key: problems for key, problems in results.items() if problems}
    for (number, verb), problems in failed.items():
        sys.stderr.write(f"{FAULTS[number].id} {FAULTS[number].what}, {verb}: {problems}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
