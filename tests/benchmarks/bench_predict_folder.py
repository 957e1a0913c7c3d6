"""The whole job, folder in and folder out, from the shell: seconds with and without mirroring, and where they go.

    python tests/benchmarks/bench_predict_folder.py IMAGES MODEL [MODEL...] [--peer FOLDER] [--cases 52] [--repeats 3]

With `--peer` nnU-Net v2 does the same job in turn with ours: its command, its published network for Task04 (features
32, 64, 128, 256; patch 40x56x40) with untrained weights, its defaults but for the device, and `--disable_tta` where
ours does not mirror. The folder is for its environment, which is made when absent. Mirroring is along the axes of the
model's plan: 8-fold for a model that was trained with `--augment.mirror all`, and always for nnU-Net.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MAIN = "from segscse.cli import main; main()"
PEER = "nnU-Net"
PATCH, SPACING, STAGES = [40, 56, 40], [1.0, 1.0, 1.0], 4


def seconds_of(command):
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def own_job(model, images, out, *flags):
    """Return the command of one `segscse predict`."""
    return [sys.executable, "-c", MAIN, "predict", str(model), str(images), "--out", str(out), *flags]


def peer_job(python, model, images, out, *flags):
    """Return the command of one `nnUNetv2_predict_from_modelfolder`."""
    program = str(python.with_name("nnUNetv2_predict_from_modelfolder"))
    tta = [] if "--tta" in flags else ["--disable_tta"]
    return [program, "-i", str(images), "-o", str(out), "-m", str(model), "-f", "0", "-device", "cpu", *tta]


def make_peer_model(folder):
    """Write nnU-Net's Task04 model with untrained weights; runs in its environment."""
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    described = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "Anterior": 1, "Posterior": 2},
        "numTraining": 208,
        "file_ending": ".nii.gz",
    }
    manager = PlansManager(peer_plans())
    configuration = manager.get_configuration("3d_fullres")
    network = nnUNetTrainer.build_network_architecture(manager, configuration, 1, 3, enable_deep_supervision=False)
    (folder / "fold_0").mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps(described))
    (folder / "plans.json").write_text(json.dumps(peer_plans()))
    checkpoint = {
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": "3d_fullres"},
        "inference_allowed_mirroring_axes": (0, 1, 2),
        "network_weights": network.state_dict(),
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")


def peer_plans():
    """Return the plans that nnU-Net makes for Task04."""
    resampling = {}
    for what, order in (("data", 3), ("seg", 1), ("probabilities", 1)):
        kwargs = {"is_seg": what == "seg", "order": order, "order_z": 0, "force_separate_z": None}
        resampling |= {f"resampling_fn_{what}": "resample_data_or_seg_to_shape", f"resampling_fn_{what}_kwargs": kwargs}
    network = {
        "n_stages": STAGES,
        "features_per_stage": [32 * 2**stage for stage in range(STAGES)],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * STAGES,
        "strides": [[1, 1, 1], *[[2, 2, 2]] * (STAGES - 1)],
        "n_conv_per_stage": [2] * STAGES,
        "n_conv_per_stage_decoder": [2] * (STAGES - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 9,
        "patch_size": PATCH,
        "median_image_size_in_voxels": [36, 50, 35],
        "spacing": SPACING,
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        **resampling,
        "batch_dice": False,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": network,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    return {
        "dataset_name": "Dataset004_Hippocampus",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": SPACING,
        "original_median_shape_after_transp": [36, 50, 35],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {}},
        "configurations": {"3d_fullres": configuration},
    }


def stages(model, images):
    """Return the seconds of each stage, one after the other in this process, in a fresh interpreter's order."""
    start = time.perf_counter()
    seconds = {}

    def lap(name):
        nonlocal start
        now = time.perf_counter()
        seconds[name] = seconds.get(name, 0.0) + now - start
        start = now

    from segscse.inference.manifest import digests
    from segscse.inference.memory import window_bytes
    from segscse.inference.pipeline import predict_files  # noqa: F401, its imports are timed
    from segscse.inference.predictor import load
    from segscse.inference.segment import Options, segment

    lap("import")
    predictor = load(model, device="cpu")
    lap("load")
    window_bytes(predictor)
    lap("measure memory")
    inner = predictor.network_call
    network = 0.0

    def timed_call(batch_size):
        call = inner(batch_size)

        def timed(windows):
            nonlocal network
            begun = time.perf_counter()
            logits = call(windows)
            network += time.perf_counter() - begun
            return logits

        return timed

    predictor.network_call = timed_call
    with tempfile.TemporaryDirectory() as out:
        for path in sorted(images.glob("*.nii.gz")):
            digests([path])
            lap("digest")
            prepared = predictor.prepare(path)
            lap("read and prepare")
            made = segment([predictor], prepared, Options())
            lap("segment")
            made.quality()
            lap("quality")
            made.save(Path(out) / path.name)
            lap("write")
    seconds["network"] = network
    seconds["slabs and labels"] = seconds.pop("segment") - network
    return seconds


def lay_out(images, cases, work):
    """Copy cases into folders for both programs and one of them into two more; return how many there are."""
    chosen = [path for path in sorted(images.glob("*.nii.gz")) if not path.name.startswith(".")][:cases]
    for name in ("in", "peer", "one", "peer one"):
        (work / name).mkdir()
        for path in chosen[:1] if name.endswith("one") else chosen:
            suffix = "_0000.nii.gz" if name.startswith("peer") else ".nii.gz"
            shutil.copy(path, work / name / path.name.replace(".nii.gz", suffix))
    return len(chosen)


def run_jobs(models, python, work, repeats):
    """Return seconds by job and program, every program in turn."""
    jobs = {"plain": ("in", []), "mirrored": ("in", ["--tta"]), "one case": ("one", [])}
    found = {}
    for job, (images, flags) in jobs.items():
        times = {}
        for repeat in range(repeats):
            for number, model in enumerate(models):
                out = work / f"{job} {number} {repeat}"
                times.setdefault(model.name, []).append(seconds_of(own_job(model, work / images, out, *flags)))
            if python is not None:
                peer_images = work / ("peer one" if images == "one" else "peer")
                command = peer_job(python, work / "peer model", peer_images, work / f"{job} peer {repeat}", *flags)
                times.setdefault(PEER, []).append(seconds_of(command))
        found[job] = {name: {"seconds": statistics.median(runs), "all": runs} for name, runs in times.items()}
        for name, row in found[job].items():
            sys.stdout.write(f"{job}: {row['seconds']:.2f} s by {name}\n")
            sys.stdout.flush()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("models", type=Path, nargs="*")
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--cases", type=int, default=52)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--worker", choices=("peer model", "stages"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker == "peer model":
        make_peer_model(given.images)
        return
    if given.worker == "stages":
        sys.stdout.write(json.dumps(stages(given.models[0], given.images)) + "\n")
        return
    if not given.models:
        parser.error("give a model")

    from bench_equal_time import TRAINING
    from bench_peers_faults import environment
    from measure import save

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        python = None if given.peer is None else environment(given.peer.resolve(), TRAINING)
        if python is not None:
            command = [str(python), __file__, str(work / "peer model"), "--worker", "peer model"]
            subprocess.run(command, check=True)
        results = {"cases": lay_out(given.images, given.cases, work), "cores": os.cpu_count()}
        results |= run_jobs(given.models, python, work, given.repeats)
        for number, model in enumerate(given.models):
            again = seconds_of(own_job(model, work / "in", work / f"plain {number} 0", "--resume"))
            command = [sys.executable, __file__, str(work / "in"), str(model), "--worker", "stages"]
            printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            results[model.name] = {"resumed when complete": again, "stages": json.loads(printed)}
        save("predict_folder", results)


if __name__ == "__main__":
    main()
