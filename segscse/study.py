"""What an ablation consists of: its runs, in order, where they lie, and which process does which."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from segscse.config import ExperimentConfig, to_builtin
from segscse.nets.unet import POSITIONS

OUTCOME = "outcome.json"  # in the folder of a finished run


@dataclass(frozen=True, slots=True)
class Study:
    """An ablation, decided: its variants in order, folds, number of seeds, and what all runs share."""

    folder: Path
    attention: tuple[str, ...]
    folds: tuple[int, ...]
    seeds: int
    config: ExperimentConfig

    @property
    def rounds(self) -> list[tuple[int, int]]:
        """The pairs of seed and fold, in order: all folds of the first seed, then those of the next."""
        first = self.config.train.seed
        return [(seed, fold) for seed in range(first, first + self.seeds) for fold in self.folds]

    @property
    def runs(self) -> list[tuple[str, int, int]]:
        """Variant, seed and fold of every run, in order."""
        return [(variant, *round_) for round_ in self.rounds for variant in self.attention]

    @property
    def length(self) -> str:
        """The length of a run, in words."""
        train = self.config.train
        return train.budget if train.max_steps is None else f"{train.max_steps} steps"

    def config_of(self, variant: str, seed: int | None = None) -> ExperimentConfig:
        """Return the configuration of a variant's runs: its attention wherever the study's own has any."""
        config, attention = self.config, self.config.model.attention
        placed: dict[str, Any] = dict.fromkeys(self.places, variant)
        model = replace(config.model, attention=replace(attention, **placed))
        return replace(config, model=model, train=config.train if seed is None else replace(config.train, seed=seed))

    @property
    def places(self) -> list[str]:
        """The positions of the network where the configuration has attention."""
        return [place for place in POSITIONS if getattr(self.config.model.attention, place) != "none"]

    def settings(self, fingerprint: str) -> dict[str, Any]:
        """Return what resuming needs: everything but the folder, and the data set's fingerprint."""
        return {
            "attention": list(self.attention),
            "folds": list(self.folds),
            "seeds": self.seeds,
            "fingerprint": fingerprint,
            "config": to_builtin(asdict(self.config)),
        }

    def run_folder(self, variant: str, seed: int, fold: int) -> Path:
        """Return the folder of a run."""
        return self.variant_folder(variant) / f"seed{seed}_fold{fold}"

    def variant_folder(self, variant: str) -> Path:
        """Return the folder of a variant's runs; what no folder's name can have everywhere becomes `_`."""
        return self.folder / re.sub(r"[^\w.-]", "_", variant)

    def finished(self, variant: str, seed: int, fold: int) -> bool:
        """Return whether a run is trained, validated and recorded."""
        return (self.run_folder(variant, seed, fold) / OUTCOME).is_file()

    def parts(self, world: int) -> list[list[int]]:
        """Return for each of several processes the numbers of its runs, from 1; one alone goes through all.

        Where the variants can be dealt out evenly they move on by one process a round: a slow machine must not be that
        of one variant.
        """
        numbers = range(1, 1 + len(self.runs))
        left = numbers if world == 1 else [number for number in numbers if not self.finished(*self.runs[number - 1])]
        parts: list[list[int]] = [[] for _ in range(world)]
        for place, number in enumerate(left):
            moved = place // len(self.attention) if len(self.attention) % world == 0 else 0
            parts[(place + moved) % world].append(number)
        return parts

    def whole_rounds(self) -> int:
        """Return how many rounds, from the first, all variants have finished."""
        unfinished = [run for run in self.runs if not self.finished(*run)]
        return self.rounds.index(unfinished[0][1:]) if unfinished else len(self.rounds)
