import gzip
import time
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813, the field's idiom

from segscse.data import container
from segscse.data.io import (
    Volume,
    read_image,
    read_labels,
)
from segscse.errors import InputError

AFFINE = np.array([[-0.7, 0.1, 0, 31.5], [0.1, 0.7, 0, -20.25], [0, 0, 2.5, 7], [0, 0, 0, 1]])


def _ramp(shape=(5, 6, 7), dtype=np.float32):
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


class TestDamagedFiles:
    @pytest.fixture
    def whole(self, tmp_path, make_volume):
        noise = np.random.default_rng(0).normal(size=(12, 12, 12)).astype(np.float32)
        return {suffix: make_volume(tmp_path / f"whole{suffix}", noise) for suffix in (".nii", ".nii.gz")}

    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    @pytest.mark.parametrize("keep", ["half", "header", "all but 8 bytes", "all but 1 byte"])
    def test_a_file_that_is_cut_short_is_refused(self, tmp_path, whole, suffix, keep):
        content = whole[suffix].read_bytes()
        size = {"half": len(content) // 2, "header": 200, "all but 8 bytes": len(content) - 8}
        (tmp_path / f"a{suffix}").write_bytes(content[: size.get(keep, len(content) - 1)])
        with pytest.raises(InputError, match=rf"a{suffix}: .*(cut short|cannot be read|not a NIfTI)"):
            read_image(tmp_path / f"a{suffix}")

    def test_a_wrong_checksum_is_refused(self, tmp_path, whole):
        content = bytearray(whole[".nii.gz"].read_bytes())
        content[-6] ^= 0xFF
        (tmp_path / "a.nii.gz").write_bytes(content)
        with pytest.raises(InputError, match="CRC check failed"):
            read_image(tmp_path / "a.nii.gz")

    def test_no_flipped_bit_of_a_compressed_file_changes_the_result(self, tmp_path, whole):
        content = whole[".nii.gz"].read_bytes()
        expected = read_image(whole[".nii.gz"])
        rng = np.random.default_rng(1)
        refused = 0
        for position in rng.integers(0, len(content), 60):
            damaged = bytearray(content)
            damaged[position] ^= 1 << rng.integers(8)
            (tmp_path / "a.nii.gz").write_bytes(damaged)
            try:
                volume = read_image(tmp_path / "a.nii.gz")
            except InputError:
                refused += 1
                continue
            np.testing.assert_array_equal(volume.array, expected.array)
        assert refused > 50

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            (b"", "is empty"),
            (b"<!DOCTYPE html><html><body>404 not found</body></html>" * 20, "is not a NIfTI image"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "is a git-lfs pointer, not an"),
            (b"../../.git/annex/objects/xx/SHA256E-s9", "is a git-annex pointer, not an"),
            (b"\x00" * 348, "is not a NIfTI image"),
        ],
    )
    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    def test_what_is_no_image_is_named(self, tmp_path, content, problem, suffix):
        (tmp_path / f"a{suffix}").write_bytes(content)
        with pytest.raises(InputError, match=problem):
            read_image(tmp_path / f"a{suffix}")

    def test_a_web_page_in_a_gzip_stream_is_named(self, tmp_path):
        (tmp_path / "a.nii.gz").write_bytes(gzip.compress(b"<html>" * 200))
        with pytest.raises(InputError, match="is not a NIfTI image"):
            read_image(tmp_path / "a.nii.gz")

    def test_a_plain_file_named_gz_is_read(self, tmp_path, whole):
        (tmp_path / "a.nii.gz").write_bytes(whole[".nii"].read_bytes())
        np.testing.assert_array_equal(read_image(tmp_path / "a.nii.gz").array, read_image(whole[".nii"]).array)

    def test_a_gzip_file_of_two_members_is_read_to_its_end(self, tmp_path, whole):
        content = whole[".nii"].read_bytes()
        (tmp_path / "a.nii.gz").write_bytes(gzip.compress(content[:500]) + gzip.compress(content[500:]))
        np.testing.assert_array_equal(read_image(tmp_path / "a.nii.gz").array, read_image(whole[".nii"]).array)

    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    def test_a_header_of_32767_cubed_with_a_tiny_payload_is_refused_at_once(self, tmp_path, suffix):
        header = nib.Nifti1Header()
        header.set_data_dtype(np.float32)
        header["dim"] = [3, 32767, 32767, 32767, 1, 1, 1, 1]
        header["magic"] = b"n+1"
        header["vox_offset"] = 352
        content = header.binaryblock + b"\0" * 1000
        (tmp_path / f"a{suffix}").write_bytes(content if suffix == ".nii" else gzip.compress(content))
        tracemalloc.start()
        start = time.perf_counter()
        with pytest.raises(InputError, match=r"header announces 14072460384\d{4} bytes"):
            read_image(tmp_path / f"a{suffix}")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert time.perf_counter() - start < 10  # reading what the header announces would take hours
        assert peak < 50e6

    @pytest.mark.parametrize("size", [0, -3])
    def test_an_axis_without_voxels_is_refused(self, tmp_path, make_volume, size):
        path = make_volume(tmp_path / "a.nii", _ramp())
        content = bytearray(path.read_bytes())
        content[42:44] = np.array(size, "<i2").tobytes()
        path.write_bytes(content)
        with pytest.raises(InputError, match="has no voxels"):
            read_image(path)

    def test_a_stream_that_unpacks_without_end_is_stopped(self, tmp_path, make_volume, monkeypatch):
        monkeypatch.setattr(container, "MAX_BYTES", 2**22)
        header = make_volume(tmp_path / "a.nii", _ramp()).read_bytes()[:352]
        (tmp_path / "a.nii.gz").write_bytes(gzip.compress(b"\0" * 4 + header[4:] + b"\0" * 2**24))
        with pytest.raises(InputError, match="unpacks to more than 0 GiB"):
            read_image(tmp_path / "a.nii.gz")

    @pytest.mark.parametrize(("suffix", "problem"), [(".nii.gz", "is not a NIfTI image"), (".mgz", "unpacks to more")])
    def test_a_stream_without_a_header_is_hardly_unpacked(self, tmp_path, suffix, problem):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(gzip.compress(b"\0" * 2**26))
        tracemalloc.start()
        with pytest.raises(InputError, match=problem):
            read_image(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 20e6

    def test_missing_files_folders_and_other_kinds_are_named(self, tmp_path):
        (tmp_path / "b.nii").mkdir()
        for name, problem in (
            ("a.nii", "no such file"),
            ("b.nii", "holds no DICOM files"),
            ("a.dcm", "is not an image"),
        ):
            with pytest.raises(InputError, match=problem):
                read_image(tmp_path / name)

    @pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:Extension size:UserWarning")
    def test_random_header_bytes_give_a_volume_or_an_input_error(self, tmp_path):
        rng = np.random.default_rng(2)
        image = nib.Nifti1Image(_ramp(dtype=np.int16), AFFINE)
        image.header.extensions.append(nib.nifti1.Nifti1Extension(2, b"\x08\x00\x05\x00no dicom"))
        image.header.extensions.append(nib.nifti1.Nifti1Extension(32, b"<CIFTI><broken"))
        contents = {
            "a.nii": image.to_bytes(),
            "b.nii": nib.Nifti2Image(_ramp(dtype=np.int16), AFFINE).to_bytes(),
            "c.mgh": nib.MGHImage(_ramp(), AFFINE).to_bytes(),
        }
        outcomes = set()
        for _ in range(300):
            for name, content in contents.items():
                damaged = bytearray(content)
                for _ in range(rng.integers(1, 9)):
                    damaged[rng.integers(540 if name != "c.mgh" else 90)] = rng.choice([0, 127, 128, 255])
                (tmp_path / name).write_bytes(damaged)
                try:
                    outcomes.add(type(read_image(tmp_path / name)))
                except InputError:
                    outcomes.add(InputError)
        assert outcomes == {Volume, InputError}


@pytest.mark.real
class TestRealFiles:
    def test_every_odd_file_is_a_volume_or_an_input_error(self, shared_data):
        files = [path for path in sorted((shared_data / "odd_headers").rglob("*")) if path.is_file()]
        outcomes, messages = {}, []
        for path in files:
            for read in (read_image, read_labels):
                try:
                    outcomes[path.name, read.__name__] = type(read(path))
                except InputError as error:
                    outcomes[path.name, read.__name__] = InputError
                    messages.append(str(error))
        assert len(files) > 40
        assert all(message.startswith(str(shared_data)) and "\n" not in message for message in messages)
        assert outcomes["minimal_extended_hdr.nii", "read_image"] is Volume  # a slice with both forms
        assert outcomes["crash-1.nii", "read_image"] is InputError
        assert outcomes["empty.nii.gz", "read_image"] is InputError

    def test_what_is_read_equals_what_nibabel_reads(self, shared_data):
        read = 0
        for path in sorted((shared_data / "odd_headers").rglob("*.nii*")):
            try:
                volume = read_image(path)
            except InputError:
                continue
            expected = nib.load(path)
            np.testing.assert_array_equal(volume.array.squeeze(), np.asanyarray(expected.dataobj).squeeze())
            np.testing.assert_array_equal(volume.affine, expected.affine)
            read += 1
        assert read > 15

    def test_an_oblique_scaled_volume_equals_simpleitks(self, shared_data):
        path = shared_data / "volumes" / "MR_Gd.nii.gz"
        volume, image = read_image(path), sitk.ReadImage(str(path))
        np.testing.assert_allclose(volume.array, sitk.GetArrayFromImage(image).transpose(2, 1, 0), rtol=1e-6)
        corner = image.TransformIndexToPhysicalPoint([size - 1 for size in volume.array.shape])
        ours = volume.affine @ [*(size - 1 for size in volume.array.shape), 1]
        np.testing.assert_allclose(ours[:3] * [-1, -1, 1], corner, atol=1e-3)
