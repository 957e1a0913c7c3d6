"""Where every attention block comes from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Paper:
    """A publication.

    Attributes:
        authors: the first one's name.
        title: as printed.
        arxiv: its arXiv identifier.
    """

    authors: str
    title: str
    arxiv: str


@dataclass(frozen=True, slots=True)
class Source:
    """What a block follows.

    Attributes:
        paper: None where there is none.
        note: how the block relates to it, where that is not plain.
    """

    paper: Paper | None = None
    note: str = ""


SE = Paper("Hu et al.", "Squeeze-and-Excitation Networks", "1709.01507")
SCSE = Paper(
    "Roy et al.",
    "Concurrent Spatial and Channel Squeeze & Excitation in Fully Convolutional Networks",
    "1803.02579",
)
ECA = Paper("Wang et al.", "ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks", "1910.03151")
PROJECT_EXCITE = Paper(
    "Rickmann et al.", "'Project & Excite' Modules for Segmentation of Volumetric Medical Scans", "1906.04649"
)
CBAM = Paper("Woo et al.", "CBAM: Convolutional Block Attention Module", "1807.06521")
BAM = Paper("Park et al.", "BAM: Bottleneck Attention Module", "1807.06514")
SK = Paper("Li et al.", "Selective Kernel Networks", "1903.06586")
DANET = Paper("Fu et al.", "Dual Attention Network for Scene Segmentation", "1809.02983")

SOURCES: dict[str, Source] = {
    "none": Source(note="the identity"),
    "cse": Source(SE),
    "sse": Source(SCSE),
    "scse": Source(SCSE),
    "eca": Source(ECA),
    "slice_se": Source(SE, "with the mean taken per slice, which the paper does not have"),
    "slice_eca": Source(ECA, "with the mean taken per slice, which the paper does not have"),
    "depth_conv_gate": Source(note="no paper; the code known as eca_layer3d"),
    "eca_depth": Source(note="no paper; the code known as eca_depth_spatial_layer3d"),
    "project_excite": Source(PROJECT_EXCITE),
    "cbam": Source(CBAM),
    "cbam_channel": Source(CBAM, "its channel gate alone"),
    "cbam_spatial": Source(CBAM, "its spatial gate alone"),
    "bam": Source(BAM),
    "sk": Source(SK, "takes a convolution's place: time and memory are the block's own, not added ones"),
    "danet_cam": Source(DANET, "its channel attention"),
    "danet_pam": Source(DANET, "its position attention"),
}
"""Canonical name of a block to its source."""
