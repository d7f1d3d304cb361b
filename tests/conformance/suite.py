"""torch's suite on one backend, in this process and forked ones: ``python -m tests.conformance.suite EXECUTOR OUT``.

The suite reads its backend from the environment when it is imported and decides by its name what to run. An executor
is:

    gloo           torch's Gloo
    narrowgauge    our backend under its own name, made known to the suite as one that does what Gloo does
    replaced       our backend under the name "gloo", by collectives.install: also tests meant for Gloo alone run

The suite spawns its processes, each of which imports torch anew. Here they are forked from this one, which has loaded
all that they need and runs no thread of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import unittest
from pathlib import Path
from typing import Any

RANKS = 3
TEST_TIMEOUT_S = 90
EXECUTORS = ("gloo", "narrowgauge", "replaced")


def load(executor: str) -> type[unittest.TestCase]:
    """The suite's test case for an executor. The suite can be imported once in a process, so call it once."""
    os.environ.update(
        BACKEND="narrowgauge" if executor == "narrowgauge" else "gloo",
        WORLD_SIZE=str(RANKS),
        DISTRIBUTED_TESTS_DEFAULT_TIMEOUT=str(TEST_TIMEOUT_S),
        GLOO_SOCKET_IFNAME="lo",
    )
    import torch
    from torch.testing._internal import common_distributed, common_utils

    import collectives

    torch.set_num_threads(1)
    if executor != "gloo":
        collectives.warm_up()
    if executor == "narrowgauge":
        for feature, backends in common_distributed.DistTestCases.backend_feature.items():
            if "gloo" in backends or feature == "plugin":
                backends.add("narrowgauge")
    if executor == "replaced":
        collectives.install(replace=("gloo",))
    common_utils.FILE_SCHEMA = "file://"
    from torch.testing._internal.distributed import distributed_test

    # The suite counts events such as "gloo:all_reduce" in torch's profiler where it knows the backend to leave them.
    distributed_test.PROFILING_SUPPORTED_BACKENDS.append("narrowgauge")
    distributed_test.SEND_RECV_PROFILING_SUPPORTED_BACKENDS.append("narrowgauge")

    class Suite(distributed_test.TestDistBackend, distributed_test.DistributedTest._DistTestBase):  # type: ignore[misc]
        def setUp(self) -> None:
            super().setUp()
            self._start_processes(torch.multiprocessing.get_context("fork").Process)

    return Suite


class Outcomes(unittest.TestResult):
    """By test: "passed", "failed" or "skipped", with the reason or the traceback, and its seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.by_test: dict[str, dict[str, Any]] = {}

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        self._began = time.monotonic()

    def _end(self, test: unittest.TestCase, outcome: str, why: str) -> None:
        name = test.id().rpartition(".")[2]
        seconds = round(time.monotonic() - self._began, 2)
        self.by_test[name] = {"outcome": outcome, "why": why, "seconds": seconds}
        print(f"{outcome:8}{seconds:7.2f} s  {name}", file=sys.stderr, flush=True)

    def addSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802
        self._end(test, "passed", "")

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:  # noqa: N802
        self._end(test, "skipped", reason)

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802
        self._end(test, "failed", self._exc_info_to_string(err, test))  # type: ignore[attr-defined]

    addError = addFailure  # noqa: N815


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("executor", choices=EXECUTORS)
    parser.add_argument("out", type=Path)
    parser.add_argument("tests", nargs="*", help="names of tests; all of them if there are none")
    arguments = parser.parse_args()
    case = load(arguments.executor)
    names = arguments.tests or unittest.TestLoader().getTestCaseNames(case)
    outcomes = Outcomes()
    for name in names:
        case(name).run(outcomes)
        arguments.out.write_text(json.dumps(outcomes.by_test, indent=1))


if __name__ == "__main__":
    main()
