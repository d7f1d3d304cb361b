"""From what each rank answered to who holds the others up. Pure.

The op in question is the latest that any rank is in. A rank is held up, and healthy, if it is in that op. All others
have not joined it: they do not answer, or are outside any collective, or still in an earlier one. Those in an earlier
op wait for somebody themselves, so one of the first two kinds is the culprit, if there is any. One that has given up
has blamed somebody, too.

Ranks that call different collectives as the same op mostly notice it by the first header. Not if none is sent: a leaf
of a broadcast waits for its parent, which waits for that rank's part of an all-reduce. Such a difference comes before
all else: whoever is late, this op cannot end well.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from collectives.transport.control import TEXT_LIMIT, cut

MAX_SHOWN = 8
GONE = "has given up or left the group"


@dataclass(frozen=True)
class Whereabouts:
    """Where a rank is.

    Attributes:
        op: number of the op that it is in; None if it is in none.
        begun: how many ops it has begun.
        doing: the op that it is in, or was in last, as text; "" if there was none.
        waited_s: seconds for which that op has moved no byte; 0 outside an op.
        waits_for: ranks whose slices are outstanding in that op.
        line: of the user's program that called it, or at which the main thread is outside an op.
        stack: of the main thread, lines of text.
    """

    op: int | None
    begun: int
    doing: str
    waited_s: float
    waits_for: tuple[int, ...]
    line: str
    stack: str

    def to_message(self) -> dict[str, object]:
        """Short enough to be sent: a path or a list of tensors may have any length."""
        line, doing = cut(self.line, TEXT_LIMIT, keep_end=True), cut(self.doing, TEXT_LIMIT)
        return {**asdict(self), "line": line, "doing": doing}

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> Whereabouts:
        """Raises KeyError, TypeError or ValueError if the message is none of these."""
        op = message["op"]
        return cls(
            op=None if op is None else int(op),
            begun=int(message["begun"]),
            doing=str(message["doing"]),
            waited_s=float(message["waited_s"]),
            waits_for=tuple(int(rank) for rank in message["waits_for"]),
            line=str(message["line"]),
            stack=str(message["stack"]),
        )

    def describe(self) -> str:
        """As "all_reduce sum of 10 float32 (op 3), called at train.py:41 in step"."""
        if self.op is not None:
            return f"{self.doing} (op {self.op}), called at {self.line}"
        last = f" after {self.doing} (op {self.begun - 1})" if self.begun else ""
        return f"outside any collective{last}, at {self.line}"


@dataclass(frozen=True)
class Diagnosis:
    """Who has not joined an op.

    Attributes:
        op, doing: its number and the op as text.
        waited_s: seconds for which it has moved no byte, on the rank that has waited longest.
        missing: for each rank that has not joined it, why not as far as it is known.
        stacks: of those that answered.
        culprit: the one that the others wait for; None if all have joined.
        waits: for each rank that is in an op, which ranks it waits for.
        sides: if ranks called different collectives as this op, what they called and where: first one of those that
            most called, then all others.
    """

    op: int
    doing: str
    waited_s: float
    missing: dict[int, str]
    stacks: dict[int, str]
    culprit: int | None
    waits: dict[int, tuple[int, ...]]
    sides: dict[int, str]

    def difference(self, names: Sequence[str]) -> str:
        """What the sides called, as a sentence; "" if all called the same."""
        if not self.sides:
            return ""
        shown = "; ".join(f"{names[rank]}: {said}" for rank, said in list(self.sides.items())[:MAX_SHOWN])
        return f"ranks have called different collectives. {shown}"


def diagnose(
    answers: Mapping[int, Whereabouts | None], left: Collection[int], names: Sequence[str]
) -> Diagnosis | None:
    """What the answers mean; None if no rank is in an op.

    Args:
        answers: by rank, None where none came.
        left: ranks that have given up or left the group.
        names: of the ranks, for sentences.
    """
    inside = {rank: answer for rank, answer in answers.items() if answer is not None and answer.op is not None}
    if not inside:
        return None
    op = max(answer.op for answer in inside.values() if answer.op is not None)
    doing = next(answer.doing for answer in inside.values() if answer.op == op)
    silent, outside, behind, gone = dict[int, str](), dict[int, str](), dict[int, str](), dict[int, str]()
    for rank, answer in sorted(answers.items()):
        if rank in left:
            gone[rank] = GONE
        elif answer is None:
            silent[rank] = (
                "does not answer: it is stopped or swapped out, or in a C call that holds Python's lock, or the link "
                "to it is cut"
            )
        elif answer.op is None and answer.begun <= op:
            outside[rank] = f"is {answer.describe()}"
        elif answer.op is not None and answer.op < op:
            waits_for = f", and waits for {listed(answer.waits_for, names)}" if answer.waits_for else ""
            behind[rank] = f"is still in {answer.describe()}{waits_for}"
    sides = _sides({rank: answer for rank, answer in inside.items() if answer.op == op})
    return Diagnosis(
        op,
        doing,
        max(answer.waited_s for answer in inside.values()),
        {**silent, **outside, **behind, **gone},
        {rank: answer.stack for rank, answer in answers.items() if answer is not None},
        next(iter((*list(sides)[1:], *silent, *outside, *gone)), None),
        {rank: answer.waits_for for rank, answer in inside.items()},
        sides,
    )


def _sides(answers: Mapping[int, Whereabouts]) -> dict[int, str]:
    """`Diagnosis.sides` of the ranks in an op. Sizes may differ where they are a rank's own, names may not."""
    names = {rank: answer.doing.partition(" ")[0] for rank, answer in sorted(answers.items())}
    most = max(names.values(), key=list(names.values()).count)
    others = [rank for rank, name in names.items() if name != most]
    if not others:
        return {}
    first = next(rank for rank, name in names.items() if name == most)
    return {rank: answers[rank].describe() for rank in (first, *others)}


def report(diagnosis: Diagnosis, group: str, names: Sequence[str]) -> str:
    """What is logged: a line that names the op and who has not joined it, then each of these with its stack."""
    found, missing = diagnosis, diagnosis.missing
    head = f"group {group}: nothing has moved for {found.waited_s:.0f} s in {found.doing} (op {found.op})"
    if found.sides:
        return f"group {group}: nothing has moved for {found.waited_s:.0f} s, because {found.difference(names)}"
    if not missing:
        waits = "; ".join(
            f"{names[rank]} waits for {listed(waits_for, names)}"
            for rank, waits_for in found.waits.items()
            if waits_for
        )
        return f"{head}, which all ranks have joined: a link between two of them is down or stands still. {waits}"
    verb = "has" if len(missing) == 1 else "have"
    lines = [f"{head}: {listed(list(missing), names)} {verb} not joined it"]
    for rank, why in list(missing.items())[:MAX_SHOWN]:
        stack = found.stacks.get(rank)
        lines.append(f"  {names[rank]} {why}{'; its main thread, innermost call last:' if stack else ''}")
        lines += [f"    {line}" for line in stack.splitlines()] if stack else []
    return "\n".join(lines)


def listed(ranks: Sequence[int], names: Sequence[str]) -> str:
    """As "rank 1 (a), rank 2 (b) and 3 more"."""
    more = f" and {len(ranks) - MAX_SHOWN} more" if len(ranks) > MAX_SHOWN else ""
    return ", ".join(names[rank] for rank in ranks[:MAX_SHOWN] if 0 <= rank < len(names)) + more
