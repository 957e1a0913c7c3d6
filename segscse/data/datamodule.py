"""SegDataModule: patches for training, whole volumes for validation, augmentation on the training device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from segscse.config import AugmentConfig
from segscse.data.augment import augment_batch
from segscse.data.prefetch import prefetched
from segscse.data.sampling import PatchSampler


class PatchStream(IterableDataset):
    """Batches from step `start()` on, until `stop()`: one round of training between two validations.

    Lightning fetches a batch ahead, so a round ends one step after `stop()` turned true. A round has at least one
    batch: so a run that was interrupted between those two steps goes on as if it had not been.
    """

    def __init__(self, sampler: PatchSampler, start: Callable[[], int], stop: Callable[[], bool]) -> None:
        super().__init__()
        self.sampler = sampler
        self.start = start
        self.stop = stop

    def __iter__(self) -> Iterator[dict[str, Any]]:
        step = self.start()
        with closing(prefetched(self.sampler.batch, step)) as batches:
            for batch in batches:
                yield {**batch, "step": step}
                step += 1
                if self.stop():
                    return


class VolumeDataset(Dataset):
    """Whole preprocessed cases, `{"image": (C, X, Y, Z), "label": (X, Y, Z), "case": id}`."""

    def __init__(self, sampler: PatchSampler, cases: tuple[str, ...]) -> None:
        self.store = sampler.store
        self.cases = cases

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> dict[str, Any]:
        case = self.store[self.cases[index]]
        return {"image": case.image, "label": case.label, "case": case.id}


class SegDataModule(pl.LightningDataModule):
    """Data of a run.

    Batches are made by a thread of the training process, ahead of the step that uses them: a process would only have to
    send them.

    Args:
        sampler: cuts the patches.
        validation: case ids to validate on.
        augment: what to change at random.
        start: number of the next step.
        stop: whether the round is over.
    """

    def __init__(
        self,
        sampler: PatchSampler,
        validation: tuple[str, ...],
        augment: AugmentConfig,
        start: Callable[[], int],
        stop: Callable[[], bool],
    ) -> None:
        super().__init__()
        self.sampler = sampler
        self.validation = validation
        self.augment = augment
        self.stream = PatchStream(sampler, start, stop)

    def train_dataloader(self) -> DataLoader:
        """Return the stream of cut batches."""
        return DataLoader(self.stream, batch_size=None)

    def val_dataloader(self) -> DataLoader:
        """Return the validation volumes, one at a time."""
        return DataLoader(VolumeDataset(self.sampler, self.validation), batch_size=None)

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Augment training batches where they now are; the changes depend on seed and step alone."""
        if "step" not in batch:
            return batch
        generator = torch.Generator(batch["image"].device)
        generator.manual_seed((self.sampler.seed << 32) + int(batch["step"]))
        image, label = augment_batch(batch["image"], batch["label"], self.sampler.plan, self.augment, generator)
        return {"image": image, "label": label}
