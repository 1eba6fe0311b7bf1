"""From a matplotlib figure to an SVG element that can stand inside a page: small, safe, and the page's own colours.

Sizes are in SVG units; a drawing is WIDTH of them wide and scales to the room it is given. No state of
matplotlib's is left changed, and the same figure always gives the same text.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.palette import ALL, GRID, INK, MUTED

#: Narrow on purpose: on a phone a drawing keeps four fifths of its size, and its letters stay legible.
WIDTH = 420
FONT_SIZE = 13.0
SMALL = 12.0

_RC: dict[Any, Any] = {
    "font.size": FONT_SIZE,
    "text.color": INK.light,
    "text.parse_math": False,  # a dollar sign in a user's name is a dollar sign
    "axes.edgecolor": GRID.light,
    "axes.labelcolor": MUTED.light,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": FONT_SIZE,
    "axes.labelsize": SMALL,
    "xtick.color": MUTED.light,
    "ytick.color": MUTED.light,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "grid.color": GRID.light,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": SMALL,
    "hatch.linewidth": 1.0,
    "hatch.color": INK.light,
    "svg.fonttype": "none",
    "svg.hashsalt": "shardscope",
    "path.simplify": False,
    "lines.scale_dashes": False,
}
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}
_FONT = re.compile(r"\bfont:\s*(?:(?P<weight>bold|\d{3})\s+)?(?P<size>[\d.]+px)[^;]*")  # as older matplotlib writes it
_FONT_FAMILY = re.compile(r";?\s*font-family:[^;]*")
_REFERENCE = re.compile(r"#([\w.-]+)")
_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_CSS = {colour.light: colour.css for colour in ALL}
_COLOUR = re.compile("|".join(_CSS), re.IGNORECASE)


@dataclass(frozen=True)
class Chart:
    """A finished figure: `svg` is markup, the rest is text. `key` is unique on a page."""

    key: str
    title: str
    caption: str
    svg: str


@contextmanager
def drawing_style() -> Iterator[None]:
    """matplotlib's settings for a drawing, put back afterwards. Artists have to be made inside it."""
    with matplotlib.rc_context(_RC):
        yield


def canvas(
    height: float, left: float = 8, right: float = 8, top: float = 8, bottom: float = 28, width: float = WIDTH
) -> tuple[Figure, Axes]:
    """A figure of `width` x `height` units with one set of axes inside the margins."""
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    figure.patch.set_alpha(0)
    return figure, axes_in(figure, left, bottom, width - left - right, height - top - bottom)


def axes_in(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place of the figure, in units from its lower left corner."""
    whole_width, whole_height = figure.get_size_inches() * 72
    axes = figure.add_axes((left / whole_width, bottom / whole_height, width / whole_width, height / whole_height))
    axes.patch.set_alpha(0)
    return axes


def to_svg(figure: Figure, key: str, label: str, hover: Mapping[str, str] | None = None) -> str:
    """The figure as one `<svg>` element.

    `key` goes before every id, so that several drawings can share a page; `label` is what a screen reader says;
    `hover` maps an artist's gid to the text shown over it. All text is escaped by the XML writer.
    """
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # a letter that matplotlib's own font lacks is drawn by the reader's browser
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", transparent=True, metadata=_NO_METADATA)
    root = ElementTree.fromstring(buffer.getvalue())
    box = root.get("viewBox", "")
    root.attrib.clear()
    _drop_namespaces(root)
    _add_titles(root, hover or {})
    _prune(root)
    _rename(root, key)
    for element in root.iter():
        _restyle(element)
    described = {"viewBox": box, "role": "img", "aria-label": label, "stroke-linejoin": "round", "class": "drawing"}
    root.attrib.update(described)
    return ElementTree.tostring(root, encoding="unicode")


def as_file(svg: str) -> str:
    """An `<svg>` element of this module as the text of a file of its own, which follows the reader's light or dark."""
    light = "".join(f"--{colour.variable}:{colour.light};" for colour in ALL)
    dark = "".join(f"--{colour.variable}:{colour.dark};" for colour in ALL)
    style = f"<style>svg{{{light}font-family:sans-serif}}@media(prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
    head, rest = svg.split(">", 1)
    return f'{head} xmlns="http://www.w3.org/2000/svg">{style}{rest}\n'


def _drop_namespaces(root: ElementTree.Element) -> None:
    """Plain names: inside HTML an `svg` element needs no namespace, and `href` no prefix."""
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for name in [name for name in element.attrib if name.startswith("{")]:
            element.set(name.rpartition("}")[2], element.attrib.pop(name))


def _add_titles(root: ElementTree.Element, hover: Mapping[str, str]) -> None:
    """Hover text: a `title` as the first child of the element with that id."""
    for element in root.iter():
        text = hover.get(element.get("id", ""))
        if text is not None:
            title = ElementTree.Element("title")
            title.text = text
            element.insert(0, title)


def _prune(element: ElementTree.Element) -> None:
    """Remove what nobody sees: metadata, invisible patches, empty groups, indentation; and the style sheet,
    which would reach out of the drawing into the page."""
    for child in list(element):
        _prune(child)
        hollow = child.tag in {"g", "defs"} and not len(child)
        if hollow or child.tag in {"metadata", "style"} or "opacity: 0" in child.get("style", "").split("; "):
            element.remove(child)
        child.tail = None
        if len(child):
            child.text = None
    if len(element):
        element.text = None


def _rename(root: ElementTree.Element, key: str) -> None:
    """Keep the ids that something refers to, with the key before them."""
    references = {"href", "clip-path", "style", "fill"}
    used = {
        found
        for element in root.iter()
        for name in references & element.attrib.keys()
        for found in _REFERENCE.findall(element.attrib[name])
    }
    for element in root.iter():
        identity = element.attrib.pop("id", None)
        if identity in used:
            element.set("id", f"{key}-{identity}")
        for name in references & element.attrib.keys():
            value = element.attrib[name]
            if "url(#" in value or name == "href":
                element.set(name, value.replace("url(#", f"url(#{key}-") if name != "href" else f"#{key}-{value[1:]}")


def _restyle(element: ElementTree.Element) -> None:
    """The page's font and colours instead of matplotlib's, and no more digits than an eye can see."""
    if element.get("transform", "").startswith("rotate(-0 "):
        del element.attrib["transform"]
    if element.get("fill", "").startswith("#"):  # variables work in style only
        element.set("style", f"fill: {element.attrib.pop('fill')}")
    if "style" in element.attrib:
        style = _FONT.sub(r"font-size: \g<size>; font-weight: \g<weight>", element.attrib["style"])
        style = _FONT_FAMILY.sub("", style).replace("; font-weight: ;", ";")
        element.set("style", _COLOUR.sub(lambda found: _CSS[found[0].lower()], style))
    for name in {"d", "x", "y", "width", "height", "transform"} & element.attrib.keys():
        element.set(name, _NUMBER.sub(lambda found: f"{float(found[0]):.2f}", " ".join(element.attrib[name].split())))
