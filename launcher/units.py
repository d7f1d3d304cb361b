"""Numbers as people read them. None, and what is not finite, is a dash.

`launcher plan` and `launcher inventory` print predicted seconds and rates with `collectives.units` instead, so that
they can be compared, to four digits, with what `collectives.plan()` prints.
"""

from __future__ import annotations

import math
import time

from collectives.topology import PAYLOAD
from collectives.units import amount

NOTHING = "–"  # noqa: RUF001 - a dash is meant


def seconds(value: float | None) -> str:
    """ "850 µs", "21.3 ms", "4.20 s", "12 min 5 s", "3 h 2 min"."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value < 0.0009995:
        return f"{round(value * 1e6):g} µs" if value else "0 s"
    if value < 0.9995:
        return f"{_digits(value * 1e3)} ms"
    if value < 119.5:
        return f"{_digits(value)} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 120:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def data(value: float | None) -> str:
    """Bytes: "512 B", "3.81 MB", "1.20 GB"."""
    if value is None or not math.isfinite(value):
        return NOTHING
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= 0.9995 * factor:
            return f"{_digits(value / factor)} {unit}"
    return f"{value:.0f} B"


def rate(bytes_per_s: float | None) -> str:
    """A link's rate in bits: "100 Mbit/s", "2.50 Gbit/s"."""
    if bytes_per_s is None or not math.isfinite(bytes_per_s):
        return NOTHING
    mbit = bytes_per_s * 8 / 1e6
    return f"{_digits(mbit / 1000)} Gbit/s" if mbit >= 9999.5 else f"{_digits(mbit)} Mbit/s"


def payload_bytes_per_s(mbit: float) -> float:
    """Bytes of TCP payload per second that a link of `mbit` Mbit/s carries."""
    return mbit * 1e6 / 8 * PAYLOAD


def memory(num_bytes: float) -> str:
    """Memory in the binary unit that its sizes are sold in: "23.5 GiB"."""
    return f"{num_bytes / 1024**3:.3g} GiB"


def speed(value: float, unit: str) -> str:
    """Of a device: "82.6 TFLOP/s", "1.01 TB/s", "50 GB/s"."""
    return f"{value / 1e12:.4g} T{unit}" if value >= 1e12 else amount(value, unit)


def percent(share: float | None) -> str:
    """ "84 %", "3.2 %"."""
    if share is None or not math.isfinite(share):
        return NOTHING
    return f"{100 * share:.1f} %" if 0 < 100 * share < 9.95 else f"{100 * share:.0f} %"


def number(value: float | None, digits: int = 4) -> str:
    """Significant digits, with commas in large numbers."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def tick(value: float) -> str:
    """A round number at an axis: "0", "0.5", "1,500", "2M"."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:g}k"
    return f"{round(value, 12):,g}"


def moment(at: float | None) -> str:
    """Wall-clock time, UTC: "2026-01-31 12:00:05 UTC"."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at)) if at is not None else NOTHING


def _digits(value: float) -> str:
    """Three significant digits, trailing zeros kept below 100, commas above 1000; 100 is "100", not "100.0"."""
    if value >= 99.95:
        return f"{value:,.0f}"
    text = f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
