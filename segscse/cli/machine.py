"""The verbs about this machine: heavy imports wait until a verb needs them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from segscse.cli.flags import read_sizes
from segscse.cli.options import Device
from segscse.cli.terminal import make_console, say, show_bar


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
