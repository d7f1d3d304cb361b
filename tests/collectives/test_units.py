"""Sizes as people write them."""

from __future__ import annotations

import pytest

from collectives.errors import UsageError
from collectives.units import sizes


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("8", [8]),
        ("8, 4k,1Mi", [8, 4000, 2**20]),
        ("8:256M:4x", [8 * 4**power for power in range(13)]),
        ("1k:1k:2x", [1000]),
        ("8:100:2x,1M", [8, 16, 32, 64, 1_000_000]),
    ],
)
def test_lists_and_ranges(text: str, found: list[int]) -> None:
    assert sizes(text) == found


@pytest.mark.parametrize("text", ["", "8,", "8:4:2x", "8:64", "8:64:1x", "8:64:2", "0:64:2x", "8:x:2x", "0", "8,-4"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match=r"write it as|wanted at least 1"):
        sizes(text)
