"""The network as a drawing: hosts left and right of a switch, each with a link up and a link down. Width of a link is
its rate, darkness its load by the plan. Hosts of a site share a frame and the link of the site.

One column of hosts for narrow screens, two for wide ones; the page holds both and shows one. Lengths are in pixels of a
drawing that is `width` wide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from launcher import units
from launcher.report.network import Link, Network, NetworkHost, Site

ROW, BOX_HEIGHT, HEADER, GAP, EDGE = 74.0, 56.0, 30.0, 14.0, 6.0
_MIN_MEMORY_LOAD = 0.005  # of a host; below it the box does not mention it
NARROW, WIDE = 352.0, 920.0
_MIN_THICKNESS, _MAX_THICKNESS = 2.0, 9.0
_SITE_LINK = 40.0


@dataclass(frozen=True)
class Box:
    """A host: upper left corner, size, and lines of text."""

    x: float
    y: float
    width: float
    height: float
    title: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Frame:
    """A site around its hosts."""

    x: float
    y: float
    width: float
    height: float
    title: str


@dataclass(frozen=True)
class Wire:
    """One direction of a link, from (x1, y) to (x2, y), with an arrow at its end and a label over or under it."""

    x1: float
    x2: float
    y: float
    thickness: float
    load: float
    bottleneck: bool
    arrow: str
    label: str
    label_x: float
    label_y: float


@dataclass(frozen=True)
class Spine:
    """A switch: a vertical bar."""

    x: float
    y1: float
    y2: float


@dataclass(frozen=True)
class Drawing:
    width: float
    height: float
    boxes: tuple[Box, ...]
    frames: tuple[Frame, ...]
    wires: tuple[Wire, ...]
    spines: tuple[Spine, ...]


def draw(network: Network, columns: int) -> Drawing:
    """Lay out a network in one or two columns of hosts."""
    width = NARROW if columns == 1 else WIDE
    middle = width - EDGE - 4 if columns == 1 else width / 2
    layout = _Layout(network, middle)
    bottoms = [0.0, 0.0]
    for group in network.groups:
        # The next group goes below the shorter column.
        column = 0 if columns == 1 or bottoms[0] <= bottoms[1] else 1
        bottoms[column] = layout.group(group, bottoms[column], mirrored=column == 1)
    height = max(bottoms)
    spines = list(layout.spines)
    if len(network.hosts) > 1:
        spines.append(Spine(middle, EDGE, height - EDGE))
    return Drawing(width, height, tuple(layout.boxes), tuple(layout.frames), tuple(layout.wires), tuple(spines))


class _Layout:
    """Adds groups of hosts to a drawing. All are laid out left of the switch at x = `middle`; a mirrored group is
    reflected to its right."""

    def __init__(self, network: Network, middle: float) -> None:
        self._middle = middle
        self._fastest = max((link.bytes_per_s for link in network.outer_links), default=1.0)
        self._alone = len(network.hosts) == 1
        self.boxes: list[Box] = []
        self.frames: list[Frame] = []
        self.wires: list[Wire] = []
        self.spines: list[Spine] = []

    def group(self, group: Site | NetworkHost, top: float, *, mirrored: bool) -> float:
        """Add a site with its hosts, or a host in no site, and return the lower edge."""
        if isinstance(group, NetworkHost):
            self._host(group, top, self._middle, EDGE, mirrored)
            return top + ROW
        header = HEADER + 18  # for the title and the two links of the site
        bottom = top + header + ROW * len(group.hosts)
        inner = self._middle - _SITE_LINK
        frame_width = inner - EDGE + 4
        x = EDGE - 4 if not mirrored else 2 * self._middle - inner
        self.frames.append(Frame(x, top + 2, frame_width, bottom - top - 4, f"site {group.name}"))
        for index, host in enumerate(group.hosts):
            self._host(host, top + header + ROW * index, inner, EDGE + 6, mirrored)
        self.spines.append(Spine(self._across(inner, mirrored), top + header - 4, bottom - 10))
        for index, (word, link, offset) in enumerate((("up", group.up, -6.0), ("down", group.down, 6.0))):
            wire_y = top + header / 2 + 8 + offset
            label_y = top + 18 + 14 * index
            self._wire(inner, self._middle, wire_y, word, link, mirrored, label=(inner - 88, label_y))
        self.spines.append(Spine(self._across(inner, mirrored), top + header / 2 - 2, top + header - 4))
        return bottom + GAP / 2

    def _host(self, host: NetworkHost, top: float, inner: float, outer: float, mirrored: bool) -> None:
        width = min(170.0, max(118.0, 0.38 * (inner - outer)))
        y = top + (ROW - BOX_HEIGHT) / 2
        x = outer if not mirrored else 2 * self._middle - outer - width
        room = int(width / 7.2)  # letters: SVG does not break or cut text, so it is cut here by its mean width
        lines = [_shortened(ranks_text(host.ranks), room + 3)]
        if host.memory is not None and (host.memory.load or 0.0) >= _MIN_MEMORY_LOAD:
            lines.append(f"memory {units.percent(host.memory.load)}")
        self.boxes.append(Box(x, y, width, BOX_HEIGHT, _shortened(host.name, room), tuple(lines)))
        if self._alone:  # no switch and no links
            return
        for word, link, offset in (("up", host.up, -10.0), ("down", host.down, 10.0)):
            wire_y = y + BOX_HEIGHT / 2 + offset
            label_y = wire_y - 9 if word == "up" else wire_y + 17
            self._wire(outer + width, inner, wire_y, word, link, mirrored, ((outer + width + inner) / 2, label_y))

    def _wire(
        self,
        near: float,
        far: float,
        y: float,
        word: str,
        link: Link | None,
        mirrored: bool,
        label: tuple[float, float],
    ) -> None:
        """A link from a host at x = near to a switch at x = far, or back if it is the one down."""
        x1, x2 = (near + 3, far - 5) if word == "up" else (far - 5, near + 3)
        x1, x2 = self._across(x1, mirrored), self._across(x2, mirrored)
        thickness = self._thickness(link)
        load = link.load if link and link.load is not None else 0.0
        text = _label(word, link)
        # The arrow is a triangle with its tip at x2; the line ends inside of it, or its blunt end would show.
        ahead = math.copysign(max(5.0, 1.1 * thickness), x2 - x1)
        half = max(4.0, 0.95 * thickness)
        arrow = f"{x2:g},{y:g} {x2 - ahead:g},{y - half:g} {x2 - ahead:g},{y + half:g}"
        self.wires.append(
            Wire(
                x1=x1,
                x2=x2 - 0.8 * ahead,
                y=y,
                thickness=thickness,
                load=load,
                bottleneck=bool(link and link.bottleneck),
                arrow=arrow,
                label=text,
                label_x=self._across(label[0], mirrored),
                label_y=label[1],
            )
        )

    def _across(self, x: float, mirrored: bool) -> float:
        return 2 * self._middle - x if mirrored else x

    def _thickness(self, link: Link | None) -> float:
        if link is None or not self._fastest:
            return _MIN_THICKNESS
        # Rates in one farm differ a hundredfold; by the square root the slow links stay visible.
        share = math.sqrt(max(link.bytes_per_s, 0.0) / self._fastest)
        return _MIN_THICKNESS + (_MAX_THICKNESS - _MIN_THICKNESS) * share


def ranks_text(ranks: Sequence[int]) -> str:
    """ "rank 3", "ranks 0-3, 8"."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    text = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"rank{'s' if len(ranks) > 1 else ''} {text}"


def _label(word: str, link: Link | None) -> str:
    if link is None:
        return word
    return f"{word} {units.rate(link.bytes_per_s)}" + (
        f" · {units.percent(link.load)}" if link.load is not None else ""
    )


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
