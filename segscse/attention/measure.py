"""What each attention block costs on a map of a given size: parameters, time and memory, measured then and there."""

from __future__ import annotations

import math
import statistics
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from segscse.attention import ALIASES, ATTENTION, BLOCKS, AttentionBlock, build_attention
from segscse.attention.papers import SOURCES, Source
from segscse.errors import InputError, choose
from segscse.hardware import autocast, pick_precision, versions, working_device
from segscse.nets.dims import channels_last
from segscse.types import Progress

GIB = 2**30
MAPS_AT_ONCE = 12
"""Copies of the map in fp32 that the greediest block, and what it is measured with, hold at once; rounded up."""


@dataclass(frozen=True, slots=True)
class MapSetting:
    """The map on which blocks are measured, and how often.

    Attributes:
        size: `*S` of the map `(B, C, *S)`, two or three numbers.
        channels: C.
        batch: B.
        repeats: measurements of each block, of which the median counts.
        device: `auto`, `cpu`, `cuda` or `mps`.
        precision: `bf16` is a bfloat16 map under autocast; `auto` takes it where the hardware multiplies in it.
        memory_gib: a block that would need more is left out.

    Raises:
        InputError: a number is out of range.
    """

    size: tuple[int, ...] = (40, 56, 40)
    channels: int = 32
    batch: int = 2
    repeats: int = 10
    device: str = "auto"
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    memory_gib: float = 4.0

    def __post_init__(self) -> None:
        if len(self.size) not in (2, 3) or min(self.size) < 1:
            raise InputError(f"--size must be two or three positive numbers such as 40,56,40, got {self.size}")
        for name in ("channels", "batch", "repeats"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.memory_gib < math.inf:
            raise InputError(f"--memory-gib must be above 0, got {self.memory_gib}")
        needed = self.map_bytes * MAPS_AT_ONCE / GIB
        if needed > self.memory_gib:
            raise InputError(
                f"maps of {self.shape} would take about {needed:.1f} GiB, more than --memory-gib {self.memory_gib:g}",
                remedy="Choose a smaller --size, --channels or --batch, or allow more",
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """The map's shape, `(B, C, *S)`."""
        return (self.batch, self.channels, *self.size)

    @property
    def map_bytes(self) -> int:
        """Bytes of the map in fp32."""
        return 4 * math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Cost:
    """What was measured of one block.

    Attributes:
        parameters: number of learned weights.
        inference_ms: median time of the forward pass without gradients, in ms.
        inference_ratio: the same in units of `CostTable.copy_ms`.
        training_ms: median time of the forward and backward pass, in ms.
        training_ratio: the same in units of `CostTable.copy_ms`.
        kept_bytes: what autograd keeps for the backward pass besides the input and the parameters.
    """

    parameters: int
    inference_ms: float
    inference_ratio: float
    training_ms: float
    training_ratio: float
    kept_bytes: int


@dataclass(frozen=True, slots=True)
class BlockRow:
    """One row of the table.

    Attributes:
        name: as asked for.
        block: its canonical name.
        aliases: the canonical block's other names.
        source: the paper.
        replaces_convolution: the block takes a convolution's place, and its cost is not an added one.
        cost: None where `skipped` says why.
        skipped: why the block was not measured, or empty.
    """

    name: str
    block: str
    aliases: tuple[str, ...]
    source: Source
    replaces_convolution: bool
    cost: Cost | None
    skipped: str


@dataclass(frozen=True, slots=True)
class CostTable:
    """What `measure_blocks` found.

    Attributes:
        setting: what was asked for.
        device: where it ran.
        precision: `bf16` or `fp32`.
        threads: of torch on the CPU.
        versions: of the packages.
        copy_ms: median time, in ms, of reading the map once and writing it to new memory once: the least that any
            gate can take. A forward and backward pass takes at least two of them.
        rows: one per block.
    """

    setting: MapSetting
    device: str
    precision: str
    threads: int
    versions: Mapping[str, str]
    copy_ms: float
    rows: tuple[BlockRow, ...]


@dataclass(slots=True)
class _Candidate:
    block: AttentionBlock
    inference: list[float] = field(default_factory=list)
    training: list[float] = field(default_factory=list)
    kept_bytes: int = 0


def measure_blocks(
    setting: MapSetting, names: Sequence[str] | None = None, *, progress: Progress | None = None
) -> CostTable:
    """Measure attention blocks on one channels-last map of random numbers.

    Every round visits every block and copies the map beside it, so that a drift of the machine meets all alike; the
    first round warms up and does not count.

    Args:
        setting: the map.
        names: keys of `segscse.attention.ATTENTION`; all canonical blocks if not given.
        progress: called with the number of visits done and their total.

    Raises:
        InputError: a name or the device is unknown, or none of the blocks can be measured in this setting.
    """
    chosen = list(dict.fromkeys(names or BLOCKS))
    for name in chosen:
        if name not in ATTENTION:
            raise choose("attention block", name, ATTENTION)
    device = working_device(setting.device)
    precision = pick_precision(setting.precision, device)
    candidates, skipped = _build(chosen, setting, device)
    if not candidates:
        raise InputError("none of the blocks can be measured: " + "; ".join(dict.fromkeys(skipped.values())))
    x = torch.randn(setting.shape, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    x = channels_last(x).requires_grad_()
    upstream = torch.randn_like(x)
    copies = []
    visits = [(number, item) for number in range(setting.repeats + 1) for item in candidates.values()]
    for done, (number, candidate) in enumerate(visits, start=1):
        with autocast(device, precision):
            copy = _visit(candidate, x, upstream, warm_up=number == 0)
        if number:
            copies.append(copy)
        if progress is not None:
            progress(done, len(visits))
    copy_ms = 1000 * statistics.median(copies)
    rows = tuple(_row(name, candidates.get(name), skipped.get(name, ""), copy_ms) for name in chosen)
    return CostTable(setting, device.type, precision, torch.get_num_threads(), versions(), copy_ms, rows)


def saved_bytes(block: nn.Module, x: Tensor) -> int:
    """Return the bytes that autograd keeps for the backward pass of `block(x)`.

    Storages count once, those of `x` and of the parameters not at all. The numbers per sample and channel that the
    kernels of this package note outside of autograd, a few KiB, are not seen.
    """
    kept: weakref.WeakSet[_Kept] = weakref.WeakSet()

    def pack(tensor: Tensor) -> _Kept:
        holder = _Kept(tensor.detach())  # with its graph, a saved result would keep itself alive
        kept.add(holder)
        return holder

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda holder: holder.tensor):
        y = block(x)  # the graph, and with it what it keeps, lives as long as y
        storages = [holder.tensor.untyped_storage() for holder in kept]
    bytes_by_address = {storage.data_ptr(): storage.nbytes() for storage in storages}
    del y
    for tensor in (x, *block.parameters()):
        bytes_by_address.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(bytes_by_address.values())


class _Kept:
    """A saved tensor in an object of its own, which dies with the graph that keeps it."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _build(
    names: Iterable[str], setting: MapSetting, device: torch.device
) -> tuple[dict[str, _Candidate], dict[str, str]]:
    """Return what can be measured, and the reason for what cannot, by name."""
    candidates, skipped = {}, {}
    for name in names:
        try:
            block = build_attention(name, setting.channels, spatial_dims=len(setting.size))
        except InputError as error:
            skipped[name] = error.problem
            continue
        if reason := _too_large(block, setting):
            skipped[name] = reason
            continue
        candidates[name] = _Candidate(block.to(device))
    return candidates, skipped


def _too_large(block: AttentionBlock, setting: MapSetting) -> str:
    """Return why a block would not fit into memory, or nothing."""
    positions = math.prod(setting.size)
    needed = 3 * 4 * setting.batch * positions**2 / GIB  # energies, their softmax and its gradient, in fp32
    if not block.pairs_positions or needed <= setting.memory_gib:
        return ""
    return (
        f"weighs {positions:,} positions against each other, which can take {needed:,.1f} GiB, more than "
        f"--memory-gib {setting.memory_gib:g}"
    )


def _visit(candidate: _Candidate, x: Tensor, upstream: Tensor, *, warm_up: bool) -> float:
    """Time a block once in inference and once in training; return the time of a copy of the map, in s."""
    block = candidate.block
    inputs = [x, *block.parameters()]
    if warm_up:
        candidate.kept_bytes = saved_bytes(block.train(), x)
    with torch.no_grad():
        copy = _seconds(x.clone, x.device)
        block.eval()
        inference = _seconds(lambda: block(x), x.device)
    block.train()
    training = _seconds(lambda: torch.autograd.grad(block(x), inputs, upstream), x.device)
    if not warm_up:
        candidate.inference.append(inference)
        candidate.training.append(training)
    return copy


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    result = work()
    _wait(device)
    seconds = time.perf_counter() - start
    del result  # freeing it is not part of the work
    return seconds


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


def _row(name: str, candidate: _Candidate | None, skipped: str, copy_ms: float) -> BlockRow:
    canonical = ALIASES.get(name, name)
    others = tuple(alias for alias, target in ALIASES.items() if target == canonical)
    replaces = BLOCKS[canonical].kind == "conv"
    cost = None if candidate is None else _cost(candidate, copy_ms)
    return BlockRow(name, canonical, others, SOURCES[canonical], replaces, cost, skipped)


def _cost(candidate: _Candidate, copy_ms: float) -> Cost:
    inference, training = (1000 * statistics.median(times) for times in (candidate.inference, candidate.training))
    return Cost(
        parameters=sum(parameter.numel() for parameter in candidate.block.parameters()),
        inference_ms=inference,
        inference_ratio=inference / copy_ms,
        training_ms=training,
        training_ratio=training / copy_ms,
        kept_bytes=candidate.kept_bytes,
    )
