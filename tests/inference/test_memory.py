import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813, the field's idiom
import torch
from tiny import tiny_config, tiny_plan
from volumes import write_volume

from segscse import limits
from segscse.errors import InputError
from segscse.inference import memory
from segscse.inference.engines import Engine
from segscse.inference.memory import (
    OVERHEAD,
    Estimate,
    ScanSize,
    estimate,
    fit,
    parse_bytes,
    require_room,
    scan_size,
    window_bytes,
)
from segscse.inference.predictor import Predictor
from segscse.inference.room import file_bytes
from segscse.inference.segment import Options
from segscse.nets.build import build_unet, network_arguments

CPU = torch.device("cpu")


def _predictor(network, **changes):
    return Predictor(network, tiny_plan(patch_size=(8, 8, 8), **changes), provenance={}, device=CPU)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4GB", 4 * 10**9), ("512 MB", 512 * 10**6), ("1.5gib", 3 * 2**29), ("2g", 2 * 10**9), ("7", 7), ("3KiB", 3072)],
)
def test_sizes_are_read_in_decimal_and_binary_units(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "4 XB", "four", "0GB", "1e9"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(InputError, match="--memory must be a size such as 4GB"):
        parse_bytes(text)


class TestScanSize:
    def test_is_read_from_headers_in_canonical_order(self, tmp_path):
        affine = np.array([[0, 0, -3.0, 0], [1.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 0, 1]])
        path = write_volume(tmp_path / "a.nii.gz", np.zeros((4, 5, 6), np.int16), affine)
        other = write_volume(tmp_path / "b.nii.gz", np.zeros((4, 5, 6, 2), np.float32), affine)
        assert scan_size([path]) == ScanSize((6, 4, 5), (3.0, 1.0, 2.0), 4)
        assert scan_size([path, other]).itemsize == 4 + 16

    def test_scaled_voxels_are_read_in_64_bits(self, tmp_path):
        image = nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4))
        image.header.set_slope_inter(2.0, 1.0)
        nib.save(image, tmp_path / "a.nii")
        assert scan_size([tmp_path / "a.nii"]).itemsize == 4 + 8

    @pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.nhdr", "a.mhd"])
    def test_is_read_from_text_headers_with_the_geometry_that_itk_reads(self, tmp_path, name):
        image = sitk.GetImageFromArray(np.zeros((6, 5, 4), np.int16))
        image.SetSpacing((1.0, 2.0, 3.0))
        image.SetDirection((0, 0, -1, 1, 0, 0, 0, 1, 0))
        sitk.WriteImage(image, str(tmp_path / name))
        assert scan_size([tmp_path / name]) == ScanSize((6, 4, 5), (3.0, 1.0, 2.0), 4)
        coloured = sitk.GetImageFromArray(np.zeros((6, 5, 4, 3), np.float32), isVector=True)
        sitk.WriteImage(coloured, str(tmp_path / name))
        assert scan_size([tmp_path / name]) == ScanSize((4, 5, 6), (1.0, 1.0, 1.0), 24)

    @pytest.mark.parametrize(("name", "sizes"), [("a.nrrd", b"sizes: "), ("a.mha", b"DimSize = ")])
    def test_is_not_what_a_file_cannot_hold(self, tmp_path, name, sizes):
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros((6, 5, 4), np.uint8)), str(tmp_path / name), True)
        content = (tmp_path / name).read_bytes()
        assert sizes + b"4 5 6" in content
        (tmp_path / name).write_bytes(content.replace(sizes + b"4 5 6", sizes + b"2000 2000 2000"))
        assert scan_size([tmp_path / name]) is None

    def test_is_unknown_where_the_header_does_not_tell(self, tmp_path):
        (tmp_path / "a.nii.gz").write_bytes(b"no image")
        singular = write_volume(tmp_path / "c.nii", np.zeros((4, 4, 4)), np.eye(4), qform=0)
        content = singular.read_bytes()
        singular.write_bytes(content[:280] + bytes(16) + content[296:])  # the first row of the sform
        for name in ("a.nii.gz", "b.nrrd", "c.nii", "d.nii"):
            assert scan_size([tmp_path / name]) is None


def test_the_bytes_of_a_case_are_those_of_its_voxels_wherever_they_lie(tmp_path):
    (tmp_path / "series").mkdir()
    for number in range(3):
        (tmp_path / "series" / f"{number}.dcm").write_bytes(b"\0" * 100)
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((6, 5, 4), np.uint8)), str(tmp_path / "a.mhd"))
    (tmp_path / "b.nii").write_bytes(b"\0" * 7)
    files = [tmp_path / name for name in ("series", "a.mhd", "b.nii", "none.nii")]
    assert [file_bytes([file]) for file in files] == [300, 120, 7, 0]
    assert file_bytes(files) == 427


class Opaque(Engine):
    """An engine whose layers nobody can watch."""

    name, precision, device = "openvino", "fp32", CPU

    def __init__(self, network):
        self._network = network

    def __call__(self, windows):
        return self._network(windows)


class TestWindow:
    def test_counts_tensors_while_they_live(self):
        layers = torch.nn.Sequential(*(torch.nn.Conv3d(a, b, 1) for a, b in ((1, 10), (10, 20), (20, 3))))
        voxel = 8**3 * 4
        expected = OVERHEAD * (10 + 20) * voxel + 3 * 3 * voxel
        # the input lives, too, and each layer's output until the next layer's is there
        assert expected <= window_bytes(_predictor(layers)) <= expected + OVERHEAD * 5 * voxel

    def test_what_cannot_be_seen_is_assumed(self):
        predictor = _predictor(Opaque(torch.nn.Conv3d(1, 3, 1)))
        assert window_bytes(predictor) == (96 + 9) * 8**3 * 4

    def test_a_window_is_counted_as_the_network_runs_it(self):
        """The kernels that a U-Net runs by keep less than its layers one by one, and mirroring makes no difference."""
        network = build_unet(network_arguments(tiny_plan(), tiny_config().model))
        network(torch.zeros(1, 1, 8, 8, 8))  # compiling holds on to tensors in passing
        by_kernels = window_bytes(_predictor(network))
        mirrored = Predictor(network, tiny_plan(patch_size=(8, 8, 8)), provenance={}, device=CPU, mirror=True)
        assert window_bytes(mirrored) == by_kernels
        for module in network.modules():
            module.register_forward_hook(lambda *_: None)
        assert by_kernels < window_bytes(_predictor(network))


class TestEstimate:
    def _made(self, shape, labels=3, batch=2, postprocessing=(), **maps):
        plan = {"labels": tuple((number, f"l{number}") for number in range(labels))}
        predictor = _predictor(torch.nn.Conv3d(1, labels, 1), **plan)
        predictor.postprocessing = postprocessing
        scan = ScanSize(shape, (1.0, 1.0, 1.0), 4)
        options = Options(batch_size=batch, **maps)
        return estimate(scan, [predictor], options, program=100, a_window=1000, overlapped=False)

    def test_the_slab_does_not_grow_with_the_length_of_the_volume(self):
        short, long = self._made((64, 64, 100)), self._made((64, 64, 1000))
        assert short.slab == long.slab == int(1.3 * 9 * 64 * 64 * 4 * 4)
        assert long.labels == 10 * short.labels

    def test_it_grows_with_the_classes_and_the_activations_with_the_batch(self):
        few, many = self._made((64, 64, 100)), self._made((64, 64, 100), labels=41, batch=1)
        assert many.slab == pytest.approx(few.slab * 42 / 4)
        assert (few.activations, many.activations) == (2000, 1000)
        assert few.program == 100

    def test_finding_pieces_takes_memory_for_every_voxel(self):
        plain, pieces = self._made((64, 64, 100)), self._made((64, 64, 100), postprocessing=("largest_component:1",))
        assert pieces.labels - plain.labels == 6 * 64 * 64 * 100

    def test_maps_count_as_far_as_they_are_in_memory(self, monkeypatch):
        voxels = 64 * 64 * 100
        plain, both = self._made((64, 64, 100)), {"probabilities": True, "uncertainty": True}
        assert self._made((64, 64, 100), **both).labels - plain.labels == (3 + 1) * voxels
        monkeypatch.setattr(memory, "MAP_BYTES", 3 * voxels - 1)  # the probabilities are drawn in a file
        assert self._made((64, 64, 100), **both).labels - plain.labels == voxels

    def test_what_is_in_a_gpus_memory_is_not_asked_of_the_machine(self, tmp_path, monkeypatch):
        predictor = _predictor(torch.nn.Conv3d(1, 3, 1))
        values = {"program": 1, "reading": 10**6, "image": 10**6, "slab": 10**10, "activations": 10**10, "labels": 0}
        found = Estimate(**values, batch_size=1, overlapped=False)
        monkeypatch.setattr(limits, "memory", lambda: limits.Memory(10**9, 10**8, 0, "machine"))
        with pytest.raises(InputError, match="the largest case takes about 20"):
            require_room(found, [], [predictor], Options(), tmp_path, fitting=lambda limit: None)
        predictor.device = torch.device("cuda")
        assert require_room(found, [], [predictor], Options(), tmp_path, fitting=lambda limit: None) == []

    def test_overlapping_adds_a_case_to_read_and_one_to_write(self):
        values = {"program": 1, "reading": 20, "image": 300, "slab": 4000, "activations": 50_000, "labels": 600_000}
        alone = Estimate(**values, batch_size=1, overlapped=False)
        beside = Estimate(**values, batch_size=1, overlapped=True)
        assert alone.total == 1 + 300 + 4000 + 50_000 + 600_000
        assert beside.total == alone.total + 20 + 300 + 600_000
        values |= {"reading": 10**9, "slab": 2 * 10**8}
        large = Estimate(**values, batch_size=1, overlapped=False)
        assert large.total == 1 + 10**9 + 300  # nothing else is there while a single case is read
        assert "1.00 GB" in str(large)
        assert "slab 0.20 GB" in str(large)


class TestFit:
    @staticmethod
    def _make(batch, overlapped):
        return Estimate(0, 0, 0, 0, 100 * batch, 50 if overlapped else 0, batch_size=batch, overlapped=overlapped)

    @pytest.mark.parametrize(
        ("limit", "batch", "overlapped"),
        [(None, 8, True), (900, 8, True), (899, 4, True), (200, 1, True), (199, 1, False), (100, 1, False)],
    )
    def test_gives_up_batch_before_overlap(self, limit, batch, overlapped):
        found = fit(self._make, 8, limit, several=True)
        assert (found.batch_size, found.overlapped) == (batch, overlapped)

    def test_a_single_case_overlaps_with_none(self):
        assert not fit(self._make, 2, None, several=False).overlapped

    def test_what_cannot_fit_is_refused_with_the_smallest_that_works(self):
        with pytest.raises(InputError, match=r"--memory 0 MB is too little.*Give at least --memory 0.1GB"):
            fit(self._make, 8, 99, several=True)
