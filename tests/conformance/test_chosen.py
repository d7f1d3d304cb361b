"""A fast part of torch's suite among the slow tests; ``python -m tests.conformance`` is the whole of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.__main__ import failing, report, run

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
