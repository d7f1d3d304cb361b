"""The bucket size for a group's links.

Large buckets use links well; small ones let communication begin early and end soon after backward. So the right size is
the smallest that comes near the rate of long messages.
"""

from __future__ import annotations

from collectives.backend.process_group import NarrowgaugeGroup, native_group

GOOD_SHARE = 0.95
MIN_BYTES, MAX_BYTES = 2**16, 2**28


def bucket_mb(group: object = None) -> float:
    """DDP's `bucket_cap_mb` for a group: the smallest message whose all-reduce reaches 95 % of the long message's rate.

    The rates are the plan's prediction for the links, N / predicted seconds of N bytes, the long message 256 MiB:

        model = DistributedDataParallel(model, bucket_cap_mb=collectives.bucket_mb())

    Args:
        group: a group of backend narrowgauge; None takes the default one.

    Returns:
        MiB, from 1/16 to 256: a power of 2. The same on all ranks.

    Raises:
        UsageError: the group is of another backend, or runs on Gloo.
    """
    chosen = native_group(group, "bucket_mb")
    wanted = GOOD_SHARE * _bytes_per_s(chosen, MAX_BYTES)
    num_bytes = MIN_BYTES
    while num_bytes < MAX_BYTES and _bytes_per_s(chosen, num_bytes) < wanted:
        num_bytes *= 2
    return num_bytes / 2**20


def _bytes_per_s(group: NarrowgaugeGroup, num_bytes: int) -> float:
    return num_bytes / group.plan("all_reduce", num_bytes).predicted_s
