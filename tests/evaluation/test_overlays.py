"""Overlays: oriented as radiologists expect, with aspect, slices, legends and refusals."""

import math

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

import segscse as ss
from segscse.data.io import Volume
from segscse.errors import InputError
from segscse.evaluation.overlays import plot_overlay
from segscse.evaluation.scene import DISAGREEMENT, disagreement, label_colour

from .conftest import AFFINE, blocks


def _pictures(figure):
    """Return the grey picture of every panel."""
    return [np.asarray(ax.images[0].get_array()) for ax in figure.axes if ax.images]


def test_overlay_shows_three_planes_and_says_which_slice():
    figure = ss.plot_overlay(np.random.default_rng(0).random((12, 12, 8)), blocks(1), blocks())
    assert isinstance(figure, Figure)
    assert len(figure.axes) == 3
    texts = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert texts == ["axial 2", "coronal 2", "sagittal 2"]
    assert [entry.get_text() for entry in figure.legends[0].get_texts()] == [
        "label 1", "label 2", "reference (outline)",
    ]  # fmt: skip


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (-1, -1, 1), (1, -1, -1)])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_pictures_do_not_depend_on_how_voxels_are_stored(flips, order):
    image = np.random.default_rng(0).random((5, 6, 7))
    labels = np.zeros((5, 6, 7), np.uint8)
    labels[4, 5, 6] = labels[3, 5, 6] = 1  # right, anterior, superior
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    expected = _pictures(plot_overlay(Volume(image, affine), labels))
    stored, stored_affine = _restore(image, affine, flips, order)
    stored_labels, _ = _restore(labels, affine, flips, order)
    figure = plot_overlay(Volume(stored, stored_affine), Volume(stored_labels, stored_affine))
    for got, want in zip(_pictures(figure), expected, strict=True):
        np.testing.assert_array_equal(got, want)
    axial, coronal, sagittal = (np.asarray(ax.images[1].get_array())[..., 3] for ax in figure.axes)
    assert axial[0, 0] > 0  # the patient's right and front: left and top of the picture
    assert coronal[0, 0] > 0
    assert sagittal[0, 0] > 0


def _restore(array, affine, flips, order):
    """Store a RAS array with axes flipped and permuted, and the affine that says so."""
    flipped = array[tuple(slice(None, None, step) for step in flips)]
    change = np.eye(4)
    for axis, step in enumerate(flips):
        if step < 0:
            change[axis, axis], change[axis, 3] = -1, array.shape[axis] - 1
    permute = np.eye(4)[:, [*order, 3]]
    return flipped.transpose(order), affine @ change @ permute


def test_aspect_follows_the_spacing():
    figure = plot_overlay(np.zeros((12, 12, 8)), blocks(), spacing_mm=(1, 2, 2.5))
    assert [ax.get_aspect() for ax in figure.axes] == pytest.approx([2, 2.5, 1.25])


def test_planes_and_slices_can_be_chosen():
    figure = plot_overlay(None, blocks(), axis="coronal", slices=9)
    assert [text.get_text() for text in figure.axes[0].texts] == ["coronal 9"]
    figure = plot_overlay(None, blocks(), axis=["axial", "sagittal"], slices={"axial": 7})
    assert [ax.texts[0].get_text() for ax in figure.axes] == ["axial 7", "sagittal 2"]
    with pytest.raises(InputError, match="Did you mean 'axial'"):
        plot_overlay(None, blocks(), axis="axail")
    with pytest.raises(InputError, match="no axial slice 8; allowed: 0 to 7"):
        plot_overlay(None, blocks(), axis="axial", slices=8)


def test_2d_arrays_and_single_slices_show_one_picture():
    image = np.random.default_rng(0).random((6, 9))
    flat = plot_overlay(image, image > 0.5, image > 0.4)
    assert len(flat.axes) == 1
    assert _pictures(flat)[0].shape == (6, 9)
    assert len(plot_overlay(None, Volume(blocks()[:, :, :1], AFFINE)).axes) == 1


def test_overlay_refuses_other_grids_and_shows_the_first_channel():
    with pytest.raises(InputError, match="different grids"):
        plot_overlay(np.zeros((3, 3, 3)), blocks())
    with pytest.raises(InputError, match="different grids"):
        plot_overlay(Volume(np.zeros((12, 12, 8)), AFFINE), Volume(blocks(), np.diag([-1, 2, 2.5, 1.0])))
    channels = np.stack([np.ones((12, 12, 8)), np.zeros((12, 12, 8))], axis=-1)
    assert _pictures(plot_overlay(channels, blocks()))[0].min() == 1


def test_overlay_of_nothing_shows_the_middle_and_nan_voxels_do_no_harm():
    image = np.full((12, 12, 8), math.nan)
    figure = plot_overlay(image, np.zeros((12, 12, 8), int))
    figure.canvas.draw()
    assert figure.axes[0].texts[0].get_text() == "axial 4"


def test_labels_keep_their_colours():
    assert label_colour(1) == label_colour(1 + 9) != label_colour(2)


def test_disagreement_by_hand():
    pred, ref = np.array([0, 1, 1, 2, 0, 2]), np.array([0, 1, 0, 1, 2, 2])
    assert disagreement(pred, ref).tolist() == [0, 0, 1, 3, 2, 0]


def test_disagreement_paints_only_what_differs():
    figure = plot_overlay(None, blocks(1), blocks(), axis="axial", slices=3, show="disagreement")
    tint = np.asarray(figure.axes[0].images[1].get_array())
    assert tint[..., 3].astype(bool).sum() == 2 * (4 + 4)  # a column of voxels on either side of both blocks
    assert np.allclose(tint[tint[..., 3] > 0][0, :3], to_rgb(DISAGREEMENT[1][1])) or np.allclose(
        tint[tint[..., 3] > 0][0, :3], to_rgb(DISAGREEMENT[2][1])
    )
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [text for text, _ in DISAGREEMENT.values()]
    with pytest.raises(InputError, match="needs a reference"):
        plot_overlay(None, blocks(), show="disagreement")
    with pytest.raises(InputError, match="unknown value of show"):
        plot_overlay(None, blocks(), show="errors")


@pytest.mark.parametrize(("axis", "organs"), [("axial", 4), (None, 12)])
def test_the_legend_is_as_wide_as_the_figure_at_most_and_below_the_pictures(axis, organs):
    array = np.zeros((12, 12, 12), np.uint8)
    array[:organs, 5, 6] = range(1, organs + 1)
    names = dict.fromkeys(range(1, organs + 1), "gallbladder, left")
    figure = plot_overlay(None, array, array, axis=axis, names=names)
    FigureCanvasAgg(figure).draw()
    legend = figure.legends[0].get_window_extent()
    assert len(figure.legends[0].get_texts()) == organs + 1
    assert legend.x1 <= figure.bbox.x1
    assert legend.y1 <= min(ax.get_window_extent().y0 for ax in figure.axes)


def test_many_labels_are_summed_up_in_the_legend():
    array = np.arange(60).reshape(3, 4, 5)
    assert plot_overlay(None, array).legends[0].get_texts()[-1].get_text() == "and 47 more"
