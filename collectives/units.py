"""Sizes as people write them (4096, 4k, 25M, 64Mi, lists and ranges), and amounts, rates and seconds as text."""

from __future__ import annotations

from collectives.errors import UsageError

SUFFIXES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def num_bytes(text: str) -> int:
    """Bytes from digits with an optional suffix: 4096, 4k, 25M, 64Mi.

    Raises:
        UsageError: anything else.
    """
    digits = text.rstrip("kKMGi")
    suffix = text[len(digits) :].replace("K", "k").replace("ki", "Ki")
    try:
        return int(float(digits) * SUFFIXES[suffix])
    except (ValueError, KeyError, OverflowError):
        raise UsageError(f"{text!r} is not a number of bytes; write it as 4096, 4k, 25M or 64Mi") from None


def sizes(text: str) -> list[int]:
    """Bytes of each size in a list with commas; first:last:Kx stands for first, K first, K K first, ... up to last.

    Raises:
        UsageError: another format, or a size below one byte.
    """
    found = [size for part in text.split(",") for size in _one_or_range(part.strip())]
    if min(found) < 1:
        raise UsageError(f"sizes {text!r}: got {min(found)} bytes; wanted at least 1")
    return found


def _one_or_range(text: str) -> list[int]:
    if ":" not in text:
        return [num_bytes(text)]
    first_text, _, rest = text.partition(":")
    last_text, _, factor_text = rest.partition(":")
    first, last = num_bytes(first_text), num_bytes(last_text)
    factor = int(factor_text[:-1]) if factor_text.endswith("x") and factor_text[:-1].isdecimal() else 0
    if factor < 2 or not 1 <= first <= last:
        raise UsageError(f"{text!r} is not a range of sizes; write it as first:last:factor, such as 8:256M:4x")
    found = [first]
    while found[-1] * factor <= last:
        found.append(found[-1] * factor)
    return found


def rate(bytes_per_s: float) -> str:
    """As `amount`: 1.25 GB/s."""
    return amount(bytes_per_s, "B/s")


def amount(value: float, unit: str) -> str:
    """With a decimal prefix and three significant digits: 25 MB."""
    for prefix, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def seconds(value: float) -> str:
    """With four significant digits, in s, ms or us: 12.5 ms."""
    if value >= 1:
        return f"{value:.4g} s"
    return f"{value * 1e3:.4g} ms" if value >= 1e-3 else f"{value * 1e6:.4g} us"
