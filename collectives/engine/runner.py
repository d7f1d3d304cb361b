"""A group's engine: its table cache, its op queue and the thread that runs the compiled loop.

Ops run one after the other, in the order in which they were handed over. A synchronous op that finds the engine idle
runs in the caller's own thread, which saves two wake-ups. After an op has failed the group is broken: that op, those
that wait and all later ones raise, and every peer has been told why.
"""

from __future__ import annotations

import collections
import itertools
import logging
import socket
import sys
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from collectives.engine import bootstrap, lifetime, table_builder
from collectives.engine.compiled import table
from collectives.engine.compiled.connections import make_net
from collectives.engine.compiled.loop import Entry
from collectives.engine.compiled.status import CONTROL, DONE, INTERRUPTED
from collectives.engine.faults import explain
from collectives.engine.monitor.link_monitor import LinkMonitor
from collectives.engine.monitor.stragglers import StragglerDetector
from collectives.engine.monitor.trace import TRACE_ENTRIES, Trace
from collectives.engine.selftest import warm_up
from collectives.errors import CollectiveError, GroupClosed
from collectives.options import Options
from collectives.planning.plan import Plan
from collectives.planning.planner import plan
from collectives.schedule.op import Collective, OpSpec
from collectives.topology import Topology
from collectives.transport import control, rendezvous, shared_memory

Done = Callable[[BaseException | None], None]
logger = logging.getLogger(__name__)

TABLES_KEPT = 256
MIN_WINDOW_BYTES = 4 * 1024 * 1024
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
    warm_up()
    joined = bootstrap.join(store, rank, size, name, generation, options, timeout_s)
    hosts = [joined.topology.host_index(each) for each in range(size)]
    shared = shared_memory.share(store, rank, hosts, table.ARENA_BYTES, options.shared_memory)
    return Engine(rank, name, generation, joined, shared, options, timeout_s)


@dataclass
class Counters:
    """What an engine has done so far. Seconds are of the wall clock.

    Attributes:
        ops: finished ops. num_bytes: their messages' bytes.
        busy_s: an op was in work. poll_s: of these, blocked in poll, which is to say waiting for peers.
        bytes_sent, bytes_received: on sockets, headers included.
    """

    ops: int = 0
    num_bytes: int = 0
    busy_s: float = 0.0
    poll_s: float = 0.0
    bytes_sent: int = 0
    bytes_received: int = 0


class _Planned(NamedTuple):
    """The plan for an op, and this rank's part of it."""

    plan: Plan
    layout: table.TableLayout
    entry: Entry


@dataclass
class _Call:
    spec: OpSpec
    source: int
    target: int
    timeout_s: float
    residual: int
    done: Done


class Engine:
    """One group's engine. `start`, `run` and `close` may be called from any thread.

    Attributes:
        rank, size, name: of this process in its group.
        topology: hosts and links, equal on all ranks.
        links_are_known: whether the rates between hosts are more than an assumption.
        counters: what has been done.
    """

    def __init__(
        self, rank: int, name: str, generation: int, joined: bootstrap.Joined, shared: shared_memory.SharedMemory,
        options: Options, timeout_s: float,
    ) -> None:  # fmt: skip
        formed, topology = joined.connections, joined.topology
        self.rank, self.size, self.name, self.topology = rank, len(formed.rank_infos), name, topology
        self.links_are_known = joined.is_known
        is_watched = joined.is_known and len(topology.hosts) > 1
        self._link_monitor = LinkMonitor(rank, topology, formed.data) if is_watched else None
        self.counters = Counters()
        self._shared = shared
        self._generation, self._connections, self._options, self._timeout_s = generation, formed, options, timeout_s
        self._tables: collections.OrderedDict[OpSpec, _Planned] = collections.OrderedDict()
        self._scratch, self._scratch_at = np.empty(0, np.uint8), 0
        self._window_bytes = options.window_bytes or _window_bytes(topology)
        self._ops = itertools.count()
        self._waker, self._wake = socket.socketpair()
        self._control = control.ControlChannel(formed.control)
        control_fds = [formed.control[each].fileno() if each in formed.control else -1 for each in range(self.size)]
        self._net = make_net(
            [(peer, connection.fileno()) for peer, connection in formed.data],
            control_fds,
            self._waker.fileno(),
            shared.arenas,
            TRACE_ENTRIES if options.trace else 0,
        )
        names = [rank_info.describe() for rank_info in formed.rank_infos]
        self._trace = Trace(options.trace, name, rank, names, self._net) if options.trace else None
        self._stragglers = StragglerDetector(rank, names) if self.size > 1 else None
        self._lock = threading.Condition()
        self._calls: collections.deque[_Call] = collections.deque()
        self._working = False  # an op is in work, on the thread or inline
        self._closing = False
        self._failure: CollectiveError | None = None
        lifetime.joined(self)
        self._thread = threading.Thread(target=self._serve, name=f"narrowgauge-{name}", daemon=True)
        self._thread.start()

    def start(
        self, spec: OpSpec, source: int, target: int, done: Done, timeout_s: float | None = None, residual: int = 0
    ) -> None:
        """Queue an op; returns at once.

        Args:
            source, target: addresses of contiguous buffers, see `OpSpec.counts`, which must live until `done`.
                all_reduce, broadcast and reduce may be in place.
            done: called once, on the engine's thread, with None or what went wrong. It must not block.
            timeout_s: seconds without progress that end the op; None takes the group's.
            residual: address of float32 of the message's length that are added to what this rank encodes, and hold
                afterwards what encoding lost (error feedback, Seide et al. 2014). Of a result that this rank encodes
                as a root that is n times the loss if it is an average, as if one contribution had lacked it. 0: none.

        Raises:
            UsageError: the spec cannot be carried out. Nothing was queued.
            GroupClosed: `close` was called. Nothing was queued.
        """
        spec.check(self.size)
        call = _Call(spec, source, target, timeout_s or self._timeout_s, residual, done)
        with self._lock:
            if self._closing:
                raise self._closed(spec)
            self._calls.append(call)
            self._lock.notify_all()

    def run(self, spec: OpSpec, source: int, target: int, timeout_s: float | None = None, residual: int = 0) -> None:
        """As `start`, but returns when the op is done.

        Raises:
            UsageError: the spec cannot be carried out.
            CollectiveError: the op failed, or one before it.
        """
        if spec not in self._tables:
            spec.check(self.size)
        inline = False
        try:
            with self._lock:
                inline = not self._working and not self._calls and not self._closing and self._failure is None
                self._working |= inline
            if inline:
                self._execute(spec, source, target, timeout_s or self._timeout_s, residual)
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            if inline:
                with self._lock:
                    self._working = False
                    if self._calls or self._closing:
                        self._lock.notify_all()
        if not inline:
            self._run_queued(spec, source, target, timeout_s, residual)

    def plan(
        self, collective: Collective = "all_reduce", num_bytes: int = 25_000_000, root: int | None = None,
        codec: str = "none",
    ) -> Plan:  # fmt: skip
        """The plan in force for a collective of this size in bytes."""
        return plan(self.topology, collective, num_bytes, root, codec)

    def close(self) -> None:
        """Say goodbye to the peers, end the thread, close all sockets. Ops that still wait raise GroupClosed."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            self._lock.notify_all()
        self._wake.send(b"x")
        self._thread.join()
        with self._lock:
            self._lock.wait_for(lambda: not self._working)
        if self._failure is None:
            self._control.send_goodbye()
        if self._trace is not None:
            self._trace.write()
        lifetime.left(self)
        self._connections.close()
        self._shared.close()
        self._waker.close()
        self._wake.close()

    def leave(self) -> None:
        """The process ends without `close`: tell the peers, who may still need this rank, whether it ends well."""
        if self._trace is not None:
            self._trace.write()
        error = getattr(sys, "last_value", None)
        if error is None:
            self._control.send_goodbye()
        else:
            words = f"rank {self.rank} ended with {type(error).__name__}: {error}"
            self._control.send_abort(CollectiveError.__name__, self.rank, words)

    def abandon(self) -> None:
        """In a forked child: close its copies of the sockets without a word. Ops raise GroupClosed."""
        self._closing = True
        self._lock = threading.Condition()  # the parent's may be held by a thread that is not here
        self._connections.close()
        self._waker.close()
        self._wake.close()

    def _run_queued(self, spec: OpSpec, source: int, target: int, timeout_s: float | None, residual: int) -> None:
        finished, outcome = threading.Event(), []

        def done(error: BaseException | None) -> None:
            outcome.append(error)
            finished.set()

        self.start(spec, source, target, done, timeout_s, residual)
        try:
            finished.wait()
        except BaseException as error:
            # The caller's buffers go when this frame does: the op must have ended before.
            self._fail(error)
            finished.wait()
            raise
        if outcome[0] is not None:
            raise outcome[0]

    def _serve(self) -> None:
        """The thread: one op after the other; when closing, refuse what still waits."""
        while True:
            with self._lock:
                self._lock.wait_for(lambda: (self._calls and not self._working) or self._closing)
                if self._closing and not self._calls:
                    return
                if self._closing and self._working:
                    self._lock.wait_for(lambda: not self._working)
                call = self._calls.popleft()
                self._working = True
            error: BaseException | None = None
            try:
                self._execute(call.spec, call.source, call.target, call.timeout_s, call.residual)
            except BaseException as caught:  # whatever it is belongs to the caller
                self._fail(caught)
                error = caught
            with self._lock:
                self._working = False
                self._lock.notify_all()
            try:
                call.done(error)
            except Exception:
                logger.exception("rank %d, group %s: a callback of %s failed", self.rank, self.name, call.spec)

    def _fail(self, error: BaseException) -> None:
        """Break the group: tell the peers once, remember why."""
        with self._lock:
            if self._failure is not None:
                return
            self._failure = CollectiveError("this group broke")
        culprit = error.culprit if isinstance(error, CollectiveError) else self.rank
        text = str(error) if isinstance(error, CollectiveError) else f"{type(error).__name__}: {error}"
        self._failure = CollectiveError(f"this group broke in an earlier op: {text}", culprit)
        self._control.send_abort(type(error).__name__, culprit, text)
        # Nothing of ours may reach a peer that has not yet noticed, and none should wait for more.
        for _, connection in self._connections.data:
            control.shut(connection)

    def _execute(self, spec: OpSpec, source: int, target: int, timeout_s: float, residual: int) -> None:
        if self._failure is not None:
            raise type(self._failure)(str(self._failure), self._failure.culprit)
        if self._closing:
            raise self._closed(spec)
        if self._trace is not None:
            self._trace.begin()
        started_ns, slept_s = time.monotonic_ns(), self.counters.poll_s
        planned = self._carry_out(spec, source, target, timeout_s, residual)
        ended_ns = time.monotonic_ns()
        seconds = (ended_ns - started_ns) / 1e9
        self.counters.ops += 1
        self.counters.num_bytes += spec.num_bytes
        self.counters.busy_s += seconds
        if self._trace is not None:
            self._trace.op(spec, planned.plan.algorithm, started_ns, ended_ns)
        if self._stragglers is not None and self._stragglers.is_due(spec, planned.plan, self.counters.poll_s - slept_s):
            heard = self._tell(self._stragglers.report())
            self._stragglers.consider(heard, self.topology)
        if self._link_monitor is not None and self._link_monitor.is_due(spec, planned.plan, seconds):
            self._look_at_links(self._link_monitor)

    def _carry_out(self, spec: OpSpec, source: int, target: int, timeout_s: float, residual: int = 0) -> _Planned:
        """Run an op to its end; the plan that it followed."""
        planned = self._planned(spec)
        layout, advance = planned.layout, planned.entry.advance
        scratch = self._scratch_of(layout.scratch_bytes)
        layout.set_run(next(self._ops), self._generation, source, target, scratch, int(timeout_s * 1e9), residual)
        while (status := advance()) != DONE:
            self._react(status, spec, layout.table)
        poll_ns, sent, received = layout.counters()
        counters = self.counters
        counters.poll_s += poll_ns / 1e9
        counters.bytes_sent += sent
        counters.bytes_received += received
        return planned

    def _look_at_links(self, watch: LinkMonitor) -> None:
        """Tell each other what was counted, and plan anew if the links have changed; at the same op on all ranks."""
        topology = watch.consider(self._tell(watch.report()))
        if topology is not None:
            self.topology = topology
            self._tables.clear()

    def _tell(self, told: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """What every rank tells, one a row."""
        heard = np.empty((self.size, len(told)))
        gather = OpSpec("all_gather", "uint8", None, None, (told.nbytes,) * self.size)
        self._carry_out(gather, told.ctypes.data, heard.ctypes.data, self._timeout_s)
        return heard

    def waits(self) -> dict[str, float]:
        """Seconds that this rank has slept in ops because of each other rank, by what the rank is called."""
        seconds = (self._net.waited_ns / 1e9).tolist()
        return {
            rank_info.describe(): seconds[peer]
            for peer, rank_info in enumerate(self._connections.rank_infos)
            if seconds[peer] > 0
        }

    def _closed(self, spec: OpSpec) -> GroupClosed:
        return GroupClosed(f"rank {self.rank}: group {self.name} was closed before {spec} ran", self.rank)

    def _react(self, status: int, spec: OpSpec, current: table.Table) -> None:
        """Go on after a signal or a harmless goodbye; raise what a status means otherwise."""
        if status == INTERRUPTED:
            if self._closing:
                raise GroupClosed(f"rank {self.rank}: group {self.name} was closed while {spec} ran", self.rank)
            return
        culprit = int(current.run[0]["culprit"])
        if status == CONTROL:
            self._control.read(culprit)
            self._net.control[culprit] = -1
            if culprit not in self._control.aborted and culprit not in self._control.unreachable:
                # Its last slices may still be on their way; if it owes more than those, its streams' end tells.
                return
        raise explain(status, spec, self.rank, self._connections.rank_infos, current, self._net, self._control)

    def _planned(self, spec: OpSpec) -> _Planned:
        planned = self._tables.get(spec)
        if planned is not None:
            self._tables.move_to_end(spec)
            return planned
        num_bytes = spec.num_bytes if spec.collective != "all_to_all" else 0
        in_force = self.plan(spec.collective, num_bytes, spec.root, spec.codec)
        options = self._options
        layout = table_builder.build(
            in_force.forest, spec, self.rank, self.topology.homes,
            slice_bytes=options.slice_bytes, window_bytes=self._window_bytes, shared_memory=self._shared.hosts,
            narrow_between=self.topology.narrow_between,
        )  # fmt: skip
        layout.table.run["spec"] = _agreed(spec, in_force, options.slice_bytes, self._window_bytes)
        self._tables[spec] = _Planned(in_force, layout, Entry(self._net, layout.table))
        if len(self._tables) > TABLES_KEPT:
            self._tables.popitem(last=False)
        return self._tables[spec]

    def _scratch_of(self, num_bytes: int) -> int:
        """Address of at least that much scratch, on a cache line. It grows to what the largest op needed."""
        if len(self._scratch) < num_bytes + 64:
            self._scratch = np.empty(num_bytes + 64, np.uint8)
            self._scratch_at = (self._scratch.ctypes.data + 63) // 64 * 64
        return self._scratch_at


def _window_bytes(topology: Topology) -> int:
    """Enough to keep every link busy for two round trips, and no less than MIN_WINDOW_BYTES."""
    fastest = max(min(host.up_bytes_per_s, host.down_bytes_per_s) for host in topology.hosts)
    hosts = [host.ranks[0] for host in topology.hosts]
    longest = max((topology.latency_s(a, b) for a in hosts for b in hosts if a != b), default=0.0)
    return min(max(MIN_WINDOW_BYTES, int(4 * longest * fastest * len(hosts))), table.PART_BYTES // 4)


def _agreed(spec: OpSpec, in_force: Plan, slice_bytes: int, window_bytes: int) -> int:
    """32 bits in every header: equal only if op, plan and slicing are."""
    return spec.fingerprint() ^ in_force.fingerprint() ^ zlib.crc32(f"{slice_bytes} {window_bytes}".encode())
