"""A line chart as SVG, for results that are read as a curve.

Knows how to draw; does not know what is measured. Both figures of a point are shown where the
pointer rests on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

_WIDTH, _HEIGHT = 640, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 130, 40, 52
_COLOURS = ("#2166ac", "#b2182b", "#4d9221", "#984ea3", "#e08214")


@dataclass
class Line:
    """A named curve."""

    name: str
    points: list[tuple[float, float]] = field(default_factory=list)

    def add(self, x: float, y: float) -> None:
        self.points.append((x, y))


def line_chart(
    title: str, x_title: str, y_title: str, lines: Sequence[Line], *, is_log: bool = True
) -> str:
    """The lines over a logarithmic x axis, or one from 0, and a y axis from 0. Every line has a
    point."""
    every_x = [x for line in lines for x, _ in line.points]
    low, high = _scaled(min(every_x), is_log) if is_log else 0.0, _scaled(max(every_x), is_log)
    top = _round_up(max(y for line in lines for _, y in line.points))

    def at(x: float, y: float) -> tuple[float, float]:
        share = (_scaled(x, is_log) - low) / ((high - low) or 1)
        across = _LEFT + share * (_WIDTH - _LEFT - _RIGHT)
        return across, _HEIGHT - _BOTTOM - y / top * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_text(_LEFT, 22, title, size=15)]
    for step in range(6):
        across, height = at(min(every_x) if is_log else 0.0, top * step / 5)
        parts.append(_rule(across, height, _WIDTH - _RIGHT, height))
        parts.append(_text(across - 6, height + 4, f"{top * step / 5:g}", anchor="end"))
    for tick in _powers(low, high) if is_log else _steps(high):
        across, height = at(tick, 0)
        parts.append(_text(across, height + 18, f"{tick:,g}", anchor="middle"))
    parts.append(_text(_LEFT, _HEIGHT - 12, x_title))
    parts.append(_text(_LEFT, 36, y_title, size=11))
    for number, line in enumerate(lines):
        parts += _curve(line, [at(*point) for point in line.points], _COLOURS[number % 5])
        parts.append(
            _text(_WIDTH - _RIGHT + 12, _TOP + 18 * (number + 1), line.name, _COLOURS[number % 5])
        )
    size = f'width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    style = 'font-family="sans-serif" style="background:#fff"'
    body = "\n".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n{body}\n</svg>\n'


def _scaled(x: float, is_log: bool) -> float:
    return math.log10(x) if is_log else x


def _powers(low: float, high: float) -> list[float]:
    """Powers of ten; where they are few, twice and five times them too."""
    factors = (1, 2, 5) if high - low < 2 else (1,)
    ticks = [f * 10.0**p for p in range(math.floor(low), math.floor(high) + 1) for f in factors]
    return [tick for tick in ticks if low <= math.log10(tick) <= high]


def _steps(high: float) -> list[float]:
    step = _round_up(high) / 5
    return [step * number for number in range(6) if step * number <= high]


def _curve(line: Line, places: Sequence[tuple[float, float]], colour: str) -> list[str]:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>']
    for (x, y), point in zip(places, line.points, strict=True):
        said = escape(f"{line.name}: {point[0]:,.4g}, {point[1]:.4g}")
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"><title>{said}</title>'
            "</circle>"
        )
    return parts


def _text(
    x: float, y: float, text: str, colour: str = "#222", *, anchor: str = "start", size: int = 12
) -> str:
    where = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {where} font-size="{size}" fill="{colour}">{escape(text)}</text>'


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>'


def _round_up(value: float) -> float:
    """The next of 1, 2, 2.5 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value or 1))
    return next(power * step for step in (1, 2, 2.5, 5, 10) if power * step >= value)
