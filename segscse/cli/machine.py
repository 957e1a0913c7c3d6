"""The verbs about this machine: heavy imports wait until a verb needs them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from segscse.cli.flags import read_fold, read_sizes
from segscse.cli.options import Configs, Device, Labels
from segscse.cli.terminal import make_console, say, show_bar
from segscse.config import ExperimentConfig, FlatConfig


def blocks(
    names: Annotated[list[str] | None, Parameter(name="NAME", negative="")] = None,
    /,
    *,
    size: str = "40,56,40",
    channels: int = 32,
    batch: int = 2,
    repeats: int = 10,
    device: Device = "auto",
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    memory_gib: float = 4.0,
    out: Path | None = None,
) -> None:
    """Measure attention blocks here and now: paper, parameters, latency and memory of each.

    Args:
        names: Blocks; all of them if not given.
        size: Of the map, two or three numbers.
        channels: Of the map.
        batch: Maps at once.
        repeats: Measurements of each block; the median counts.
        device: Where to measure.
        precision: Of the map; auto takes bf16 where the hardware multiplies in it.
        memory_gib: Leave out what would need more.
        out: Also write the table to this file, .md or .json.
    """
    from segscse.attention.measure import MapSetting, measure_blocks
    from segscse.attention.tables import check_format, footnotes, text_table, write_table

    if out is not None:
        check_format(out)
    setting = MapSetting(read_sizes(size), channels, batch, repeats, device, precision, memory_gib)
    with show_bar(make_console(), "measuring") as progress:
        table = measure_blocks(setting, names, progress=progress)
    make_console(stderr=False).print(text_table(table))
    for note in footnotes(table):
        say(note)
    if out is not None:
        write_table(out, table)
        say(f"table: {out}")


def doctor(
    dataset: Path | None = None,
    *,
    out: Path = Path("runs"),
    fold: str = "0",
    budget: str | None = None,
    json: Path | None = None,
    labels: Labels = None,
    config: Configs = None,
    experiment: FlatConfig = ExperimentConfig(),  # noqa: B008, frozen
) -> int:
    """Say what this machine has, what training a data set would take on it, and what would fail.

    With a data set a few real training steps are made on random data. Exit code 2 if something would fail.

    Args:
        dataset: As for `segscse check`; the machine alone if not given.
        out: Where outputs would go; nothing is written there.
        fold: As for `segscse train`.
        budget: As for `segscse train`.
        json: Also write everything to this file.
        labels: Folder of label maps that pair with the images by name.
        config: YAML file of settings; may be given repeatedly, later files win, and flags win over all.
        experiment: Settings of the experiment.
    """
    from segscse.cli.doctor import forecast_table, machine_table
    from segscse.doctor import diagnose
    from segscse.files import write_json

    which: int | Literal["cv"] | None = "cv" if fold == "cv" else read_fold(fold)
    console = make_console(stderr=False)
    with show_bar(make_console(), "reading") as progress:
        found = diagnose(
            dataset, out=out, labels=labels, config=experiment, fold=which, budget=budget, progress=progress
        )
    console.print(machine_table(found.machine))
    if found.forecast is not None:
        console.print(forecast_table(found.forecast))
    if json is not None:
        write_json(json, found.to_json())
    for finding in found.findings:
        say(f"{finding.level}: {finding}")
    say("something would fail" if found.fails else "nothing would fail")
    return 2 if found.fails else 0
