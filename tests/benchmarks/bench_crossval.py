"""Cross-validations of Task04 beside nnU-Net's official model, case by case on the same cases.

    segscse train Task04_Hippocampus --fold cv --budget 10m --out CV        # goes on with --resume
    python tests/benchmarks/bench_crossval.py NNUNET.csv CV [CV...]

`NNUNET.csv` has the columns `case_id` and `foreground_mean_dice`: the mean Dice over the foreground labels of a case,
out of fold. It was trained on five folds of all 260 cases, so on more cases a fold. Each cross-validation is compared
with it, and with the first one given: mean, paired difference with its 95 % interval, and Wilcoxon's test.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd
from measure import save

from segscse.evaluation.paired import paired_difference
from segscse.evaluation.summary import foreground_dice
from segscse.files import read_json


def described(folder):
    """Return what a cross-validation was and took: steps and seconds of each fold."""
    runs = [read_json(fold / "run.json") for fold in sorted(folder.glob("fold?"))]
    logs = [pd.read_csv(fold / "metrics.csv").iloc[-1] for fold in sorted(folder.glob("fold?"))]
    return {
        "folds": len(runs),
        "steps": [int(log["step"]) for log in logs],
        "seconds": [round(float(log["seconds"])) for log in logs],
    }


def beside(first, second, names):
    row = paired_difference(first, second, what="foreground", names=names)
    return {
        "n": row.n,
        "mean": round(row.mean_b, 5),
        f"mean of {names[0]}": round(row.mean_a, 5),
        "difference": round(row.difference, 5),
        "interval": [round(row.low, 5), round(row.high, 5)],
        "wilcoxon_p": row.p_value,
        "better in": row.wins,
        "worse in": row.losses,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nnunet", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    options = parser.parse_args()
    table = pd.read_csv(options.nnunet)
    theirs = table.set_index("case_id")["foreground_mean_dice"]
    found, dice = {}, {}
    for run in options.runs:
        evaluated = pd.read_csv(run / "evaluation" / "cases.csv")
        dice[run.name] = ours = foreground_dice(evaluated)
        labels = evaluated.groupby("name")["dice"].mean().round(5).to_dict()
        found[run.name] = {**described(run), "labels": labels, "nnU-Net": beside(theirs, ours, ("nnU-Net", run.name))}
        first = options.runs[0].name
        if run.name != first:
            found[run.name][first] = beside(dice[first], ours, (first, run.name))
    save("crossval", found)


if __name__ == "__main__":
    sys.exit(main())
