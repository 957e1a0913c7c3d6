"""Cross-validations of Task04 beside nnU-Net's official model, case by case on the same cases.

    segscse train Task04_Hippocampus --fold cv --budget 10m --out CV        # goes on with --resume
    python tests/benchmarks/bench_crossval.py NNUNET.csv CV [CV...]

`NNUNET.csv` has the columns `case_id` and `foreground_mean_dice`: the mean Dice over the foreground labels of a case,
out of fold. It was trained on five folds of all 260 cases, so on more cases a fold. Each cross-validation is compared
with it, and with the first one given: mean, paired difference with its 95 % interval, and Wilcoxon's test. Of one that
is not finished, the finished folds count, and the others of whatever it is compared with are left out.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd
from measure import save

from segscse.evaluation.paired import paired_difference
from segscse.evaluation.summary import foreground_dice
from segscse.files import read_json


def finished_folds(folder):
    return [fold for fold in sorted(folder.glob("fold?")) if (fold / "validation" / "summary.json").is_file()]


def scores_of(folder):
    """Return the table of a cross-validation's cases, each by the fold that has not seen it."""
    whole = folder / "evaluation" / "cases.csv"
    files = [whole] if whole.is_file() else [fold / "validation" / "cases.csv" for fold in finished_folds(folder)]
    return pd.concat([pd.read_csv(file) for file in files])


def described(folder):
    """Return what a cross-validation was and took: steps and seconds of each fold."""
    folds = finished_folds(folder)
    logs = [pd.read_csv(fold / "metrics.csv").iloc[-1] for fold in folds]
    return {
        "folds": [read_json(fold / "run.json")["fold"] for fold in folds],
        "steps": [int(log["step"]) for log in logs],
        "seconds": [round(float(log["seconds"])) for log in logs],
    }


def beside(first, second, names):
    both = sorted(set(first.index) & set(second.index))
    row = paired_difference(first[both], second[both], what="foreground", names=names)
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
        evaluated = scores_of(run)
        dice[run.name] = ours = foreground_dice(evaluated)
        labels = evaluated.groupby("name")["dice"].mean().round(5).to_dict()
        found[run.name] = {**described(run), "labels": labels, "nnU-Net": beside(theirs, ours, ("nnU-Net", run.name))}
        first = options.runs[0].name
        if run.name != first:
            found[run.name][first] = beside(dice[first], ours, (first, run.name))
    save("crossval", found)


if __name__ == "__main__":
    sys.exit(main())
