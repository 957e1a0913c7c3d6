import ast
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import segscse
from segscse.errors import InputError
from segscse.nets.dims import (
    as_tuple,
    batch_norm,
    channels_last,
    check_spatial_dims,
    conv,
    conv_transpose,
    instance_norm,
    network_to_channels_last,
)

PACKAGE = Path(segscse.__file__).parent
RANKED_LAYER = re.compile(r"^(Conv|ConvTranspose|BatchNorm|InstanceNorm|MaxPool|AvgPool|Adaptive\w*Pool|Dropout)[23]d$")


@pytest.mark.parametrize(
    ("table", "in_2d", "in_3d"),
    [
        (conv, nn.Conv2d, nn.Conv3d),
        (conv_transpose, nn.ConvTranspose2d, nn.ConvTranspose3d),
        (batch_norm, nn.BatchNorm2d, nn.BatchNorm3d),
        (instance_norm, nn.InstanceNorm2d, nn.InstanceNorm3d),
    ],
)
def test_every_table_gives_the_layer_of_the_rank(table, in_2d, in_3d):
    assert table(2) is in_2d
    assert table(3) is in_3d


@pytest.mark.parametrize("rank", [0, 1, 4, "3", None])
def test_other_ranks_are_refused_with_the_value(rank):
    with pytest.raises(InputError, match=f"must be 2 or 3, got {rank!r}"):
        check_spatial_dims(rank)


def test_a_number_stands_for_every_axis_and_a_sequence_for_itself():
    assert as_tuple(3, 2) == (3, 3)
    assert as_tuple([1, 2, 3], 3) == (1, 2, 3)


def test_a_sequence_of_the_wrong_length_is_refused():
    with pytest.raises(InputError, match="expected 3 values"):
        as_tuple((1, 2), 3)


@pytest.mark.parametrize(
    ("shape", "layout"), [((2, 3, 4, 5), torch.channels_last), ((2, 3, 4, 5, 6), torch.channels_last_3d)]
)
def test_channels_last_changes_the_strides_and_not_the_values(shape, layout):
    x = torch.randn(shape)
    y = channels_last(x)
    assert y.is_contiguous(memory_format=layout)
    assert torch.equal(x, y)


def test_a_network_in_channels_last_has_its_convolutions_there():
    network = network_to_channels_last(nn.Sequential(nn.Conv3d(2, 4, 3)), 3)
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last_3d)


def _makes_a_ranked_layer(node):
    return (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and bool(RANKED_LAYER.match(node.func.attr))
    )


def _branches_on_the_rank(node):
    return (
        isinstance(node, ast.Compare)
        and ("spatial_dims" in ast.unparse(node) or "ndim" in ast.unparse(node))
        and any(isinstance(side, ast.Constant) and side.value in (2, 3) for side in (node.left, *node.comparators))
    )


@pytest.mark.parametrize("folder", ["nets", "training", "inference"])
def test_only_dims_tells_the_ranks_apart(folder):
    """Elsewhere no layer of a fixed rank is made, and nothing branches on the number of spatial axes."""
    found = []
    for file in sorted((PACKAGE / folder).glob("*.py")):
        if file.name != "dims.py":
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if _makes_a_ranked_layer(node) or _branches_on_the_rank(node):
                    found.append(f"{file.name}:{node.lineno}: {ast.unparse(node)}")
    assert found == []
