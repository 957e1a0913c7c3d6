"""Errors that a user can act on: every one says what, got, allowed and the remedy in a single line."""

from __future__ import annotations

import errno
from pathlib import Path


def visible(text: str) -> str:
    """Return a text with the code of every character that is not printed, such as ESC: names must not steer a terminal.

    Line breaks stay.
    """
    return "".join(letter if letter.isprintable() or letter == "\n" else ascii(letter)[1:-1] for letter in text)


class SegscseError(Exception):
    """Base of every error that segscse raises on purpose; the command line prints it as one line, exit code 2."""


class InputError(SegscseError, ValueError):
    """Something the user gave is wrong: a file, a data set, a configuration value or an argument.

    Args:
        problem: what is wrong, with the value that was got and the values that are allowed.
        file: the file or folder concerned, when there is one.
        remedy: what the user can do about it.
    """

    def __init__(self, problem: str, *, file: str | Path | None = None, remedy: str = "") -> None:
        self.problem = problem
        self.file = None if file is None else str(file)
        self.remedy = remedy
        parts = [f"{file}: {problem}" if file is not None else problem, remedy]
        super().__init__(" ".join(part if part.endswith((".", "?")) else f"{part}." for part in parts if part))


class Interrupted(SegscseError):  # noqa: N818, a stop on request is no error
    """A signal asked a long piece of work to stop; what was finished is on disk.

    Args:
        signum: the signal's number; the exit code is 128 + signum (130 for SIGINT, 143 for SIGTERM).
        message: where the usable result lies and how to resume.
    """

    def __init__(self, signum: int, message: str) -> None:
        self.signum = signum
        super().__init__(message)


# Why the system does not let a path be used: a folder above it is locked, a name is too long, links lead in a circle.
OUT_OF_REACH = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP)


def of_system(error: OSError) -> InputError:
    """Return what to tell of a file that the system does not let be used."""
    reason = error.strerror or str(error)
    return InputError(
        f"cannot be used ({reason})", file=error.filename, remedy="Check the path, and the permissions of its folders"
    )


def choose(kind: str, got: str, allowed: object) -> InputError:
    """Return the error for a name that is not in a registry, with the closest match as the remedy."""
    from difflib import get_close_matches

    names = sorted(str(name) for name in allowed)  # type: ignore[attr-defined]
    lower = {name.lower(): name for name in names}  # of names that differ in capitals alone, the one without
    close = get_close_matches(got.lower(), lower, n=1)
    remedy = f"Did you mean {lower[close[0]]!r}?" if close else ""
    return InputError(f"unknown {kind} {got!r}; allowed: {', '.join(names)}", remedy=remedy)


def one_line(error: BaseException | str) -> str:
    """Return a text, or an exception's, on a single line, of visible characters."""
    return visible(" ".join(str(error).split()))
