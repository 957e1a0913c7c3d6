"""segscse: medical image segmentation around attention U-Nets.

The public names load on first use, so that importing the package costs neither torch nor MONAI.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "plan": "segscse.api",
    "train": "segscse.api",
    "load": "segscse.inference.predictor",
    "evaluate": "segscse.evaluation.scores",
    "compare": "segscse.evaluation.statistics",
    "plot_overlay": "segscse.evaluation.overlays",
}
__all__ = ["__version__", "compare", "evaluate", "load", "plan", "plot_overlay", "train"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'segscse' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
