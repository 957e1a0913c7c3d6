"""The verbs that look at data sets: heavy imports wait until a verb needs them."""

from __future__ import annotations

from pathlib import Path

from segscse.cli.options import Configs, Labels
from segscse.cli.terminal import make_console, say, say_findings, show_bar
from segscse.config import ExperimentConfig, FlatConfig


def check(dataset: Path, *, labels: Labels = None, json: Path | None = None) -> int:
    """List every problem of a data set at once.

    Args:
        dataset: Folder in the MSD or nnU-Net layout, CSV (case,image[,image2...],label[,subject]), folder with
            images/ and labels/, or folder of images together with --labels. Scans are NIfTI, NRRD, MHA/MHD or MGH
            files or folders with one DICOM series each.
        labels: Folder of label maps that pair with the images by name.
        json: Also write the findings to this file.
    """
    from segscse.data.examine import examine_dataset, report_of
    from segscse.data.index import open_dataset
    from segscse.files import write_json

    console = make_console()
    index = open_dataset(dataset, labels)
    with show_bar(console, "reading") as progress:
        _, findings = examine_dataset(index, progress=progress)
    report = report_of(findings, index)
    if findings:
        say_findings(findings)
    say(
        f"{len(index.cases)} cases ({index.layout} layout): {report['n_errors']} errors, "
        f"{report['n_warnings']} warnings, {report['n_notes']} notes"
    )
    if json is not None:
        write_json(json, report)
    return 2 if report["n_errors"] else 0


def plan(
    dataset: Path,
    *,
    out: Path = Path("plan.json"),
    labels: Labels = None,
    config: Configs = None,
    experiment: FlatConfig = ExperimentConfig(),  # noqa: B008, frozen
) -> None:
    """Show and save what a data set implies: spacing, patch, strides, normalisation, labels.

    Args:
        dataset: As for `segscse check`.
        out: Where to write the plan.
        labels: Folder of label maps that pair with the images by name.
        config: YAML file of settings; may be given repeatedly, later files win, and flags win over all.
        experiment: Settings of the experiment.
    """
    from segscse.data.plan import save_plan
    from segscse.data.prepare import plan_dataset
    from segscse.nets.build import check_attention

    check_attention(experiment.model)
    with show_bar(make_console(), "reading") as progress:
        planned = plan_dataset(dataset, experiment, labels=labels, progress=progress)
    if planned.warnings:
        say_findings(planned.warnings)
    save_plan(out, planned.plan)
    found = planned.plan
    say(f"{len(planned.index.cases)} cases, channels {', '.join(found.channels)}, {len(found.labels) - 1} labels")
    say(f"{found.spatial_dims}D, spacing {found.spacing_mm} mm, patch {found.patch_size}, batch {found.batch_size}")
    for reason in found.reasons:
        say(f"  {reason}")
    say(f"plan: {out}")


def fetch(name: str, *, out: Path = Path("data")) -> None:
    """Download a public data set of the Medical Segmentation Decathlon, with its checksum verified.

    Args:
        name: Such as hippocampus or spleen.
        out: Folder that the data set's folder goes into.
    """
    from segscse.data.fetch import fetch as fetch_dataset

    with show_bar(make_console(), "downloading") as progress:
        folder = fetch_dataset(name, out, progress=lambda done, total: progress(done, total or 0))
    say(f"data set: {folder}")
