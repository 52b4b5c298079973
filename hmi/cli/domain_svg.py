"""A tree of domains as a picture: one SVG file, no scripts, readable without a viewer's fonts.

Knows nodes and where to draw them; leaves stand in a column of their depth, parents at the middle
of their children.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from hmi.cli.domain_options import ROOT
from hmi.cli.domain_views import hit_rates, rows_by_order, saved_bytes
from hmi.cli.output import size
from hmi.client import DomainStats

_CARD_WIDTH, _CARD_HEIGHT = 236, 84
_GAP_X, _GAP_Y = 64, 18
_MARGIN, _HEADER, _FOOTER = 28, 68, 44
_PAD = 14
_COLOURS = {
    "trigram": "#1f6f8b",
    "bigram": "#4fa3a5",
    "unigram": "#f2c14e",
    "computed": "#d1495b",
}
_STYLE = """
  text { font-family: system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif; }
  .title { font-size: 18px; font-weight: 600; fill: #16202a; }
  .note { font-size: 12px; fill: #5b6875; }
  .name { font-size: 14px; font-weight: 600; fill: #16202a; }
  .fact { font-size: 11px; fill: #5b6875; }
  .card { fill: #ffffff; stroke: #c9d2da; }
  .private { stroke: #8a63d2; stroke-dasharray: 4 3; }
  .edge { fill: none; stroke: #9fb0bd; stroke-width: 1.5; }
"""


@dataclass(slots=True)
class _Node:
    stats: DomainStats
    depth: int
    y: float = 0.0
    children: list[_Node] = field(default_factory=list)

    @property
    def x(self) -> float:
        return _MARGIN + self.depth * (_CARD_WIDTH + _GAP_X)


def tree_svg(base: str, nodes: Sequence[DomainStats]) -> str:
    """The picture of a base's tree; `nodes` with parents before children."""
    placed = _linked(nodes)
    tops = [node for node in placed.values() if _parent(node.stats.domain.path) not in placed]
    end = float(_HEADER)
    for top in tops:
        end = _place(top, end)
    width = max((node.x for node in placed.values()), default=_MARGIN) + _CARD_WIDTH + _MARGIN
    width, height = max(width, 560.0), end + _FOOTER
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img">',
        f"<title>Domains of {escape(base)}</title>",
        f"<style>{_STYLE}</style>",
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#f6f8fa"/>',
        _text(_MARGIN, 28, f"Domains of {base}", "title"),
        _text(_MARGIN, 46, _summary(nodes), "note"),
    ]
    parts += [_edge(node, child) for node in placed.values() for child in node.children]
    parts += [_card(node) for node in placed.values()]
    parts += [_legend(height - _FOOTER / 2), "</svg>"]
    return "\n".join(parts) + "\n"


def _linked(nodes: Sequence[DomainStats]) -> dict[str | None, _Node]:
    placed: dict[str | None, _Node] = {}
    for stats in nodes:
        path = stats.domain.path
        depth = path.count("/") + 1 if path else 0
        placed[path] = _Node(stats, depth)
        parent = placed.get(_parent(path))
        if parent is not None:
            parent.children.append(placed[path])
    return placed


def _parent(path: str) -> str | None:
    """The parent's path; the root has none."""
    return path.rpartition("/")[0] if path else None


def _place(node: _Node, start: float) -> float:
    """Give a node and those below it their heights from `start` on; where the next begins."""
    end = start
    for child in node.children:
        end = _place(child, end)
    if not node.children:
        node.y = start
        return start + _CARD_HEIGHT + _GAP_Y
    node.y = (node.children[0].y + node.children[-1].y) / 2
    return end


def _edge(parent: _Node, child: _Node) -> str:
    x1, y1 = parent.x + _CARD_WIDTH, parent.y + _CARD_HEIGHT / 2
    x2, y2 = child.x, child.y + _CARD_HEIGHT / 2
    middle = (x1 + x2) / 2
    return (
        f'<path class="edge" d="M{x1:.1f} {y1:.1f} C{middle:.1f} {y1:.1f} {middle:.1f} {y2:.1f} '
        f'{x2:.1f} {y2:.1f}"/>'
    )


def _card(node: _Node) -> str:
    stats, x, y = node.stats, node.x, node.y
    name = stats.domain.path.rpartition("/")[2] or ROOT
    unigrams, bigrams, trigrams = rows_by_order(stats)
    kind = "card private" if stats.domain.tenant else "card"
    owner = f" · {stats.domain.tenant}" if stats.domain.tenant else ""
    return "\n".join(
        [
            f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{_CARD_WIDTH}" '
            f'height="{_CARD_HEIGHT}" rx="8"/>',
            _text(x + _PAD, y + 22, _short(name + owner), "name"),
            _text(x + _PAD, y + 40, f"{unigrams:,} · {bigrams:,} · {trigrams:,} rows", "fact"),
            _text(x + _PAD, y + 56, _bytes(stats), "fact"),
            _bar(stats, x + _PAD, y + 65, _CARD_WIDTH - 2 * _PAD),
        ]
    )


def _bytes(stats: DomainStats) -> str:
    return f"{size(stats.size_bytes)}, flat {size(stats.flat_bytes)}"


def _bar(stats: DomainStats, x: float, y: float, width: float) -> str:
    """How its tokens were answered, as one bar."""
    rates = hit_rates(stats)
    if rates is None:
        return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width}" height="8" rx="2" fill="#e4e9ee"/>'
    parts = []
    for kind, rate in rates.items():
        if rate:
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{rate * width:.1f}" height="8" '
                f'fill="{_COLOURS[kind]}"><title>{kind} {rate:.1%}</title></rect>'
            )
        x += rate * width
    return "\n".join(parts)


def _legend(y: float) -> str:
    parts, x = [], float(_MARGIN)
    for kind, colour in _COLOURS.items():
        parts.append(
            f'<rect x="{x:.1f}" y="{y - 8:.1f}" width="10" height="10" rx="2" fill="{colour}"/>'
        )
        parts.append(_text(x + 16, y + 1, kind, "note"))
        x += 92
    parts.append(_text(x, y + 1, "rows: 1-, 2- and 3-grams; dashed: private", "note"))
    return "\n".join(parts)


def _summary(nodes: Sequence[DomainStats]) -> str:
    own = size(sum(stats.size_bytes for stats in nodes))
    saved = saved_bytes(nodes)
    less = "" if saved is None else f"; {size(saved)} less than flat tables would take"
    return f"{len(nodes)} nodes, {own}{less}"


def _short(text: str, limit: int = 28) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'
