"""Boxes drawn on images, and images side by side. Knows pixels, boxes and words; knows no metric and no network."""

import colorsys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

SIDE = 480
"""Pixels of a tile."""

Colour = tuple[int, ...] | str


class Mark(NamedTuple):
    """A box with a label."""

    box: tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels, in any order, inside the image or not
    colour: Colour
    text: str = ""


class Tile(NamedTuple):
    image: Image.Image
    caption: str


def draw(image: np.ndarray, marks: Sequence[Mark], outline: int) -> Image.Image:
    """image (H, W, 3) uint8 with a box of `outline` pixels for each mark and its text above, the first on top."""
    canvas = Image.fromarray(image)
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(max(10.0, min(canvas.size) / 50))
    for mark in reversed(marks):
        x0, y0, x1, y1 = mark.box
        corners = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
        pen.rectangle(corners, outline=mark.colour, width=outline)
        if mark.text:
            _, _, wide, high = pen.textbbox((0, 0), mark.text, font=font)
            # Above the box, or inside it at the upper edge of the image, and never beyond the right edge.
            place = (max(0.0, min(corners[0], canvas.width - wide)), max(0.0, corners[1] - high))
            pen.rectangle((*place, place[0] + wide, place[1] + high), fill=mark.colour)
            pen.text(place, mark.text, fill=_readable_on(mark.colour), font=font)
    return canvas


def class_colour(label: int) -> Colour:
    """A colour that depends on the class alone; golden-ratio steps keep neighbours apart."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618034 % 1.0, 0.6, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def enlarged(image: np.ndarray, marks: Sequence[Mark], side: int = SIDE) -> tuple[np.ndarray, list[Mark]]:
    """Image and marks shrunk or grown until the image fits a square of `side` pixels, its aspect kept."""
    height, width = image.shape[:2]
    factor = side / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    x, y = size[0] / width, size[1] / height
    moved = [mark._replace(box=tuple(np.multiply(mark.box, (x, y, x, y)).tolist())) for mark in marks]
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)), moved


def grid(rows: Sequence[tuple[str, Sequence[Tile]]], side: int = SIDE) -> Image.Image:
    """Rows of tiles on white, a heading above each row and a caption below each tile. Tiles fit `side` pixels."""
    font, large = ImageFont.load_default(14.0), ImageFont.load_default(18.0)
    above, below, gap = 30, 26, 8
    across, down = side + gap, above + side + below
    canvas = Image.new("RGB", (gap + across * max(len(tiles) for _, tiles in rows), down * len(rows)), "white")
    pen = ImageDraw.Draw(canvas)
    for row, (heading, tiles) in enumerate(rows):
        top = row * down
        pen.text((gap, top + 4), heading, fill="black", font=large)
        for column, tile in enumerate(tiles):
            left = gap + column * across
            canvas.paste(tile.image, (left, top + above))
            pen.text((left, top + above + side + 3), tile.caption, fill="black", font=font)
    return canvas


def _readable_on(colour: Colour) -> str:
    red, green, blue = (ImageColor.getrgb(colour) if isinstance(colour, str) else colour)[:3]
    return "black" if 299 * red + 587 * green + 114 * blue > 128_000 else "white"
