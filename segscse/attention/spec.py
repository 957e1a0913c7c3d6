"""A block and its options in one word, as configurations and command lines name them."""

from __future__ import annotations

import re
from typing import Any

from segscse.errors import InputError

_WORDS: dict[str, Any] = {"true": True, "false": False, "none": None}
_SIZES = re.compile(r"\d+(x\d+)+", re.ASCII)


def read_spec(text: str) -> tuple[str, dict[str, Any]]:
    """Read `scse:aggregation=max:reduction=4`: the name of a block, then its options; `7x7x3` is a number per axis.

    Names and values are checked where the block is built; see `segscse.attention.build_attention`.

    Raises:
        InputError: an option has no value, or occurs twice.
    """
    name, *given = str(text).split(":")
    options: dict[str, Any] = {}
    for item in given:
        option, _, value = item.partition("=")
        if not option or not value or option in options:
            raise InputError(
                f"an attention block is named as NAME or NAME:OPTION=VALUE:..., each option once, got {text!r}",
                remedy="For example scse:aggregation=max:reduction=4",
            )
        options[option] = _value(value)
    return name, options


def _value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _SIZES.fullmatch(text):
        return [int(size) for size in text.split("x")]
    try:
        return int(text)
    except ValueError:
        return text
