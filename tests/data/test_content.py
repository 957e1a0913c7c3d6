import numpy as np
import pytest

from segscse.data.content import content_box, content_mask


def test_zeros_around_the_anatomy_are_no_content_where_interpolation_undershot_below_them():
    image = np.zeros((1, 12, 11, 10), np.float32)
    image[0, 3:8, 4:9, 2:7] = 50
    image[0, 3, 4, 2] = -0.4
    assert content_box(image) == (slice(2, 9), slice(3, 10), slice(1, 8))
    assert int(content_mask(image).sum()) == 5**3 - 1


def test_the_air_of_a_ct_is_no_content_and_its_water_within_the_body_does_not_matter():
    image = np.full((1, 9, 9, 9), -1024, np.int16)
    image[0, 2:6, 2:6, 2:6] = 40
    image[0, 3, 3, 3] = 0
    assert content_box(image, margin=0) == (slice(2, 6),) * 3


def test_content_of_any_channel_counts():
    image = np.zeros((2, 8, 8, 8))
    image[0, 2, 2, 2], image[1, 5, 4, 3] = 1, 2
    assert content_box(image, margin=0) == (slice(2, 6), slice(2, 5), slice(2, 4))


def test_the_first_plans_counted_zeros_above_the_minimum():
    image = np.zeros((1, 12, 11, 10), np.float32)
    image[0, 3:8, 4:9, 2:7] = 50
    image[0, 3, 4, 2] = -0.4
    assert int(content_mask(image, zeros=True).sum()) == image.size - 1
    assert content_box(image, zeros=True) == (slice(0, 12), slice(0, 11), slice(0, 10))


@pytest.mark.parametrize("value", [0, 7, -1024])
def test_a_constant_image_is_all_content(value):
    image = np.full((1, 4, 5, 6), value, np.int16)
    assert content_mask(image).all()
    assert content_box(image) == (slice(0, 4), slice(0, 5), slice(0, 6))


def test_values_that_32_bits_cannot_tell_from_the_minimum_are_none():
    image = np.full((1, 5, 5, 5), 1.0)
    image[0, 1, 1, 1], image[0, 3, 3, 3] = 1 + 1e-12, 2
    assert content_box(image, margin=0) == (slice(3, 4),) * 3
