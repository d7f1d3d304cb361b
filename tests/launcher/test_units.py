from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from launcher import units


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (units.seconds, None, units.NOTHING), (units.seconds, math.nan, units.NOTHING), (units.seconds, 0, "0 s"),
        (units.seconds, 85e-6, "85 µs"), (units.seconds, 0.0009996, "1 ms"), (units.seconds, 0.02134, "21.3 ms"),
        (units.seconds, 0.9996, "1 s"), (units.seconds, 4.2, "4.2 s"), (units.seconds, 100.0, "100 s"),
        (units.seconds, 725, "12 min 5 s"), (units.seconds, 10920, "3 h 2 min"), (units.seconds, 200000, "2 d 7 h"),
        (units.data, 0, "0 B"), (units.data, 999, "999 B"), (units.data, 3.814e6, "3.81 MB"),
        (units.data, 2e12, "2 TB"),
        (units.rate, 125e6, "1,000 Mbit/s"), (units.rate, 12.5e6, "100 Mbit/s"), (units.rate, 1.25e9, "10 Gbit/s"),
        (units.rate, None, units.NOTHING), (units.percent, 0.0, "0 %"), (units.percent, 0.0321, "3.2 %"),
        (units.percent, 0.84, "84 %"), (units.percent, 0.9999, "100 %"), (units.percent, None, units.NOTHING),
        (units.number, 7098.3, "7,098"), (units.number, 2.97123, "2.971"), (units.number, None, units.NOTHING),
        (units.tick, 0.30000000000000004, "0.3"), (units.tick, 20000, "20k"), (units.tick, 5e6, "5M"),
        (units.moment, 0.0, "1970-01-01 00:00:00 UTC"), (units.moment, None, units.NOTHING),
    ],
)  # fmt: skip
def test_numbers_as_people_read_them(function: Callable[[Any], str], value: Any, text: str) -> None:
    assert function(value) == text
