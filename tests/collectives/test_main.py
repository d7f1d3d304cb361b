"""`python -m collectives explain`, called as a function."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from collectives.__main__ import main
from collectives.errors import UsageError
from collectives.schedule.forest import Forest
from collectives.schedule.verify import verify
from collectives.topology import Host, Topology
from collectives.units import num_bytes


def test_explain_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "farm.json"
    path.write_text(Topology((Host("fast", (0, 1)), Host("slow", (2,), 1e6, 1e6))).to_json())
    assert main(["explain", str(path), "--bytes", "1M"]) == 0
    printed = capsys.readouterr().out
    for part in (
        "all_reduce of 3 ranks, 1 MB",
        "up 125 MB/s",
        "predicted   1",
        "bound       1 s",
        "up of slow",
        "chosen",
    ):
        assert part in printed


def test_explain_prints_a_forest_that_reads_back(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--hosts", "2", "--ranks-per-host", "2", "--collective", "broadcast", "--trees"]) == 0
    forest = Forest.parse(capsys.readouterr().out.split("\n\n")[-1])
    verify(forest)
    assert forest.title == "broadcast of 4 ranks at root 0"


def test_explain_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--hosts", "3", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["algorithm"], summary["num_bytes"], summary["ranks"]) == ("direct", 25_000_000, 3)


def test_explain_simulates(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--hosts", "3", "--simulate"]) == 0
    printed = capsys.readouterr().out
    for part in ("simulated\n", "each simulated", "predicted   1.0", "% busy up of host0", "folds in canonical order"):
        assert part in printed


def test_a_printed_plan_is_explained_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.txt"
    assert main(["explain", "--hosts", "3", "--ranks-per-host", "2", "--collective", "reduce", "--text"]) == 0
    path.write_text(capsys.readouterr().out)
    assert main(["explain", "--hosts", "3", "--ranks-per-host", "2", "--collective", "reduce"]) == 0
    explained = capsys.readouterr().out
    assert main(["explain", "--plan", str(path)]) == 0
    assert capsys.readouterr().out == explained


def test_a_broken_plan_is_pointed_at_with_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.txt"
    assert main(["explain", "--hosts", "3", "--text"]) == 0
    path.write_text(capsys.readouterr().out.replace("1>0", "1>1"))
    assert main(["explain", "--plan", str(path)]) == 2
    said = capsys.readouterr().err
    assert f"{path}: all_reduce of 3 ranks, tree 0: rank 1 is on a cycle" in said
    assert "^^^" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hosts", "0"], "wanted at least 1"),
        (["--hosts", "2", "--root", "1"], "all_reduce has no root"),
        (["--hosts", "2", "--root", "5", "--collective", "reduce"], "reduce of 2 ranks: got root 5"),
        (["--hosts", "2", "--bytes", "25X"], "'25X' is not a number of bytes"),
        (["no/such/file.json"], "no/such/file.json"),
    ],
)
def test_mistakes_end_with_status_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("4096", 4096), ("4k", 4000), ("4K", 4000), ("1.5M", 1_500_000), ("64Mi", 2**26), ("2G", 2 * 10**9)],
)
def test_num_bytes(text: str, value: int) -> None:
    assert num_bytes(text) == value


@pytest.mark.parametrize("text", ["", "M", "12 parsecs", "nan", "inf"])
def test_num_bytes_refuses(text: str) -> None:
    with pytest.raises(UsageError, match="not a number of bytes"):
        num_bytes(text)
