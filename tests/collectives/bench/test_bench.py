"""The benchmark: its formulas, its table, its limit, and that it finds wrong elements."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from collectives.__main__ import main
from collectives.bench import command, limit, measure, plot, report, trials
from collectives.bench.report import BenchRow, Report
from collectives.bench.trials import Pattern, Trial
from collectives.errors import UsageError
from collectives.planning.cost import bound_s
from collectives.schedule.specification import SPECIFICATIONS
from collectives.topology import Host, Topology
from tests.paths import REPOSITORY

ROW = BenchRow(
    collective="all_reduce", num_bytes=1000, time_s=0.002, bus_factor=1.5, wrong=0, memory_bytes=2_000_000,
    cpu_s=1e-6, rounds=7, calls=3, plan="direct", predicted_s=0.0025, limit_s=0.001,
    gloo_time_s=0.004, gloo_wrong=2, gloo_memory_bytes=500, gloo_cpu_s=2e-6, gloo_calls=2,
)  # fmt: skip
UNKNOWN = dict.fromkeys(
    ["plan", "predicted_s", "limit_s", "gloo_time_s", "gloo_wrong", "gloo_memory_bytes", "gloo_cpu_s", "gloo_calls"]
)
REPORT = Report(
    backend="narrowgauge", hosts=("a", "a", "b"), dtype="float32", round_s=0.25, limit="the bound over the links of x",
    versions={"narrowgauge": "1"},
    rows=(ROW, replace(ROW, num_bytes=10**6, time_s=0.1), replace(ROW, collective="reduce", **UNKNOWN)),
)  # fmt: skip
UNEQUAL = Topology((Host("a", (0, 1)), Host("b", (2,), up_bytes_per_s=1e6, down_bytes_per_s=1e6)))


# ---- definitions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("collective", "size", "factor"),
    [("all_reduce", 4, 1.5), ("all_gather", 4, 0.75), ("reduce_scatter", 2, 0.5), ("broadcast", 8, 1.0)],
)
def test_bus_factor_is_that_of_nccl_tests(collective: str, size: int, factor: float) -> None:
    assert SPECIFICATIONS[collective].bus_factor(size) == factor


def test_what_follows_from_a_row() -> None:
    assert (ROW.algbw, ROW.busbw, ROW.of_limit, ROW.ratio) == (500_000, 750_000, 0.5, 2.0)
    assert ROW.prediction_error == pytest.approx(0.25)
    assert (ROW.cpu_s_per_gb, ROW.gloo_cpu_s_per_gb) == pytest.approx((1.0, 2.0))


def test_table_has_a_part_for_each_collective_and_its_columns() -> None:
    first, second = REPORT.table().split("\n\n")
    what, limit_line, names, _, line, _ = first.splitlines()
    assert what == "all_reduce, float32, 3 ranks on 2 hosts, narrowgauge"
    assert limit_line == "limit: the bound over the links of x"
    assert names.split()[:5] == ["size", "time", "algbw", "busbw", "wrong"]
    assert line.split() == (
        ["1000", "2.000", "4", "6", "0", "1.000", "0.500", "2.500", "+25%", "2.0", "1", "4.000", "2", "2", "2.00"]
    )
    *_, unknown = second.splitlines()
    assert unknown.split() == ["1000", "2.000", "4", "6", "0", "-", "-", "-", "-", "2.0", "1", "-", "-", "-", "-"]


def test_json_has_fields_and_what_follows_and_reads_back() -> None:
    document = json.loads(REPORT.to_json())
    assert Report.from_dict(document) == REPORT
    assert set(document) == {"backend", "hosts", "dtype", "round_s", "limit", "versions", "rows"}
    assert set(document["rows"][0]) == {*vars(ROW), *report.DERIVED}
    assert document["rows"][0]["busbw"] == 750_000
    assert document["rows"][2]["of_limit"] is document["rows"][2]["ratio"] is None


# ---- wrong elements ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("size", [1, 2, 3, 8, 64])
def test_sums_are_exact_in_any_order(dtype: str, size: int) -> None:
    pattern, count = Pattern(dtype, size), 2000
    held = torch.empty(size, count, dtype=pattern.dtype)
    for rank in range(size):
        pattern.fill(held[rank], rank)
    for order in (range(size), reversed(range(size))):
        total = torch.zeros(count, dtype=pattern.dtype)
        for rank in order:
            total += held[rank]
        assert pattern.wrong(total, None) == 0
        assert held.min() >= 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_elements_that_go_astray_are_counted(dtype: str) -> None:
    pattern, size, count, part = Pattern(dtype, 4), 4, 4096, slice(1024, 2048)
    held = torch.empty(size, count, dtype=torch.float64)
    for rank in range(size):
        pattern.fill(held[rank], rank)

    def wrong(contributions: torch.Tensor) -> int:
        return pattern.wrong(contributions.sum(0).to(pattern.dtype), None)

    without, twice, other, moved = (held.clone() for _ in range(4))
    without[3, part] = 0
    twice[0, part] *= 2
    other[0, part] = held[1, part]
    moved[2, part] = held[2, 2048:3072]
    assert (wrong(held), wrong(without), wrong(twice), wrong(other)) == (0, 1024, 1024, 1024)
    assert wrong(moved) > 0.9 * 1024
    one = held.clone()
    one[1, 77] += 1
    assert wrong(one) == 1
    one[1, 77] = float("nan")
    assert wrong(one) == 1


def trials_of(monkeypatch: pytest.MonkeyPatch, collective: str, size: int, num_bytes: int) -> list[Trial]:
    """What each rank would have, without a group."""
    built = []
    for rank in range(size):
        ours = SimpleNamespace(get_rank=lambda rank=rank: rank, get_world_size=lambda: size)
        monkeypatch.setattr(trials, "dist", ours)
        built.append(trials.trial_of(collective, num_bytes, "float32"))
        built[-1].fill()
    return built


def carry_out(collective: str, ranks: list[Trial]) -> None:
    """The collective, by hand, as its definition says."""
    size, inputs = len(ranks), torch.stack([trial.inputs for trial in ranks])
    for rank, trial in enumerate(ranks):
        chunks = inputs.view(size, size, -1) if collective in ("reduce_scatter", "all_to_all") else None
        result = {
            "all_reduce": lambda: inputs.sum(0),
            "reduce": lambda rank=rank: inputs.sum(0) if rank == 0 else inputs[rank],
            "broadcast": lambda: inputs[0],
            "all_gather": lambda: inputs.reshape(-1),
            "reduce_scatter": lambda rank=rank, chunks=chunks: chunks.sum(0)[rank],
            "all_to_all": lambda rank=rank, chunks=chunks: chunks[:, rank].reshape(-1),
        }[collective]()
        trial.outputs.copy_(result)


@pytest.mark.parametrize("collective", SPECIFICATIONS)
@pytest.mark.parametrize(("size", "num_bytes"), [(1, 8), (3, 8), (3, 40_028), (4, 100_000)])
def test_a_trial_knows_the_right_result(
    monkeypatch: pytest.MonkeyPatch, collective: str, size: int, num_bytes: int
) -> None:
    ranks = trials_of(monkeypatch, collective, size, num_bytes)
    carry_out(collective, ranks)
    assert [trial.wrong() for trial in ranks] == [0] * size
    assert ranks[0].num_bytes == max(ranks[0].inputs.nbytes, ranks[0].outputs.nbytes)
    root = ranks[0]
    root.outputs[-1] += 1
    assert root.wrong() == 1


@pytest.mark.parametrize("collective", ["all_gather", "reduce_scatter", "all_to_all"])
def test_an_output_that_nobody_writes_is_wrong_even_if_it_was_right_before(
    monkeypatch: pytest.MonkeyPatch, collective: str
) -> None:
    ranks = trials_of(monkeypatch, collective, 3, 1200)
    carry_out(collective, ranks)
    ranks[1].fill()
    assert ranks[1].wrong() == len(ranks[1].outputs)


def test_chunks_of_the_wrong_sender_are_wrong_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = trials_of(monkeypatch, "all_to_all", 3, 12_000)
    carry_out("all_to_all", ranks)
    first, second, _ = ranks[2].outputs.view(3, -1)
    first.copy_(second.clone())
    assert ranks[2].wrong() == len(first)


# ---- the limit -----------------------------------------------------------------------------------------------------


def test_a_file_on_the_command_line_goes_before_the_labs(tmp_path: Path) -> None:
    file, lab = tmp_path / "file.json", tmp_path / "lab.json"
    file.write_text(UNEQUAL.to_json())
    lab.write_text(Topology.from_hosts(["x", "y", "z"]).to_json())
    environment = {limit.LAB_TOPOLOGY: str(lab)}
    assert limit.given(None, {}, 3) is None
    chosen = limit.given(str(file), environment, 3)
    assert chosen is not None
    assert chosen.text == "the bound over the links of file.json"
    assert chosen.seconds("all_reduce", 10**6, 3) == bound_s(UNEQUAL, "all_reduce", 10**6)
    of_lab = limit.given(None, environment, 3)
    assert of_lab is not None
    assert of_lab.text == "the bound over the lab's links, lab.json"
    with pytest.raises(
        UsageError, match=r"--limit .*file.json: got a topology of 3 ranks; wanted one of this group's 4"
    ):
        limit.given(str(file), environment, 4)


def test_links_that_nobody_measured_are_no_limit() -> None:
    assumed = Topology.from_hosts(["a", "a", "b"])
    assert limit.in_force(assumed, is_known=False, was_given=False).seconds("all_reduce", 1000, 3) is None
    assert limit.in_force(assumed, is_known=True, was_given=True).seconds("all_reduce", 1000, 3) == bound_s(
        assumed, "all_reduce", 1000
    )
    measured = limit.in_force(UNEQUAL, is_known=True, was_given=False)
    assert "measured" in str(measured.text)
    assert measured.seconds("broadcast", 10**6, 3) == bound_s(UNEQUAL, "broadcast", 10**6, root=0)


@pytest.mark.parametrize(("collective", "passes"), [("all_reduce", 6), ("broadcast", 3), ("all_to_all", 3)])
def test_on_one_host_the_limit_is_one_copy_of_what_changes_ranks(
    monkeypatch: pytest.MonkeyPatch, collective: str, passes: int
) -> None:
    monkeypatch.setattr(limit, "memory_bytes_per_s", lambda num_bytes: 1e9)
    chosen = limit.in_force(Topology.from_hosts(["a"] * 4), is_known=False, was_given=False)
    assert chosen.seconds(collective, 1000, 4) == passes * 1e-6
    assert "memcpy" in str(chosen.text)


def test_memcpy_is_measured_once_for_sizes_near_each_other() -> None:
    assert 0 < limit.memory_bytes_per_s(8) < math.inf
    assert limit.memory_bytes_per_s(300_000) == limit.memory_bytes_per_s(500_000)


@pytest.mark.measured
def test_memcpy_is_as_fast_as_any_machines() -> None:
    assert 1e8 < limit.memory_bytes_per_s(8) < 1e14


# ---- the picture ---------------------------------------------------------------------------------------------------


def test_a_picture_needs_a_known_kind_and_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"a.pdf: wanted a name that ends in .png, .svg, .html"):
        plot.check(Path("a.pdf"))
    monkeypatch.setattr(plot.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'narrowgauge\[plot\]'"):
        plot.check(Path("a.png"))


@pytest.mark.slow
def test_a_picture_shows_something(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'narrowgauge[plot]'")
    from matplotlib.image import imread

    plot.draw(REPORT, tmp_path / "a.png")
    pixels = imread(tmp_path / "a.png")
    assert pixels.shape[0] > 500
    assert pixels.shape[1] > 1000
    blue = (pixels[..., 2] > pixels[..., 0] + 0.3).mean()
    orange = (pixels[..., 0] > pixels[..., 2] + 0.3).mean()
    assert blue > 1e-4, "our line is missing"
    assert orange > 1e-4, "Gloo's line is missing"
    plot.draw(REPORT, tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert "<svg" in page
    assert REPORT.table().splitlines()[0] in page


# ---- the command ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--sizes 4q", "'4q' is not a number of bytes"),
        ("--sizes 0", "wanted at least 1"),
        ("--round-s 0", "--round-s 0: wanted more than 0 seconds"),
        ("--round-s nan", "wanted more than 0 seconds"),
        ("--save /nowhere/x.json", "folder /nowhere does not exist"),
        ("--plot x.pdf", "wanted a name that ends in"),
        ("", "torchrun --nproc-per-node 4 -m collectives bench"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, told: str
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert main(["bench", *words.split()]) == 2
    said = capsys.readouterr()
    assert told in said.err
    assert said.out == ""


def test_rank_0_tells_of_a_limit_that_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "x.json").write_text('{"hosts": [{"name": "a", "ranks": [0]}]}')
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["bench", "--limit", str(tmp_path / "x.json")]) == 2
    assert "got a topology of 1 ranks; wanted one of this group's 2" in capsys.readouterr().err


def test_a_table_shows_each_line_once_and_a_head_for_each_collective() -> None:
    shown: list[str] = []
    table = command._Table(shown.append)
    for count in range(len(REPORT.rows) + 1):
        table(replace(REPORT, rows=REPORT.rows[:count]))
    assert "\n".join(shown) == REPORT.table()


def test_gloo_that_is_not_gloo_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    replaced = measure.NarrowgaugeGroup.__new__(measure.NarrowgaugeGroup)
    monkeypatch.setattr(measure, "dist", SimpleNamespace(new_group=lambda backend: replaced))
    with pytest.raises(UsageError, match="uninstall"):
        measure._gloo()


def test_long_calls_get_fewer_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of a call, and the calls of a round and the rounds that follow, with rounds of 0.25 s."""
    taken: list[tuple[Any, int]] = []

    def calls(trial: Any, group: float, number: int) -> tuple[float, float]:
        taken.append((group, number))
        return number * group, number * group / 2

    monkeypatch.setattr(measure, "_calls", calls)
    monkeypatch.setattr(measure, "_over_ranks", lambda values, op: values)
    idle: Any = SimpleNamespace(rest=lambda: None)
    for seconds, number, rounds in ((0.001, 250, 7), (1.0, 1, 7), (4.0, 1, 2), (60.0, 1, 1)):
        ours, gloo = measure._timed(idle, [measure._Group(seconds), measure._Group(seconds)], 0.25)
        assert (ours.calls, len(ours.wall_s), len(gloo.wall_s)) == (number, rounds, rounds)
        assert ours.wall_s == pytest.approx([seconds] * rounds)
        assert ours.cpu_s == pytest.approx([seconds / 2] * rounds)
        assert [group for group, _ in taken[-4:]] == [seconds] * 4


@pytest.mark.slow
def test_bench_runs_every_collective_under_torchrun(tmp_path: Path) -> None:
    """Two ranks, small sizes; each collective on both backends must have no wrong element."""
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "collectives", "bench"]
    start += ["--collective", "all", "--sizes", "8,4k", "--round-s", "0.01", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*start, "--save", str(tmp_path / "report.json")],
        capture_output=True, text=True, cwd=REPOSITORY, env=environment, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert json.loads((tmp_path / "report.json").read_text()) == document
    rows = document["rows"]
    assert len(document["hosts"]) == 2
    assert "memcpy" in document["limit"]
    assert [row["num_bytes"] for row in rows] == [8, 4000] * len(SPECIFICATIONS)
    assert {row["collective"] for row in rows} == set(SPECIFICATIONS)
    assert all(row["wrong"] == row["gloo_wrong"] == 0 for row in rows), rows
    assert all(row["time_s"] > 0 and row["ratio"] > 0 and row["predicted_s"] > 0 for row in rows)
    assert all(row["cpu_s"] > 0 and row["limit_s"] > 0 and row["plan"] for row in rows)


def test_a_rank_that_dies_ends_the_bench_with_status_1(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    common = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "collectives", "bench", "--sizes", "8:64M:2x", "--round-s", "0.05", "--no-gloo"]
    ranks = []
    for rank in ("0", "1"):
        place = {"RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        ranks.append(
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY,
                env={**common, **place},
            )
        )  # fmt: skip
    survivor, victim = ranks
    try:
        assert survivor.stdout is not None
        assert "all_reduce" in survivor.stdout.readline()
        victim.kill()
        _, said = survivor.communicate(timeout=200)
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    assert survivor.returncode == 1
    assert "python -m collectives bench: rank 0" in said
    assert "Traceback" not in said
