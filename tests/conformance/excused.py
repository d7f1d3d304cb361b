"""Tests of torch's suite that pass on Gloo and need not pass on ours, each with the reason.

The key names the executor too, since a test may be excused under one name and hold under the other.
"""

from __future__ import annotations

EXCUSED: dict[tuple[str, str], str] = {
    (
        "replaced",
        "test_ddp_logging_data_cpu",
    ): "wants DDP to log the backend as gloo; ours says what runs, also when it "
    "was installed in Gloo's place. Under our own name the test passes.",
}
