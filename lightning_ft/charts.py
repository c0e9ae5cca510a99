"""Charts as inline SVG: lines, bars with intervals, histograms. Colours are CSS variables, so that a page can be dark.

A chart is drawn 320 units wide with text of 11, so that it is legible at its natural size on a phone and larger elsewhere.
"""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

WIDTH, HEIGHT = 320, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 24, 38
MOST_POINTS = 400
"""Points per line that are drawn; more are thinned to the extremes of equal stretches."""
LINES = 4
"""Lines of a chart that can be told apart."""
DOTTED = 30
"""Up to so many points each is marked by a dot."""
LETTER = 6.0
"""Width of a letter, about, for placing the legend."""
STYLE = """
svg { display: block; width: 100%; height: auto; font: 11px system-ui, sans-serif; }
svg text { fill: var(--text); }
svg .name { font-weight: 600; }
svg .soft { fill: var(--soft); }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .axis { stroke: var(--soft); stroke-width: 1; }
svg .line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
svg .c0 { stroke: var(--c0); } svg .c1 { stroke: var(--c1); stroke-dasharray: 6 3; }
svg .c2 { stroke: var(--c2); stroke-dasharray: 2 3; } svg .c3 { stroke: var(--c3); stroke-dasharray: 8 3 2 3; }
svg .d0 { fill: var(--c0); } svg .d1 { fill: var(--c1); } svg .d2 { fill: var(--c2); } svg .d3 { fill: var(--c3); }
svg .better { fill: var(--better); } svg .worse { fill: var(--worse); } svg .none { fill: var(--soft); }
svg .whisker { stroke: var(--text); stroke-width: 1.5; }
"""
"""CSS for the page that holds the charts; it defines text, soft, line, c0 to c3, better and worse as variables."""


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    name: str
    points: Sequence[tuple[float, float]]
    """(x, y) in order of x; values that are not finite leave a gap."""


@dataclass(frozen=True)
class Bar:
    """One difference with its interval."""

    name: str
    detail: str
    """Values in words, shown beneath the name."""
    value: float
    low: float
    high: float
    kind: str
    """`better`, `worse` or `none`: the colour."""
    flipped: bool = False
    """True where smaller is better, so that better is on the right in every row."""


def line_chart(series: Sequence[Series], *, title: str, x_label: str, y_label: str) -> str:
    """At most `LINES` lines over a common axis; all but the first one are dashed, each in its way."""
    points = [p for one in series for p in one.points if _finite(p)]
    if not points:
        return ""
    (x0, x1), (y0, y1) = _range([p[0] for p in points]), _range([p[1] for p in points])
    x_ticks, y_ticks = ticks(x0, x1, 5), ticks(y0, y1, 5)
    y0, y1 = min(y0, y_ticks[0]), max(y1, y_ticks[-1])
    frame = _Frame(x0, x1, y0, y1)
    parts = [_axes(frame, x_ticks, y_ticks, x_label, y_label)]
    for i, one in enumerate(series[:LINES]):
        parts += [
            f'<polyline class="line c{i}" points="{" ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in run)}" />'
            for run in _runs(thin(one.points))
            if len(run) > 1
        ]
        good = [p for p in one.points if _finite(p)]
        if len(good) <= DOTTED:
            parts += [f'<circle class="d{i}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="2.5" />' for x, y in good]
    if len(series) > 1:
        parts.append(_legend([one.name for one in series[:LINES]]))
    last = "; ".join(f"{one.name} ends at {one.points[-1][1]:.4g}" for one in series if one.points)
    return _svg(HEIGHT, f"{title}: {last}", parts)


def histogram(counts: Mapping[int, int], *, title: str, x_label: str, y_label: str, bins: int = 24) -> str:
    """Counts of whole numbers in at most `bins` bars of equal width."""
    if not counts:
        return ""
    low, high = min(counts), max(counts)
    width = max(1, math.ceil((high - low + 1) / bins))
    heights: dict[int, int] = {}
    for value, count in counts.items():
        heights[(value - low) // width] = heights.get((value - low) // width, 0) + count
    y_ticks = ticks(0, max(heights.values()), 4)
    edge = low + width * (max(heights) + 1)
    frame = _Frame(low, edge, 0, max(*heights.values(), y_ticks[-1]))
    parts = [_axes(frame, ticks(low, edge, 5), y_ticks, x_label, y_label)]
    for place, count in sorted(heights.items()):
        x, y = frame.x(low + place * width), frame.y(count)
        wide = frame.x(low + (place + 1) * width) - x
        parts.append(_rect("d0", x, y, max(1.0, wide - 1), frame.y(0) - y))
    return _svg(HEIGHT, f"{title}: {sum(counts.values()):,} values from {low:,} to {high:,}", parts)


def interval_chart(bars: Sequence[Bar], *, title: str) -> str:
    """A row per difference, each on its own scale, zero in the middle, better on the right."""
    bars = [bar for bar in bars if all(math.isfinite(v) for v in (bar.value, bar.low, bar.high))]
    if not bars:
        return ""
    step, middle, half = 62, WIDTH / 2, WIDTH / 2 - 14
    height = 24 + step * len(bars)
    parts = [
        _text(4, 13, "\u2190 worse", "soft"),
        _text(WIDTH - 4, 13, "better \u2192", "soft", "end"),
        _line("axis", middle, 18, middle, height - 4),
        _text(middle, 13, "0", "soft", "middle"),
    ]
    for i, bar in enumerate(bars):
        y = 24 + step * i
        scale = half / (max(abs(bar.value), abs(bar.low), abs(bar.high)) or 1) * (-1 if bar.flipped else 1)
        value, low, high = (middle + scale * v for v in (bar.value, bar.low, bar.high))
        centre = y + 46
        parts += [
            # A backdrop keeps the text legible where the zero line passes behind it.
            f'<rect x="0" y="{y}" width="{WIDTH}" height="32" fill="var(--card)" />',
            _text(4, y + 13, bar.name, "name"),
            _text(4, y + 27, bar.detail, "soft"),
            _rect(bar.kind, min(middle, value), centre - 7, abs(value - middle), 14),
            _line("whisker", low, centre, high, centre),
            *(_line("whisker", x, centre - 5, x, centre + 5) for x in (low, high)),
        ]
    return _svg(height, f"{title}: " + "; ".join(f"{bar.name} {bar.detail}" for bar in bars), parts)


def ticks(low: float, high: float, number: int) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart), about `number` of them, that lie within or just at [low, high]."""
    if high <= low:
        return [low]
    rough = (high - low) / number
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [0.0 if k == 0 else k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_label(value: float) -> str:
    """A short form of a number: 0.25, 2e-4, 15k, 1.2M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.4g}{unit}"
    if value and abs(value) < 1e-3:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}"


def thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MOST_POINTS` points: lowest and highest of each of equal stretches, in order, so that no spike is lost."""
    if len(points) <= MOST_POINTS:
        return list(points)
    stretches = MOST_POINTS // 2
    kept: list[tuple[float, float]] = []
    for k in range(stretches):
        part = list(points[k * len(points) // stretches : (k + 1) * len(points) // stretches])
        good = [i for i, p in enumerate(part) if _finite(p)]
        if not good:
            kept.append(part[0])
            continue
        ends = {min(good, key=lambda i, part=part: part[i][1]), max(good, key=lambda i, part=part: part[i][1])}  # type: ignore[misc]  # bound default
        kept += [part[i] for i in sorted(ends)]
    return kept


@dataclass(frozen=True)
class _Frame:
    """From values to places in the drawing."""

    x0: float
    x1: float
    y0: float
    y1: float

    def x(self, value: float) -> float:
        return LEFT + (value - self.x0) / ((self.x1 - self.x0) or 1) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.y0) / ((self.y1 - self.y0) or 1) * (HEIGHT - TOP - BOTTOM)


def _axes(frame: _Frame, x_ticks: Sequence[float], y_ticks: Sequence[float], x_label: str, y_label: str) -> str:
    floor, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for value in y_ticks:
        y = frame.y(value)
        parts += [_line("grid", LEFT, y, right, y), _text(LEFT - 6, y + 4, tick_label(value), "", "end")]
    for value in x_ticks:
        x = frame.x(value)
        parts += [_line("axis", x, floor, x, floor + 4), _text(min(x, right - 4), floor + 16, tick_label(value), "", "middle")]
    parts += [
        _line("axis", LEFT, floor, right, floor),
        _text((LEFT + right) / 2, HEIGHT - 5, x_label, "soft", "middle"),
        _text(4, 12, y_label, "soft"),
    ]
    return "".join(parts)


def _legend(names: Sequence[str]) -> str:
    parts, x = [], float(WIDTH - RIGHT)
    for i, name in reversed(list(enumerate(names))):
        x -= LETTER * len(name)
        parts += [_text(x, 12, name), _line(f"line c{i}", x - 24, 8, x - 5, 8)]
        x -= 36
    return "".join(parts)


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" />'


def _rect(kind: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" />'


def _svg(height: float, label: str, parts: Sequence[str]) -> str:
    text = html.escape(label)
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{text}"><title>{text}</title>{"".join(parts)}</svg>'


def _runs(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """The points in stretches without a gap."""
    runs: list[list[tuple[float, float]]] = [[]]
    for point in points:
        if _finite(point):
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    return runs


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Smallest and largest value, a little apart where they are the same."""
    low, high = min(values), max(values)
    if high > low:
        return low, high
    room = abs(low) * 0.1 or 1.0
    return low - room, high + room


def _finite(point: tuple[float, float]) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1])
