import numpy as np
import pytest
from PIL import Image

from model.pictures import Mark, Tile, class_colour, draw, enlarged, grid

BLACK = np.zeros((60, 80, 3), np.uint8)


@pytest.mark.parametrize("outline", [1, 3, 6])
def test_the_outline_is_as_wide_as_asked(outline: int) -> None:
    drawn = np.asarray(draw(BLACK, [Mark((20, 20, 60, 50), "red")], outline))
    assert (drawn[35, :, 0] == 255).nonzero()[0].tolist() == [*range(20, 20 + outline), *range(61 - outline, 61)]
    assert not BLACK.any(), "the image itself is left as it is"


def test_text_stays_in_the_image() -> None:
    """Over a box at the upper right corner there is no place for it."""
    drawn = np.asarray(draw(BLACK, [Mark((70, 0, 79, 20), "white", "cat 0.97")], 1))
    rows, columns = np.nonzero(drawn[..., 0])
    assert columns.min() < 60
    assert rows.max() == 20


def test_the_first_mark_is_on_top() -> None:
    drawn = draw(BLACK, [Mark((10, 10, 30, 30), "red"), Mark((10, 10, 30, 30), "blue")], 2)
    assert drawn.getpixel((10, 20)) == (255, 0, 0)


def test_corners_in_any_order_and_outside_are_no_crash() -> None:
    draw(BLACK, [Mark((50, 40, 10, 10), "red", "a"), Mark((-500, -500, 900, 900), (1, 2, 3), "b")], 3)
    assert class_colour(1) != class_colour(2)


def test_marks_grow_with_their_image() -> None:
    image, (mark,) = enlarged(BLACK, [Mark((10, 20, 30, 40), "red", "cat")], side=40)
    assert image.shape == (30, 40, 3)
    assert mark == Mark((5, 10, 15, 20), "red", "cat")
    assert enlarged(BLACK[:1], [], side=800)[0].shape == (10, 800, 3)


def test_a_grid_places_its_tiles() -> None:
    tile = Tile(Image.new("RGB", (100, 50), "red"), "")
    canvas = np.asarray(grid([("", [tile, tile]), ("", [tile])], side=100))
    assert canvas.shape == (2 * (30 + 100 + 26), 8 + 2 * 108, 3)
    red = (canvas == (255, 0, 0)).all(axis=2)
    assert red.sum() == 3 * 100 * 50
    assert red[30:80, 8:108].all()
    assert red[30:80, 116:216].all()
    assert red[186:236, 8:108].all()
