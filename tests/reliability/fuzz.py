"""Random damage to what strangers write, by seed: each piece is accepted or refused with a named error, and quickly.

`PYTHONPATH=.:tests python tests/reliability/fuzz.py headers=10000 flips=1000 configs=1000 datasets=1000 models=1000`
prints the counts as JSON, a line a kind. In a process of its own, because its peak memory is the whole process's.
"""

from __future__ import annotations

import copy
import gzip
import json
import math
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import tiny_plan
from volumes import TINY_AFFINE, write_tiny_dataset

from segscse.config import ExperimentConfig, ModelConfig, load_config, save_config, to_builtin
from segscse.data.examine import examine_dataset, report_of
from segscse.data.index import open_dataset
from segscse.data.io import SITK_SUFFIXES, Volume, read_image, read_labels
from segscse.data.output import write_labels
from segscse.errors import InputError
from segscse.files import write_json
from segscse.inference.memory import scan_size
from segscse.inference.model_folder import ModelFolder, save_model
from segscse.inference.predictor import load
from segscse.nets.build import build_unet, network_arguments

Outcome = str
SHAPE = (11, 9, 10)


class Record:
    """What became of every piece: counts, the slowest, the strange ones, and the memory beyond `before`, in MB."""

    def __init__(self, before: float) -> None:
        self.counts: Counter[str] = Counter()
        self.strange: list[str] = []
        self.slowest_s = 0.0
        self.before = before

    def of(self, what: Any, work: Callable[[], Outcome]) -> None:
        """Do one piece of work; its time is the processor's, since the machine may have others to serve."""
        start = time.process_time()
        try:
            outcome = work()
        except InputError as error:
            outcome = "refused" if "\n" not in str(error) and error.problem else "refused without a line"
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            outcome = f"{type(error).__name__}: {error}"[:200] + f" ({where.name}, line {where.lineno})"
        self.slowest_s = max(self.slowest_s, time.process_time() - start)
        if outcome not in ("accepted", "refused"):
            self.strange.append(f"{outcome} of {what}"[:600])
            outcome = "strange"
        self.counts[outcome] += 1

    def to_json(self) -> dict[str, Any]:
        counts = {name: self.counts[name] for name in ("accepted", "refused", "strange")}
        more = {"slowest_s": round(self.slowest_s, 3), "memory_mb": round(_peak_mb() - self.before, 1)}
        return {**counts, **more, "examples": self.strange[:20]}


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


# ── Headers ──


def headers(record: Record, folder: Path, number: int) -> None:
    """Change 1 to 8 random bytes of a NIfTI-1 or NIfTI-2 header, half of them compressed."""
    rng = np.random.default_rng(20260307)
    bases = list(_nifti_files())
    for index in range(number):
        content = bytearray(bases[index % len(bases)])
        size = 540 if content[0] == 540 & 255 else 348
        places = rng.integers(0, size, rng.integers(1, 9))
        values = rng.integers(0, 256, len(places))
        for place, value in zip(places, values, strict=True):
            content[place] = value
        packed = index % 2 == 1
        file = folder / ("a.nii.gz" if packed else "a.nii")
        file.write_bytes(gzip.compress(bytes(content), 1) if packed else bytes(content))
        change = dict(zip(places.tolist(), values.tolist(), strict=True))
        record.of(f"headers {index} {change}", lambda file=file: _use(file, folder))


def _nifti_files() -> Iterator[bytes]:
    rng = np.random.default_rng(1)
    for image_class in (nib.Nifti1Image, nib.Nifti2Image):
        for kind in (np.int16, np.float32, np.uint8):
            array = rng.integers(0, 100, SHAPE).astype(kind)
            image = image_class(array, TINY_AFFINE, dtype=kind)
            image.set_qform(TINY_AFFINE, 1)
            image.set_sform(TINY_AFFINE, 1)
            yield image.to_bytes()


def _use(file: Path, folder: Path) -> Outcome:
    """Read an image in every way that there is, and write a label map on its grid."""
    scan_size([file])
    with suppress(InputError):  # an image need not be a label map
        read_labels(file)
    volume = read_image(file)
    out = folder / "labels.nii.gz"
    write_labels(out, np.zeros(volume.array.shape[:3], np.uint8), volume)
    again = nib.load(out)  # nibabel, because a strange but good header must not be refused the second time either
    if again.shape[:3] != volume.array.shape[:3] or not np.allclose(again.affine, volume.affine, atol=1e-4, rtol=1e-4):
        return f"the output's affine {again.affine.tolist()} is not the input's {volume.affine.tolist()}"
    return "accepted"


# ── Bits ──


def flips(record: Record, folder: Path, number: int) -> None:
    """Flip one bit of a compressed image: the same voxels and affine come out, or an error."""
    rng = np.random.default_rng(20260308)
    for suffix, share in ((".nii.gz", 1.0), (".mgz", 0.2), (".nrrd", 0.2), (".mha", 0.2)):
        file = folder / f"a{suffix}"
        sound, start = _compressed(file)
        content = file.read_bytes()
        for _ in range(round(number * share)):
            place = int(rng.integers(8 * start, 8 * len(content)))
            damaged = bytearray(content)
            damaged[place // 8] ^= 1 << place % 8
            file.write_bytes(damaged)
            record.of(f"flip {suffix} {place}", lambda file=file, sound=sound: _same(read_image(file), sound))


def _compressed(file: Path) -> tuple[Volume, int]:
    """Write an image and return it with the place from which on bits are flipped: text headers have no checksum."""
    array = np.random.default_rng(2).integers(0, 4, (24, 20, 16)).astype(np.uint8)
    nib.save(nib.Nifti1Image(array, TINY_AFFINE), file.with_name("like.nii.gz"))
    like = read_image(file.with_name("like.nii.gz"))
    write_labels(file, array, like)
    content, start = file.read_bytes(), 0
    if file.suffix in SITK_SUFFIXES:
        mark = b"\n\n" if file.suffix == ".nrrd" else b"ElementDataFile = LOCAL\n"
        start = content.index(mark) + len(mark)
    return read_image(file), start


def _same(volume: Volume, sound: Volume) -> Outcome:
    same = np.array_equal(volume.array, sound.array) and np.array_equal(volume.affine, sound.affine)
    return "accepted" if same else "different voxels and no error"


# ── Documents ──

_SCALARS = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.integers(-3, 70), st.floats(), st.text(max_size=8)),
    st.sampled_from(
        ["", "auto", "-1", "1e999", "0x10", "nan", "~", "os.system", "../..", "a\0b", "\U0001f9e0", "none"]
    ),
)
_YAML_ONLY = st.one_of(_SCALARS, st.dates(), st.datetimes(), st.binary(max_size=5), st.sets(st.integers(), max_size=3))


def _trees(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    keys = st.text(max_size=6) | st.sampled_from(["image", "label", "0", "1", "background", "name", "model"])
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=8
    )


def _documents(base: Any, leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return documents that differ from a sound one in up to four places, and now and then anything at all."""
    paths = list(_paths(base))
    changes = st.lists(st.tuples(st.sampled_from(paths), st.integers(0, 3), _trees(leaves)), max_size=4)
    return changes.map(lambda made: _changed(base, made)) | _trees(leaves)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*path, key)
        yield from _paths(item, (*path, key))


def _changed(base: Any, changes: list[tuple[tuple[Any, ...], int, Any]]) -> Any:
    document = copy.deepcopy(base)
    for path, kind, value in changes:
        holder = document
        for key in path[:-1]:
            holder = _inside(holder, key)
        if not isinstance(holder, (dict, list)) or _inside(holder, path[-1]) is _NOTHING:
            continue
        if kind == 0:
            del holder[path[-1]]
        elif kind == 1 and isinstance(holder, dict):
            holder[str(value)] = holder.pop(path[-1])
        else:
            holder[path[-1]] = value
    return document


_NOTHING = object()


def _inside(holder: Any, key: Any) -> Any:
    try:
        return holder[key]
    except (KeyError, IndexError, TypeError):
        return _NOTHING


def _each(record: Record, number: int, documents: st.SearchStrategy[Any], use: Callable[[Any], Outcome]) -> None:
    @settings(
        max_examples=number, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(documents)
    def run(document: Any) -> None:
        record.of(repr(document), lambda: use(document))

    run()


def configs(record: Record, folder: Path, number: int) -> None:
    """Read configurations that differ from the defaults; what is accepted is saved and reads back equal."""
    file = folder / "config.yaml"

    def use(document: Any) -> Outcome:
        text = document if isinstance(document, str) else yaml.safe_dump(document, allow_unicode=True)
        file.write_text(text, encoding="utf-8", errors="surrogatepass")
        config = load_config(file)
        save_config(folder / "saved.yaml", config)
        again = load_config(folder / "saved.yaml")
        return "accepted" if again == config or _has_nan(asdict(config)) else f"{config} reads back as {again}"

    _each(record, number, _documents(to_builtin(asdict(ExperimentConfig())), _YAML_ONLY), use)


def _has_nan(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_nan, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_has_nan, value))
    return isinstance(value, float) and math.isnan(value)


def datasets(record: Record, folder: Path, number: int) -> None:
    """Check data sets whose dataset.json differs from a sound one, of MSD's and of nnU-Net's layout."""
    write_tiny_dataset(folder / "set", cases=2)
    file = folder / "set" / "dataset.json"
    msd = json.loads(file.read_text())
    nnunet = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "front": 1, "back": 2}, "numTraining": 2}
    nnunet["file_ending"] = ".nii.gz"

    def use(document: Any) -> Outcome:
        file.write_text(json.dumps(document), encoding="utf-8", errors="surrogatepass")
        index = open_dataset(folder / "set")
        _, findings = examine_dataset(index)
        write_json(folder / "report.json", report_of(findings, index))
        return "accepted"

    _each(record, number, _documents(msd, _SCALARS) | _documents(nnunet, _SCALARS), use)


def models(record: Record, folder: Path, number: int) -> None:
    """Load models whose model.json differs from a sound one."""
    torch.manual_seed(0)
    plan = tiny_plan()
    arguments = network_arguments(plan, ModelConfig(base_features=4))
    provenance = {"config": {"train": {"precision": "fp32"}}, "label_volumes_ml": {"2": [0.1, 2.0]}}
    save_model(folder / "model", ModelFolder(plan, arguments, provenance, build_unet(arguments).state_dict()))
    file = folder / "model" / "model.json"
    base = json.loads(file.read_text())

    def use(document: Any) -> Outcome:
        file.write_text(json.dumps(document), encoding="utf-8", errors="surrogatepass")
        load(folder / "model", device="cpu")
        return "accepted"

    _each(record, number, _documents(base, _SCALARS), use)


KINDS = {kind.__name__: kind for kind in (headers, flips, configs, datasets, models)}


def main(*wanted: str) -> None:
    """Run kinds, each given as `kind=number`, and print the counts of each."""
    before = _peak_mb()
    for kind, _, number in (text.partition("=") for text in wanted):
        record = Record(before)
        with tempfile.TemporaryDirectory() as folder:
            KINDS[kind](record, Path(folder), int(number))
        sys.stdout.write(json.dumps({"kind": kind, "date": date.today().isoformat(), **record.to_json()}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
