from dataclasses import replace
from math import prod

import pytest
import torch
from tiny import tiny_config, tiny_plan, tiny_plan_2d, trained  # noqa: F401, a fixture

from segscse import limits
from segscse.errors import InputError
from segscse.hardware import autocast
from segscse.kernels.parts import counting
from segscse.limits import Disk, Memory
from segscse.nets.build import build_unet, network_arguments
from segscse.nets.dims import channels_last, network_to_channels_last
from segscse.training import memory
from segscse.training.losses import deep_supervision_loss
from segscse.training.memory import (
    DiskNeed,
    Kept,
    build_probe,
    case_bytes,
    checkpoint_bytes,
    estimate_training,
    kept_in_memory,
    require_room,
    run_disk_bytes,
    smaller_settings,
)

# The fixture comes by import, so every test that takes it looks like a redefinition.
# ruff: noqa: F811

CPU = torch.device("cpu")
KEPT = Kept(fixed=10**6, a_voxel=500.0)


def _network(plan, config):
    network = build_unet(network_arguments(plan, config.model))
    return network_to_channels_last(network, plan.spatial_dims).train()


def _really_kept(network, plan, precision):
    """Bytes of the tensors that autograd keeps of a pass with the kernels themselves, at the plan's full size."""
    x = channels_last(torch.randn((plan.batch_size, len(plan.channels), *plan.patch_size)))
    target = torch.randint(3, (plan.batch_size, *plan.patch_size), dtype=torch.uint8)
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda item: item), autocast(CPU, precision):
        loss = deep_supervision_loss(network(x), target)
    own = {weight.untyped_storage().data_ptr() for weight in network.parameters()}
    size = sum(item.untyped_storage().nbytes() for address, item in kept.items() if address not in own)
    del loss
    return size


class TestKept:
    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    @pytest.mark.parametrize("block", ["plain", "residual"])
    @pytest.mark.parametrize("batch", [1, 3])
    @pytest.mark.parametrize("make", [tiny_plan, tiny_plan_2d])
    def test_at_the_smallest_patch_tells_what_is_kept_at_the_full_one(self, make, batch, block, precision):
        size = (32, 48, 24) if make is tiny_plan else (96, 64)
        plan = make(patch_size=size, batch_size=batch)
        config = tiny_config(model={"block": block})
        kept, n_weights = build_probe(plan, config, precision)
        network = _network(plan, config)
        assert n_weights == sum(weight.numel() for weight in network.parameters())
        found = kept.fixed + kept.a_voxel * plan.batch_size * prod(size)
        assert found == pytest.approx(_really_kept(network, plan, precision), rel=0.03)

    def test_leaves_the_random_state_alone(self):
        before = torch.get_rng_state()
        build_probe(tiny_plan(), tiny_config(), "fp32")
        assert torch.equal(torch.get_rng_state(), before)

    def test_is_counted_without_computing(self):
        network = _network(tiny_plan(), tiny_config())
        x = channels_last(torch.randn(2, 1, 16, 16, 8))
        with counting():
            assert torch.equal(network(x)[0], network(x.square())[0])
        assert not torch.equal(network(x)[0], network(x.square())[0])


class TestEstimate:
    @pytest.fixture
    def planned(self, trained):
        return trained.planned

    def _estimate(self, trained, **sections):
        config = tiny_config(**sections)
        return estimate_training(trained.planned, trained.split, config, KEPT, 1000)

    def test_counts_every_copy_of_a_weight(self, trained):
        assert self._estimate(trained).weights == 4 * 1000 * 4  # itself, gradient, average, momentum
        assert self._estimate(trained, optim={"name": "adamw", "average": "none"}).weights == 4 * 1000 * 4

    def test_keeps_cases_up_to_the_limit(self, trained):
        voxels = sum(prod(shape) for shape in trained.planned.fingerprint.shapes)
        assert self._estimate(trained).cases == 5 * voxels
        assert self._estimate(trained, data={"cache_gb": 0.0}).cases == 0
        assert kept_in_memory([3, 4, 2], 6e-9) == 5

    def test_a_step_grows_with_the_batch(self, trained, planned):
        larger = replace(planned, plan=replace(planned.plan, batch_size=20))
        config = tiny_config()
        one, ten = (estimate_training(item, trained.split, config, KEPT, 1000) for item in (planned, larger))
        assert ten.batch == 10 * one.batch
        assert ten.step == pytest.approx(10 * one.step - 9 * memory.OVERHEAD * KEPT.fixed)

    def test_the_total_is_the_worst_moment(self, trained):
        found = self._estimate(trained)
        assert found.total >= found.cases + found.weights + found.step + found.batch
        reading = replace(found, reading=10**9)
        assert reading.total == found.total - found.weights - found.step - found.batch + 10**9
        assert found.least < found.total < found.likely
        assert str(found).startswith(limits.size_text(found.total))

    def test_a_case_has_a_label_of_one_or_two_bytes(self):
        plan = tiny_plan()
        assert case_bytes(plan, (2, 3, 4)) == 24 * 5
        many = replace(plan, labels=tuple((number, str(number)) for number in range(300)))
        assert case_bytes(many, (2, 3, 4)) == 24 * 6


class TestDisk:
    def test_a_checkpoint_has_the_size_that_is_expected(self, trained):
        _, n_weights = build_probe(trained.planned.plan, tiny_config(), "fp32")
        size = (trained.folder / "checkpoints" / "last.ckpt").stat().st_size
        expected = checkpoint_bytes(tiny_config(), n_weights)
        assert expected <= size < expected + 150_000  # names of tensors and Lightning's states

    def test_a_run_takes_no_more_than_is_expected(self, trained):
        _, n_weights = build_probe(trained.planned.plan, tiny_config(), "fp32")
        need = run_disk_bytes(trained.planned, trained.split, tiny_config(), n_weights)
        assert need.cases == 0
        assert need.checkpoints <= sum(file.stat().st_size for file in trained.folder.rglob("*.*")) <= need.rest

    def test_cases_that_memory_does_not_hold_go_to_the_disk(self, trained):
        config = tiny_config(data={"cache_gb": 0.0})
        need = run_disk_bytes(trained.planned, trained.split, config, 0)
        assert need.cases == estimate_training(trained.planned, trained.split, tiny_config(), KEPT, 0).cases


class TestSmallerSettings:
    def _settings(self, trained, room, **sections):
        config = tiny_config(**sections)
        return smaller_settings(trained.planned, trained.split, config, KEPT, 1000, int(room))

    def _total(self, trained, plan=None, **sections):
        planned = trained.planned if plan is None else replace(trained.planned, plan=plan)
        return estimate_training(planned, trained.split, tiny_config(**sections), KEPT, 1000).total

    def test_first_fewer_cases_in_memory(self, trained, monkeypatch):
        monkeypatch.setattr(memory, "case_bytes", lambda plan, shape: 10**9)
        without = self._total(trained, data={"cache_gb": 0.0})
        said = self._settings(trained, memory.MOST * (without + 2.55e9))
        assert said == "Give --data.cache-gb 2.5"
        assert self._total(trained, data={"cache_gb": 2.5}) <= without + 2.55e9

    def test_then_a_smaller_batch(self, trained):
        plan = replace(trained.planned.plan, batch_size=1)
        room = memory.MOST * self._total(trained, plan) + 1
        assert self._settings(trained, room) == "Give --data.batch-size 1"

    def test_then_a_smaller_patch(self, trained):
        config, kept = tiny_config(data={"max_patch_voxels": 16384, "cache_gb": 0.0}), Kept(10**6, 50_000.0)
        plan = replace(trained.planned.plan, patch_size=(32, 32, 16), batch_size=1)
        planned = replace(trained.planned, plan=replace(plan, batch_size=2))
        large = estimate_training(replace(planned, plan=plan), trained.split, config, kept, 1000).total
        said = smaller_settings(planned, trained.split, config, kept, 1000, int(memory.MOST * large * 0.98))
        assert said == "Give --data.batch-size 1 --data.max-patch-voxels 8192"

    def test_or_nothing_helps(self, trained):
        assert self._settings(trained, 1).startswith("Free memory")


class TestRequireRoom:
    def _room(self, trained, folder, **options):
        config = tiny_config()
        return require_room(trained.planned, trained.split, config, CPU, "fp32", folder, **options)

    def test_runs_beside_each_other_have_a_part_of_the_memory_each(self, trained, tmp_path, monkeypatch):
        monkeypatch.setattr(limits, "memory", lambda: Memory(10**9, 900 * 10**6, 0, "machine"))
        assert self._room(trained, tmp_path / "run", beside=3) == []
        (warning,) = self._room(trained, tmp_path / "run", beside=4)
        assert "0.25 GB can be had" in warning

    def test_says_nothing_where_all_fits(self, trained, tmp_path):
        assert self._room(trained, tmp_path / "run") == []

    def test_warns_where_it_may_not_fit(self, trained, tmp_path, monkeypatch):
        monkeypatch.setattr(limits, "memory", lambda: Memory(10**9, 215 * 10**6, 0, "machine"))
        (warning,) = self._room(trained, tmp_path / "run")
        assert warning.startswith("training takes about")

    @pytest.mark.parametrize(
        ("validation", "remedy"),
        [(10**6, "a smaller --data.batch-size or --data.max-patch-voxels"), (10**10, "a coarser --data.spacing-mm")],
    )
    def test_warns_where_a_gpu_has_too_little_free(self, validation, remedy, trained, tmp_path, monkeypatch):
        config = tiny_config()
        own = estimate_training(trained.planned, trained.split, config, KEPT, 1000)
        found = replace(own, weights=10**9, step=10**9, batch=10**8, validation=validation)
        monkeypatch.setattr(memory, "estimate_training", lambda *_: found)
        monkeypatch.setattr(limits, "memory", lambda: Memory(10**12, 10**12, 0, "machine"))
        told = []
        for free in (8 * 10**10, 10**9):
            monkeypatch.setattr(torch.cuda, "mem_get_info", lambda free=free: (free, 10**11))
            gpu = torch.device("cuda")
            told.append(require_room(trained.planned, trained.split, config, gpu, "fp32", tmp_path / "run"))
        assert told[0] == []
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (16 * 10**8, 10**11))
        many = require_room(trained.planned, trained.split, config, gpu, "fp32", tmp_path / "run", processes=2)
        assert bool(many) is (validation > 10**8)  # each process takes half of a step
        assert f"of the GPU's memory, and 1.00 GB are free: it may end for lack of it. Give {remedy}" in told[1][0]

    def test_every_fold_needs_its_disk(self, trained, tmp_path, monkeypatch):
        monkeypatch.setattr(limits, "disk_at", lambda path: Disk(tmp_path, 20 * 10**6, True))
        assert self._room(trained, tmp_path / "run") == []
        (warning,) = self._room(trained, tmp_path / "run", runs=5)
        assert "the run takes about" in warning

    def test_what_is_in_the_folder_counts(self, trained, tmp_path, monkeypatch):
        monkeypatch.setattr(limits, "disk_at", lambda path: Disk(tmp_path, 5 * 10**6, True))
        assert len(self._room(trained, tmp_path / "run")) == 1
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "last.ckpt").write_bytes(bytes(10**7))
        assert self._room(trained, tmp_path / "run") == []

    def test_cases_that_runs_share_count_once_and_not_where_they_are_already(self, trained, tmp_path, monkeypatch):
        monkeypatch.setattr(memory, "run_disk_bytes", lambda *args: DiskNeed(cases=10**9, rest=0, checkpoints=0))
        monkeypatch.setattr(limits, "disk_at", lambda path: Disk(tmp_path, 10**9 + 1, True))
        assert self._room(trained, tmp_path / "cv" / "fold0", cache=tmp_path / "cv" / "cache", runs=5) == []
        monkeypatch.setattr(limits, "disk_at", lambda path: Disk(tmp_path, 1, True))
        n_cases = len(trained.planned.index.cases)
        monkeypatch.setattr(memory, "_bytes_in", lambda folder: 10**9 / n_cases if folder.parent.name == "cache" else 0)
        assert self._room(trained, tmp_path / "cv" / "fold1", cache=tmp_path / "cv" / "cache", runs=4) == []

    def test_a_file_in_place_of_the_folder_is_refused(self, trained, tmp_path):
        (tmp_path / "run").write_text("")
        with pytest.raises(InputError, match="is not a folder"):
            self._room(trained, tmp_path / "run" / "fold0")
