"""The single-fault inputs through nnU-Net's integrity check and MONAI's loading chain, beside `segscse check`.

    python tests/benchmarks/bench_peers_faults.py --out tests/benchmarks/results/peers_faults

makes an environment with nnU-Net, runs each program on the same files, and writes `peers_faults.json` and `.md`. What a
program does with a set of four cases, one of them faulty, is one of

- named error: it ends with an error, and it or what was printed before names the faulty case;
- other exception: it ends with an error that does not;
- warning: it goes on and names the case in a warning;
- silent: it goes on and says nothing about the case.

torch, MONAI and what else is here already is shared with the environment, so that little is downloaded.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import metadata
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).resolve().parent
PEERS = ("nnunetv2==2.8.1", "acvl_utils", "batchgenerators", "batchgeneratorsv2", "dynamic-network-architectures")
NEEDED = ("scikit-image", "imageio", "lazy_loader", "tifffile", "tqdm", "requests", "blosc2<4", "ndindex", "numexpr")
NEEDED += (
    "msgpack",
    "py-cpuinfo",
    "urllib3",
    "idna",
    "certifi",
    "charset-normalizer",
    "dicom2nifti",
    "graphviz",
    "seaborn",
)
PROGRAMS = ("segscse", "nnunet", "monai")
TITLES = {"segscse": "segscse check", "nnunet": "nnU-Net integrity check", "monai": "MONAI loading chain"}
OUTCOMES = ("named error", "other exception", "warning", "silent")
EXPECTED = {"R": "must be refused", "W": "deserve a warning", "A": "are sound"}
GROUPS = "SVGFLP"  # what lies in files; the environment's faults are those of a command


def main() -> None:
    """Write the files, run every program on them, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the table's path without suffix")
    parser.add_argument("--env", type=Path, help="folder of the environment; made when absent, temporary if not given")
    parser.add_argument("--faults", type=Path, default=HERE.parent / "reliability", help="folder of fault_table.py")
    parser.add_argument("--program", choices=("nnunet", "monai"), help="run one program here, on the files in --work")
    parser.add_argument("--work", type=Path)
    given = parser.parse_args()
    if given.program is not None:
        found = {name: run_peer(given.program, given.work / name) for name in _names(given.work)}
        package = {"nnunet": "nnunetv2", "monai": "monai"}[given.program]
        result = {"versions": {package: metadata.version(package)}, "ended": found}
        (given.work / f"{given.program}.json").write_text(json.dumps(result, indent=1))
        return
    sys.path[:0] = [str(given.faults), str(HERE.parent)]
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary) / "work"
        rows = write_faults(work)
        versions = {"segscse": _own_version()}
        python = environment(given.env or Path(temporary) / "env")
        for program in ("nnunet", "monai"):
            command = [str(python), __file__, "--program", program, "--work", str(work)]
            subprocess.run(command, check=True, env={**os.environ, **_folders(work)})
            result = json.loads((work / f"{program}.json").read_text())
            versions |= result["versions"]
            for row in rows:
                row[program], row[f"{program}_said"] = result["ended"][row["folder"]]
    write_table(given.out, rows, versions)


def _own_version() -> str:
    from segscse import __version__  # not in the peers' environment

    return __version__


def _names(work: Path) -> list[str]:
    return sorted(path.name for path in work.iterdir() if path.is_dir())


def _folders(work: Path) -> dict[str, str]:
    return {f"nnUNet_{name}": str(work.parent / name) for name in ("raw", "preprocessed", "results")}


def environment(folder: Path, extra: Sequence[str] = ()) -> Path:
    """Make an environment with the peers and extra packages, where there is none, and return its Python."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        venv.create(folder, with_pip=True)
        inside = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        purelib = subprocess.run(inside, check=True, capture_output=True, text=True).stdout.strip()
        Path(purelib, "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
        install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", *PEERS, *NEEDED, *extra]
        subprocess.run(install, check=True)
    return python


# ── Files ──


def write_faults(work: Path) -> list[dict[str, Any]]:
    """Write a data set of four cases per fault, run `segscse check` on it, and lay it out for the peers."""
    from fault_table import FAULTS
    from stand import attempt

    rows = []
    faults = [fault for fault in FAULTS if fault.id[0] in GROUPS and "check" in fault.expected]
    for number, fault in enumerate(faults):
        folder = work / f"{number:03d}"
        ended, stand = attempt(fault, "check", folder, {})
        report = json.loads((ended.out / "found.json").read_text()) if (ended.out / "found.json").is_file() else {}
        found = [item for item in report.get("findings", []) if item["level"] in ("error", "warning")]
        said = [f"{item['case']} {item['file']}: {item['problem']}" for item in found]
        said = said or ended.errors + ended.warnings
        named = not fault.names or any(fault.names in line for line in said)
        outcome = {0: "warning" if said and named else "silent", 2: "named error" if named else "other exception"}
        rows.append({
            "fault": fault.id,
            "what": fault.what,
            "expected": fault.expected["check"],
            "folder": folder.name,
            "segscse": outcome.get(ended.code, "other exception"),
            "segscse_said": " | ".join(said).replace(str(folder), "DATASET")[:300],
        })  # fmt: skip
        lay_out(stand, folder / "nnunet", fault.names)
    return rows


def lay_out(stand: Any, folder: Path, names: str) -> None:
    """Move a stand's files into nnU-Net's raw layout; all cases get the suffix that the faulty one has."""
    ending = next((s for s in (".nii.gz", ".nii") if stand.files.get(("image", "case_1"), Path()).name.endswith(s)), "")
    ending = ending or ".nii.gz"
    label = stand.files.get(("label", "case_1"), Path(f"x{ending}"))
    if label.name.endswith(".nii") and not label.is_dir():
        ending = ".nii"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    listed = stand.listed or [(case, case) for case in stand.cases]
    for case, source in dict(listed).items():
        files = {"image": stand.files[("image", source)], "label": stand.files[("label", source)]}
        _place(files["image"], folder / "imagesTr" / f"{case}_0000", ending)
        _place(files["label"], folder / "labelsTr" / case, ending)
        if stand.channels.get(source) is not None:
            _place(stand.channels[source], folder / "imagesTr" / f"{case}_0001", ending)
    channels = {"0": "MRI", **({"1": "other"} if stand.channels else {})}
    description = {
        "channel_names": channels,
        "labels": {name: number for number, name in stand.declared.items()},
        "numTraining": len(dict(listed)),
        "file_ending": ending,
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    (folder.parent / "about.json").write_text(json.dumps({"names": names}))


def _place(source: Path, target: Path, ending: str) -> None:
    """Give a file its place; only a healthy one is packed or unpacked for its suffix."""
    suffix = ".nii.gz" if source.name.endswith(".nii.gz") else source.suffix
    if not source.exists() and not source.is_symlink():
        return  # a missing file is the fault
    if suffix == ending or suffix not in (".nii", ".nii.gz") or source.is_dir() or source.is_symlink():
        wanted = ending if suffix in (".nii", ".nii.gz", "") else suffix
        target = target.with_name(target.name + wanted)
        if source.is_dir() or source.is_symlink():
            os.rename(source, target)
        else:
            shutil.copy(source, target)
    elif suffix == ".nii.gz":
        target.with_name(target.name + ending).write_bytes(gzip.decompress(source.read_bytes()))
    else:
        target.with_name(target.name + ending).write_bytes(gzip.compress(source.read_bytes()))


# ── Peers ──


def run_peer(program: str, folder: Path) -> tuple[str, str]:
    """Run a peer on one data set and return its outcome and what it said."""
    names = json.loads((folder / "about.json").read_text())["names"].lower()
    work = {"nnunet": integrity_check, "monai": loading_chain}[program]
    said, ended = io.StringIO(), None
    with (
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
        warnings.catch_warnings(record=True) as seen,
    ):
        warnings.simplefilter("always")
        try:
            work(folder / "nnunet")
        except BaseException as error:  # a peer may also end the process
            ended = " from ".join(f"{type(one).__name__}: {one}" for one in _causes(error))
    text = " ".join(" ".join([said.getvalue(), *(str(item.message) for item in seen), ended or ""]).split())
    shown = re.sub(r"/\S*/(?=\w+\.cxx)", "", (ended or text).replace(str(folder), "DATASET"))[:300]
    words = [names] if names else ["case_"]
    named = any(word in text.lower() for word in words)
    if ended is not None:
        return ("named error" if named else "other exception"), shown
    alarmed = named and any(word in text.lower() for word in ("warning", "error", "mismatch", "unexpected"))
    return ("warning" if alarmed else "silent"), shown


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that it came from, all of which a traceback shows."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def integrity_check(folder: Path) -> None:
    """Run `nnUNetv2_plan_and_preprocess --verify_dataset_integrity`'s function, with threads as its processes."""
    from nnunetv2.experiment_planning import verify_dataset_integrity as module

    context = SimpleNamespace(Pool=ThreadPool)
    module.multiprocessing = SimpleNamespace(get_context=lambda _: context, Pool=ThreadPool)
    module.verify_dataset_integrity(str(folder), 2)


def loading_chain(folder: Path) -> None:
    """Load every case as MONAI's tutorials do: LoadImaged, Orientationd, Spacingd."""
    from monai.transforms import Compose, LoadImaged, Orientationd, Spacingd

    description = json.loads((folder / "dataset.json").read_text())
    ending, keys = description["file_ending"], ("image", "label")
    chain = Compose([
        LoadImaged(keys, ensure_channel_first=True),
        Orientationd(keys, axcodes="RAS", labels=None),
        Spacingd(keys, pixdim=(1.0, 1.0, 1.0), mode=("bilinear", "nearest")),
    ])  # fmt: skip
    cases = {path.name[: -len(f"_0000{ending}")] for path in (folder / "imagesTr").glob(f"*_0000{ending}")}
    cases |= {path.name[: -len(ending)] for path in (folder / "labelsTr").glob(f"*{ending}")}
    for case in sorted(cases):
        images = [str(folder / "imagesTr" / f"{case}_{int(n):04d}{ending}") for n in description["channel_names"]]
        chain(
            {"image": images if len(images) > 1 else images[0], "label": str(folder / "labelsTr" / f"{case}{ending}")}
        )


# ── Table ──


def write_table(out: Path, rows: list[dict[str, Any]], versions: dict[str, str]) -> None:
    """Write the rows as JSON and the counts and rows as Markdown."""
    counts = {
        kind: {program: Counter(row[program] for row in rows if row["expected"] == kind) for program in PROGRAMS}
        for kind in EXPECTED
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    content = {"versions": versions, "counts": counts, "faults": rows}
    out.with_suffix(".json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    lines = [", ".join(f"{name} {version}" for name, version in versions.items()), ""]
    lines += ["| inputs | program | " + " | ".join(OUTCOMES) + " |", "|---|---|" + "---|" * len(OUTCOMES)]
    for kind, words in EXPECTED.items():
        number = sum(row["expected"] == kind for row in rows)
        for program in PROGRAMS:
            cells = [str(counts[kind][program][outcome]) for outcome in OUTCOMES]
            lines.append(f"| {number} {words} | {TITLES[program]} | {' | '.join(cells)} |")
    lines += ["", "| fault | what | expected | " + " | ".join(TITLES[program] for program in PROGRAMS) + " |"]
    lines += ["|---|---|---|" + "---|" * len(PROGRAMS)]
    for row in rows:
        cells = " | ".join(row[program] for program in PROGRAMS)
        lines.append(f"| {row['fault']} | {row['what']} | {row['expected']} | {cells} |")
    out.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
