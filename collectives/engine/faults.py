"""From the loop's status codes to sentences: who, where, got, wanted, next."""

from __future__ import annotations

import os
from collections.abc import Sequence

from collectives.engine import loop
from collectives.engine.farewell import Farewells
from collectives.engine.loop import Net
from collectives.engine.mesh import Card
from collectives.engine.op import OpSpec
from collectives.engine.table import NO_PEER, UP, Table
from collectives.errors import CollectiveError, GroupClosed, OpMismatch, OpTimeout, PeerLost, ProtocolError

_RANKS_NAMED = 6


def explain(
    status: int, spec: OpSpec, rank: int, cards: Sequence[Card], table: Table, net: Net, farewells: Farewells
) -> CollectiveError:
    """The error that a status other than DONE and INTERRUPTED stands for."""
    run = table.run[0]
    where = f"{cards[rank].describe()}, {spec} (op {int(run['op'])})"
    culprit = int(run["culprit"])
    if status == loop.TIMEOUT:
        return _timed_out(where, cards, table)
    if status == loop.OP_MISMATCH:
        return OpMismatch(
            f"{where}: {cards[culprit].describe()} is in another collective at the same place; all ranks must call the "
            "same collectives in the same order with the same sizes, dtypes and reductions. Its own error says "
            f"what it called{_log_of(cards[culprit])}",
            culprit,
        )
    if status == loop.BAD_HEADER:
        return _unreadable(where, cards[culprit], table, net)
    if culprit == NO_PEER:
        return ProtocolError(f"{where}: poll failed: {os.strerror(int(run['errno']))}")
    if status in (loop.PEER_CLOSED, loop.SOCKET_ERROR):
        farewells.hear_out(culprit)
    return _lost(status, where, cards, culprit, table, farewells)


def _lost(
    status: int, where: str, cards: Sequence[Card], culprit: int, table: Table, farewells: Farewells
) -> CollectiveError:
    """A peer is gone. If anyone knows whose fault it was in the first place, that is what is told."""
    for teller, abort in sorted(farewells.aborted.items()):
        if abort.culprit in farewells.died or abort.culprit not in (None, teller):
            culprit = abort.culprit if abort.culprit is not None else teller
            break
    else:
        culprit = min(farewells.died, default=culprit)
    peer, waited = cards[culprit], _still_to_come(table, cards)
    if culprit in farewells.died:
        return PeerLost(
            f"{where}: {peer.describe()} died: its connections closed without a word{_log_of(peer)}. {waited}", culprit
        )
    if culprit in farewells.aborted:
        return CollectiveError(f"{where}: {peer.describe()} gave up: {farewells.aborted[culprit].text}", culprit)
    tellers = [teller for teller, abort in sorted(farewells.aborted.items()) if abort.culprit == culprit]
    if tellers:
        text = farewells.aborted[tellers[0]].text
        return PeerLost(
            f"{where}: lost {peer.describe()}{_log_of(peer)}. {cards[tellers[0]].describe()} says: {text}", culprit
        )
    if culprit in farewells.left:
        return GroupClosed(
            f"{where}: {peer.describe()} has left the group (it finished, or called destroy_process_group) while this "
            f"rank still needs it{_log_of(peer)}. {waited}",
            culprit,
        )
    reason = os.strerror(int(table.run[0]["errno"])) if status == loop.SOCKET_ERROR else "closed"
    return PeerLost(f"{where}: lost the connection to {peer.describe()}: {reason}{_log_of(peer)}. {waited}", culprit)


def _timed_out(where: str, cards: Sequence[Card], table: Table) -> OpTimeout:
    waited_for = _peers_still_to_come(table)
    seconds = int(table.run[0]["timeout_ns"]) / 1e9
    return OpTimeout(
        f"{where}: nothing moved for {seconds:g} s. {_still_to_come(table, cards)} Either it is not in this collective "
        "(another branch, another number of steps, a long pause: then raise the timeout), it hangs, or its link is cut"
        f"{_log_of(cards[waited_for[0]]) if waited_for else ''}",
        waited_for[0] if waited_for else None,
    )


def _unreadable(where: str, peer: Card, table: Table, net: Net) -> ProtocolError:
    run = table.run[0]
    headers = [net.rx_headers[c] for c in range(len(net.conns)) if int(net.conns[c]["peer"]) == peer.rank]
    told = "; ".join(
        f"op {int(h['op'])} epoch {int(h['epoch'])} tree {int(h['tree'])} slice {int(h['slice'])} "
        f"{'up' if int(h['direction']) == UP else 'down'} of {int(h['length'])} bytes"
        for h in headers
    )
    return ProtocolError(
        f"{where}: {peer.describe()} announced a slice that does not belong here: got {told}; this rank is at op "
        f"{int(run['op'])} epoch {int(run['epoch'])}. Do all ranks run the same version of narrowgauge?",
        peer.rank,
    )


def _peers_still_to_come(table: Table) -> list[int]:
    return [peer for peer, queue in enumerate(table.queues) if int(queue["expect"]) > 0]


def _still_to_come(table: Table, cards: Sequence[Card]) -> str:
    """The sentence that names what this rank waited for: peers, and the first tree and slice that is missing."""
    peers = _peers_still_to_come(table)
    if not peers:
        full = [peer for peer, queue in enumerate(table.queues) if int(queue["head"]) < int(queue["tail"])]
        names = ", ".join(cards[peer].describe() for peer in full[:_RANKS_NAMED])
        return f"This rank waited for {names or 'its peers'} to take its slices."
    names = ", ".join(cards[peer].describe() for peer in peers[:_RANKS_NAMED])
    more = f" and {len(peers) - _RANKS_NAMED} more" if len(peers) > _RANKS_NAMED else ""
    return f"This rank waited for {names}{more}{_first_missing(table)}."


def _first_missing(table: Table) -> str:
    run = table.run[0]
    for tree in table.trees:
        first = int(run["window"]) * int(tree["window"])
        for local in range(min(int(tree["window"]), int(tree["num_slices"]) - first)):
            arrived = int(table.arrived[int(tree["first_state"]) + local])
            if tree["up"] and arrived < int(tree["num_edges"]):
                return f" (tree {int(tree['id'])} slice {first + local}, on its way up)"
            if tree["down"] and int(tree["parent"]) != NO_PEER and arrived < loop.ARRIVED_DOWN:
                return f" (tree {int(tree['id'])} slice {first + local}, on its way down)"
    return ""


def _log_of(card: Card) -> str:
    return f"; see {card.log}" if card.log else ""
