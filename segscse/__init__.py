"""segscse: medical image segmentation around attention U-Nets.

The public names load on first use, so that importing the package costs neither torch nor MONAI.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# GNU OpenMP, which torch computes with on Linux, reads this when torch is loaded. Its threads wait for each other by
# spinning; where another process holds a core, the default count turned a step of 65 ms into 4 s, this one into 0.3 s,
# and on idle cores they are equal (tests/benchmarks/bench_spin.py).
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

_PUBLIC = {
    "ablate": "segscse.ablation",
    "plan": "segscse.api",
    "train": "segscse.api",
    "cross_validate": "segscse.crossval",
    "load": "segscse.inference.predictor",
    "evaluate": "segscse.evaluation.scores",
    "compare": "segscse.evaluation.comparison",
    "plot_metrics": "segscse.plots",
    "plot_overlay": "segscse.evaluation.overlays",
    "plot_training": "segscse.plots",
}
__all__ = [
    "__version__",
    "ablate",
    "compare",
    "cross_validate",
    "evaluate",
    "load",
    "plan",
    "plot_metrics",
    "plot_overlay",
    "plot_training",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'segscse' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
