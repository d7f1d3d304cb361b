"""What is said of a request: what it is, how far it has come, and why it has taken too long."""

from __future__ import annotations

from collections.abc import Sequence

from collectives.engine.messages import frames
from collectives.engine.messages.matching import Request
from collectives.errors import OpTimeout
from collectives.transport.rendezvous import RankInfo


def describe(request: Request, rank_infos: Sequence[RankInfo]) -> str:
    peer = "any rank" if request.peer is None else rank_infos[request.peer].describe()
    verb, towards = ("send", "to") if request.is_send else ("receive", "from")
    return f"{verb} of {frames.describe(len(request.view), request.dtype)} {towards} {peer}, tag {request.tag}"


def progress(request: Request) -> str:
    total = len(request.view)
    if request.is_send:
        if not request.moved:
            return "It has sent nothing: the peer has posted no receive for it, or reads nothing."
        return f"It has sent {request.moved} of {total} bytes."
    if not request.moved:
        return "Nothing of it has arrived."
    return f"{request.moved} of {total} bytes have arrived."


def timed_out(request: Request, timeout_s: float, where: str, rank_infos: Sequence[RankInfo]) -> OpTimeout:
    """The error for a wait of `timeout_s` seconds without a byte; it blames the rank that did not come.

    Args:
        where: this rank and the request.
    """
    log = None if request.peer is None else rank_infos[request.peer].log
    return OpTimeout(
        f"{where}: no progress for {timeout_s:g} s. {progress(request)} The other rank has not come to the matching "
        "call (another branch, another tag, a long pause: then a longer timeout helps), or hangs"
        f"{f'; see {log}' if log else ''}",
        request.peer,
    )
