"""A plan as text that reads back: paste it into a bug report, and who reads it has the same plan.

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

`none` stands for no bound and no bottleneck. What the forest takes is not written but computed again, so that an edited
forest tells its own seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from collectives.codec import CODECS
from collectives.errors import PlanError
from collectives.forest import Forest, pointed, verify
from collectives.topology import Topology

if TYPE_CHECKING:
    from collectives.planner import Plan

SECTIONS = ("plan", "topology", "forest")


@dataclass(frozen=True)
class Written:
    """What the text of a plan holds; fields as in `planner.Plan`."""

    topology: Topology
    forest: Forest
    num_bytes: int
    codec: str
    algorithm: str
    bound_s: float | None
    bottleneck: str | None
    options: tuple[tuple[str, float], ...]


def write(plan: Plan) -> str:
    """The text above, with a line break at its end."""
    bound = "none" if plan.bound_s is None else repr(plan.bound_s)
    lines = ["plan", f"num_bytes {plan.num_bytes}", f"codec {plan.codec}"]
    lines += [f"algorithm {plan.algorithm}", f"bound_s {bound}"]
    lines.append(f"bottleneck {'none' if plan.bottleneck is None else plan.bottleneck}")
    lines += [f"option {seconds!r} {name}" for name, seconds in plan.options]
    lines += ["", "topology", plan.topology.to_json(), "forest", str(plan.forest)]
    return "\n".join(lines) + "\n"


def read(text: str) -> Written:
    """Read what `write` wrote, and verify the forest.

    Raises:
        PlanError: a part or line that is missing or does not fit, with its line number and an arrow at the fault; a
            topology that is none; a forest that is none or does not fit the topology.
    """
    parts = _sections(text)
    fields, options = _fields(*parts["plan"])
    first, lines = parts["topology"]
    topology = Topology.from_json("\n" * first + "\n".join(lines), "plan")
    first, lines = parts["forest"]
    forest = Forest.parse("\n".join(lines), first_line=first + 1)
    verify(forest)
    if forest.size != topology.size:
        raise PlanError(f"plan: the forest is {forest.title}, the topology has {topology.size} ranks; wanted as many")
    return Written(
        topology,
        forest,
        num_bytes=int(_number("num_bytes", *fields["num_bytes"])),
        codec=_codec(*fields["codec"]),
        algorithm=fields["algorithm"][1],
        bound_s=None if fields["bound_s"][1] == "none" else _number("bound_s", *fields["bound_s"]),
        bottleneck=None if fields["bottleneck"][1] == "none" else fields["bottleneck"][1],
        options=tuple(options),
    )


def _sections(text: str) -> dict[str, tuple[int, list[str]]]:
    """For each part the number of lines before its first one, and its lines."""
    lines, found, name = text.splitlines(), dict[str, tuple[int, list[str]]](), ""
    for number, line in enumerate(lines, start=1):
        if line.strip() in SECTIONS:
            name = line.strip()
            if name in found:
                raise PlanError(f"plan, line {number}: a second part '{name}'\n{pointed(line, 0, len(line))}")
            found[name] = (number, [])
        elif name:
            found[name][1].append(line)
        elif line.strip():
            raise PlanError(f"plan, line {number}: wanted the line 'plan' first\n{pointed(line, 0, len(line))}")
    for name in SECTIONS:
        if name not in found:
            raise PlanError(f"plan: the part '{name}' is missing; wanted a line with this word alone, then its content")
    return found


def _fields(first: int, lines: list[str]) -> tuple[dict[str, tuple[int, str]], list[tuple[str, float]]]:
    """Line number and text of each field by name, and the options."""
    fields, options = dict[str, tuple[int, str]](), list[tuple[str, float]]()
    wanted = ("num_bytes", "codec", "algorithm", "bound_s", "bottleneck")
    for number, line in enumerate(lines, start=first + 1):
        name, _, value = line.strip().partition(" ")
        if name == "option":
            seconds, _, algorithm = value.partition(" ")
            options.append((algorithm, _number("option", number, seconds)))
        elif name in wanted and value and name not in fields:
            fields[name] = (number, value)
        elif name:
            known = ", ".join(wanted)
            raise PlanError(
                f"plan, line {number}: got {name!r}; wanted each of {known} once, with a value, and options\n"
                + pointed(line, line.index(name), len(name))
            )
    for name in wanted:
        if name not in fields:
            raise PlanError(f"plan: the line '{name}' is missing")
    return fields, options


def _codec(line: int, name: str) -> str:
    if name not in CODECS:
        raise PlanError(
            f"plan, line {line}: codec is {name!r}; wanted one of {', '.join(CODECS)}\n"
            + pointed(f"codec {name}", len("codec "), len(name))
        )
    return name


def _number(name: str, line: int, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value >= 0:
        raise PlanError(
            f"plan, line {line}: {name} is {text!r}; wanted a number of at least 0\n"
            + pointed(f"{name} {text}", len(name) + 1, len(text))
        )
    return value
