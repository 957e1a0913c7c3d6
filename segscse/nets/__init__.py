"""Networks: one U-Net for 2D and 3D, built from plain or residual blocks, with attention by position."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segscse.nets.unet import UNet

__all__ = ["UNet"]


def __getattr__(name: str) -> Any:
    # On first use, because `segscse.attention`, which the network is built of, imports `segscse.nets.dims`.
    if name != "UNet":
        raise AttributeError(f"module 'segscse.nets' has no attribute {name!r}")
    from segscse.nets.unet import UNet

    return UNet
