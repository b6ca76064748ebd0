"""A report as one HTML file that loads nothing from elsewhere. Knows blocks; knows no run."""

import base64
import json
import mimetypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from hpo.reporting.blocks import Block, Figure, Folded, Page, Picture
from hpo.reporting.names import moment

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup

TEMPLATE = "report.html.j2"


def html(page: Page) -> str:
    from markupsafe import Markup

    figures = any(has_figures(section.blocks) for section in page.sections)
    plotly = Markup(_plotly()) if figures else ""
    return _template().render(page=page, has_figures=figures, plotly=plotly)


def has_figures(blocks: Sequence[Block]) -> bool:
    return any(
        isinstance(block, Figure) or (isinstance(block, Folded) and has_figures(block.blocks)) for block in blocks
    )


def figure_json(figure: Figure) -> "Markup":
    """As JSON inside a script element: no character there can end the element."""
    from markupsafe import Markup

    layout = {"dragmode": False, **figure.layout}  # a finger on a plot scrolls the page
    text = json.dumps({"data": figure.data, "layout": layout}, allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def data_uri(picture: Picture) -> str:
    kind = mimetypes.guess_type(picture.file.name)[0] or "image/jpeg"
    return f"data:{kind};base64,{base64.b64encode(picture.file.read_bytes()).decode('ascii')}"


@cache
def _template() -> "Template":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    rooms = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
    rooms.filters |= {"spec": figure_json, "data_uri": data_uri, "moment": moment}
    return rooms.get_template(TEMPLATE)


@cache
def _plotly() -> str:
    from importlib import resources

    # plotly.offline.get_plotlyjs() reads this file too, after a second of imports.
    return resources.files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8")
