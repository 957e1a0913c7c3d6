"""The command line: one function a verb, parsed from its signature; heavy imports wait until a verb needs them."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import cyclopts
from cyclopts import App, Parameter
from cyclopts.config import Dict

from segscse import __version__
from segscse.config import ExperimentConfig, FlatConfig, load_config, one_line, read_yaml
from segscse.errors import InputError, Interrupted, SegscseError
from segscse.flags import read_by_label, read_engine, read_fold, read_label, read_sizes, read_tolerance
from segscse.terminal import findings_table, make_console, say, say_outcome, say_scores, show_bar

if TYPE_CHECKING:
    pass

Device = Literal["auto", "cpu", "cuda", "mps"]
Engine = Literal["auto", "torch", "openvino", "onnxruntime", "onnx"]
ExportEngine = Literal["openvino", "onnxruntime", "onnx"]
Labels = Annotated[Path | None, Parameter(name="--labels")]
Configs = Annotated[list[Path] | None, Parameter(name="--config", negative="")]

app = App(
    name="segscse",
    help="Medical image segmentation with attention U-Nets: check, plan, train, predict, export, evaluate.",
    version=__version__,
    suppress_keyboard_interrupt=False,  # `run` answers it
)


def main() -> None:
    """Run the command line and exit with its code: 0, 1 (our defect), 2 (bad input), 130 or 143 (stopped)."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code; errors become one line on standard error.

    `--debug` anywhere shows the traceback, too.
    """
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except (SegscseError, cyclopts.CycloptsError) as error:
        if debug:
            traceback.print_exc()
        sys.stderr.write(f"segscse: {one_line(error)}\n")
        return 128 + error.signum if isinstance(error, Interrupted) else 2
    except KeyboardInterrupt:
        sys.stderr.write("segscse: stopped\n")
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        sys.stderr.write(f"segscse: internal error: {type(error).__name__}: {one_line(error)} (see --debug)\n")
        return 1
    return int(code or 0)


@app.command
def check(dataset: Path, *, labels: Labels = None, json: Path | None = None) -> int:
    """List every problem of a data set at once.

    Args:
        dataset: Folder in the MSD or nnU-Net layout, CSV (case,image[,image2...],label[,subject]), folder with
            images/ and labels/, or folder of images together with --labels.
        labels: Folder of label maps that pair with the images by name.
        json: Also write the findings to this file.
    """
    from segscse.data.examine import examine_dataset, report_of
    from segscse.data.index import open_dataset
    from segscse.files import write_json

    console = make_console()
    index = open_dataset(dataset, labels)
    with show_bar(console, "reading") as progress:
        _, findings = examine_dataset(index, progress=progress)
    report = report_of(findings, index)
    if json is not None:
        write_json(json, report)
    if findings:
        make_console(stderr=False).print(findings_table(findings))
    say(
        f"{len(index.cases)} cases ({index.layout} layout): {report['n_errors']} errors, "
        f"{report['n_warnings']} warnings"
    )
    return 2 if report["n_errors"] else 0


@app.command
def plan(
    dataset: Path,
    *,
    out: Path = Path("plan.json"),
    labels: Labels = None,
    config: Configs = None,
    experiment: FlatConfig = ExperimentConfig(),  # noqa: B008, frozen
) -> None:
    """Show and save what a data set implies: spacing, patch, strides, normalisation, labels.

    Args:
        dataset: As for `segscse check`.
        out: Where to write the plan.
        labels: Folder of label maps that pair with the images by name.
        config: YAML files of settings, merged in order; flags win over them.
        experiment: Settings of the experiment.
    """
    from segscse.data.plan import save_plan
    from segscse.data.prepare import plan_dataset

    with show_bar(make_console(), "reading") as progress:
        planned = plan_dataset(dataset, experiment, labels=labels, progress=progress)
    save_plan(out, planned.plan)
    found = planned.plan
    say(f"{len(planned.index.cases)} cases, channels {', '.join(found.channels)}, {len(found.labels) - 1} labels")
    say(f"{found.spatial_dims}D, spacing {found.spacing_mm} mm, patch {found.patch_size}, batch {found.batch_size}")
    for reason in found.reasons:
        say(f"  {reason}")
    say(f"plan: {out}")


@app.command
def train(
    dataset: Path,
    *,
    out: Path | None = None,
    fold: str = "0",
    budget: str | None = None,
    resume: bool = False,
    labels: Labels = None,
    config: Configs = None,
    experiment: FlatConfig = ExperimentConfig(),  # noqa: B008, frozen
) -> None:
    """Train one fold or all of them, then segment and score the validation cases on their own grids.

    Args:
        dataset: As for `segscse check`.
        out: Run folder. Default: runs/<data set>_<2d|3d>_fold<fold>.
        fold: Number of the cross-validation fold, `all` to train on every case, or `cv` to train and score every fold.
        budget: Time for training, such as 90s, 20m or 2h; wins over train.budget and train.max_steps.
        resume: Continue the run in --out.
        labels: Folder of label maps that pair with the images by name.
        config: YAML files of settings, merged in order; flags win over them.
        experiment: Settings of the experiment.
    """
    from segscse.api import validate_run
    from segscse.crossval import cross_validate
    from segscse.training.run import train_run

    name = dataset.resolve().name.removesuffix(".csv")
    place = "cv" if fold == "cv" else f"fold{fold}"
    folder = out or Path("runs") / f"{name}_{experiment.model.spatial_dims}d_{place}"
    if fold == "cv":
        with show_bar(make_console(), "validating") as progress:
            summary = cross_validate(
                dataset,
                out=folder,
                labels=labels,
                config=experiment,
                budget=budget,
                resume=resume,
                console=make_console(),
                progress=progress,
            )
        say_scores(summary, folder / "evaluation")
        return
    run_ = train_run(
        dataset,
        folder,
        experiment,
        labels=labels,
        fold=read_fold(fold),
        budget=budget,
        resume=resume,
        console=make_console(),
    )
    say(f"trained {run_.steps} steps: {run_.folder}")
    if run_.split.validation:
        with show_bar(make_console(), "validating") as progress:
            summary = validate_run(run_, device=experiment.train.device, progress=progress)
        say_scores(summary, run_.folder / "validation")


@app.command
def predict(
    model: Path,
    inputs: Annotated[list[Path], Parameter(name="INPUT", negative="")],
    /,
    *,
    out: Path,
    ensemble: Annotated[list[Path] | None, Parameter(negative="")] = None,
    tta: bool = False,
    probabilities: bool = False,
    uncertainty: bool = False,
    foreground_only: bool = False,
    resume: bool = False,
    memory: str | None = None,
    format: Literal["nifti", "input"] = "nifti",  # noqa: A002, the flag's name
    engine: Engine = "auto",
    device: Device = "auto",
) -> int:
    """Segment scans; label maps come back on each scan's own grid.

    Beside them go quality.csv, which says which cases to look at first, and predictions.json for --resume.

    Args:
        model: Run folder or model folder.
        inputs: Images, DICOM series folders, folders of either, or CSV files (case,image[,image2...]).
        out: Folder for the label maps, <case>.nii.gz.
        ensemble: A further run or model whose probabilities are averaged with the first's; may be given repeatedly.
        tta: Average over mirrored inputs: better by a little, up to 8 times slower.
        probabilities: Also write probabilities/<case>.nii.gz, (X, Y, Z, label) in steps of 1/255.
        uncertainty: Also write uncertainty/<case>.nii.gz, the entropy of every voxel between 0 and 1, and with an
            ensemble disagreement/<case>.nii.gz, the part of it that its members disagree about.
        foreground_only: Leave out windows that hold nothing but background air; no other voxel changes by it.
        resume: Leave out cases whose label map is there, made from the same scan, model and settings.
        memory: Limit such as 4GB, which the batch and the rows that are open at once are chosen for.
        format: nifti, or input for each scan's own format (DICOM SEG for a DICOM series).
        engine: What computes the network; auto takes the fastest of those that the model was exported for, or torch.
        device: Where to run.
    """
    from segscse.inference.memory import parse_bytes
    from segscse.inference.pipeline import predict_files
    from segscse.inference.predictor import Ensemble, load
    from segscse.inference.segment import Options

    limit = None if memory is None else parse_bytes(memory)
    folders = (model, *(ensemble or ()))
    models = [load(folder, device=device, engine=read_engine(engine), mirror=tta) for folder in folders]
    for one in models:
        say(f"engine: {one.chosen}")
    predictor = models[0] if len(models) == 1 else Ensemble(models)
    options = Options(probabilities=probabilities, uncertainty=uncertainty, foreground_only=foreground_only)
    with show_bar(make_console(), "predicting") as progress:
        outcome = predict_files(
            predictor,
            inputs,
            out,
            options=options,
            form=format,
            resume=resume,
            memory=limit,
            say=say,
            progress=progress,
        )
    say_outcome(outcome, out, foreground_only=foreground_only, resumed=resume)
    return 2 if outcome.failures else 0


@app.command
def export(
    model: Path,
    /,
    *,
    out: Path,
    engine: Annotated[list[ExportEngine] | None, Parameter(name=("--engine", "--format"), negative="")] = None,
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto",
    calibrate: Annotated[list[Path] | None, Parameter(negative="")] = None,
) -> None:
    """Write a model for OpenVINO or ONNX Runtime: one folder with all that prediction needs, compared with PyTorch.

    Args:
        model: Run folder or model folder.
        out: The new folder.
        engine: openvino (the default) or onnx; repeat for both.
        precision: Of OpenVINO; bf16 is half precision where the hardware has it; int8 needs --calibrate.
        calibrate: Scans, or folders of scans, to calibrate int8 with and to compare on.
    """
    from segscse.inference.export import export_model

    engines = [read_engine(name) for name in engine or ["openvino"]]
    with show_bar(make_console(), "reading") as progress:
        exported = export_model(
            model, out, engines=engines, precision=precision, calibrate=calibrate or (), progress=progress
        )
    for graph in exported.engines:
        for ran, parity in graph.parity.items():
            say(
                f"{graph.engine} {ran}: logits differ from PyTorch's by {parity['error']:.2g} of their spread, "
                f"{100 * parity['flipped']:.2g} % of the foreground by label ({parity['windows']} windows)"
            )
    say(f"model: {out}")


@app.command
def evaluate(
    *,
    pred: Path,
    ref: Path,
    out: Path,
    images: Path | None = None,
    labels: str | None = None,
    names: str | None = None,
    nsd_tolerance_mm: str = "1",
    probabilities: Path | None = None,
    missing: Literal["error", "empty"] = "error",
    workers: int | None = None,
    subjects: Path | None = None,
    model: Path | None = None,
    viewer: bool = True,
) -> None:
    """Score label maps against references: cases.csv, summary.json, conventions.txt and report.html.

    Args:
        pred: Folder of predictions.
        ref: Folder of references; files pair by name.
        out: Folder for the results.
        images: Folder of images to show under the report's overlays.
        labels: Labels to score, such as 1,2,5; every one that occurs if not given.
        names: Names of labels, such as 1=liver,2=spleen.
        nsd_tolerance_mm: Tolerance of the surface Dice, such as 2, or one per label, 1=2,2=1.5.
        probabilities: Folder that predict --probabilities wrote; adds calibration (ECE, Brier). Needs --labels.
        missing: What to do about references without a prediction: refuse, or score an empty one.
        workers: Cases scored at a time; one per core, at most 4, if not given.
        subjects: CSV with the columns case,subject, where subjects have several cases.
        model: Run or model folder that made the predictions; its record goes into the report.
        viewer: Embed a viewer and the worst, median and best case in the report.
    """
    from segscse.evaluation.folders import evaluate_folders
    from segscse.evaluation.scores import summarise
    from segscse.evaluation.tables import load_provenance, load_subjects

    if workers is not None and workers < 1:
        raise InputError(f"--workers must be 1 or more, got {workers}")
    with show_bar(make_console(), "scoring") as progress:
        table = evaluate_folders(
            pred,
            ref,
            out,
            images,
            missing,
            None if names is None else read_by_label("--names", names),
            None if labels is None else [read_label("--labels", text) for text in labels.split(",")],
            nsd_tolerance_mm=read_tolerance(nsd_tolerance_mm),
            probabilities_dir=probabilities,
            workers=workers,
            subjects=None if subjects is None else load_subjects(subjects),
            provenance=None if model is None else load_provenance(model),
            viewer=viewer,
            progress=progress,
        )
    say_scores(summarise(table), out)


@app.command
def compare(
    evaluations: Annotated[list[Path], Parameter(name="EVALUATION", negative="")],
    /,
    *,
    metric: str = "dice",
    subjects: Path | None = None,
    pairs: Literal["first", "all"] = "first",
    out: Path | None = None,
) -> None:
    """Compare evaluations case by case: paired differences, intervals, Wilcoxon with Holm, ranks, and a verdict.

    Args:
        evaluations: Evaluation folders or cases.csv files, two or more; the first is the baseline.
        metric: Column of cases.csv to compare, such as dice, hd95_mm or nsd.
        subjects: CSV with the columns case,subject, where subjects have several cases.
        pairs: Compare every evaluation with the first, or all pairs.
        out: Also write comparison.json and comparison.md to this folder.
    """
    from segscse.evaluation.comparison import compare as compare_tables
    from segscse.evaluation.tables import load_subjects
    from segscse.files import write_json, write_text

    if len(evaluations) < 2:
        raise InputError("there must be two evaluations or more to compare", remedy="Give their folders")
    compared = compare_tables(
        *evaluations,
        metric=metric,
        subjects=None if subjects is None else load_subjects(subjects),
        pairs=pairs,
    )
    for letter, path in zip(compared.names, evaluations, strict=True):
        say(f"{letter}: {path}")
    say(str(compared))
    if out is not None:
        write_json(out / "comparison.json", {"evaluations": [str(path) for path in evaluations], **compared.to_json()})
        write_text(out / "comparison.md", compared.to_markdown())
        say(f"comparison: {out}")


@app.command
def blocks(
    names: Annotated[list[str] | None, Parameter(name="NAME", negative="")] = None,
    /,
    *,
    size: str = "40,56,40",
    channels: int = 32,
    batch: int = 2,
    repeats: int = 10,
    device: Device = "auto",
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    memory_gib: float = 4.0,
    out: Path | None = None,
) -> None:
    """Measure attention blocks here and now: paper, parameters, latency and memory of each.

    Args:
        names: Blocks; all of them if not given.
        size: Of the map, two or three numbers.
        channels: Of the map.
        batch: Maps at once.
        repeats: Measurements of each block; the median counts.
        device: Where to measure.
        precision: Of the map; auto takes bf16 where the hardware multiplies in it.
        memory_gib: Leave out what would need more.
        out: Also write the table to this file, .md or .json.
    """
    from segscse.attention.measure import MapSetting, measure_blocks
    from segscse.attention.tables import check_format, footnotes, text_table, write_table

    if out is not None:
        check_format(out)
    setting = MapSetting(read_sizes(size), channels, batch, repeats, device, precision, memory_gib)
    with show_bar(make_console(), "measuring") as progress:
        table = measure_blocks(setting, names, progress=progress)
    make_console(stderr=False).print(text_table(table))
    for note in footnotes(table):
        say(note)
    if out is not None:
        write_table(out, table)
        say(f"table: {out}")


@app.command
def fetch(name: str, *, out: Path = Path("data")) -> None:
    """Download a public data set of the Medical Segmentation Decathlon, with its checksum verified.

    Args:
        name: Such as hippocampus or spleen.
        out: Folder that the data set's folder goes into.
    """
    from segscse.data.fetch import fetch as fetch_dataset

    with show_bar(make_console(), "downloading") as progress:
        folder = fetch_dataset(name, out, progress=lambda done, total: progress(done, total or 0))
    say(f"data set: {folder}")


@app.command
def demo(*, out: Path = Path("demo"), budget: str = "100s", seed: int = 0) -> None:
    """Make phantom scans, plan, train, predict and evaluate them, and say where the report lies.

    Args:
        out: Folder for everything.
        budget: Time for training.
        seed: Of the phantoms and of the training.
    """
    from segscse.demo import run_demo

    summary = run_demo(out, budget=budget, seed=seed, say=say, console=make_console())
    say_scores(summary, out / "evaluation")


def _read_config_files(app_: App, commands: tuple[str, ...], arguments: Any) -> None:
    """Fill settings from the files after `--config`; the last file and the flags win."""
    given = next((argument for argument in arguments if "--config" in argument.names), None)
    paths = [] if given is None else [Path(token.value) for token in given.tokens]
    load_config(*paths)  # refuses what is no setting, naming the file
    for path in reversed(paths):
        values = read_yaml(path)
        # cyclopts drops top-level keys that are also verbs, and `train` is both: put them all under the verb.
        for command in reversed(commands):
            values = {command: values}
        Dict(values, source=str(path))(app_, commands, arguments)


app.config = _read_config_files
