"""What can go wrong, as one tree.

    NarrowgaugeError
    ├── UsageError (ValueError)              the caller asked for something that cannot be
    ├── RendezvousError (RuntimeError)       the group could not be formed
    ├── PlanError (ValueError)               a topology or a forest that is not one; points at the fault
    └── CollectiveError (RuntimeError)       an op did not finish; the group is broken from here on
        ├── PeerLost                         a rank died or its host went away
        ├── OpMismatch                       ranks called different ops at the same place
        ├── OpTimeout (TimeoutError)         no progress for timeout_s
        ├── GroupClosed                      the group was destroyed, here or by a peer
        └── ProtocolError                    bytes that no correct peer would send

Every message says who (rank, host), where (op, tree, slice), what was got, what was wanted and what to look at next.
"""

from __future__ import annotations


class NarrowgaugeError(Exception):
    """Root of everything that this package raises on purpose."""


class UsageError(NarrowgaugeError, ValueError):
    """The caller's arguments cannot be carried out."""


class PlanError(NarrowgaugeError, ValueError):
    """A topology, forest or plan breaks its own rules."""


class RendezvousError(NarrowgaugeError, RuntimeError):
    """The ranks of a group did not find or did not trust each other."""


class CollectiveError(NarrowgaugeError, RuntimeError):
    """An op did not finish.

    Attributes:
        culprit: the rank that caused it as far as is known, None if it is not.
    """

    def __init__(self, message: str, culprit: int | None = None) -> None:
        super().__init__(message)
        self.culprit = culprit


class PeerLost(CollectiveError):
    """A rank's process or host is gone."""


class OpMismatch(CollectiveError):
    """Two ranks are at different ops where they should be at the same."""


class OpTimeout(CollectiveError, TimeoutError):
    """Nothing moved for the group's timeout."""


class GroupClosed(CollectiveError):
    """The group was closed while, or before, the op ran."""


class ProtocolError(CollectiveError):
    """A peer sent what no correct peer sends, or what nobody can read."""


def caret(line: str, start: int, length: int) -> str:
    """For errors: the line, cut to a screen's width around the fault, and an arrow under the fault."""
    first = max(0, start - 60)
    shown = line[first : start + length + 40]
    return f"    {shown}\n    {' ' * (start - first)}{'^' * max(1, length)}"
