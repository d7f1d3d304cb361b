"""One file of torch's test/distributed on one executor: ``python -m tests.conformance.files EXECUTOR OUT FILE``.

An executor is:

    gloo        the file as it is
    replaced    our backend under the name "gloo", by collectives.install. Where the file makes a ProcessGroupGloo
                itself, it gets a group of ours, too: see `InPlaceOfGloo`

Each test runs in a process forked for it, with a limit of time, so a test that crashes, hangs or leaves threads behind
fails alone. The ranks of torch's MultiProcessTestCase are forked from that process, not spawned: they need not import
torch again. What a test spawns by itself runs this module once more, under the name ``__mp_main__``, and is prepared
like this process.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import select
import signal
import sys
import time
import traceback
import types
import unittest
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.conformance.suite import TEST_TIMEOUT_S, Outcomes

FILES = (
    "test_backends.py",
    "test_c10d_common.py",
    "test_c10d_functional_native.py",
    "test_c10d_gloo.py",
    "test_c10d_logger.py",
    "test_c10d_object_collectives.py",
    "test_c10d_pypg.py",
    "test_c10d_spawn_gloo.py",
    "test_collective_utils.py",
    "test_device_mesh.py",
    "test_pg_wrapper.py",
    "algorithms/test_join.py",
    "optim/test_zero_redundancy_optimizer.py",
)
"""Files of torch's test/distributed that use process groups and need no accelerator."""
EXECUTORS = ("gloo", "replaced")
LIMIT_S = TEST_TIMEOUT_S + 60
_EXECUTOR, _FILE, _GROUPS = (f"NARROWGAUGE_CONFORMANCE_{name}" for name in ("EXECUTOR", "FILE", "GROUPS"))


def prepare(executor: str, file: Path, groups: Path) -> types.ModuleType:
    """Import the file for an executor, here and in what it spawns. Once in a process.

    Args:
        groups: file that grows by a byte with each group of ours, on any rank.
    """
    os.environ.update({_EXECUTOR: executor, _FILE: str(file), _GROUPS: str(groups)})
    os.environ.update(DISTRIBUTED_TESTS_DEFAULT_TIMEOUT=str(TEST_TIMEOUT_S), GLOO_SOCKET_IFNAME="lo")
    sys.path.insert(0, str(file.parent))
    import torch
    from torch.testing._internal import common_distributed

    torch.set_num_threads(1)
    fork = torch.multiprocessing.get_context("fork").Process
    common_distributed.MultiProcessTestCase._spawn_processes = lambda self: self._start_processes(fork)  # type: ignore
    if executor == "replaced":
        import collectives

        collectives.warm_up()
        collectives.install(replace=("gloo",))
        _count_groups(groups)
    module = importlib.import_module(file.stem)
    if executor == "replaced":
        for loaded in list(sys.modules.values()):
            if Path(getattr(loaded, "__file__", None) or "").parent == file.parent:
                InPlaceOfGloo.serve(loaded)
    return module


def _count_groups(file: Path) -> None:
    from collectives.backend.process_group import NarrowgaugeGroup

    form = NarrowgaugeGroup.__init__

    def form_and_count(self: Any, *arguments: Any, **named: Any) -> None:
        form(self, *arguments, **named)
        with file.open("ab") as counted:
            counted.write(b".")

    NarrowgaugeGroup.__init__ = form_and_count  # type: ignore[method-assign]


class InPlaceOfGloo(types.ModuleType):
    """torch.distributed as a file of tests sees it, but for ProcessGroupGloo, which makes a group of ours.

    torch.distributed itself keeps its own: our backend makes Gloo groups, too.
    """

    @staticmethod
    def serve(module: types.ModuleType) -> None:
        """Replace torch.distributed, under whatever names the module has it."""
        from collectives.backend.c10d import dist

        in_place = InPlaceOfGloo(dist.__name__)
        in_place.__dict__["ProcessGroupGloo"] = _gloos_name()
        for name, value in list(vars(module).items()):
            if value is dist:
                setattr(module, name, in_place)

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.modules["torch.distributed"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(sys.modules["torch.distributed"], name, value)


def _gloos_name() -> type:
    """A class that is called as ProcessGroupGloo is, and has what that has beside."""
    from collectives import options
    from collectives.backend.c10d import dist
    from collectives.backend.process_group import NarrowgaugeGroup

    gloo = dist.ProcessGroupGloo

    class Named(type):
        def __call__(cls, store: Any, rank: int, size: int, given: Any = None, timeout: Any = None) -> NarrowgaugeGroup:
            timeout = timeout or (given if isinstance(given, timedelta) else getattr(given, "_timeout", None))
            timeout_s = timeout.total_seconds() if timeout else TEST_TIMEOUT_S
            return NarrowgaugeGroup(store, rank, size, "gloo", timeout_s, options.current())

        def __getattr__(cls, name: str) -> Any:
            return getattr(gloo, name)

        def __instancecheck__(cls, group: object) -> bool:
            return isinstance(group, NarrowgaugeGroup)

    return Named("ProcessGroupGloo", (), {})


def tests_of(module: types.ModuleType) -> list[unittest.TestCase]:
    """The tests of a file, one by one. A file's own `load_tests` wants the file to be the program, and is not asked."""
    cases = [case for case in vars(module).values() if isinstance(case, type) and issubclass(case, unittest.TestCase)]
    return [case(name) for case in cases for name in unittest.defaultTestLoader.getTestCaseNames(case)]


def run_apart(test: unittest.TestCase) -> dict[str, Any]:
    """Run a test in a process of its own, which with all that it left behind ends when the test does."""
    reader, writer = os.pipe()
    began = time.monotonic()
    if not (child := os.fork()):
        os.setpgid(0, 0)
        _report_and_exit(test, writer)
    os.close(writer)
    said = b""
    while not said.endswith(b"\n"):
        ready, _, _ = select.select([reader], [], [], max(0.0, began + LIMIT_S - time.monotonic()))
        part = os.read(reader, 1 << 16) if ready else b""
        if not part:
            break
        said += part
    os.close(reader)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if said.endswith(b"\n"):
        outcome: dict[str, Any] = json.loads(said)
        return outcome
    seconds = round(time.monotonic() - began, 2)
    why = f"Error: the test's process gave no outcome; after {seconds} s it ended with status {status}"
    return {"outcome": "failed", "why": why, "seconds": seconds}


def _report_and_exit(test: unittest.TestCase, writer: int) -> None:
    try:
        outcomes = Outcomes()
        unittest.TestSuite([test]).run(outcomes)
        found = sorted(outcomes.by_test.values(), key=lambda outcome: outcome["outcome"] != "failed")
        os.write(writer, json.dumps(found[0]).encode() + b"\n")
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("executor", choices=EXECUTORS)
    parser.add_argument("out", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("-k", metavar="PART", default="", help="only tests whose name contains PART")
    arguments = parser.parse_args()
    groups = arguments.out.with_suffix(".groups")
    module = prepare(arguments.executor, arguments.file.resolve(), groups)
    by_test: dict[str, dict[str, Any]] = {}
    for test in tests_of(module):
        name = test.id()
        if arguments.k not in name:
            continue
        groups.write_bytes(b"")
        by_test[name] = run_apart(test) | {"groups": groups.stat().st_size}
        arguments.out.write_text(json.dumps(by_test, indent=1))
    groups.unlink(missing_ok=True)
    arguments.out.write_text(json.dumps(by_test, indent=1))


if __name__ == "__main__":
    main()
elif __name__ == "__mp_main__" and _FILE in os.environ:
    prepare(os.environ[_EXECUTOR], Path(os.environ[_FILE]), Path(os.environ[_GROUPS]))
