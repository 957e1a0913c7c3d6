"""Files of settings in YAML, from which only plain values can come."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import yaml

from segscse.errors import InputError, one_line
from segscse.files import read_limited

MAX_BYTES = 2**15  # twenty times all settings; the parser takes a second for the worst text of that size
MAX_VALUES = 10_000
KINDS = ("str", "int", "float", "bool", "null", "seq", "map", "merge")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read one YAML file of settings; only plain values can come out of it.

    Raises:
        InputError: the file cannot be read, repeats a name, multiplies values by aliases, or is no mapping.
    """
    content = read_limited(path, MAX_BYTES)
    try:
        # A stream, because of a text the errors would quote lines, and it need not be a file of settings.
        loader = yaml.SafeLoader(io.BytesIO(content))
        node = loader.get_single_node()
        if node is not None:
            _check_nodes(node)
        values = None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"is not valid YAML ({one_line(error)})", file=path, remedy="Correct the file") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError("must hold settings such as `model:`", file=path, remedy="See configs/ for examples")
    return values


def _check_nodes(root: yaml.Node) -> None:
    """Refuse dates, sets and objects, names that occur twice, and aliases that make much of little text.

    Raises:
        ValueError: naming the reason.
    """
    sizes: dict[int, int] = {}  # of every node, as if its aliases were written out

    def size(node: yaml.Node) -> int:
        if id(node) not in sizes:
            kind = node.tag.rpartition(":")[2]
            if kind not in KINDS:
                raise ValueError(f"a value of the kind {kind!r} is no setting; text goes in quotes")
            sizes[id(node)] = MAX_VALUES  # met again before it is counted: it holds itself
            sizes[id(node)] = 1 + sum(size(child) for child in _children(node))
        return sizes[id(node)]

    if size(root) > MAX_VALUES:
        raise ValueError(f"it holds more than {MAX_VALUES} values, aliases written out")


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        return node.value
    if not isinstance(node, yaml.MappingNode):
        return []
    names: set[str] = set()
    for name, _ in node.value:
        line = name.start_mark.line + 1
        if name.tag.rpartition(":")[2] not in ("str", "merge"):
            what = repr(name.value) if isinstance(name, yaml.ScalarNode) else "a list or mapping"
            raise ValueError(f"{what} in line {line} is no name of a setting; text goes in quotes")
        if name.value in names:
            raise ValueError(f"the name {name.value!r} occurs twice, the second time in line {line}")
        names.add(name.value)
    return [child for pair in node.value for child in pair]
