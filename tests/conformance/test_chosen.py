"""A fast part of torch's suite among the slow tests; ``python -m tests.conformance`` is the whole of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.__main__ import compare_files, failing, report, run

CHOSEN = {
    "narrowgauge": [
        "test_all_gather_coalesced_with_empty",
        "test_all_gather_object_subgroup",
        "test_all_reduce_complex_unsupported_ops",
        "test_all_reduce_sum_async",
        "test_barrier_full_group",
        "test_broadcast_full_group",
        "test_ddp_logging_data_cpu",
        "test_DistributedDataParallelCPU_grad_is_view",
        "test_gather_checks",
        "test_reduce_full_group_product",
        "test_send_recv_any_source",
        "test_static_graph_api_cpu",
    ],
    "replaced": [
        "test_accumulate_gradients_no_sync_allreduce_with_then_hook",
        "test_all_reduce_coalesced_full_group_sum",
        "test_barrier_timeout_full_group",
        "test_batch_isend_irecv_gloo_tags",
        "test_monitored_barrier_gloo_subgroup",
        "test_scatter_object_list",
        "test_sparse_all_reduce_sum",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["narrowgauge", "replaced"])
def test_chosen(executor: str, tmp_path: Path) -> None:
    pytest.importorskip("expecttest", reason="torch's test suites need it: pip install 'narrowgauge[test]'")
    outcomes = run(executor, CHOSEN[executor], tmp_path / "log")
    assert {test: outcome for test, outcome in outcomes.items() if outcome["outcome"] != "passed"} == {}
    assert len(outcomes) == len(CHOSEN[executor])


@pytest.mark.slow
def test_a_broken_suite_is_an_error_with_its_log(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)its log ends so:.*test_no_such_thing"):
        run("gloo", ["test_no_such_thing"], tmp_path / "log")


A_FILE = """
import os
import torch
import torch.distributed as c10d
from torch.testing._internal.common_distributed import MultiProcessTestCase
from torch.testing._internal.common_utils import TestCase

class GroupTest(MultiProcessTestCase):
    world_size = 2

    def setUp(self):
        super().setUp()
        self._spawn_processes()

    def test_sum(self):
        group = c10d.ProcessGroupGloo(c10d.FileStore(self.file_name, 2), self.rank, 2)
        tensor = torch.ones(3)
        group.allreduce([tensor]).wait()
        self.assertEqual(tensor, torch.full((3,), 2.0))

    def test_name(self):
        c10d.init_process_group("gloo", store=c10d.FileStore(self.file_name, 2), rank=self.rank, world_size=2)
        self.assertEqual(c10d.group.WORLD.name(), "gloo")

class CrashTest(TestCase):
    def test_crash(self):
        os.abort()
"""


@pytest.mark.slow
def test_a_file_on_both_executors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("expecttest", reason="torch's test suites need it: pip install 'narrowgauge[test]'")
    (tmp_path / "test_small.py").write_text(A_FILE)
    assert not compare_files(tmp_path / "test_small.py", "test_", tmp_path)
    printed = capsys.readouterr().out
    assert "gloo            2 passed    1 failed    0 skipped" in printed
    assert "replaced        1 passed    2 failed    0 skipped" in printed
    assert printed.count("NOT EXCUSED") == 1
    assert "NOT EXCUSED, on replaced: test_small.GroupTest.test_name" in printed
    assert "1 of the 1 that passed on replaced made a group of ours" in printed


@pytest.mark.slow
def test_a_file_that_torch_cannot_run_is_said_and_is_no_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "test_broken.py").write_text("from torch.distributed import no_such_thing")
    assert compare_files(tmp_path / "test_broken.py", "test_", tmp_path)
    assert "not run: " in (printed := capsys.readouterr().out)
    assert "no_such_thing" in printed
    assert compare_files(tmp_path, "test_", tmp_path)
    assert "not there: " in capsys.readouterr().out


def test_what_counts_as_a_difference(capsys: pytest.CaptureFixture[str]) -> None:
    def outcomes(**by_test: str) -> dict[str, dict[str, str]]:
        why = {"failed": "Traceback (most recent call last):\n  in f\nValueError: no"}
        return {test: {"outcome": outcome, "why": why.get(outcome, "")} for test, outcome in by_test.items()}

    gloo = outcomes(a="passed", b="passed", c="failed", d="skipped")
    ours = {
        "narrowgauge": outcomes(a="passed", b="skipped", c="failed", d="failed"),
        "replaced": outcomes(a="passed", b="failed", c="passed", d="passed"),
    }
    assert failing(gloo, ours) == {("replaced", "b"): "failed: ValueError: no"}
    assert not report({"gloo": gloo, **ours}, {})
    assert "NOT EXCUSED, on replaced: b: failed: ValueError: no" in capsys.readouterr().out
    assert report({"gloo": gloo, **ours}, {("replaced", "b"): "reason", ("narrowgauge", "a"): "old"})
    printed = capsys.readouterr().out
    assert "excused, on replaced: b: reason" in printed
    assert "excused for nothing, on narrowgauge: a" in printed
    assert report({"gloo": gloo}, {})
    assert "failed on gloo: c: ValueError: no" in capsys.readouterr().out
