"""Statistics over cases: bootstrap intervals and the paired comparison of two evaluations."""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from segscse.errors import InputError

SEED = 20180601  # any fixed number: the same tables give the same interval
N_RESAMPLES = 9999
FEW_CASES = 10
_TIE = 1e-12  # smaller differences of Dice are rounding


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95 % interval of a mean and how it was found: "BCa", "percentile" or "none" (below two values)."""

    low: float
    high: float
    method: str


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Paired difference of Dice, b - a, over the cases where both are defined.

    Attributes:
        what: "foreground" (each case's mean over its labels) or a label's name.
        n: pairs with both sides defined.
        mean_a: mean of a over these pairs.
        mean_b: mean of b over these pairs.
        difference: mean of b - a; above 0 means that b is better.
        low: lower end of its 95 % bootstrap interval over cases; NaN for fewer than two pairs.
        high: upper end.
        method: how the interval was found, as in `Interval`.
        p_value: Wilcoxon signed-rank test, two-sided; 1 when no pair differs. Not corrected for several
            labels.
        effect_size: Cohen's d_z, mean over standard deviation of the differences; NaN when that is 0 or
            undefined.
        wins: pairs where b is better.
        ties: pairs that are equal.
        losses: pairs where a is better.
        n_only_a_undefined: pairs left out because only a is undefined: a rightly empty, b a false positive.
        n_only_b_undefined: the reverse.
    """

    what: str
    n: int
    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    method: str
    p_value: float
    effect_size: float
    wins: int
    ties: int
    losses: int
    n_only_a_undefined: int
    n_only_b_undefined: int

    @property
    def verdict(self) -> str:
        """What the interval allows one to say, in plain words."""
        if self.n < 2:
            return f"cannot be judged from {self.n} case{'' if self.n == 1 else 's'}"
        if self.low <= 0 <= self.high:
            return "no difference shown"
        return f"{'b' if self.difference > 0 else 'a'} is better by {abs(self.difference):.4f} Dice"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two evaluations of the same cases: `overall` (foreground) and one `PairedDifference` per label."""

    overall: PairedDifference
    labels: tuple[PairedDifference, ...]

    @property
    def difference(self) -> float:
        """Mean paired difference of foreground Dice, b - a."""
        return self.overall.difference

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % bootstrap interval of `difference`."""
        return self.overall.low, self.overall.high

    @property
    def p_value(self) -> float:
        """Wilcoxon signed-rank p of the foreground differences."""
        return self.overall.p_value

    @property
    def verdict(self) -> str:
        """The overall finding in plain words, with its reservations."""
        notes = []
        if 2 <= self.overall.n < FEW_CASES:
            notes.append(f"only {self.overall.n} cases: the interval is likely too narrow")
        for side, other, count in (
            ("a", "b", sum(row.n_only_a_undefined for row in self.labels)),
            ("b", "a", sum(row.n_only_b_undefined for row in self.labels)),
        ):
            if count:
                times = "once" if count == 1 else f"{count} times"
                notes.append(f"{times} {side} rightly finds nothing where {other} marks something")
        return "; ".join([self.overall.verdict, *notes])

    def to_frame(self) -> pd.DataFrame:
        """Return one row per label below the row of the foreground, with the fields of `PairedDifference`."""
        rows = (self.overall, *self.labels)
        return pd.DataFrame([{**asdict(row), "verdict": row.verdict} for row in rows])

    def __str__(self) -> str:
        rows = (self.overall, *self.labels)
        width = max(12, *(len(row.what) for row in rows))
        head = f"{'Dice, b - a':<{width}}  {'a':>6}  {'b':>6}  {'difference [95 % interval]':^26}"
        head += f"  {'p':>8}  {'win/tie/loss':>12}  {'n':>4}"
        return "\n".join([head, *(_line(row, width) for row in rows), f"Foreground: {self.verdict}."])


def compare(a: pd.DataFrame | str | Path, b: pd.DataFrame | str | Path) -> Comparison:
    """Compare two evaluations case by case.

    Each case counts once: the foreground value of a case is the mean Dice over its defined labels. The
    interval is the BCa bootstrap over cases (Efron 1987, doi:10.1080/01621459.1987.10478410), seeded.

    Args:
        a: the baseline: the table of `evaluate`, a `cases.csv`, or the folder that holds one.
        b: the contender, over the same cases and labels.

    Raises:
        InputError: the cases or labels differ, or a table cannot be read.
    """
    tables = [load_table(source, side) for source, side in ((a, "a"), (b, "b"))]
    _check_same_cases(*tables)
    names = tables[0].drop_duplicates("label").set_index("label")["name"]
    cases = [table.groupby("case")["dice"].mean() for table in tables]
    by_label = [table.set_index(["label", "case"])["dice"] for table in tables]
    labels = tuple(
        paired_difference(by_label[0].loc[label], by_label[1].loc[label], what=str(names[label]))
        for label in sorted(names.index)
    )
    return Comparison(paired_difference(*cases, what="foreground"), labels)


def paired_difference(a: pd.Series, b: pd.Series, *, what: str) -> PairedDifference:
    """Compare two series of Dice over the same index; NaN on either side leaves the pair out."""
    a = a.sort_index()  # the seeded interval must not depend on the order of rows
    b = b.reindex(a.index)
    both = a.notna() & b.notna()
    delta = (b[both] - a[both]).to_numpy(float)
    delta = np.where(np.abs(delta) < _TIE, 0.0, delta)
    interval = mean_interval(delta)
    spread = float(np.std(delta, ddof=1)) if len(delta) > 1 else 0.0
    mean = float(delta.mean()) if len(delta) else math.nan
    return PairedDifference(
        what=what,
        n=len(delta),
        mean_a=float(a[both].mean()),
        mean_b=float(b[both].mean()),
        difference=mean,
        low=interval.low,
        high=interval.high,
        method=interval.method,
        p_value=wilcoxon_p(delta),
        effect_size=mean / spread if spread > _TIE else math.nan,
        wins=int((delta > 0).sum()),
        ties=int((delta == 0).sum()),
        losses=int((delta < 0).sum()),
        n_only_a_undefined=int((a.isna() & b.notna()).sum()),
        n_only_b_undefined=int((a.notna() & b.isna()).sum()),
    )


def mean_interval(values: np.ndarray, *, seed: int = SEED) -> Interval:
    """Return the 95 % bootstrap interval of the mean of `values` `(n,)`, NaN left out.

    BCa; where that is degenerate (all values equal) the percentile interval; below two values none.
    """
    from scipy import stats

    values = np.asarray(values, float)
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return Interval(math.nan, math.nan, "none")
    if np.ptp(values) < _TIE:
        return Interval(float(values[0]), float(values[0]), "percentile")
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the degenerate case is handled below
            result = stats.bootstrap(
                (values,),
                np.mean,
                n_resamples=N_RESAMPLES,
                method=method,
                batch=max(1, 10_000_000 // len(values)),
                random_state=np.random.default_rng(seed),
            )
        low, high = result.confidence_interval
        if math.isfinite(low) and math.isfinite(high):
            break
    return Interval(float(low), float(high), method)


def wilcoxon_p(differences: np.ndarray) -> float:
    """Return the two-sided p of Wilcoxon's signed-rank test; 1 when nothing differs, NaN without pairs."""
    from scipy import stats

    if not len(differences):
        return math.nan
    if not differences.any():
        return 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ties and zeros switch to the normal approximation, which is meant
        return float(stats.wilcoxon(differences).pvalue)


def load_table(source: pd.DataFrame | str | Path, side: str = "table") -> pd.DataFrame:
    """Return the table of `evaluate` from itself, a `cases.csv` or the folder that holds one.

    Raises:
        InputError: no such file, or not such a table.
    """
    if isinstance(source, pd.DataFrame):
        table, file = source, None
    else:
        file = Path(source) / "cases.csv" if Path(source).is_dir() else Path(source)
        table = _read_cases(file)
    lacking = [column for column in ("case", "label", "name", "dice") if column not in table]
    if lacking:
        raise InputError(
            f"{side} has no column {', '.join(lacking)}",
            file=file,
            remedy="Give the table that evaluate returns or writes",
        )
    table = table.assign(case=table["case"].astype(str))
    repeated = table.duplicated(["case", "label"])
    if table.empty or repeated.any():
        problem = "is empty" if table.empty else f"repeats case {table['case'][repeated].iloc[0]!r}"
        raise InputError(f"{side} {problem}", file=file, remedy="Evaluate again")
    return table


def _read_cases(file: Path) -> pd.DataFrame:
    """Read `cases.csv` exactly as written: a case called "NA" is a name, an empty number is NaN."""
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
        for column in table.columns.difference(["case", "name"]):
            table[column] = [float(text) if text else math.nan for text in table[column]]
        return table.astype({"label": int}) if "label" in table else table
    except OSError as error:
        remedy = "Give the folder that evaluate wrote, or its cases.csv"
        raise InputError(f"cannot be read ({error.strerror})", file=file, remedy=remedy) from error
    except ValueError as error:  # includes pandas' errors of parsing
        reason = " ".join(str(error).split())
        raise InputError(f"is not a table of cases ({reason})", file=file, remedy="Evaluate again") from error


def _check_same_cases(a: pd.DataFrame, b: pd.DataFrame) -> None:
    keys = [set(zip(table["case"].astype(str), table["label"], strict=True)) for table in (a, b)]
    for side, absent in (("a", keys[1] - keys[0]), ("b", keys[0] - keys[1])):
        if absent:
            shown = [f"{case} (label {label})" for case, label in sorted(absent)[:5]]
            more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
            raise InputError(
                f"the two evaluations cover different cases: {side} lacks {', '.join(shown)}{more}",
                remedy="Evaluate both on the same references with the same labels",
            )


def _line(row: PairedDifference, width: int) -> str:
    score = f"{row.wins}/{row.ties}/{row.losses}"
    return (
        f"{row.what:<{width}}  {row.mean_a:6.4f}  {row.mean_b:6.4f}  {row.difference:+.4f} "
        f"[{row.low:+.4f}, {row.high:+.4f}]  {row.p_value:8.3g}  {score:>12}  {row.n:>4}"
    )
