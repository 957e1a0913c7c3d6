"""Notes on files: what is unusual but no obstacle, said once for many files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

# More files than this with one and the same note are named by the first.
NAMED = 3


def fold_notes(notes: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return `(file, note)` pairs in their order, with a note that more than three files share given once.

    It then names the first of the files and says how many more there are.
    """
    files: dict[str, list[str]] = {}
    for file, text in notes:
        files.setdefault(text, []).append(file)
    folded = []
    for text, named in files.items():
        if len(named) > NAMED:
            folded.append((named[0], f"{text} (so do {len(named) - 1} more files)"))
        else:
            folded += [(file, text) for file in named]
    return folded


def same_but_case(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return each name that differs from an earlier one in upper and lower case only, with that one."""
    seen: dict[str, str] = {}
    pairs = []
    for name in names:
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            pairs.append((name, other))
    return pairs


def case_note(other: str) -> str:
    """Return the note on a name that differs from `other` in case only."""
    return f"differs from {other} in upper and lower case only: some file systems keep one of their files"
