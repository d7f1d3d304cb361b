"""A group's engine: the public face, and one op from its first byte to its last.

    op_queue.py        in which order ops run, and on which thread
    table_cache.py     from an op's spec to its plan and table
    fault_policy.py    what happens when an op cannot go on
    hangs/             who is where when an op does not go on
    monitor/rounds.py  what ranks exchange between ops about stragglers and links
    messages/          messages between two ranks, beside the ops

The compiled loop runs without the GIL and comes back when the op is done or Python has to decide something.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

from collectives.engine import bootstrap, lifetime
from collectives.engine.compiled import table
from collectives.engine.compiled.connections import make_net
from collectives.engine.compiled.status import DONE, INTERRUPTED
from collectives.engine.compiled.table import TableLayout
from collectives.engine.fault_policy import FaultPolicy
from collectives.engine.faults import CLOSED, missing
from collectives.engine.hangs.call_site import CallSite, call_site_of_thread, describe, main_stack
from collectives.engine.hangs.diagnosis import Whereabouts
from collectives.engine.hangs.watch import Watch
from collectives.engine.messages.messenger import Messenger
from collectives.engine.monitor.link_monitor import LinkMonitor
from collectives.engine.monitor.rounds import MonitorRounds
from collectives.engine.monitor.stragglers import StragglerDetector
from collectives.engine.monitor.trace import TRACE_ENTRIES, Trace
from collectives.engine.op_queue import Done, OpQueue
from collectives.engine.selftest import warm_up
from collectives.engine.table_cache import Prepared, TableCache
from collectives.errors import CollectiveError, GroupClosed
from collectives.options import Options
from collectives.planning.plan import Plan
from collectives.planning.planner import plan
from collectives.schedule.op import Collective, OpSpec
from collectives.topology import Topology
from collectives.transport import control, rendezvous, shared_memory

DEFAULT_TIMEOUT_S = 1800.0


def connect(
    store: rendezvous.Store, rank: int, size: int, name: str, timeout_s: float = DEFAULT_TIMEOUT_S,
    options: Options | None = None, generation: int = 0,
) -> Engine:  # fmt: skip
    """Form a group and start its engine.

    Args:
        store: where the ranks meet; keys are used as they are, so give each group a store (or prefix) of its own.
        rank, size: of this process in the group.
        name: the group's, equal on all ranks.
        timeout_s: seconds for the rendezvous, and without progress in an op, unless the options say otherwise.

    Raises:
        RendezvousError: the group could not be formed; names the rank.
    """
    options = options or Options()
    timeout_s = options.timeout_s or timeout_s
    with rendezvous.meet(store, rank, size, name, generation, options, timeout_s) as meeting:
        meeting.connect()
        warm_up()
        meeting.store.renew(timeout_s)
        return start(meeting, options, timeout_s)


def start(meeting: rendezvous.Rendezvous, options: Options, timeout_s: float) -> Engine:
    """The engine of a group whose ranks have met, and have their control connections.

    Raises:
        RendezvousError, PlanError: as `bootstrap.join`.
    """
    joined = bootstrap.join(meeting, options)
    hosts = [joined.topology.host_index(each) for each in range(meeting.size)]
    shared = shared_memory.share(meeting, hosts, table.ARENA_BYTES, options.shared_memory)
    name, generation = meeting.store.group, meeting.store.generation
    try:
        return Engine(meeting.rank, name, generation, joined, shared, options, timeout_s)
    except BaseException:
        shared.close()
        raise


@dataclass
class Counters:
    """What an engine has done so far.

    Attributes:
        ops: finished ops of its callers.
        poll_s: seconds blocked in poll, which is to say waiting for peers.
        bytes_sent: on sockets, headers included.
    """

    ops: int = 0
    poll_s: float = 0.0
    bytes_sent: int = 0


RunningOp = tuple[OpSpec, TableLayout, int]
"""An op, as far as it is needed to say where this rank is: spec, table, thread. A plain tuple: each op makes one."""


class Engine:
    """One group's engine. `start`, `run` and `close` may be called from any thread.

    Attributes:
        rank, size, name: of this process in its group.
        links_are_known: whether the rates between hosts are more than an assumption.
        counters: what has been done.
        messages: sends and receives.
    """

    def __init__(
        self, rank: int, name: str, generation: int, joined: bootstrap.Joined, shared: shared_memory.SharedMemory,
        options: Options, timeout_s: float,
    ) -> None:  # fmt: skip
        connections = joined.connections
        self.rank, self.size, self.name = rank, len(connections.rank_infos), name
        self.links_are_known = joined.is_known
        self.counters = Counters()
        self._connections, self._shared = connections, shared
        self._generation, self._timeout_s = generation, timeout_s
        self._running: RunningOp | None = None
        self._latest: RunningOp | None = None
        self._begun = 0  # ops so far; the number of the next
        with contextlib.ExitStack() as undo:  # if anything fails, such as for want of file descriptors
            self._waker, self._wake = socket.socketpair()
            undo.callback(self._close_waker)
            self._assemble(generation, joined, options, undo)
            undo.pop_all()
        lifetime.joined(self)  # last: a fork on another thread may call `abandon` from now on

    def _assemble(
        self, generation: int, joined: bootstrap.Joined, options: Options, undo: contextlib.ExitStack
    ) -> None:
        """Make the parts; `undo` gets what ends those that need it."""
        connections, topology, shared = joined.connections, joined.topology, self._shared
        rank, name, timeout_s = self.rank, self.name, self._timeout_s
        self._control = control.ControlChannel(connections.control)
        self._net = make_net(
            [(peer, connection.fileno()) for peer, connection in connections.data],
            [connections.control[each].fileno() if each in connections.control else -1 for each in range(self.size)],
            self._waker.fileno(),
            shared.arenas,
            TRACE_ENTRIES if options.trace else 0,
        )
        self._tables = TableCache(rank, topology, options, shared.hosts, self._net)
        names = [rank_info.describe() for rank_info in connections.rank_infos]
        self._watch = (
            Watch(rank, name, names, self._control, self._whereabouts, options.hang_report_s) if self.size > 1 else None
        )
        if self._watch is not None:
            undo.callback(self._watch.close)
        self._faults = FaultPolicy(rank, connections, self._control, self._net, self._watch)
        self.messages = Messenger(rank, name, generation, connections, self._control, self._faults)
        undo.callback(self.messages.close)
        self._trace = Trace(options.trace, name, rank, names, self._net) if options.trace else None
        is_watched = joined.is_known and len(topology.hosts) > 1
        self._monitors = MonitorRounds(
            self.size,
            StragglerDetector(rank, names) if self.size > 1 else None,
            LinkMonitor(rank, topology, connections.data) if is_watched else None,
            lambda spec, source, target: self._carry_out(spec, source, target, timeout_s),
        )
        self._queue = OpQueue(
            f"rank {rank}, group {name}", self._execute, self._faults.break_group, self._closed_before
        )

    @property
    def topology(self) -> Topology:
        """Hosts and links as they are planned with now, equal on all ranks."""
        return self._tables.topology

    def start(
        self, spec: OpSpec, source: int, target: int, done: Done, timeout_s: float | None = None, residual: int = 0,
        caller: CallSite | None = None,
    ) -> None:  # fmt: skip
        """Queue an op; returns at once.

        Args:
            source, target: addresses of contiguous buffers, see `OpSpec.counts`, which must live until `done`.
                all_reduce, broadcast and reduce may be in place.
            done: called once, on the engine's thread, with None or what went wrong. It must not block.
            timeout_s: seconds without progress that end the op; None takes the group's.
            residual: address of float32 of the message's length that are added to what this rank encodes, and hold
                afterwards what encoding lost (error feedback, Seide et al. 2014). Of a result that this rank encodes
                as a root that is n times the loss if it is an average, as if one contribution had lacked it. 0: none.
            caller: who called, for messages; None takes the caller of this method.

        Raises:
            UsageError: the spec cannot be carried out. Nothing was queued.
            GroupClosed: `close` was called. Nothing was queued.
        """
        spec.check(self.size, self.rank)
        self._queue.start(spec, source, target, timeout_s or self._timeout_s, residual, done, caller)

    def run(self, spec: OpSpec, source: int, target: int, timeout_s: float | None = None, residual: int = 0) -> None:
        """As `start`, but returns when the op is done.

        Raises:
            UsageError: the spec cannot be carried out.
            CollectiveError: the op failed, or one before it.
        """
        if spec not in self._tables:  # a spec that has a table has been checked
            spec.check(self.size, self.rank)
        self._queue.run(spec, source, target, timeout_s or self._timeout_s, residual)

    def plan(
        self, collective: Collective = "all_reduce", num_bytes: int = 25_000_000, root: int | None = None,
        codec: str = "none",
    ) -> Plan:  # fmt: skip
        """The plan in force for a collective of this size in bytes."""
        return plan(self.topology, collective, num_bytes, root, codec)

    def waits(self) -> dict[str, float]:
        """Seconds of poll time and of waiting for messages that were attributed to each other rank, by
        `RankInfo.describe`."""
        seconds = (self._net.waited_ns / 1e9 + self.messages.waited_s).tolist()
        infos = enumerate(self._connections.rank_infos)
        return {rank_info.describe(): seconds[peer] for peer, rank_info in infos if seconds[peer] > 0}

    def hang(self) -> dict[str, Any] | None:
        """The last report of a hang that this rank has made, see `stats`."""
        return self._watch.last if self._watch is not None else None

    def departures(self) -> dict[int, control.Ending]:
        """How ranks left that have; one that has only given up is not among them. Any thread may ask, whatever the
        engine does meanwhile."""
        found = {other: self._control.departure(other) for other in range(self.size) if other != self.rank}
        return {other: ending for other, ending in found.items() if ending is not None}

    def close(self) -> None:
        """Say goodbye to the peers, end the threads, close all sockets. Ops and messages that still wait raise
        GroupClosed.

        Raises:
            GroupClosed: this thread runs an op of the group, on top of which a signal handler has called this. Nothing
                is closed beneath the op. The error ends it, if the handler lets it pass; then call this again.
        """
        if self._queue.runs_in_this_thread():
            self._queue.refuse()
            raise GroupClosed(
                f"rank {self.rank}: group {self.name} was destroyed in a signal handler, while the same thread ran "
                f"{self._latest[0] if self._latest is not None else 'an op'}. That op ends with this error; to release "
                "what the group holds, call destroy_process_group again when it has",
                self.rank,
            )
        if not self._queue.close(lambda: self._wake.send(b"x")):
            return
        self.messages.close()
        if self._faults.failure is None:
            self._control.send_goodbye()
        if self._trace is not None:
            self._trace.write()
        lifetime.left(self)
        if self._watch is not None:
            self._watch.close()
        self._connections.close()
        self._shared.close()
        self._close_waker()

    def leave(self) -> None:
        """The process ends without `close`: announce to peers, who may still need this rank, how it ended."""
        if self._trace is not None:
            self._trace.write()
        error = sys.exc_info()[1] or getattr(sys, "last_value", None)  # the first in a process of multiprocessing
        if error is None or (isinstance(error, SystemExit) and not error.code):
            self.messages.linger()
            self._control.send_goodbye()
        else:
            text = f"rank {self.rank} ended with {type(error).__name__}: {error}. {CLOSED}"
            self._control.send_abort(CollectiveError.__name__, self.rank, text, ends=True)

    def abandon(self) -> None:
        """In a forked child: close its copies of the sockets and send nothing. Ops raise GroupClosed."""
        self._queue.abandon()
        if self._watch is not None:
            self._watch.abandon()
        self.messages.abandon()
        self._connections.close()
        self._close_waker()

    def _close_waker(self) -> None:
        self._waker.close()
        self._wake.close()

    def _execute(self, spec: OpSpec, source: int, target: int, timeout_s: float, residual: int) -> None:
        """One op of a caller's, with what is measured about it."""
        self._faults.check()
        if self._queue.closing:
            raise self._closed_before(spec)
        if self._trace is not None:
            self._trace.begin()
        started_ns, poll_s = time.monotonic_ns(), self.counters.poll_s
        prepared = self._carry_out(spec, source, target, timeout_s, residual)
        ended_ns = time.monotonic_ns()
        self.counters.ops += 1
        if self._trace is not None:
            self._trace.op(spec, prepared.plan.algorithm, started_ns, ended_ns)
        seconds, poll_s = (ended_ns - started_ns) / 1e9, self.counters.poll_s - poll_s
        topology = self._monitors.after(spec, prepared.plan, seconds, poll_s, self._tables.topology)
        if topology is not None:
            self._tables.replan(topology)

    def _carry_out(self, spec: OpSpec, source: int, target: int, timeout_s: float, residual: int = 0) -> Prepared:
        """Run an op to its end; what it ran by."""
        prepared = self._tables.get(spec)
        layout, advance = prepared.layout, prepared.entry.advance
        scratch, number = self._tables.scratch(layout.scratch_bytes), self._begun
        self._begun = number + 1
        layout.set_run(number, self._generation, source, target, scratch, int(timeout_s * 1e9), residual)
        self._running = self._latest = (spec, layout, threading.get_ident())
        try:
            while (status := advance()) != DONE:
                if status == INTERRUPTED and self._queue.closing:
                    raise GroupClosed(f"rank {self.rank}: group {self.name} was closed while {spec} ran", self.rank)
                self._faults.react(status, spec, layout.table)
        finally:
            self._running = None
        poll_ns, bytes_sent = layout.counters()
        self.counters.poll_s += poll_ns / 1e9
        self.counters.bytes_sent += bytes_sent
        return prepared

    def _whereabouts(self) -> Whereabouts:
        """Where this rank is now; called by other threads, too, while ops begin and end."""
        running, latest, begun = self._running, self._latest, self._begun
        op, waited_s, waits_for = None, 0.0, list[int]()
        if running is None:
            site = call_site_of_thread(threading.main_thread().ident or 0)
        else:
            _, layout, thread = running
            site = self._queue.caller if self._queue.is_thread(thread) else call_site_of_thread(thread)
            run = layout.table.run[0]
            op = int(run["op"])
            if run["started"] == 1:
                waited_s = (time.monotonic_ns() - int(run["last_move_ns"])) / 1e9
                waits_for, _ = missing(layout.table)
        doing = str(latest[0]) if latest is not None else ""
        return Whereabouts(op, begun, doing, waited_s, tuple(waits_for), describe(site), main_stack())

    def _closed_before(self, spec: OpSpec) -> GroupClosed:
        return GroupClosed(f"rank {self.rank}: group {self.name} was closed before {spec} ran", self.rank)
