"""From the loop's status codes to sentences: who, where, got, wanted, next.

Who is at fault. When a rank fails, its peers see their connections to it end, fail in turn, and shut theirs, so most
ranks see the fault at second hand. Each therefore sends an abort that names the culprit as far as it knows, and looks
at the aborts of others before it reports:

    an abort that names another rank than its sender, or one that died, leads to that rank
    else a rank whose control connection ended without a message, which is a process that died
    else the peer itself: its host is unreachable, it gave up for a reason of its own, or it said goodbye too early

After a timeout nothing has failed, so all ranks are asked where they are (`hangs/`). Who has not joined the op is at
fault; if all have, the ranks that wait form a chain, and the one at its end is named.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from collectives.engine.compiled.connections import BATCH, HEADER_BYTES, Net
from collectives.engine.compiled.status import BAD_HEADER, OP_MISMATCH, PEER_CLOSED, SOCKET_ERROR, TIMEOUT
from collectives.engine.compiled.table import NO_PEER, UP, Table
from collectives.engine.hangs.diagnosis import GONE
from collectives.engine.hangs.watch import Watch
from collectives.errors import (
    SAME_CALLS,
    CollectiveError,
    GroupClosed,
    OpMismatch,
    OpTimeout,
    PeerLost,
    ProtocolError,
)
from collectives.schedule.op import OpSpec
from collectives.transport.control import ControlChannel
from collectives.transport.rendezvous import RankInfo

T = TypeVar("T")
logger = logging.getLogger(__name__)
_RANKS_NAMED = 6
_GAVE_UP = " gave up: "
CLOSED = "Connection closed by peer"  # Gloo's words for it, which scripts search for
_KINDS = {kind.__name__: kind for kind in (PeerLost, OpMismatch, OpTimeout, GroupClosed, ProtocolError)}


def explain(
    status: int,
    spec: OpSpec,
    rank: int,
    rank_infos: Sequence[RankInfo],
    table: Table,
    net: Net,
    control: ControlChannel,
    watch: Watch | None,
) -> CollectiveError:
    """The error that a status other than DONE and INTERRUPTED stands for."""
    run = table.run[0]
    where = f"{rank_infos[rank].describe()}, {spec} (op {int(run['op'])})"
    culprit = int(run["culprit"])
    if status == TIMEOUT:
        return _timed_out(where, rank_infos, table, control, watch)
    if status == OP_MISMATCH:
        return _mismatch(where, rank_infos[culprit], control, watch)
    if status == BAD_HEADER:
        return _unreadable(where, rank_infos[culprit], table, net)
    if culprit == NO_PEER:
        return ProtocolError(f"{where}: poll failed: {os.strerror(int(run['errno']))}")
    if status in (PEER_CLOSED, SOCKET_ERROR):
        control.drain(culprit)
    abort = control.aborted.get(culprit)
    if abort is not None and abort.culprit == rank and abort.kind == OpTimeout.__name__:
        return _blamed(where, rank_infos, culprit, table)
    reason = os.strerror(int(run["errno"])) if status == SOCKET_ERROR else "closed"
    return lost(reason, where, rank_infos, culprit, _still_to_come(table, rank_infos), control)


def lost(
    reason: str, where: str, rank_infos: Sequence[RankInfo], culprit: int, waited: str, control: ControlChannel
) -> CollectiveError:
    """A peer is gone. If any rank knows which one failed first, that is reported.

    Args:
        reason: why the connection ended, should no rank know more.
        culprit: the peer.
        waited: the sentence that says what was outstanding.
    """
    for reporter, abort in sorted(control.aborted.items()):
        if abort.culprit in control.died or abort.culprit not in (None, reporter):
            culprit = abort.culprit if abort.culprit is not None else reporter
            break
    else:
        culprit = min(control.died, default=culprit)
    peer = rank_infos[culprit]
    if culprit in control.died:
        return PeerLost(
            f"{where}: {peer.describe()} died: its connections closed without a message{_log_of(peer)}. {CLOSED}. "
            f"{waited}",
            culprit,
        )
    if culprit in control.unreachable:
        return PeerLost(
            f"{where}: {peer.describe()} does not answer any more ({control.unreachable[culprit]}): its host or the "
            f"link to it is down{_log_of(peer)}. {waited}",
            culprit,
        )
    if culprit in control.aborted:
        abort = control.aborted[culprit]
        kind = _KINDS.get(abort.kind, CollectiveError)
        return kind(f"{where}: {peer.describe()}{_GAVE_UP}{abort.text.rsplit(_GAVE_UP)[-1]}", culprit)
    reporters = [each for each, abort in sorted(control.aborted.items()) if abort.culprit == culprit]
    if reporters:
        text = control.aborted[reporters[0]].text.rsplit(_GAVE_UP)[-1]  # the first of those who quote each other
        kind = _KINDS.get(control.aborted[reporters[0]].kind, CollectiveError)
        return kind(f"{where}: {rank_infos[reporters[0]].describe()}{_GAVE_UP}{text}", culprit)
    if culprit in control.left:
        return GroupClosed(
            f"{where}: {peer.describe()} has left the group (it finished, or called destroy_process_group) while this "
            f"rank still needs it{_log_of(peer)}. {CLOSED}. {waited}",
            culprit,
        )
    return PeerLost(f"{where}: lost the connection to {peer.describe()}: {reason}{_log_of(peer)}. {waited}", culprit)


def _mismatch(where: str, peer: RankInfo, control: ControlChannel, watch: Watch | None) -> OpMismatch:
    """Ask the peer where it is, send it where this rank is, and show both."""
    answer = _attempt(lambda: watch.ask([peer.rank])[peer.rank]) if watch is not None else None
    here = _attempt(watch.whereabouts) if watch is not None else None
    called = f", called at {here.line}" if here is not None else ""
    text = f"{where}{called}: {peer.describe()} is in another collective at the same place"
    if answer is not None:
        text += f" (it is {answer.describe()})"
    control.send_abort(OpMismatch.__name__, peer.rank, text)
    control.drain(peer.rank)
    abort = control.aborted.get(peer.rank)
    if answer is None and abort is not None:
        text += f" (it is {abort.text.split(': ')[0]})"
    return OpMismatch(
        f"{text}; {SAME_CALLS}{_log_of(peer)}",
        peer.rank,
    )


def _timed_out(
    where: str, rank_infos: Sequence[RankInfo], table: Table, control: ControlChannel, watch: Watch | None
) -> CollectiveError:
    """Who has not come, as far as the ranks' answers show; else who is at the end of the chain of those that wait."""
    names = [rank_info.describe() for rank_info in rank_infos]
    found = _attempt(watch.diagnose) if watch is not None else None
    waited_for, _ = missing(table)
    culprit = found.culprit if found is not None else None
    if found is not None and culprit is not None and found.missing.get(culprit) == GONE:
        control.drain(culprit)  # all that are missing have given up, just before this rank: they know why
        return lost("closed", where, rank_infos, culprit, _still_to_come(table, rank_infos), control)
    if culprit is None:
        culprit = _end_of_chain(waited_for, found.waits if found is not None else {})
    text = f"nothing moved for {int(table.run[0]['timeout_ns']) / 1e9:g} s. {_still_to_come(table, rank_infos)}"
    if found is not None and found.sides:
        text += f" The {found.difference(names)}"
        control.send_abort(OpMismatch.__name__, culprit, f"{where}: {text}")
        return OpMismatch(f"{where}: {text}; {SAME_CALLS}", culprit)
    if found is not None and found.missing:
        shown = list(found.missing.items())[:_RANKS_NAMED]
        text += f" Not in this collective: {'; '.join(f'{names[rank]} {why}' for rank, why in shown)}."
        advice = (
            "A rank that has not come runs another branch or number of steps, or pauses (then a longer timeout helps)"
        )
    else:
        chain = f" {names[culprit]} is the last of those that wait for each other." if culprit is not None else ""
        text += f"{chain} All ranks are in this collective."
        advice = "A link between two of them is down or stands still"
    control.send_abort(OpTimeout.__name__, culprit, f"{where}: {text}")
    log = _log_of(rank_infos[culprit]) if culprit is not None else ""
    return OpTimeout(f"{where}: {text} {advice}{log}", culprit)


def _attempt(ask: Callable[[], T]) -> T | None:
    """What the watch finds out; None if it fails, which must not hide the error that is to be explained."""
    try:
        return ask()
    except Exception as error:
        logger.debug("no diagnosis: %r", error)
        return None


def _end_of_chain(waited_for: Sequence[int], waits: Mapping[int, Sequence[int]]) -> int | None:
    """The last rank on the way from the first that this one waits for, each time to the first that that one does."""
    last, seen = None, set[int]()
    while waited_for and waited_for[0] not in seen:
        last = waited_for[0]
        seen.add(last)
        waited_for = waits.get(last, ())
    return last


def _blamed(where: str, rank_infos: Sequence[RankInfo], reporter: int, table: Table) -> CollectiveError:
    """A peer gave up on this rank, which is healthy and itself waiting on another."""
    waited_for, _ = missing(table)
    culprit = next((peer for peer in waited_for if peer != reporter), None)
    return OpTimeout(
        f"{where}: {rank_infos[reporter].describe()} gave up waiting for this rank. "
        f"{_still_to_come(table, rank_infos)} "
        f"A pause of this rank before it came to this collective looks the same: then raise the timeout"
        f"{_log_of(rank_infos[culprit]) if culprit is not None else ''}",
        culprit,
    )


def _unreadable(where: str, peer: RankInfo, table: Table, net: Net) -> ProtocolError:
    run = table.run[0]
    headers = [
        net.rx_headers[c * BATCH + int(net.conns[c]["header_at"]) // HEADER_BYTES]
        for c in range(len(net.conns))
        if int(net.conns[c]["peer"]) == peer.rank
    ]
    got = "; ".join(
        f"op {int(h['op'])} generation {int(h['generation'])} tree {int(h['tree'])} slice {int(h['slice'])} "
        f"{'up' if int(h['direction']) == UP else 'down'} of {int(h['length'])} bytes"
        for h in headers
    )
    return ProtocolError(
        f"{where}: {peer.describe()} announced a slice that does not belong here: got {got}; this rank is at op "
        f"{int(run['op'])} generation {int(run['generation'])}. Do the sizes that ranks pass to each other match, "
        "and do all ranks run the same version of narrowgauge?",
        peer.rank,
    )


def _still_to_come(table: Table, rank_infos: Sequence[RankInfo]) -> str:
    """The sentence that names what this rank waited for."""
    peers, place = missing(table)
    verb = "waited for" if place else "waited to hand its slices to"
    names = ", ".join(rank_infos[peer].describe() for peer in peers[:_RANKS_NAMED]) or "its peers"
    more = f" and {len(peers) - _RANKS_NAMED} more" if len(peers) > _RANKS_NAMED else ""
    return f"This rank {verb} {names}{more}{place}."


def missing(table: Table) -> tuple[list[int], str]:
    """Whose slices are outstanding. Children come first: a parent may itself be waiting for them.

    Returns:
        Peers, and the first outstanding tree and slice; "" if none is but they don't accept what is sent.
    """
    for tree in table.trees:
        edges = table.edges[int(tree["first_edge"]) :][: int(tree["num_edges"])]
        if not tree["up"]:
            edges = edges[edges["near"] == 1]
        if len(edges):
            due = table.due[int(tree["first_slot"]) :][: int(tree["slots"])]
            slot = int(due.argmin())
            if due[slot] < int(tree["num_slices"]):
                peers = [int(edge["peer"]) for edge in edges if not table.seen[int(edge["first_seen"]) + slot]]
                return peers, f" (tree {int(tree['id'])} slice {int(due[slot])}, on its way up)"
    for tree in table.trees:
        if int(tree["parent"]) != NO_PEER:
            received = table.received[int(tree["first_slice"]) :][: int(tree["num_slices"])] == 2
            if not received.all():
                first = int(received.argmin())
                return [int(tree["parent"])], f" (tree {int(tree['id'])} slice {first}, on its way down)"
    return [peer for peer, queue in enumerate(table.queues) if int(queue["head"]) < int(queue["tail"])], ""


def _log_of(rank_info: RankInfo) -> str:
    return f"; see {rank_info.log}" if rank_info.log else ""
