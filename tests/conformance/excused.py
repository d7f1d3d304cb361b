"""Tests of torch's suite that pass on Gloo and need not pass on ours, each with the reason.

The key names the carrier too, since a test may be excused under one name and hold under the other.
"""

from __future__ import annotations

EXCUSED: dict[tuple[str, str], str] = {}
