"""Charts as SVG inside of a page: drawn in lines, dots and texts, coloured by the page's style.

Every chart is drawn twice, for wide pages and for phones: a picture that is scaled down to a phone
cannot be read there. Texts are escaped as they are put in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

Span = tuple[float, float]
"""The least and the greatest value on an axis."""

COLOURS = 12  # classes c0 ... c11 of the page's style
_SIZES = {"wide": (720, 330), "narrow": (360, 270)}
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 14, 10, 42  # pixels around the plot
_NEAR = 0.05  # of the range, left free around the data


@dataclass(frozen=True)
class Line:
    """A curve: values at 1, 2, ...; None before there is one.

    Attributes:
        low, high: A band around it; empty: none.
        dots: Whether single values are shown, not the course.
    """

    name: str
    values: Sequence[float | None]
    colour: int = 0
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    dots: bool = False


@dataclass(frozen=True)
class Dot:
    """A point of a scatter chart.

    Attributes:
        mark: A short text beside it.
        kind: A class of the page's style: "run", "original".
    """

    name: str
    x: float
    y: float
    mark: str = ""
    kind: str = "run"
    colour: int = 0


@dataclass(frozen=True)
class _Frame:
    """Where data lie on a chart of so many pixels."""

    width: int
    height: int
    x: Span
    y: Span

    def across(self, value: float) -> float:
        low, high = self.x
        return _LEFT + (value - low) / (high - low) * (self.width - _LEFT - _RIGHT)

    def up(self, value: float) -> float:
        low, high = self.y
        share = min(1.0, max(0.0, (value - low) / (high - low)))  # what is cut off lies on the edge
        return self.height - _BOTTOM - share * (self.height - _TOP - _BOTTOM)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About so many round numbers from low to high: multiples of 1, 2 or 5 and a power of ten."""
    raw = (high - low) / max(1, count)
    if not (math.isfinite(raw) and raw > 0):
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(n * power for n in (1, 2, 5, 10) if n * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    found = [n * step for n in range(first, first + 2 * count + 2)]
    return [value + 0.0 for value in found if value <= high + 1e-9 * step]


def readable(value: float) -> str:
    """Four digits, and a prefix where there are many more."""
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * factor:
            return f"{value / factor:.4g} {prefix}"
    return f"{value + 0.0:.4g}"  # not -0


def line_chart(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    levels: Sequence[tuple[str, float]] = (),
    shaded: int = 0,
    floor: float | None = None,
) -> Markup:
    """Curves over evaluations.

    Args:
        levels: Names and values of horizontal lines.
        shaded: So many first evaluations have a darker ground.
        floor: The least value shown.
    """
    values = [v for line in lines for part in (line.values, line.low, line.high) for v in part]
    known = [v for v in values if v is not None] + [value for _, value in levels]
    if floor is not None:
        known = [max(floor, value) for value in known]
    length = max((len(line.values) for line in lines), default=0)
    if not known or not length:
        return Markup("")
    x, y = (1.0, float(max(2, length))), _span(known)

    def draw(frame: _Frame) -> Markup:
        return _lines(frame, lines, levels, shaded)

    return _both(x, y, x_label, y_label, draw, whole=True)


def scatter_chart(
    dots: Sequence[Dot],
    *,
    x_label: str,
    y_label: str,
    fronts: Sequence[Sequence[tuple[float, float]]] = (),
) -> Markup:
    """Points, and the steps through those that nothing beats.

    Args:
        fronts: The corners of each, cheapest first.
    """
    if not dots:
        return Markup("")
    x, y = _span([dot.x for dot in dots]), _span([dot.y for dot in dots])
    return _both(x, y, x_label, y_label, lambda frame: _dots(frame, dots, fronts))


def strip(cells: Sequence[tuple[str, float]]) -> Markup:
    """Cells side by side as wide as the page, each as dark as its number from 0 to 1."""
    rects = Markup("").join(
        Markup(
            '<rect x="{}" y="0" width="1" height="1" fill-opacity="{}"><title>{}</title></rect>'
        ).format(place, f"{0.06 + 0.94 * min(1.0, max(0.0, share)):.3f}", text)
        for place, (text, share) in enumerate(cells)
    )
    return Markup(
        '<svg class="strip" viewBox="0 0 {} 1" preserveAspectRatio="none" role="img">{}</svg>'
    ).format(max(1, len(cells)), rects)


def stack(parts: Sequence[tuple[str, float]], whole: float) -> Markup:
    """Parts of a sum one after the other, on a scale that ends at ``whole``."""
    rects, start = Markup(""), 0.0
    for place, (text, size) in enumerate(parts):
        width = max(0.0, size) / whole if whole > 0 else 0.0
        rects += Markup(
            '<rect class="p{}" x="{}" y="0" width="{}" height="1"><title>{}</title></rect>'
        ).format(place % 2, f"{100 * start:.3f}", f"{100 * width:.3f}", text)
        start += width
    return Markup(
        '<svg class="stack" viewBox="0 0 100 1" preserveAspectRatio="none" role="img">{}</svg>'
    ).format(rects)


# -- parts -----------------------------------------------------------------------------------


def _span(values: Sequence[float]) -> Span:
    low, high = min(values), max(values)
    room = _NEAR * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def _both(
    x: Span,
    y: Span,
    x_label: str,
    y_label: str,
    draw: Callable[[_Frame], Markup],
    *,
    whole: bool = False,
) -> Markup:
    """A chart for wide pages and one for phones, of which the page's style shows one.

    Args:
        whole: Whether the numbers on the x axis are whole ones.
    """
    found = Markup("")
    for name, (width, height) in _SIZES.items():
        frame = _Frame(width, height, x, y)
        found += Markup(
            '<svg class="chart {}" viewBox="0 0 {} {}" role="img" aria-label="{}">{}{}</svg>'
        ).format(
            name,
            width,
            height,
            f"{y_label} against {x_label}",
            _axes(frame, x_label, y_label, whole=whole),
            draw(frame),
        )
    return found


def _axes(frame: _Frame, x_label: str, y_label: str, *, whole: bool) -> Markup:
    right, bottom = frame.width - _RIGHT, frame.height - _BOTTOM
    found = Markup("")
    for value in ticks(*frame.y):
        at = f"{frame.up(value):.1f}"
        found += Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
            _LEFT, right, at, at
        )
        found += Markup(
            '<text class="tick" x="{}" y="{}" text-anchor="end" dy="4">{}</text>'
        ).format(_LEFT - 6, at, readable(value))
    values = ticks(*frame.x, count=4 if frame.width < 500 else 8)
    for value in (n for n in values if not whole or n == round(n)):
        at = f"{frame.across(value):.1f}"
        found += Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            at, bottom + 16, readable(value)
        )
    found += Markup('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
        _LEFT, right, bottom, bottom
    )
    middle = (_TOP + bottom) / 2
    found += Markup('<text class="label" x="{}" y="{}" text-anchor="middle">{}</text>').format(
        (_LEFT + right) / 2, frame.height - 6, x_label
    )
    return found + Markup(
        '<text class="label" x="12" y="{}" text-anchor="middle"'
        ' transform="rotate(-90 12 {})">{}</text>'
    ).format(middle, middle, y_label)


def _lines(
    frame: _Frame, lines: Sequence[Line], levels: Sequence[tuple[str, float]], shaded: int
) -> Markup:
    found = Markup("")
    if shaded:
        width = frame.across(min(shaded + 0.5, frame.x[1])) - _LEFT
        found += Markup('<rect class="warm" x="{}" y="{}" width="{}" height="{}"/>').format(
            _LEFT, _TOP, f"{width:.1f}", frame.height - _TOP - _BOTTOM
        )
    for place, (name, value) in enumerate(levels):
        at = f"{frame.up(value):.1f}"
        found += Markup(
            '<line class="level l{}" x1="{}" x2="{}" y1="{}" y2="{}"><title>{}</title></line>'
        ).format(place % 3, _LEFT, frame.width - _RIGHT, at, at, f"{name}: {value:.4g}")
    return found + Markup("").join(_line(frame, line) for line in lines)


def _line(frame: _Frame, line: Line) -> Markup:
    colour = line.colour % COLOURS
    if line.dots:
        return Markup("").join(
            Markup('<circle class="each" cx="{}" cy="{}" r="2.5"/>').format(
                f"{frame.across(place):.1f}", f"{frame.up(value):.1f}"
            )
            for place, value in enumerate(line.values, 1)
            if value is not None
        )
    band = Markup("")
    if line.low and line.high:
        there = list(_steps(frame, line.high)), list(_steps(frame, line.low))
        corners = " ".join([*there[0], *reversed(there[1])])
        band = Markup('<polygon class="band c{}" points="{}"/>').format(colour, corners)
    points = " ".join(_steps(frame, line.values))
    return band + Markup(
        '<polyline class="line c{}" points="{}"><title>{}</title></polyline>'
    ).format(colour, points, line.name)


def _steps(frame: _Frame, values: Sequence[float | None]) -> Iterator[str]:
    """Corners of a course that keeps a value until the next."""
    before: float | None = None
    for place, value in enumerate(values, 1):
        if value is None:
            continue
        if before is not None and before != value:
            yield f"{frame.across(place):.1f},{frame.up(before):.1f}"
        if before != value or place == len(values):
            yield f"{frame.across(place):.1f},{frame.up(value):.1f}"
        before = value


def _front(frame: _Frame, front: Sequence[tuple[float, float]]) -> Markup:
    corners: list[str] = []
    for place, (x, y) in enumerate(front):
        if place:
            corners.append(f"{frame.across(x):.1f},{frame.up(front[place - 1][1]):.1f}")
        corners.append(f"{frame.across(x):.1f},{frame.up(y):.1f}")
    return Markup('<polyline class="front" points="{}"/>').format(" ".join(corners))


def _dots(
    frame: _Frame, dots: Sequence[Dot], fronts: Sequence[Sequence[tuple[float, float]]]
) -> Markup:
    found = Markup("").join(_front(frame, front) for front in fronts)
    for dot in dots:
        x, y = frame.across(dot.x), frame.up(dot.y)
        shape = Markup('<circle cx="{}" cy="{}" r="6"/>').format(f"{x:.1f}", f"{y:.1f}")
        beyond = x > frame.width - 40
        found += Markup(
            '<g class="dot {} c{}"><title>{}</title>{}'
            '<text x="{}" y="{}" text-anchor="{}">{}</text></g>'
        ).format(
            dot.kind,
            dot.colour % COLOURS,
            f"{dot.name}: {readable(dot.x)}, {readable(dot.y)}",
            shape,
            f"{x - 8 if beyond else x + 8:.1f}",
            f"{y - 7 if y > 24 else y + 16:.1f}",
            "end" if beyond else "start",
            dot.mark,
        )
    return found
