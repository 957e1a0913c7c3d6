import pytest
import torch

from segscse.config import AugmentConfig
from segscse.data.augment import augment_batch
from segscse.data.datamodule import SegDataModule
from segscse.data.index import open_dataset
from segscse.data.sampling import PatchSampler
from segscse.data.store import CaseStore
from segscse.ranks import Group, Ranks

AUGMENT = AugmentConfig(spatial_p=0.8, noise_p=0.8)


@pytest.fixture
def sampler(tmp_path, tiny_dataset, build_plan):
    cases = open_dataset(tiny_dataset).cases
    store = CaseStore(cases, build_plan(), tmp_path, 1.0)
    return PatchSampler(store, tuple(case.id for case in cases[:4]), build_plan(), (10, 10, 10), 0.5, 11)


class Round:
    """Stops the stream after some batches, as the clock of a run does."""

    def __init__(self, start, batches):
        self.first, self.left = start, batches

    def start(self):
        return self.first

    def stop(self):
        self.left -= 1
        return self.left <= 0


def _module(sampler, start=0, batches=3):
    rounds = Round(start, batches)
    return SegDataModule(sampler, ("case_4", "case_5"), AUGMENT, rounds.start, rounds.stop)


def test_training_goes_on_at_the_next_step_until_it_is_stopped(sampler):
    batches = list(_module(sampler, start=7).train_dataloader())
    assert [batch["step"] for batch in batches] == [7, 8, 9]
    for batch in batches:
        expected = sampler.batch(batch["step"])
        assert torch.equal(batch["image"], expected["image"])
        assert torch.equal(batch["label"], expected["label"])


def test_a_round_has_at_least_one_batch(sampler):
    assert [batch["step"] for batch in _module(sampler, start=4, batches=0).train_dataloader()] == [4]


def test_validation_gives_whole_cases(sampler):
    volumes = list(_module(sampler).val_dataloader())
    assert [volume["case"] for volume in volumes] == ["case_4", "case_5"]
    for volume in volumes:
        assert torch.equal(volume["image"], sampler.store[volume["case"]].image)
        assert torch.equal(volume["label"], sampler.store[volume["case"]].label)


def test_cases_that_a_validation_leaves_out_are_empty_items(sampler):
    module = SegDataModule(sampler, ("case_4", "case_5"), AUGMENT, lambda: 0, lambda: True, lambda: ["case_5"])
    first, second = module.val_dataloader()
    assert first == {}
    assert second["case"] == "case_5"


def test_training_batches_are_augmented_as_seed_and_step_say(sampler):
    module = _module(sampler)
    batch = {**sampler.batch(5), "step": 5}
    first, again = (module.on_after_batch_transfer(dict(batch), 0) for _ in range(2))
    assert first["image"].shape == (2, 1, 8, 8, 8)
    assert torch.equal(first["image"], again["image"])
    assert torch.equal(first["label"], again["label"])
    draws = sampler.augmentation(5)
    image, label = augment_batch(batch["image"], batch["label"], sampler.plan, AUGMENT, draws)
    assert torch.equal(first["image"], image)
    assert torch.equal(first["label"], label)
    assert not torch.equal(module.on_after_batch_transfer({**batch, "step": 6}, 0)["image"], first["image"])


def test_another_seed_augments_otherwise(sampler):
    other = PatchSampler(sampler.store, sampler.cases, sampler.plan, sampler.cut_size, 0.5, 12)
    batch = {**sampler.batch(5), "step": 5}
    images = [_module(source).on_after_batch_transfer(dict(batch), 0)["image"] for source in (sampler, other)]
    assert not torch.equal(*images)


def test_the_parts_of_two_processes_are_the_batch_of_one(sampler):
    whole = _loaded(sampler, Group(Ranks()))
    parts = [_loaded(sampler, Group(Ranks(rank, 2, rank, 2))) for rank in range(2)]
    for key in ("image", "label"):
        for step in range(3):
            together = torch.stack([part[step][key] for part in parts], dim=1).flatten(0, 1)  # dealt like cards
            assert torch.equal(together, whole[step][key])


def _loaded(sampler, group):
    rounds = Round(0, 3)
    module = SegDataModule(sampler, [], AUGMENT, rounds.start, rounds.stop, group=group)
    return [module.on_after_batch_transfer(batch, 0) for batch in module.train_dataloader()]


def test_a_process_without_validation_cases_has_one_empty_item(sampler):
    rounds = Round(0, 1)
    module = SegDataModule(sampler, [], AUGMENT, rounds.start, rounds.stop)
    assert list(module.val_dataloader()) == [{}]
    assert module.on_after_batch_transfer({}, 0) == {}


def test_the_largest_seed_works(sampler):
    large = PatchSampler(sampler.store, sampler.cases, sampler.plan, sampler.cut_size, 0.5, 2**31 - 1)
    batch = {**large.batch(0), "step": 0}
    assert _module(large).on_after_batch_transfer(batch, 0)["image"].shape == (2, 1, 8, 8, 8)


def test_validation_volumes_are_not_augmented(sampler):
    module = _module(sampler)
    volume = next(iter(module.val_dataloader()))
    assert module.on_after_batch_transfer(volume, 0) is volume
