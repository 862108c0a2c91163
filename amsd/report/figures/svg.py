"""A few SVG elements with every attribute and text escaped, and the frame that all figures share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from amsd.report.figures.scale import Scale, tick_labels

#: Shapes of the marks, one for each guidance mode or group of runs, as paths around (0, 0) with radius about 1.
MARKS = (
    "M1 0A1 1 0 1 1 -1 0A1 1 0 1 1 1 0Z",
    "M-.9 -.9H.9V.9H-.9Z",
    "M0 -1.2L1.1 .8H-1.1Z",
    "M0 -1.3L1.1 0L0 1.3L-1.1 0Z",
    "M0 1.2L1.1 -.8H-1.1Z",
    "M-.4 -1.2H.4V-.4H1.2V.4H.4V1.2H-.4V.4H-1.2V-.4H-.4Z",
    "M0 -1.2L1.14 -.37L.71 .97H-.71L-1.14 -.37Z",
    "M-1.2 -1L0 -.3L1.2 -1V.7L0 1.2L-1.2 .7Z",
)
BASE_MARK = "M-1 -1L1 1M-1 1L1 -1"


@dataclass(frozen=True)
class Figure:
    """One picture, drawn for a wide screen and, where it does not scale, once more for a phone."""

    wide: str
    narrow: str = ""


@dataclass(frozen=True)
class Panel:
    """One of several small figures beside each other."""

    title: str
    svg: str


@dataclass(frozen=True)
class Frame:
    """The rectangle of data in a picture of `width` x `height` user units."""

    width: float
    height: float
    left: float = 52
    right: float = 12
    top: float = 14
    bottom: float = 42

    @property
    def x(self) -> tuple[float, float]:
        """Left and right end of the data."""
        return self.left, self.width - self.right

    @property
    def y(self) -> tuple[float, float]:
        """Lower and upper end of the data (pixels grow downwards)."""
        return self.height - self.bottom, self.top


def tag(name: str, content: str = "", /, **attributes: object) -> str:
    """An element; `class_` is class, underscores are hyphens, None is left out. `content` is markup already."""
    text = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_plain(value), quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{text}>{content}</{name}>" if content else f"<{name}{text}/>"


def label(x: float, y: float, words: str, class_: str, **attributes: object) -> str:
    """A line of text, in plain type."""
    return tag("text", escape(words), x=x, y=y, class_=class_, **attributes)


def path(points: Sequence[tuple[float, float]]) -> str:
    """Path data of a polyline."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def hue_class(hue: int) -> str:
    """CSS class of a color."""
    return f"m{hue}"


def mark(shape: str, x: float, y: float, radius: float, class_: str) -> str:
    """A path of `MARKS` around a place."""
    return tag("path", d=shape, transform=f"translate({x:.1f} {y:.1f}) scale({radius:g})", class_=class_)


def shape_of(hue: int) -> str:
    """Shape of the marks of a color."""
    return MARKS[hue if hue < len(MARKS) else 0]


def told(content: str, words: str, class_: str, run: str | None = None) -> str:
    """A mark that pointer and keyboard reach; `words` are the lines of its tip, `run` the entry that it belongs to."""
    return tag(
        "g",
        content,
        class_=f"mark {class_}",
        data_run=run,
        data_tip=words,
        role="img",
        aria_label=words.replace("\n", ", "),
        tabindex="-1",
    )


def axes(
    frame: Frame,
    x: Scale,
    y: Scale,
    x_title: str,
    y_title: str,
    ticks: tuple[int, int] = (5, 5),
    x_ticks: Sequence[tuple[float, str]] | None = None,
    y_ticks: Sequence[tuple[float, str]] | None = None,
) -> str:
    """Hairline grid, tick labels and titles. The vertical title stands above the axis, where it reads best.

    `ticks` says about how many round numbers are marked; `x_ticks` and `y_ticks` are places and words instead of them.
    """
    left, right = frame.x
    bottom, _top = frame.y
    parts = []
    for level, words in _round(y, ticks[1]) if y_ticks is None else y_ticks:
        parts.append(tag("path", d=f"M{left:.1f} {level:.1f}H{right:.1f}", class_="grid"))
        parts.append(label(left - 7, level + 3.8, words, "tick end"))
    for place, words in _round(x, ticks[0]) if x_ticks is None else x_ticks:
        parts.append(tag("path", d=f"M{place:.1f} {bottom:.1f}v4", class_="axis"))
        parts.append(label(place, bottom + 17, words, "tick mid"))
    parts.append(tag("path", d=f"M{left:.1f} {bottom:.1f}H{right:.1f}", class_="axis"))
    parts.append(label(right, frame.height - 6, x_title, "title end"))
    parts.append(label(2, 11, y_title, "title"))
    return "".join(parts)


def _round(scale: Scale, count: int) -> list[tuple[float, str]]:
    """Round numbers of a scale: pixels and words."""
    values = scale.ticks(count)
    return [(scale(value), words) for value, words in zip(values, tick_labels(values), strict=True)]


def picture(frame: Frame, content: str, words: str, class_: str = "", **attributes: object) -> str:
    """The `<svg>` element, with an accessible name."""
    return tag(
        "svg",
        content,
        viewBox=f"0 0 {frame.width:g} {frame.height:g}",
        class_=f"chart {class_}".strip(),
        role="group",
        aria_label=words,
        style=f"--w:{frame.width:g}px",
        **attributes,
    )


def plane(frame: Frame, x: Scale, y: Scale, content: str) -> str:
    """The data of a figure; its scales are attached so that the page's script can read values back from pixels."""
    left, right = frame.x
    bottom, top = frame.y
    background = tag("rect", x=left, y=top, width=right - left, height=bottom - top, class_="plane")
    return tag("g", background + content, class_="data", data_x=_scale(x), data_y=_scale(y))


def _scale(scale: Scale) -> str:
    return f"{scale.kind},{scale.low:.6g},{scale.high:.6g},{scale.start:g},{scale.end:g}"


def _plain(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)
