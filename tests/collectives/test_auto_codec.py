"""The mildest codec that hides, from plain numbers."""

from __future__ import annotations

import pytest

from collectives.auto_codec import choose
from collectives.codec import CODECS

BUCKETS = [1_000_000, 7_000_000]  # 8 MB at 10 MB/s: 0.8 s as they are


@pytest.mark.parametrize(
    ("backward_s", "codec"), [(0.9, "none"), (0.5, "bf16"), (0.3, "int8"), (0.15, "int4"), (0.01, "int4")]
)
def test_mildest_that_hides(backward_s: float, codec: str) -> None:
    choice = choose(BUCKETS, backward_s, lambda num_bytes, codec: num_bytes / CODECS[codec].ratio / 1e7)
    assert choice.codec == codec
    assert ("none of them hides" in str(choice)) == (backward_s < 0.1)
    assert f"takes {codec}" in str(choice)


def test_no_codec_where_none_helps() -> None:
    """Within one host every codec takes the same time."""
    assert choose(BUCKETS, 0.01, lambda num_bytes, _: num_bytes / 1e7).codec == "none"
