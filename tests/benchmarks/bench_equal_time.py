"""nnU-Net v2 and segscse on the same two cores for the same time: one fold of a data set each, scored alike.

    python tests/benchmarks/bench_equal_time.py DATASET --work FOLDER [--budget 30] [--fold 0]

`DATASET` is in MSD layout. nnU-Net plans and preprocesses (not counted), then its own trainer makes steps until the
time is over, with its batch, augmentation, loss and optimiser; the polynomial decay of its learning rate is sized to
that time, as its authors do for shorter trainings. It predicts with mirroring, its default. segscse trains the same
fold with its defaults. `segscse evaluate` scores both, `segscse compare` compares them case by case. What is in the
work folder already is not made again, so that the two trainings may run on different evenings.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

NAME = "Dataset004_Task"
CONFIGURATION = "3d_fullres"
TRAINING = ("connected-components-3d", "fft_conv_pytorch", "fastremap")
CLI = [sys.executable, "-c", "from segscse.cli import main; main()"]


def folders(work):
    return {f"nnUNet_{name}": str(work / "nnunet" / name) for name in ("raw", "preprocessed", "results")}


def lay_out(dataset, work):
    """Copy a data set of one channel into nnU-Net's raw layout."""
    described = json.loads((dataset / "dataset.json").read_text())
    raw = Path(folders(work)["nnUNet_raw"]) / NAME
    for name in ("imagesTr", "labelsTr"):
        (raw / name).mkdir(parents=True, exist_ok=True)
    for entry in described["training"]:
        image, label = dataset / entry["image"], dataset / entry["label"]
        shutil.copy(image, raw / "imagesTr" / image.name.replace(".nii.gz", "_0000.nii.gz"))
        shutil.copy(label, raw / "labelsTr" / label.name)
    names = {name: int(label) for label, name in described["labels"].items()}
    content = {
        "channel_names": {"0": next(iter(described["modality"].values()))},
        "labels": names,
        "numTraining": len(described["training"]),
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(content))


def train_nnunet(fold, minutes, out):
    """Train with nnU-Net's trainer until the time is over; runs in its environment."""
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    trainer = get_trainer_from_args(NAME, CONFIGURATION, fold, device=torch.device("cpu"))
    trainer.on_train_start()
    trainer.network.train()
    start, steps, losses = time.monotonic(), 0, []
    while (progress := (time.monotonic() - start) / (60 * minutes)) < 1:
        for group in trainer.optimizer.param_groups:
            group["lr"] = trainer.initial_lr * (1 - progress) ** 0.9
        losses.append(float(trainer.train_step(next(trainer.dataloader_train))["loss"]))
        steps += 1
        if steps % 10 == 0:
            sys.stderr.write(f"step {steps}, {progress:.1%}, loss {sum(losses[-10:]) / 10:.3f}\n")
    seconds = time.monotonic() - start
    trainer.current_epoch = trainer.num_epochs
    trainer.on_train_end()
    found = {"steps": steps, "seconds": seconds, "batch": trainer.batch_size, "last_loss": sum(losses[-50:]) / 50}
    found["patch"] = list(map(int, trainer.configuration_manager.patch_size))
    out.write_text(json.dumps({**found, "model": str(trainer.output_folder_base)}) + "\n")


def predict_nnunet(fold, inputs, out, trained):
    """Predict as `nnUNetv2_predict` does; runs in its environment."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    predictor = nnUNetPredictor(perform_everything_on_device=False, device=torch.device("cpu"))
    predictor.initialize_from_trained_model_folder(json.loads(trained.read_text())["model"], (fold,))
    predictor.predict_from_files(
        str(inputs), str(out), num_processes_preprocessing=1, num_processes_segmentation_export=1
    )


def run_nnunet(dataset, work, fold, minutes):
    """Prepare, train and predict with nnU-Net; return its record and the folder of predictions."""
    from bench_peers_faults import environment

    from segscse.data.index import open_dataset
    from segscse.data.split import make_split

    python = environment(work / "peers", TRAINING)
    environ = {**os.environ, **folders(work)}
    if not (work / "prepared").exists():
        lay_out(dataset, work)
        prepare = [python.with_name("nnUNetv2_plan_and_preprocess"), "-d", "4", "-c", CONFIGURATION, "-np", "2"]
        subprocess.run(prepare, check=True, env=environ)
        cases = open_dataset(dataset).cases
        splits = [make_split(cases, number) for number in range(5)]
        splits = [{"train": list(split.training), "val": list(split.validation)} for split in splits]
        folder = Path(folders(work)["nnUNet_preprocessed"]) / NAME
        (folder / "splits_final.json").write_text(json.dumps(splits))
        inputs = work / "inputs"
        inputs.mkdir(exist_ok=True)
        for case in splits[fold]["val"]:
            shutil.copy(Path(folders(work)["nnUNet_raw"]) / NAME / "imagesTr" / f"{case}_0000.nii.gz", inputs)
        (work / "prepared").touch()
    script = [str(python), __file__, str(dataset), "--work", str(work), "--fold", str(fold), "--budget", str(minutes)]
    if not (work / "nnunet.json").exists():
        subprocess.run([*script, "--worker", "train"], check=True, env=environ)
    out = work / "nnunet_predictions"
    if not (work / "predicted").exists():
        subprocess.run([*script, "--worker", "predict"], check=True, env=environ)
        (work / "predicted").touch()
    return json.loads((work / "nnunet.json").read_text()), out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=30, help="minutes")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--worker", choices=("train", "predict"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    work, dataset = options.work.resolve(), options.dataset.resolve()
    if options.worker == "train":
        train_nnunet(options.fold, options.budget, work / "nnunet.json")
        return
    if options.worker == "predict":
        predict_nnunet(options.fold, work / "inputs", work / "nnunet_predictions", work / "nnunet.json")
        return

    from measure import save

    work.mkdir(parents=True, exist_ok=True)
    settings, asked = work / "settings.json", {"fold": options.fold, "minutes": options.budget}
    if settings.exists() and json.loads(settings.read_text()) != asked:
        parser.error(f"{work} holds {settings.read_text()}; give another --work")
    settings.write_text(json.dumps(asked))
    run = work / "segscse"
    if not (run / "validation" / "summary.json").exists():
        shutil.rmtree(run, ignore_errors=True)
        flags = ["--fold", str(options.fold), "--budget", f"{options.budget:g}m", "--out", str(run)]
        subprocess.run([*CLI, "train", str(dataset), *flags], check=True)
    record, predictions = run_nnunet(dataset, work, options.fold, options.budget)
    scores = work / "nnunet_scores"
    shutil.rmtree(scores, ignore_errors=True)
    references = work / "references"
    references.mkdir(exist_ok=True)
    for file in predictions.glob("*.nii.gz"):
        shutil.copy(dataset / "labelsTr" / file.name, references)
    subprocess.run(
        [*CLI, "evaluate", "--pred", str(predictions), "--ref", str(references), "--out", str(scores)], check=True
    )
    subprocess.run(
        [*CLI, "compare", str(scores), str(run / "validation"), "--out", str(work / "comparison")], check=True
    )
    means = {
        "nnU-Net": json.loads((scores / "summary.json").read_text())["overall"]["mean_dice"],
        "segscse": json.loads((run / "validation" / "summary.json").read_text())["overall"]["mean_dice"],
    }
    save("equal_time", {"minutes": options.budget, "fold": options.fold, "mean_dice": means, "nnU-Net": record})


if __name__ == "__main__":
    main()
