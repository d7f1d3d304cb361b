"""What a frame means: the receiving half of the protocol, without sockets of its own.

A header comes in; out goes where its payload belongs, or an error that breaks the group. Nothing that a peer announces
is believed before it was compared with what this rank has room for: the buffer of the receive, the window of the peer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from collectives.engine.messages.frames import (
    ANNOUNCE,
    CREDIT,
    DATA,
    EAGER,
    EAGER_BYTES,
    MAX_ANNOUNCED,
    READY,
    WINDOW_BYTES,
    Header,
    agree,
    cost,
    describe,
)
from collectives.engine.messages.link import Link, Payload
from collectives.engine.messages.matching import Arrival, Matcher, Request
from collectives.errors import OpMismatch, ProtocolError
from collectives.transport.rendezvous import RankInfo


class Receiving:
    """Receives of one group, and messages that came before their receives.

    Args:
        end: called with each request that has ended, and with its error if it failed.
    """

    def __init__(self, rank: int, rank_infos: Sequence[RankInfo], generation: int, end: Callable[..., object]) -> None:
        self._own, self._rank_infos, self._generation = rank_infos[rank], rank_infos, generation
        self._end = end
        self.matcher = Matcher()

    def post(self, receive: Request, links: dict[int, Link]) -> Link | None:
        """Add a receive; the link to its message's source if the message is known already.

        Raises:
            OpMismatch: the message does not fit.
        """
        arrival = self.matcher.post(receive)
        if arrival is None:
            return None
        link = links[arrival.source]
        if arrival.message is not None:
            link.unclaimed -= 1
        self._claim(link, arrival, receive)
        return link

    def header(self, link: Link, header: Header) -> Payload | None:
        """Where the bytes after this header belong; None if there are none.

        Raises:
            ProtocolError: no correct peer sends it here.
            OpMismatch: the message does not fit its receive.
        """
        link.credit += header.credit
        if header.generation != self._generation or link.credit > WINDOW_BYTES:
            raise self._unreadable(link, header)
        if header.kind == DATA:
            return self._data(link, header)
        if header.kind in (EAGER, ANNOUNCE):
            return self._message(link, header)
        if header.kind == READY:
            if not link.transfer(header.message):
                raise self._unreadable(link, header)
        elif header.kind != CREDIT:
            raise self._unreadable(link, header)
        return None

    def payload(self, link: Link, payload: Payload) -> None:
        """All bytes of a payload are here."""
        sink = payload.sink
        if payload.header.kind == DATA:
            assert isinstance(sink, Request)
            if sink.moved == len(sink.view):
                del link.incoming[payload.header.message]
                self._end(sink)
        elif isinstance(sink, Request):
            link.due += cost(len(sink.view))
            self._end(sink)
        elif sink.receive is not None:
            self._hand_over(link, sink, sink.receive)

    def _message(self, link: Link, header: Header) -> Payload | None:
        announced = header.kind == ANNOUNCE
        arrival = Arrival(link.rank, header.tag, header.length, header.dtype, header.message if announced else None)
        if header.tag < 0 or (not announced and header.length > EAGER_BYTES):
            raise self._unreadable(link, header)
        if not announced:
            link.kept += cost(header.length)
            if link.kept > WINDOW_BYTES:
                raise self._unreadable(link, header)
        receive = self.matcher.arrive(arrival)
        if announced:
            if receive is not None:
                self._claim(link, arrival, receive)
            else:
                link.unclaimed += 1
                if link.unclaimed > MAX_ANNOUNCED:
                    raise self._unreadable(link, header)
            return None
        if receive is None:
            arrival.data = bytearray(header.length)
            return Payload(header, arrival, memoryview(arrival.data))
        self._check_fit(link, arrival, receive)
        self._assign(link, receive)
        return Payload(header, receive, receive.view)

    def _data(self, link: Link, header: Header) -> Payload:
        receive = link.incoming.get(header.message)
        left = -1 if receive is None else len(receive.view) - receive.moved
        if receive is None or not (0 < header.length <= left or header.length == left == 0):
            raise self._unreadable(link, header)
        return Payload(header, receive, receive.view[receive.moved : receive.moved + header.length])

    def _claim(self, link: Link, arrival: Arrival, receive: Request) -> None:
        """A receive and a message that is here, on its way, or announced."""
        self._check_fit(link, arrival, receive)
        self._assign(link, receive)
        arrival.receive = receive
        if arrival.message is not None:
            link.incoming[arrival.message] = receive
            link.push_frame(READY, arrival.message)
        else:
            receive.moved = arrival.moved
            if arrival.moved == arrival.length:
                self._hand_over(link, arrival, receive)

    def _assign(self, link: Link, receive: Request) -> None:
        receive.peer = link.rank
        link.requests.add(receive)

    def _hand_over(self, link: Link, arrival: Arrival, receive: Request) -> None:
        assert arrival.data is not None
        receive.view[:] = arrival.data
        receive.moved = arrival.length
        link.due += cost(arrival.length)
        self._end(receive)

    def _check_fit(self, link: Link, arrival: Arrival, receive: Request) -> None:
        if arrival.length == len(receive.view) and agree(arrival.dtype, receive.dtype):
            return
        peer = self._rank_infos[link.rank]
        mismatch = OpMismatch(
            f"{self._own.describe()}, receive with tag {receive.tag}: got {describe(arrival.length, arrival.dtype)} "
            f"from {peer.describe()}; this rank has a tensor of {describe(len(receive.view), receive.dtype)}. Both "
            "must give the same number of elements and the same dtype. Messages with one tag come in the order of "
            "their sends",
            link.rank,
        )
        self._end(receive, mismatch)
        raise mismatch

    def _unreadable(self, link: Link, header: Header) -> ProtocolError:
        return ProtocolError(
            f"{self._own.describe()}: {self._rank_infos[link.rank].describe()} sent a message frame that does not "
            f"belong here: {header}; this rank is at generation {self._generation}. Do all ranks run the same version "
            "of narrowgauge?",
            link.rank,
        )
