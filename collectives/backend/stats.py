"""`collectives.stats`: what communication has cost this process."""

from __future__ import annotations

from typing import Any

from collectives.backend.meter import METER, TRAINING
from collectives.engine.lifetime import waits


def stats() -> dict[str, Any]:
    """What communication has cost this process since it started, over all its groups, native and on Gloo alike.

    Returns:
        ops: collectives begun.
        bytes: sum of their message sizes (the larger of what goes in and what comes out on this rank).
        busy_s: seconds during which at least one collective was under way.
        wait_s: seconds during which the program stood still for communication. It is the sum of two parts that never
            overlap. First, exactly: the time during which at least one thread was inside a synchronous collective or
            inside `Work.wait`. Second, for ops whose futures were taken (DDP does so for its buckets and then waits
            inside C++): from the moment the last of them was handed out until none of them was left unfinished, less
            what the first part already counts. That is what DDP waits at the end of a backward pass; a program
            that takes a future and then computes instead of waiting is charged for it all the same.
        waited_for: for each native group that this process is in, by its name, the seconds that its engine slept in ops
            because of each other rank: of those that still owed something, in equal parts, and where none did, of those
            that took nothing. A rank that owes is not always the one to blame: it may wait itself. Who is late is
            logged, see README.
        steps, samples, compute_s: of attached models (`collectives.attach`): steps, samples by the weights that were
            set, and seconds from the begin of forward to the last gradient.

    send, recv and monitored_barrier are not counted.
    """
    return {**METER.read(), **TRAINING, "waited_for": waits()}
