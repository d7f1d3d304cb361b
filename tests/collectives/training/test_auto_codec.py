"""The mildest codec that hides, from plain numbers."""

from __future__ import annotations

import pytest

from collectives.planning.planner import plan, with_codec
from collectives.schedule.codec import CODECS
from collectives.topology import Host, Topology
from collectives.training.auto_codec import choose

PLAIN = ("none", "bf16", "int8", "int4")
BUCKETS = [1_000_000, 7_000_000]  # 8 MB at 10 MB/s: 0.8 s as they are


@pytest.mark.parametrize(
    ("backward_s", "codec"), [(0.9, "none"), (0.5, "bf16"), (0.3, "int8"), (0.15, "int4"), (0.01, "int4")]
)
def test_mildest_that_hides(backward_s: float, codec: str) -> None:
    choice = choose(PLAIN, BUCKETS, backward_s, lambda num_bytes, codec: num_bytes / CODECS[codec].ratio / 1e7)
    assert choice.codec == codec
    assert ("none of them hides" in str(choice)) == (backward_s < 0.1)
    assert f"takes {codec}" in str(choice)


def test_no_codec_where_none_helps() -> None:
    """Within one host every codec takes the same time."""
    assert choose(PLAIN, BUCKETS, 0.01, lambda num_bytes, _: num_bytes / 1e7).codec == "none"


def test_narrow_links_alone_where_that_is_enough() -> None:
    topology = Topology(tuple(Host(name, (i,), 12e6 if name == "d" else 120e6) for i, name in enumerate("abcd")))
    whole = plan(topology, "all_reduce", 8_000_000)
    plain_s, narrow_s = whole.predicted_s, with_codec(whole, "narrow-int8").predicted_s
    assert narrow_s < plain_s / 3

    def chosen(backward_s: float) -> str:
        return choose(
            whole.codecs, [8_000_000], backward_s, lambda _, codec: with_codec(whole, codec).predicted_s
        ).codec

    assert [chosen(seconds) for seconds in (plain_s, 0.6 * plain_s, narrow_s, 0.7 * narrow_s, 0.0)] == [
        "none", "narrow-bf16", "narrow-int8", "narrow-int4", "int4",
    ]  # fmt: skip
