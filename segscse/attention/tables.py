"""The table of `segscse blocks` as text, Markdown and JSON."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segscse.attention import PRESETS
from segscse.attention.measure import BlockRow, CostTable
from segscse.errors import InputError
from segscse.files import write_json, write_text

if TYPE_CHECKING:
    from rich.table import Table

HEADER = ("block", "arXiv", "parameters", "infer ms", "x copy", "train ms", "x copy", "kept MiB")
FORMATS = (".md", ".json")
ARXIV = "https://arxiv.org/abs/"


def check_format(path: Path) -> Path:
    """Return `path` when its suffix names a format that `write_table` knows.

    Raises:
        InputError: it does not.
    """
    if path.suffix not in FORMATS:
        raise InputError(f"--out must end in {' or '.join(FORMATS)}, got {path.name!r}")
    return path


def write_table(path: Path, table: CostTable) -> None:
    """Write the table as Markdown or JSON, by the suffix of `path`, atomically."""
    if check_format(path).suffix == ".json":
        write_json(path, asdict(table))
    else:
        write_text(path, markdown(table))


def text_table(table: CostTable) -> Table:
    """Return the table for a terminal; it fits into 80 columns."""
    from rich.table import Table

    shown = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for number, title in enumerate(HEADER):
        shown.add_column(title, justify="left" if number < 2 else "right", no_wrap=True)
    for row in table.rows:
        paper = row.source.paper
        shown.add_row(row.name, "-" if paper is None else paper.arxiv, *_numbers(row))
    return shown


def footnotes(table: CostTable) -> list[str]:
    """Return what stands under the table: how it was measured, what is special about a block, and the papers."""
    special = [f"{row.name}: {_remark(row)}" for row in table.rows if _remark(row)]
    papers = dict.fromkeys(row.source.paper for row in table.rows if row.source.paper is not None)
    return [caption(table), *special, *(f"{paper.arxiv}: {paper.authors}, {paper.title}" for paper in papers)]


def caption(table: CostTable) -> str:
    """Return one sentence that says how the table was measured."""
    shape = " x ".join(str(number) for number in table.setting.shape)
    threads = f", {table.threads} threads" if table.device == "cpu" else ""
    return (
        f"Map {shape} in channels-last memory, {table.precision}, {table.device}{threads}, "
        f"torch {table.versions['torch']}, median of {table.setting.repeats}. "
        "Times are what a block adds, in training forward and backward; "
        f"x copy: in units of reading and writing the map once, {table.copy_ms:.2f} ms; "
        "kept: what the backward pass needs besides the block's input and parameters."
    )


def markdown(table: CostTable) -> str:
    """Return the table as Markdown, with the papers' titles and links and the blocks' other names."""
    header = ["block", "paper", *HEADER[2:], "also known as", "remarks"]
    lines = [header, ["---", "---", *["---:"] * len(HEADER[2:]), "---", "---"], *map(_markdown_row, table.rows)]
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + ["", caption(table)]) + "\n"


def _markdown_row(row: BlockRow) -> list[str]:
    paper = row.source.paper
    cited = "-" if paper is None else f"{paper.authors}, [{paper.title}]({ARXIV}{paper.arxiv})"
    others = ", ".join(_alias(alias) for alias in row.aliases if alias != row.name)
    return [f"`{row.name}`", cited, *_numbers(row), others, _remark(row)]


def _numbers(row: BlockRow) -> list[str]:
    """Return the texts under `HEADER[2:]`; a dash stands for what was not measured."""
    if (cost := row.cost) is None:
        return ["-"] * len(HEADER[2:])
    times = (cost.inference_ms, cost.inference_ratio, cost.training_ms, cost.training_ratio)
    return [f"{cost.parameters:,}", *(f"{value:.2f}" for value in times), f"{cost.kept_bytes / 2**20:.2f}"]


def _alias(name: str) -> str:
    options: dict[str, Any] = PRESETS.get(name, {})
    return f"`{name}`" + (f" ({', '.join(f'{key} {value}' for key, value in options.items())})" if options else "")


def _remark(row: BlockRow) -> str:
    return "; ".join(part for part in (row.source.note, row.skipped and f"not measured: {row.skipped}") if part)
