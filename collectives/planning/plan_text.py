"""Reads the sections and lines of a plan's text; `plan.py` shows the format. Errors have a caret under the fault."""

from __future__ import annotations

from collectives.errors import PlanError, caret
from collectives.schedule.codec import CODECS

SECTIONS = ("plan", "topology", "forest")


def sections(text: str) -> dict[str, tuple[int, list[str]]]:
    """For each section the number of lines before its content, and the lines of its content.

    Raises:
        PlanError: a section is missing or there twice, or text before the first.
    """
    lines, found, name = text.splitlines(), dict[str, tuple[int, list[str]]](), ""
    for number, line in enumerate(lines, start=1):
        if line.strip() in SECTIONS:
            name = line.strip()
            if name in found:
                raise PlanError(f"plan, line {number}: duplicate section '{name}'\n{caret(line, 0, len(line))}")
            found[name] = (number, [])
        elif name:
            found[name][1].append(line)
        elif line.strip():
            raise PlanError(f"plan, line {number}: wanted the line 'plan' first\n{caret(line, 0, len(line))}")
    for name in SECTIONS:
        if name not in found:
            raise PlanError(f"plan: no section '{name}'; wanted a line with this word alone, then its content")
    return found


def fields(first: int, lines: list[str]) -> tuple[dict[str, tuple[int, str]], list[tuple[str, float]]]:
    """Line number and text of each field by name, and the options.

    Raises:
        PlanError: an unknown or duplicate field, or one without a value; a missing field.
    """
    found, options = dict[str, tuple[int, str]](), list[tuple[str, float]]()
    wanted = ("num_bytes", "codec", "algorithm", "bound_s", "bottleneck")
    for line_number, line in enumerate(lines, start=first + 1):
        name, _, value = line.strip().partition(" ")
        if name == "option":
            seconds, _, algorithm = value.partition(" ")
            options.append((algorithm, number("option", line_number, seconds)))
        elif name in wanted and value and name not in found:
            found[name] = (line_number, value)
        elif name:
            known = ", ".join(wanted)
            raise PlanError(
                f"plan, line {line_number}: got {name!r}; wanted each of {known} once, with a value, and options\n"
                + caret(line, line.index(name), len(name))
            )
    for name in wanted:
        if name not in found:
            raise PlanError(f"plan: the line '{name}' is missing")
    return found, options


def codec_name(line: int, name: str) -> str:
    if name not in CODECS:
        raise PlanError(
            f"plan, line {line}: codec is {name!r}; wanted one of {', '.join(CODECS)}\n"
            + caret(f"codec {name}", len("codec "), len(name))
        )
    return name


def number(name: str, line: int, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value >= 0:
        raise PlanError(
            f"plan, line {line}: {name} is {text!r}; wanted a number of at least 0\n"
            + caret(f"{name} {text}", len(name) + 1, len(text))
        )
    return value
