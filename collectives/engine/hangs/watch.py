"""A group's watch: it answers peers who ask where this rank is, and reports an op that does not go on.

    rank whose op has moved nothing for hang_report_s     stalled ->  rank 0        rank 0 answers: noted
    rank 0, for itself or for such a rank                 where   ->  all others    each answers: here (`Whereabouts`)
    rank 0, with the answers or after ANSWER_S            logs one report of the op

All of it are small messages on the control connections (`transport/control.py`). A rank that has not come to an op runs
no loop that could answer, therefore each group has a thread, the watch, that sleeps until a message is there. While an
op runs, its loop may read a message before the watch does; whoever reads it answers. The watch leaves aborts, goodbyes
and ends of connections where they are: they are for the next op.

If rank 0 takes no note, it is itself what the others wait for, and in a state in which its Python threads do not run.
Then the lowest of the waiting ranks reports.
"""

from __future__ import annotations

import logging
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from collectives.engine.compiled.table import Table
from collectives.engine.hangs.diagnosis import Diagnosis, Whereabouts, diagnose, report
from collectives.errors import SAME_CALLS, OpMismatch
from collectives.transport.control import ControlChannel

ANSWER_S = 3.0
logger = logging.getLogger(__name__)


class Watch:
    """One rank's.

    Args:
        names: of the ranks, for sentences.
        whereabouts: where this rank is; called from any thread.
        hang_report_s: seconds without progress after which an op is reported; 0: never.

    Attributes:
        last: the last report that this rank has made; None if there was none.
        on_difference: called with an error if a report finds that ranks have called different collectives as the same
            op: that cannot end well, however long they wait.
    """

    def __init__(
        self, rank: int, group: str, names: Sequence[str], channel: ControlChannel,
        whereabouts: Callable[[], Whereabouts], hang_report_s: float,
    ) -> None:  # fmt: skip
        self._rank, self._group, self._names, self._channel = rank, group, names, channel
        self.whereabouts, self._hang_report_s = whereabouts, hang_report_s
        self.last: dict[str, Any] | None = None
        self.on_difference: Callable[[OpMismatch], object] | None = None
        self._changed = threading.Condition()
        self._answers: dict[int, dict[int, Whereabouts]] = {}  # by the question's number, by rank
        self._questions = 0
        self._noted = self._reported = -1  # the latest ops that rank 0 has noted for us, that were reported here
        self._ended: set[int] = set()  # ranks that have given up or left
        self._closing = False
        self._reporter: threading.Thread | None = None
        channel.on_word = self._on_word
        self._waker, self._wake = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name=f"narrowgauge watch of group {group}", daemon=True)
        self._thread.start()

    def op_waits(self, table: Table) -> None:
        """Called about once a second by an op that moves nothing; returns at once."""
        run = table.run[0]
        limit_s = min(self._hang_report_s, int(run["timeout_ns"]) / 2e9)
        if (time.monotonic_ns() - int(run["last_move_ns"])) / 1e9 >= limit_s > 0:
            self._begin_report(int(run["op"]))

    def ask(self, ranks: Iterable[int]) -> dict[int, Whereabouts | None]:
        """Ask these ranks where they are, and wait for their answers, ANSWER_S at most; None where none came."""
        ranks = list(ranks)
        with self._changed:
            self._questions += 1
            question, answers = self._questions, dict[int, Whereabouts]()
            self._answers[question] = answers
        asked = [rank for rank in ranks if self._channel.send_word(rank, {"word": "where", "question": question})]
        with self._changed:
            self._changed.wait_for(lambda: self._closing or {*asked} <= {*answers, *self._ended}, ANSWER_S)
            del self._answers[question]
        return {rank: answers.get(rank) for rank in ranks}

    def diagnose(self) -> Diagnosis | None:
        """Ask all other ranks, and draw the conclusion."""
        answers = self.ask(rank for rank in range(len(self._names)) if rank != self._rank)
        return diagnose({**answers, self._rank: self.whereabouts()}, self._ended, self._names)

    def close(self) -> None:
        """End the threads. Nothing is answered any more."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._wake.send(b"x")
        self._thread.join()
        if self._reporter is not None:
            self._reporter.join()
        self.abandon()

    def abandon(self) -> None:
        """In a forked child, which has no such thread: close its copies."""
        self._waker.close()
        self._wake.close()

    def _serve(self) -> None:
        """The thread."""
        poll = select.poll()
        poll.register(self._waker, select.POLLIN)
        ranks = self._channel.ranks_by_fd()
        for fd in ranks:
            poll.register(fd, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd not in ranks:
                    return
                if not self._channel.read_word(ranks[fd]):
                    poll.unregister(fd)
                    with self._changed:
                        self._ended.add(ranks[fd])
                        self._changed.notify_all()

    def _on_word(self, rank: int, message: Mapping[str, Any]) -> None:
        """Called on whichever thread has read it, so nothing that goes wrong here may reach the op of that thread. A
        word that is not known, or lacks something, is of another version: it is ignored."""
        try:
            word = message["word"]
            if word == "where":
                here = {"word": "here", "question": int(message["question"]), **self.whereabouts().to_message()}
                self._channel.send_word(rank, here)
            elif word == "here":
                answer = Whereabouts.from_message(message)
                with self._changed:
                    self._answers.get(int(message["question"]), {})[rank] = answer
                    self._changed.notify_all()
            elif word == "stalled":
                self._channel.send_word(rank, {"word": "noted", "op": int(message["op"])})
                self._begin_report(int(message["op"]))
            elif word == "noted":
                with self._changed:
                    self._noted = max(self._noted, int(message["op"]))
                    self._changed.notify_all()
        except Exception as error:
            logger.debug("%s sent %r on its control connection: %r", self._names[rank], message, error)

    def _begin_report(self, op: int) -> None:
        with self._changed:
            if op <= self._reported or self._closing or (self._reporter is not None and self._reporter.is_alive()):
                return
            self._reported = op
            reporter = threading.Thread(
                target=self._report, args=(op,), name=f"narrowgauge report of group {self._group}", daemon=True
            )
            try:
                reporter.start()
            except RuntimeError as error:  # the limit of threads, or the end of the interpreter
                logger.warning("group %s: op %d waits, and there is no report of it: %r", self._group, op, error)
                return
            self._reporter = reporter

    def _report(self, op: int) -> None:
        """The reporter, a thread for as long as it takes: the op goes on beside it, if it can."""
        try:
            self._find_and_log(op)
        except Exception as error:
            logger.warning("group %s: op %d waits, and there is no report of it: %r", self._group, op, error)

    def _find_and_log(self, op: int) -> None:
        if self._rank != 0 and self._channel.send_word(0, {"word": "stalled", "op": op}):
            with self._changed:
                if self._changed.wait_for(lambda: self._closing or self._noted >= op, ANSWER_S):
                    return
        found = self.diagnose()
        if found is None or found.op < op or self._closing:
            return  # it went on meanwhile
        if self._rank != 0 and min(found.waits) != self._rank:
            return
        self._reported = max(self._reported, found.op)
        text = report(found, self._group, self._names)
        self.last = {
            "op": found.op,
            "doing": found.doing,
            "waited_s": found.waited_s,
            "missing": {self._names[rank]: why for rank, why in found.missing.items()},
            "report": text,
        }
        logger.warning("%s", text)
        if found.sides and self.on_difference is not None:
            who = self._names[self._rank]
            difference = f"{who}, group {self._group}, {found.doing} (op {found.op}): {found.difference(self._names)}"
            self.on_difference(OpMismatch(f"{difference}; {SAME_CALLS}", found.culprit))
