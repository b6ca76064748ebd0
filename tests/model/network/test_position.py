"""Sine positions against the formula written out, one number at a time."""

import math

import pytest
import torch

from model.network.position import sine_position


def number(cell: int, valid: int, index: int, features: int) -> float:
    """Feature `index` of one axis: wavelength 10000 ** (2 floor(index / 2) / features), sine at even indices."""
    angle = (cell + 0.5) / (valid + 1e-6) * 2 * math.pi / 10000 ** (2 * (index // 2) / features)
    return math.sin(angle) if index % 2 == 0 else math.cos(angle)


def test_each_feature_follows_the_formula_y_first() -> None:
    height, width, features = 3, 5, 16
    valid = [(3, 5), (2, 4)]
    table = sine_position(height, width, torch.tensor(valid, dtype=torch.float64), features)
    assert table.shape == (2, height, width, features)
    for image, (rows, columns) in enumerate(valid):
        for y in range(height):
            for x in range(width):
                for index in range(features):
                    half = features // 2
                    cell, extent = (y, rows) if index < half else (x, columns)
                    expected = number(cell, extent, index % half, half)
                    assert table[image, y, x, index].item() == pytest.approx(expected, abs=1e-9)


def test_padding_does_not_move_the_image() -> None:
    alone = sine_position(4, 6, torch.tensor([[4.0, 6.0]]), 8)
    padded = sine_position(7, 9, torch.tensor([[4.0, 6.0]]), 8)
    torch.testing.assert_close(padded[:, :4, :6], alone)


def test_a_width_that_does_not_split_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        sine_position(2, 2, torch.ones(1, 2), 6)
