"""A group's messages between two ranks: queues, waiting, failure.

Every request (a send or a receive) is posted at once and ends later. Whoever moves bytes is the leader. There is one at
a time, it holds the lock except while it sleeps in poll, and it serves all requests, not only its own:

    a thread in `wait` leads if nobody does, so a blocking receive needs no second thread to be woken
    the progress thread leads while requests are left and nobody waits. It is started by the first request that
    does not end at once. It looks once in TICK_S whether it is needed, rather than being woken at each request: a
    receive is posted and waited for an instant later, and two threads would hand the work back and forth
    others in `wait` sleep until their request has ended or the leader leaves

Messages have no order in common with collectives, and none with messages of other tags.

Failure. The group breaks (fault_policy.py) if a peer dies with a request under way, if a message does not fit, if a
wait exceeds its timeout or is interrupted: the others learn at once who was at fault, and a message that was half
received cannot be repeated. A group that breaks for another reason fails all requests. A peer that has left as it
should fails only what needed it; a receive from any source fails when all have left, or one has died.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
import select
import threading
import time
from collections.abc import Callable

from collectives.engine.fault_policy import FaultPolicy
from collectives.engine.faults import lost
from collectives.engine.messages import sentences
from collectives.engine.messages.frames import CODE_OF, CREDIT, MAX_TAG, WINDOW_BYTES
from collectives.engine.messages.link import Link
from collectives.engine.messages.matching import Request
from collectives.engine.messages.receiving import Receiving
from collectives.errors import CollectiveError, GroupClosed, OpTimeout, UsageError
from collectives.transport.control import ControlChannel
from collectives.transport.rendezvous import Connections

MAX_POLL_S = 1.0
TICK_S = 0.001
TICKS_TO_SLEEP = 50  # without a request, until the progress thread stops looking
LINGER_S = 5.0
logger = logging.getLogger(__name__)


class Messenger:
    """One rank's messages in one group. All methods may be called from any thread.

    Attributes:
        waited_s: for each rank, seconds for which callers were blocked in `wait` because of it.
    """

    def __init__(
        self, rank: int, name: str, generation: int, connections: Connections, control: ControlChannel,
        faults: FaultPolicy,
    ) -> None:  # fmt: skip
        self._rank, self._name, self._rank_infos = rank, name, connections.rank_infos
        self._control, self._faults = control, faults
        self.waited_s = [0.0] * len(connections.rank_infos)
        self._make_locks()
        self._links = {peer: Link(peer, each, generation) for peer, each in connections.messages.items()}
        self._link_of = {link.fd: link for link in self._links.values()}
        self._control_of = {connection.fileno(): peer for peer, connection in connections.control.items()}
        self._receiving = Receiving(rank, connections.rank_infos, generation, self._end)
        self._pending: set[Request] = set()
        self._posts = 0
        self._leading = self._helper_leads = self._polling = self._parked = False
        self._closed = self._over = False  # no new requests; no more bytes into anybody's memory
        self._leader = self._waiters = 0
        self._thread: threading.Thread | None = None
        self._waker = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._waker, select.POLLIN)
        for fd in self._control_of:
            self._poll.register(fd, select.POLLIN)
        faults.on_break(self._fail_all)

    def _make_locks(self) -> None:
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)  # a request has ended, or the leader has left
        self._tick = threading.Condition(self._lock)  # wakes the progress thread

    # What callers do

    def send(self, peer: int, tag: int, address: int, num_bytes: int, dtype: str, keep: object = None) -> Request:
        """Start to send a message; returns at once.

        Args:
            address: of contiguous memory that must not change until the request is done.
            dtype: of its elements, for the comparison with the receiver's.
            keep: whatever owns the memory; held until the request is done.

        Raises:
            UsageError: no such rank, the own rank, or a negative tag.
            CollectiveError: the group broke earlier, or was closed.
        """
        return self.start(Request(True, peer, _checked(tag), _view(address, num_bytes), CODE_OF.get(dtype, 0), keep))

    def receive(
        self, peer: int | None, tag: int, address: int, num_bytes: int, dtype: str, keep: object = None
    ) -> Request:
        """Start to receive a message; as `send`. `peer` None takes it from any rank."""
        return self.start(Request(False, peer, _checked(tag), _view(address, num_bytes), CODE_OF.get(dtype, 0), keep))

    def wait(self, request: Request, timeout_s: float, patience_s: float | None = None) -> bool:
        """Block until a request has ended, well or not (`Request.error`).

        Args:
            timeout_s: seconds without a byte after which the group breaks.
            patience_s: seconds after which this returns, and the request goes on; None: no limit.

        Returns:
            Whether it has ended.
        """
        if request.done:
            return True
        began = time.monotonic()
        try:
            return self._wait(request, timeout_s, began + patience_s if patience_s is not None else None)
        except BaseException as error:  # an interrupt; peers would wait for what this rank no longer does
            self._faults.break_group(error)
            raise
        finally:
            self._attribute(request, time.monotonic() - began)

    def test(self, request: Request) -> bool:
        """Whether a request has ended, after a look at the sockets."""
        if not request.done:
            try:
                with self._lock:
                    if not request.done and not self._leading:
                        self._lead(lambda: True)
            except BaseException as error:
                self._faults.break_group(error)
                raise
        return request.done

    def withdraw(self, request: Request) -> bool:
        """Take back a receive whose message has not come; whether that was so. It ends with OpTimeout."""
        with self._lock:
            if not self._receiving.matcher.withdraw(request):
                return False
            self._end(request, OpTimeout(f"{self._where(request)}: its caller waits no longer"))
            return True

    def when_done(self, request: Request, listener: Callable[[], object]) -> None:
        """Have `listener` called once the request has ended, at once if it has; it must not block."""
        with self._lock:
            if not request.done:
                request.listeners.append(listener)
                return
        listener()

    def close(self) -> None:
        """Fail what is under way with GroupClosed, and see that what was sent arrives."""
        with self._lock:
            if self._closed:
                return
            self._closed = self._over = True
            for request in list(self._pending):
                text = f"rank {self._rank}: group {self._name} was closed during a {self.describe(request)}"
                self._end(request, GroupClosed(text, self._rank))
            self._wake()
            self._changed.notify_all()
            self._tick.notify_all()
        here = threading.get_ident()  # of a leader, if the last reference to the group is dropped in its hands
        if self._thread is not None and self._thread.ident != here:
            self._thread.join()
        with self._lock:
            self._changed.wait_for(lambda: not self._leading or self._leader == here)
        self.linger()
        os.close(self._waker)

    def linger(self) -> None:
        """Wait a while until the peers' kernels have what was sent.

        The kernel goes on to deliver it when the connection is closed, but drops it if unread bytes are left on this
        side, or if the peer sends more. So what is here is read and dropped, and peers send nothing to who has left. A
        peer that has left itself, before credit that it was given back reached it, takes nothing any more.
        """
        deadline = time.monotonic() + LINGER_S
        for link in self._links.values():
            while link.used and self._faults.failure is None and (left := link.unacknowledged()) and not link.is_over():
                if time.monotonic() > deadline:
                    logger.warning(
                        "rank %d leaves group %s, although %s has not taken %d bytes of messages yet; the kernel will "
                        "deliver them unless this host goes down",
                        *(self._rank, self._name, self._rank_infos[link.rank].describe(), left),
                    )
                    link.drop_unread()
                    break
                time.sleep(TICK_S)

    def abandon(self) -> None:
        """In a forked child, which has no such threads: take no more requests."""
        self._closed = self._over = True
        self._make_locks()
        self._pending.clear()
        with contextlib.suppress(OSError):
            os.close(self._waker)

    # Starting

    def start(self, request: Request) -> Request:
        """As `send` and `receive`, for the group's own messages, too, whose tags are above MAX_TAG."""
        if request.peer == self._rank or (request.peer is not None and request.peer not in self._links):
            whom = "itself" if request.peer == self._rank else f"rank {request.peer}"
            raise UsageError(
                f"rank {self._rank} of {len(self._rank_infos)} cannot exchange messages with {whom} in group "
                f"{self._name}"
            )
        if not self._links:
            raise UsageError(f"rank {self._rank} is alone in group {self._name}; there is nobody to receive from")
        with self._lock:
            self._faults.check()
            if self._closed:
                raise GroupClosed(f"rank {self._rank}: group {self._name} was destroyed", self._rank)
            self._posts += 1
            self._pending.add(request)
            try:
                if request.is_send:
                    self._start_send(request)
                else:
                    self._start_receive(request)
            except CollectiveError as error:  # the request has it
                self._faults.break_group(error)
            except BaseException as error:  # an interrupt, perhaps between two lines that belong together
                self._faults.break_group(error)
                raise
            if not request.done and not self._leading:
                self._attend()
        return request

    def _start_send(self, request: Request) -> None:
        assert request.peer is not None
        link = self._links[request.peer]
        link.requests.add(request)
        if link.ended:
            self._peer_ended(link)
            return
        link.send_message(request)
        self._flush(link)

    def _start_receive(self, request: Request) -> None:
        link = self._receiving.post(request, self._links)
        if link is not None:
            if not link.ended:
                self._flush(link)
            elif not request.done:
                self._peer_ended(link)
            return
        sources = list(self._links.values()) if request.peer is None else [self._links[request.peer]]
        if request.peer is not None:
            sources[0].requests.add(request)
        gone = [link for link in sources if link.ended]
        for link in gone:
            self._peer_ended(link)
        for link in sources:
            self._watch(link)

    def _attend(self) -> None:
        """See that the progress thread looks soon."""
        if self._thread is None:
            name = f"narrowgauge {self._name} messages"
            self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
            self._thread.start()
        elif self._parked:
            self._tick.notify()

    # Waiting and leading

    def _wait(self, request: Request, timeout_s: float, until: float | None) -> bool:
        seen, deadline = -1, 0.0
        with self._lock:
            self._waiters += 1
            try:
                while not request.done:
                    now = time.monotonic()
                    if request.moved != seen:
                        seen, deadline = request.moved, now + timeout_s
                    if until is not None and now >= until:
                        return False
                    if now >= deadline:
                        self._break(
                            sentences.timed_out(request, timeout_s, self._where(request), self._rank_infos), request
                        )
                        break
                    left_s = min(MAX_POLL_S, deadline - now, MAX_POLL_S if until is None else until - now)
                    if not self._leading:
                        stop = now + left_s
                        self._lead(functools.partial(_is_over, request, stop), left_s)
                        continue
                    if self._helper_leads:
                        self._wake()  # it makes room for a thread that waits
                    self._changed.wait(left_s)
            finally:
                self._waiters -= 1
        return True

    def _serve(self) -> None:
        """The progress thread."""
        idle, posts, was_unattended = 0, 0, False
        with self._lock:
            while not self._closed:
                unattended = bool(self._pending) and not self._leading and not self._waiters
                if unattended and was_unattended:
                    self._helper_leads = True
                    self._lead(lambda: not self._pending or self._waiters > 0 or self._closed)
                    self._helper_leads = False
                was_unattended = unattended
                idle = 0 if self._posts != posts or unattended else idle + 1
                posts = self._posts
                self._parked = idle > TICKS_TO_SLEEP
                self._tick.wait(None if self._parked else TICK_S)
                self._parked = False

    def _lead(self, enough: Callable[[], bool], limit_s: float | None = None) -> None:
        """Serve all requests until `enough`, or until nothing has happened for `limit_s` seconds; at least one look."""
        self._leading, self._leader = True, threading.get_ident()
        try:
            while True:
                just_look = limit_s is None and enough()
                happened = self._step(0.0 if just_look else limit_s or MAX_POLL_S)
                if enough() or (limit_s is not None and not happened):
                    return
        finally:
            self._leading = False
            if self._waiters or self._closed:
                self._changed.notify_all()
            if self._pending and not self._helper_leads:
                self._attend()

    def _step(self, limit_s: float) -> bool:
        """Sleep until a socket is ready, and serve it; whether there was anything."""
        self._polling = True
        self._lock.release()
        try:
            ready = self._poll.poll(limit_s * 1000)
        finally:
            self._lock.acquire()
            self._polling = False
        try:
            for fd, events in ready:
                link = self._link_of.get(fd)
                if fd == self._waker:
                    os.eventfd_read(fd)
                elif self._over:
                    break
                elif link is None:
                    self._hear(self._control_of[fd], fd)
                elif link.mask:
                    self._serve_link(link, events)
        except Exception as error:  # its request, if any, has it already; the thread must live on
            self._faults.break_group(error)
        return bool(ready)

    def _serve_link(self, link: Link, events: int) -> None:
        ended = events & (select.POLLHUP | select.POLLERR)
        if events & select.POLLIN and not ended and not self._needs(link):
            self._watch(link, idle=True)  # what it has sent waits in the kernel until a request needs it
            return
        try:
            if events & (select.POLLIN | ended):
                link.receive(self._receiving.header, self._receiving.payload)
        except OSError:
            self._connection_ended(link)
        else:
            self._flush(link)

    def _flush(self, link: Link) -> None:
        if link.due >= WINDOW_BYTES // 2 and link.rank not in self._control.left:
            link.push_frame(CREDIT)
        if link.wants_to_write:
            try:
                for request in link.flush():
                    self._end(request)
            except OSError:
                self._connection_ended(link)
                return
        self._watch(link)

    def _needs(self, link: Link) -> bool:
        return bool(link.requests) or self._receiving.matcher.from_any > 0

    def _watch(self, link: Link, idle: bool = False) -> None:
        """Have poll report what matters about a link. Interest in its data stays until it reports some in vain."""
        if link.ended:
            return
        reads = self._needs(link) or (link.mask & select.POLLIN and not idle)
        mask = (select.POLLIN if reads else 0) | (select.POLLOUT if link.wants_to_write else 0)
        if mask != link.mask:
            if not mask:
                self._poll.unregister(link.fd)
            else:
                self._poll.register(link.fd, mask)
            link.mask = mask
            if self._polling:
                self._wake()

    def _wake(self) -> None:
        if self._polling:
            os.eventfd_write(self._waker, 1)

    # Ending

    def _end(self, request: Request, error: BaseException | None = None) -> None:
        if request.done:
            return
        request.error = error
        self._pending.discard(request)
        if request.peer is not None:
            self._links[request.peer].requests.discard(request)
        request.done = True
        request.keep = None
        listeners, request.listeners = request.listeners, []  # they hold who holds the request
        for listener in listeners:
            listener()
        self._wake()  # it may be the leader's own, ended by another thread
        if self._waiters > 1 or not self._leading or self._helper_leads:
            self._changed.notify_all()

    def _hear(self, peer: int, fd: int) -> None:
        """A control connection is readable: the peer leaves, has died, or gives up."""
        self._control.read(peer)
        if not self._control.has_ended(peer):  # a word, which the group's watch has answered
            return
        self._poll.unregister(fd)
        if peer in self._control.aborted:
            first = next(iter(self._pending), None)
            error = self._lost(self._links[peer], first)
            if first is not None:
                self._end(first, error)
            raise error
        if peer in self._control.unreachable:
            self._connection_ended(self._links[peer])

    def _connection_ended(self, link: Link) -> None:
        """Nothing more comes from a peer or can be sent to it. What has come before is complete."""
        with contextlib.suppress(OSError):
            while link.receive(self._receiving.header, self._receiving.payload):
                pass
        if link.mask:
            self._poll.unregister(link.fd)
        link.ended, link.mask = True, 0
        self._control.drain(link.rank)
        self._peer_ended(link)

    def _peer_ended(self, link: Link) -> None:
        """Fail what needs a peer that is gone; raise if that breaks the group."""
        waiting = self._receiving.matcher.waiting_for_any()
        needing = list(link.requests)
        if link.rank in self._control.left and link.rank not in self._control.aborted:
            if all(each.ended for each in self._links.values()):
                needing += waiting
            for request in needing:
                self._receiving.matcher.withdraw(request)
                self._end(request, self._lost(link, request))
        elif needing or waiting:
            first = (needing or waiting)[0]
            error = self._lost(link, first)
            self._end(first, error)
            raise error

    def _break(self, error: CollectiveError, request: Request) -> None:
        self._end(request, error)
        self._faults.break_group(error)

    def _fail_all(self, error: BaseException) -> None:
        """The group broke."""
        culprit = error.culprit if isinstance(error, CollectiveError) else self._rank
        kind = type(error) if isinstance(error, CollectiveError) else CollectiveError
        with self._lock:
            self._over = True
            for request in list(self._pending):
                self._end(request, kind(f"{self._where(request)}: the group broke: {error}", culprit))
            self._wake()

    def describe(self, request: Request) -> str:
        """What a request is, for messages."""
        return sentences.describe(request, self._rank_infos)

    def _where(self, request: Request | None) -> str:
        own = self._rank_infos[self._rank].describe()
        return own if request is None else f"{own}, {self.describe(request)}"

    def _lost(self, link: Link, request: Request | None) -> CollectiveError:
        """The error for a request (None: for none in particular) whose peer is gone."""
        waited = "" if request is None else sentences.progress(request)
        return lost("closed", self._where(request), self._rank_infos, link.rank, waited, self._control)

    def _attribute(self, request: Request, seconds: float) -> None:
        others = [request.peer] if request.peer is not None else list(self._links)
        for peer in others:
            self.waited_s[peer] += seconds / len(others)


def _is_over(request: Request, deadline: float) -> bool:
    return request.done or time.monotonic() > deadline


def _checked(tag: int) -> int:
    if not 0 <= tag <= MAX_TAG:
        raise UsageError(f"tag is {tag}; wanted 0 to {MAX_TAG}")
    return tag


def _view(address: int, num_bytes: int) -> memoryview:
    if not num_bytes:
        return memoryview(bytearray())
    return memoryview((ctypes.c_ubyte * num_bytes).from_address(address)).cast("B")
