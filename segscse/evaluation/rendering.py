"""Small tables of text for a terminal, Markdown and notebooks, and values as JSON takes them."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any


def bracketed(low: float, high: float, form: str) -> str:
    """Return an interval's ends in brackets; nothing where it is not known."""
    return "" if math.isnan(low) else f"[{low:{form}}, {high:{form}}]"


def text_table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> list[str]:
    """Return a table as lines of aligned text; the first `left` columns are flush left, the others right."""
    table = [list(headings), *map(list, rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(headings))]
    return [
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table as lines of Markdown; cells show as they are."""
    cells = [[escape_markdown(cell) for cell in row] for row in rows]
    return ["| " + " | ".join(line) + " |" for line in (headings, ["---"] * len(headings), *cells)]


def html_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as HTML; cells show as they are."""
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def html_list(lines: Sequence[str]) -> str:
    """Return lines as an HTML list; they show as they are."""
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def html_method(text: str) -> str:
    """Return how something was found, folded away."""
    return f"<details><summary>Method</summary>{html.escape(text)}</details>"


def escape_markdown(text: str) -> str:
    """Return text that Markdown shows as it is: no table cell, tag or emphasis is made of it."""
    for mark in "\\`*_<>|[]":
        text = text.replace(mark, "\\" + mark)
    return " ".join(text.split())


def plain(value: Any) -> Any:
    """Return a value as JSON takes it, NaN and infinity as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value
