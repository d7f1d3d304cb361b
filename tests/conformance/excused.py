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


def _of(cases: str, tests: str) -> tuple[str, ...]:
    return tuple(f"{case}.test_{test}" for case in cases.split() for test in tests.split())


_GROUPS = "test_c10d_gloo.ProcessGroupGlooTest test_c10d_gloo.ProcessGroupGlooLazyInitTest"
_DISPATCHED = "test_c10d_gloo.GlooProcessGroupWithDispatchedCollectivesTests"

EXCUSED_IN_FILES: dict[str, tuple[str, ...]] = {
    "wants the words of Gloo's errors, and a RuntimeError; ours are ValueErrors with words of their own": _of(
        _GROUPS,
        "allgather_checks allgather_coalesced_checks allreduce_checks allreduce_coalesced_checks broadcast_checks "
        "gather_checks reduce_checks scatter_checks sparse_allreduce_checks",
    ),
    "passes several tensors of one rank, as if it had several devices; ours refuses that, as NCCL does": _of(
        _GROUPS,
        "allgather_basics allgather_inference_mode allgather_noncontiguous_input allreduce_basics broadcast_basics "
        "sparse_allreduce_basics",
    ),
    "calls what only ProcessGroupGloo has: create_device, or options with a _timeout": (
        *_of("test_c10d_gloo.CommTest", "broadcast_coalesced_gloo_cpu"),
        *_of(
            "test_c10d_gloo.DistributedDataParallelTest",
            "gloo_backend_cpu_module gloo_backend_cpu_module_grad_is_view",
        ),
        *_of(_GROUPS, "set_gloo_pg_timeout"),
    ),
    "wants the group to call itself gloo; ours says what it is": (
        *_of("test_backends.TestMiscCollectiveUtilsCPU", "create_pg_cpu"),
        *_of("test_c10d_common.ProcessGroupWithDispatchedCollectivesTests", "init_process_group_for_all_backends"),
        *_of(_DISPATCHED, "init_process_group_for_all_backends"),
    ),
    "wants strided tensors to be refused; ours takes them": _of(_DISPATCHED, "all_to_all_single"),
    "wants torch's wrapper, which is for groups in C++; ours compares the ranks' ops itself, and wait() says it": _of(
        "test_pg_wrapper.ProcessGroupGlooWrapperTest",
        "collective_hang collectives_op_mismatch_debug_mode collectives_op_mismatch "
        "collective_shape_mismatch_debug_mode collective_shape_mismatch_debug_mode_off",
    ),
}
"""By reason: tests of the files that `--files` runs, as module.Class.test, on ours in Gloo's place."""
