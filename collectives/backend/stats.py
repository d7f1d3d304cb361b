"""`collectives.stats`: what communication has cost this process."""

from __future__ import annotations

from typing import Any

from collectives.backend.meter import METER, TRAINING
from collectives.engine.lifetime import hangs, waits


def stats() -> dict[str, Any]:
    """What communication has cost this process since it started, over all its groups, native and on Gloo alike.

    Returns:
        ops: collectives begun.
        bytes: sum of their message sizes (the larger of what goes in and what comes out on this rank).
        busy_s: seconds during which at least one collective ran.
        wait_s: seconds during which the program waited for communication, in two parts that never overlap. First,
            measured exactly: the time during which at least one thread was inside a synchronous collective or inside
            `Work.wait`, that of messages (send, recv) included. Second, for ops whose futures were taken (DDP takes
            those of its buckets and waits in C++): from the moment the last of them was handed out until all of them
            were completed, less what the first part counts. That is what DDP waits at the end of a backward pass; it
            overstates the wait of a program that takes a future and computes before it waits.
        waited_for: for each native group that this process is in, by its name, the seconds of its engine's poll time
            that are attributed to each other rank: split evenly among the ranks with outstanding slices, or, if there
            were none, among the ranks that accepted no data; and the seconds that callers waited for messages, by the
            other rank of each. A rank with outstanding slices may be healthy and itself
            waiting. Who is the straggler is decided otherwise and logged, see docs/guides/failures.md.
        hangs: for each native group that this process is in and in which it has reported a hang, by its name, the last
            report: `op` (its number), `doing` (the op as text), `waited_s` (seconds without progress), `missing` (each
            rank that had not joined it, and why not) and `report` (the text that was logged, with the stacks). Rank 0
            reports, `hang_report_s` seconds after the last progress.
        steps, samples, compute_s: of attached models (`collectives.attach`): steps, samples by the weights that were
            set, and seconds from the start of forward to the last gradient.

    Messages are not counted as ops or bytes, on Gloo not at all; nor is monitored_barrier.
    """
    return {**METER.read(), **TRAINING, "waited_for": waits(), "hangs": hangs()}
