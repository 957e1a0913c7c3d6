"""From a path to a plan: open, examine, fingerprint, plan; errors in the data set stop here, all named."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from segscse.config import ExperimentConfig
from segscse.data.examine import Finding, examine_dataset, twins_of
from segscse.data.fingerprint import Fingerprint, make_fingerprint
from segscse.data.index import DatasetIndex, open_dataset
from segscse.data.plan import Plan, make_plan
from segscse.data.split import join_twins
from segscse.errors import InputError
from segscse.types import Progress


@dataclass(frozen=True, slots=True)
class PlannedDataset:
    """A data set that passed its examination, with what follows from it."""

    index: DatasetIndex
    fingerprint: Fingerprint
    plan: Plan
    warnings: tuple[Finding, ...]


def plan_dataset(
    dataset: str | Path,
    config: ExperimentConfig,
    *,
    labels: str | Path | None = None,
    progress: Progress | None = None,
) -> PlannedDataset:
    """Read a data set once and plan for it; cases of the same content get one subject.

    Raises:
        InputError: the data set has errors; the first is named, with how many there are.
    """
    index = open_dataset(dataset, labels)
    facts, findings = examine_dataset(index, progress=progress)
    errors = [finding for finding in findings if finding.level == "error"]
    if errors:
        first = errors[0]
        more = f"{len(errors) - 1} more: see `segscse check`" if len(errors) > 1 else ""
        remedy = "; ".join(text for text in (first.remedy, more) if text)
        raise InputError(first.problem, file=first.file or dataset, remedy=remedy)
    index = replace(index, cases=join_twins(index.cases, twins_of(facts)))
    fingerprint = make_fingerprint(index, facts)
    name = index.root.resolve().name
    return PlannedDataset(
        index,
        fingerprint,
        make_plan(fingerprint, config, name),
        tuple(f for f in findings if f.level == "warning"),
    )
