"""What every figure of ours has in common."""

from __future__ import annotations

import io
from typing import Any

from matplotlib.figure import Figure


class NotebookFigure(Figure):
    """A figure that a notebook shows, whether or not pyplot is loaded."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110, facecolor=self.get_facecolor())
        return buffer.getvalue()


def as_text(name: Any) -> str:
    """Return a name in which matplotlib sees no formula and no hidden legend entry."""
    return str(name).replace("$", r"\$").lstrip("_") or "?"
