"""What a group does when an op cannot go on.

A group breaks once. The first error on this rank is remembered, sent to every peer on the control connections, and the
streams are shut down: nothing of ours may reach a peer that has not noticed yet, and no peer should wait for more. All
ops after that raise the same failure. Nothing is retried here; a slice that was lost cannot be told from one that was
late, and the sums of a half-finished op are not defined.

The loop returns a status whenever it needs a decision, and `react` makes it: return to go on, raise to end the op.

    INTERRUPTED   go on, unless the group is being closed. Python's signal handlers have run by then, and the watch
                  (`hangs/`) reports the op if it stands still for long
    CONTROL       read what the peer sent. A word is answered, and the op goes on. A goodbye, and even a death, are no
                  error yet: the peer's last slices may still be in its streams, and if more is outstanding than those
                  the streams' end says so
    the others    `faults.explain` finds who is at fault and raises
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from collectives.engine.compiled.connections import Net
from collectives.engine.compiled.status import CONTROL, INTERRUPTED
from collectives.engine.compiled.table import Table
from collectives.engine.faults import explain
from collectives.engine.hangs.watch import Watch
from collectives.errors import CollectiveError
from collectives.schedule.op import OpSpec
from collectives.transport import control
from collectives.transport.control import ControlChannel
from collectives.transport.rendezvous import Connections, RankInfo


class FaultPolicy:
    """One rank's reactions.

    Attributes:
        failure: why the group broke; None while it is whole.
    """

    def __init__(
        self, rank: int, connections: Connections, channel: ControlChannel, net: Net, watch: Watch | None
    ) -> None:  # fmt: skip
        self._rank, self._connections, self._control, self._net = rank, connections, channel, net
        self._watch = watch
        self._rank_infos: Sequence[RankInfo] = connections.rank_infos
        self._lock = threading.Lock()
        self._listeners: list[Callable[[BaseException], object]] = []
        self.failure: CollectiveError | None = None
        self._words = ""  # of the first error
        if watch is not None:
            watch.on_difference = self.break_group

    def on_break(self, listener: Callable[[BaseException], object]) -> None:
        """Have `listener` called with the error when the group breaks."""
        self._listeners.append(listener)

    def check(self) -> None:
        """Raise the failure of a broken group: a new exception for each op, since a shared one collects tracebacks."""
        if self.failure is not None:
            raise type(self.failure)(str(self.failure), self.failure.culprit)

    def break_group(self, error: BaseException) -> None:
        """Remember the first error and announce it; later ones follow from it and are ignored."""
        with self._lock:
            if self.failure is not None:
                return
            culprit = error.culprit if isinstance(error, CollectiveError) else self._rank
            text = str(error) if isinstance(error, CollectiveError) else f"{type(error).__name__}: {error}"
            # Of the same kind: where a message broke the group beside its caller, this is the first that he sees.
            kind = type(error) if isinstance(error, CollectiveError) else CollectiveError
            self._words = text
            self.failure = kind(f"this group broke in an earlier op: {text}", culprit)
        self._control.send_abort(type(error).__name__, culprit, text)
        for listener in self._listeners:  # before they see their streams end
            listener(error)
        for connection in self._connections.streams():
            control.shut(connection)

    def react(self, status: int, spec: OpSpec, table: Table) -> None:
        """Return if the op may go on; raise what a status other than DONE means otherwise."""
        if status == INTERRUPTED:
            if self._watch is not None:
                self._watch.op_waits(table)
            return
        if self.failure is not None:  # by a message or a report, during this op, whose streams ended for that reason
            raise type(self.failure)(self._words, self.failure.culprit)
        if status == CONTROL:
            peer = int(table.run[0]["culprit"])
            self._control.read(peer)
            if self._control.has_ended(peer):
                self._net.control[peer] = -1  # it has said its last; poll would report it for ever
            if peer not in self._control.aborted and peer not in self._control.unreachable:
                return
        raise explain(status, spec, self._rank, self._rank_infos, table, self._net, self._control, self._watch)
