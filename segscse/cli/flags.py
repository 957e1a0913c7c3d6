"""Texts of the command line that are more than a number or a name."""

from __future__ import annotations

from segscse.errors import InputError

MOST_LABEL = 2**63 - 1


def read_fold(text: str) -> int | None:
    """Return the number of a fold, or None for `all`."""
    if text == "all":
        return None
    if not text.isdecimal():
        raise InputError(f"--fold must be a number, 'all' or 'cv', got {text!r}")
    return int(text)


def read_sizes(text: str) -> tuple[int, ...]:
    """Read `40,56,40`."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise InputError(f"--size must be two or three positive numbers such as 40,56,40, got {text!r}")
    return tuple(int(part) for part in parts)


def read_names(flag: str, text: str) -> list[str]:
    """Read `none,se`."""
    names = [part.strip() for part in text.split(",")]
    if not all(names):
        raise InputError(f"{flag} must be names separated by commas, got {text!r}")
    return names


def read_numbers(flag: str, text: str) -> list[int]:
    """Read `0,1,2`."""
    names = read_names(flag, text)
    if not all(name.isdecimal() for name in names):
        raise InputError(f"{flag} must be numbers separated by commas, got {text!r}")
    return [int(name) for name in names]


def read_label(flag: str, text: str) -> int:
    """Return a label id."""
    if not text.strip().isdecimal() or int(text) > MOST_LABEL:
        raise InputError(f"{flag} must name labels by their whole numbers below 2**63, got {text!r}")
    return int(text)


def read_by_label(flag: str, text: str) -> dict[int, str]:
    """Read `1=liver,2=spleen`."""
    parts = [part.partition("=") for part in text.split(",")]
    if not all(sign and value.strip() for _, sign, value in parts):
        raise InputError(f"{flag} must be label=value, separated by commas, got {text!r}")
    found = {read_label(flag, label): value.strip() for label, _, value in parts}
    if len(found) < len(parts):
        raise InputError(f"{flag} names a label twice, got {text!r}")
    return found


def read_tolerance(text: str) -> float | dict[int, float]:
    """Read `2`, or `1=2,2=1.5`."""
    flag = "--nsd-tolerance-mm"
    try:
        if "=" not in text:
            return float(text)
        return {label: float(value) for label, value in read_by_label(flag, text).items()}
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{flag} must be a number of mm, or label=mm separated by commas, got {text!r}") from error
