"""SegDataModule: patches for training, whole volumes for validation, augmentation on the training device."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from segscse.config import AugmentConfig
from segscse.data.augment import augment_batch
from segscse.data.prefetch import prefetched
from segscse.data.sampling import PatchSampler
from segscse.ranks import ALONE, Group


class PatchStream(IterableDataset):
    """Batches from step `start()` on, until `stop()`: one round of training between two validations.

    Processes that share a batch get their parts of it. Lightning fetches a batch ahead, so a round ends one step after
    `stop()` turned true. A round has at least one batch: so a run that was interrupted between those two steps goes on
    as if it had not been.
    """

    def __init__(
        self, sampler: PatchSampler, start: Callable[[], int], stop: Callable[[], bool], group: Group = ALONE
    ) -> None:
        super().__init__()
        self.group = group
        self.sampler = sampler
        self.start = start
        self.stop = stop

    def __iter__(self) -> Iterator[dict[str, Any]]:
        step = self.start()
        part = (self.group.rank, self.group.world)
        with closing(prefetched(lambda number: self.sampler.batch(number, *part), step)) as batches:
            for batch in batches:
                yield {**batch, "step": step}
                step += 1
                if self.stop():
                    return


class VolumeDataset(Dataset):
    """Whole preprocessed cases, `{"image": (C, X, Y, Z), "label": (X, Y, Z), "case": id}`.

    Those that this validation leaves out are empty items. Without any case it holds one empty item, because Lightning
    skips the validation of a process that has nothing to do, and the others would wait for it.
    """

    def __init__(self, sampler: PatchSampler, cases: Sequence[str], taken: Callable[[], Collection[str]]) -> None:
        self.store = sampler.store
        self.cases = cases
        self.taken = taken

    def __len__(self) -> int:
        return max(1, len(self.cases))

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not self.cases or self.cases[index] not in self.taken():
            return {}
        case = self.store[self.cases[index]]
        return {"image": case.image, "label": case.label, "case": case.id}


class SegDataModule(pl.LightningDataModule):
    """Data of a run.

    Batches are made by a thread of the training process, ahead of the step that uses them: a process would only have to
    send them.

    Args:
        sampler: cuts the patches.
        validation: case ids that this process validates on.
        augment: what to change at random.
        start: number of the next step.
        stop: whether the round is over.
        taken: the validation cases that the next validation takes; all if not given.
        group: the processes that share the batches.
    """

    def __init__(
        self,
        sampler: PatchSampler,
        validation: Sequence[str],
        augment: AugmentConfig,
        start: Callable[[], int],
        stop: Callable[[], bool],
        taken: Callable[[], Collection[str]] | None = None,
        group: Group = ALONE,
    ) -> None:
        super().__init__()
        self.sampler = sampler
        self.taken = taken or (lambda: validation)
        self.validation = validation
        self.augment = augment
        self.group = group
        self.stream = PatchStream(sampler, start, stop, group)

    def train_dataloader(self) -> DataLoader:
        """Return the stream of cut batches."""
        # A loader draws a seed whenever it starts; with a generator of its own it leaves the global one alone.
        return DataLoader(self.stream, batch_size=None, generator=torch.Generator())

    def val_dataloader(self) -> DataLoader:
        """Return the validation volumes, one at a time."""
        volumes = VolumeDataset(self.sampler, self.validation, self.taken)
        return DataLoader(volumes, batch_size=None, generator=torch.Generator())

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Augment training batches where they now are; the changes of a patch depend on seed, step and its number."""
        if "step" not in batch:
            return batch
        draws = self.sampler.augmentation(int(batch["step"]), self.group.rank, self.group.world)
        image, label = augment_batch(batch["image"], batch["label"], self.sampler.plan, self.augment, draws)
        return {"image": image, "label": label, "cases": batch["cases"]}
