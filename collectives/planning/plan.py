"""A plan: the forest for one topology, collective and size class, its predicted seconds, and why it was chosen.

`print(plan)` explains it. As text (`to_text`, `parse`) it reads back equal, so a bug report can hold it.

    plan
    num_bytes 25000000
    codec none
    algorithm direct, planned shares
    bound_s 0.2
    bottleneck up of c
    option 0.2003 direct, planned shares
    option 0.3003 ring

    topology
    {"hosts": [...]}

    forest
    all_reduce of 3 ranks
    share 0.5 root 0: 1>0 2>0
    share 0.5 root 1: 0>1 2>1

`none` stands for no bound and no bottleneck. Predicted seconds are not written: they are computed again, so an edited
forest gets its own prediction.
"""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from collectives.errors import PlanError
from collectives.planning import plan_text
from collectives.planning.cost import cost
from collectives.planning.explain import comparison_lines, forest_lines, topology_lines
from collectives.planning.linear_program import SHARE_DIGITS
from collectives.schedule.codec import CODECS
from collectives.schedule.fold_order import is_canonical
from collectives.schedule.forest import Forest
from collectives.schedule.op import Collective
from collectives.schedule.verify import verify
from collectives.topology import Topology
from collectives.units import amount, seconds

MIN_CLASS, MAX_CLASS = 5, 13  # 4**5 = 1 KiB and less; 4**13 = 64 MiB and more


def size_class(num_bytes: int) -> int:
    """The class k of messages that share a forest: 4**(k-1) < num_bytes <= 4**k, clipped to MIN_CLASS and MAX_CLASS."""
    exponent = (max(num_bytes, 1) - 1).bit_length()
    return min(max((exponent + 1) // 2, MIN_CLASS), MAX_CLASS)


@dataclass(frozen=True)
class Plan:
    """The forest for one topology, one collective and one size class.

    Attributes:
        topology: the ranks and links that it was made for.
        collective: which one.
        num_bytes: size of the message that `predicted_s` and `bound_s` are about.
        size_class: all sizes of this class have the same forest and fingerprint.
        forest: the trees and their shares.
        algorithm: where the forest comes from, such as "direct" or "mixed, planned shares".
        predicted_s: seconds by `cost.cost`.
        bound_s: seconds below which no forest can be, None if no network link is crossed; see `cost.bound_s` and
            `linear_program.grow`.
        bottleneck: name of the link that limits the forest; None if it crosses no link.
        options: algorithm and predicted seconds of all options that were compared, the chosen one included.
        codec: name of the codec of float32 on network links; "none" also if the requested one would change nothing.
    """

    topology: Topology
    collective: Collective
    num_bytes: int
    size_class: int
    forest: Forest
    algorithm: str
    predicted_s: float
    bound_s: float | None
    bottleneck: str | None
    options: tuple[tuple[str, float], ...]
    codec: str = "none"

    def __str__(self) -> str:
        return self.explain()

    def explain(self) -> str:
        """Several lines: topology, forest, predicted seconds, bound, bottleneck, and the other options' seconds."""
        codec = f", codec {self.codec}" if self.codec != "none" else ""
        size, up_to = amount(self.num_bytes, "B"), amount(4**self.size_class, "B")
        lines = [f"{self.forest.title}, {size} (class up to {up_to}){codec}", ""]
        lines += ["topology", *topology_lines(self.topology), ""]
        lines += [f"forest: {self.algorithm}", *forest_lines(self.topology, self.forest), f"  {self._fold_order()}", ""]
        lines.append(f"predicted   {seconds(self.predicted_s)}")
        if self.bound_s is None:
            lines.append("bound       none: no network link is crossed")
        else:
            times = f" (predicted is {self.predicted_s / self.bound_s:.2f} times the bound)" if self.bound_s else ""
            lines.append(f"bound       {seconds(self.bound_s)}{times}")
        lines.append(f"bottleneck  {self.bottleneck or 'none'}")
        lines += ["", "compared", *comparison_lines(self.algorithm, self.predicted_s, self.options)]
        return "\n".join(lines)

    def _fold_order(self) -> str:
        if not self.forest.specification.up:
            return "nothing is folded"
        if self.canonical:
            return "folds in canonical order: bits do not depend on sizes, offsets or shares"
        return "does not fold in canonical order: the same on all ranks, but bits depend on sizes, offsets and shares"

    def to_text(self) -> str:
        """The whole plan, topology included, in the form that `parse` reads; ends with a line break."""
        bound = "none" if self.bound_s is None else repr(self.bound_s)
        lines = ["plan", f"num_bytes {self.num_bytes}", f"codec {self.codec}"]
        lines += [f"algorithm {self.algorithm}", f"bound_s {bound}"]
        lines.append(f"bottleneck {'none' if self.bottleneck is None else self.bottleneck}")
        lines += [f"option {taken_s!r} {name}" for name, taken_s in self.options]
        lines += ["", "topology", self.topology.to_json(), "forest", str(self.forest)]
        return "\n".join(lines) + "\n"

    @classmethod
    def parse(cls, text: str) -> Plan:
        """Read what `to_text` wrote, and verify the forest. With the same version the result equals the plan written.

        Raises:
            PlanError: a missing or malformed section or line, with its line number and a caret under the fault; an
                invalid topology; a forest that is invalid or of another number of ranks.
        """
        sections = plan_text.sections(text)
        fields, options = plan_text.fields(*sections["plan"])
        first, lines = sections["topology"]
        topology = Topology.from_json("\n" * first + "\n".join(lines), "plan")
        first, lines = sections["forest"]
        forest = Forest.parse("\n".join(lines), first_line=first + 1)
        verify(forest)
        if forest.size != topology.size:
            raise PlanError(
                f"plan: the forest is {forest.title}, the topology has {topology.size} ranks; wanted the same number"
            )
        num_bytes = int(plan_text.number("num_bytes", *fields["num_bytes"]))
        codec = plan_text.codec_name(*fields["codec"])
        return cls(
            topology=topology,
            collective=forest.collective,
            num_bytes=num_bytes,
            size_class=size_class(num_bytes),
            forest=forest,
            algorithm=fields["algorithm"][1],
            predicted_s=cost(topology, forest, codec).seconds(num_bytes),
            bound_s=None if fields["bound_s"][1] == "none" else plan_text.number("bound_s", *fields["bound_s"]),
            bottleneck=None if fields["bottleneck"][1] == "none" else fields["bottleneck"][1],
            options=tuple(options),
            codec=codec,
        )

    @cached_property
    def canonical(self) -> bool:
        """Whether every tree folds in the canonical order, so that the bits of a sum do not depend on the shares."""
        return is_canonical(self.forest, self.topology.homes)

    @property
    def codecs(self) -> tuple[str, ...]:
        """Names of all codecs, the mildest first; those for narrow links only if the topology has narrow links."""
        return tuple(
            name for name, codec in CODECS.items() if not codec.narrow_only or self.topology.narrow_between.any()
        )

    def summary(self) -> dict[str, Any]:
        """The plan as a dict for JSON, without edges of trees.

        `links` are those that the message crosses, with `bytes_per_s` of the topology and `busy_s`, the seconds that
        the message keeps the link busy. `shares` are those of the trees, the largest first.
        """
        busy = cost(self.topology, self.forest, self.codec).busy_s_per_byte
        return {
            "collective": self.collective,
            "num_bytes": self.num_bytes,
            "size_class": self.size_class,
            "codec": self.codec,
            "ranks": self.topology.size,
            "hosts": len(self.topology.hosts),
            "algorithm": self.algorithm,
            "trees": len(self.forest.trees),
            "root": self.forest.root,
            "canonical": self.canonical,
            "predicted_s": self.predicted_s,
            "bound_s": self.bound_s,
            "bottleneck": self.bottleneck,
            "options": dict(self.options),
            "shares": [
                {"root": tree.root, "share": share}
                for tree, share in sorted(
                    zip(self.forest.trees, self.forest.shares, strict=True), key=lambda tree: -tree[1]
                )
            ],
            "topology": {part: rows for part, rows in asdict(self.topology).items() if rows},
            "links": [
                {**link._asdict(), "busy_s": each * self.num_bytes}
                for link, each in zip(self.topology.links, busy, strict=True)
                if each
            ],
            "fingerprint": self.fingerprint(),
        }

    def fingerprint(self) -> int:
        """32 bits, equal on all ranks that hold the same topology and forest for the same size class."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> int:
        rounded = tuple(f"{share:.{SHARE_DIGITS}f}" for share in self.forest.shares)
        held = (self.topology.fingerprint(), self.size_class, self.codec, self.forest.title, self.forest.trees, rounded)
        return zlib.crc32(repr(held).encode())
