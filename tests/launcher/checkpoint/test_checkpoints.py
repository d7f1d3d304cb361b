"""`launcher.checkpoint` with real ranks: what comes back, on how many ranks, and what all hear when it can't."""

from __future__ import annotations

import logging
import os
import random
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import collectives
from launcher.checkpoint import checkpoints, files
from launcher.errors import CheckpointError
from tests.processes import run


def network(width: int = 6) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Dropout(0.5), nn.Linear(width, 2))


OPTIMIZERS = {
    "adamw": lambda model: torch.optim.AdamW(
        [{"params": model[0].parameters(), "lr": 0.1}, {"params": [*model[1].parameters(), *model[3].parameters()]}]
    ),
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
}


def train(
    rank: int, size: int, store: Any, folder: Path, steps: int, optimizer_name: str, sharded: bool, save_at: int
) -> dict[str, Any]:
    """Steps from the newest checkpoint to `steps`, with random numbers of each rank's own and a schedule."""
    dist.init_process_group("narrowgauge", store=store, rank=rank, world_size=size)
    told: list[str] = []
    checkpoints.logger.addHandler(Listener(told))
    plain = network()
    model: nn.Module = fully_shard(plain) if sharded else DistributedDataParallel(plain)  # type: ignore[assignment]
    optimizer = OPTIMIZERS[optimizer_name](plain)
    attached = None if sharded else collectives.attach(model, codec="int8")  # type: ignore[arg-type]
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    shares = collectives.Shares(global_batch=8, rebalance=False)
    generator = torch.Generator().manual_seed(rank)
    torch.manual_seed(100 + rank)
    random.seed(rank)
    np.random.seed(rank)
    saver = checkpoints.Checkpoints(
        model,
        optimizer,
        shared={"scheduler": scheduler, "shares": shares},
        own={"attached": attached, "draw": generator},
        folder=folder,
    )
    start = saver.restore()
    losses = []
    for step in range(start, steps):
        inputs = torch.randn(4, 4, generator=generator) + random.random() + float(np.random.rand())
        loss = model(inputs).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
        if step + 1 == save_at:
            saver.save(step + 1)
    whole = {
        name: (value.full_tensor() if hasattr(value, "full_tensor") else value).tolist()
        for name, value in plain.state_dict().items()
    }
    rates = [group["lr"] for group in optimizer.param_groups]
    dist.destroy_process_group()
    return {"start": start, "losses": losses, "told": told, "rates": rates, "weights": whole}


class Listener(logging.Handler):
    def __init__(self, told: list[str]) -> None:
        super().__init__()
        self._told = told

    def emit(self, record: logging.LogRecord) -> None:
        self._told.append(record.getMessage())


@pytest.mark.parametrize(("optimizer", "sharded"), [("adamw", False), ("sgd", False), ("adamw", True)])
def test_a_run_that_is_resumed_is_the_same_bit_for_bit(tmp_path: Path, optimizer: str, sharded: bool) -> None:
    whole = run(train, 2, tmp_path, 7, optimizer, sharded, 4)
    assert files.steps(tmp_path) == [4]
    again = run(train, 2, tmp_path, 7, optimizer, sharded, 0)
    for before, after in zip(whole, again, strict=True):
        assert (before["start"], after["start"]) == (0, 4)
        assert after["losses"] == before["losses"][4:]
        assert after["rates"] == before["rates"]
        assert after["told"] == []
        for name, value in before["weights"].items():
            assert value == after["weights"][name]


@pytest.mark.parametrize(("sharded", "size"), [(False, 3), (False, 1), (True, 3)])
def test_another_number_of_ranks(tmp_path: Path, sharded: bool, size: int) -> None:
    before = run(train, 2, tmp_path, 4, "adamw", sharded, 4)
    after = run(train, size, tmp_path, 4, "adamw", sharded, 0)
    for each in after:
        assert each["start"] == 4
        assert each["rates"] == before[0]["rates"]
        for name, value in before[0]["weights"].items():
            assert value == each["weights"][name]
    own = "random numbers, draw" if sharded else "random numbers, attached, draw"
    assert (
        f"was saved by 2 ranks and this run has {size}: the state of each rank ({own}) is not restored"
        in after[0]["told"][0]
    )
    assert [each["told"] for each in after[1:]] == [[]] * (size - 1)


def test_a_damaged_one_is_passed_over_with_a_warning(tmp_path: Path) -> None:
    run(train, 2, tmp_path, 3, "adamw", False, 2)
    run(train, 2, tmp_path, 4, "adamw", False, 4)
    data = tmp_path / "step-00000004" / "rank-1.pt"
    data.write_bytes(data.read_bytes()[:-1] + b"x")
    found = run(train, 2, tmp_path, 5, "adamw", False, 0)
    assert [each["start"] for each in found] == [2, 2]
    assert "step-00000004: rank-1.pt has" in found[0]["told"][0]


def refused(rank: int, size: int, store: Any, folder: Path, what: str) -> str | None:
    dist.init_process_group("narrowgauge", store=store, rank=rank, world_size=size)
    model = network(7 if what == "another shape" else 6)
    if what == "another model":
        model = nn.Sequential(nn.Linear(4, 6), nn.ModuleDict({"head": nn.Linear(6, 2)}))
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters())
    if what == "another optimizer":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    shared = {"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1)} if what == "another schedule" else None
    saver = checkpoints.Checkpoints(DistributedDataParallel(model), optimizer, shared=shared, folder=folder)
    try:
        saver.save(1) if what in ("save", "no room") else saver.restore()
    except CheckpointError as error:
        return str(error)
    finally:
        dist.barrier()
        dist.destroy_process_group()
    return None


@pytest.mark.parametrize(
    ("what", "wanted"),
    [
        (
            "another model",
            "it lacks 1.head.weight, 1.head.bias; it has 1.weight, 1.bias, 1.running_mean, 1.running_var and 3 more, "
            "which the model has not",
        ),
        ("another shape", "shapes differ: 0.weight 6x4 for 7x4, 0.bias 6 for 7,"),
        ("another optimizer", "optimizers: it has AdamW; this script has SGD"),
        ("another schedule", "shared: it has none; this script has scheduler"),
    ],
)
def test_a_checkpoint_of_another_script_is_refused_on_all_ranks(tmp_path: Path, what: str, wanted: str) -> None:
    assert run(refused, 2, tmp_path, "save") == [None, None]
    for told in run(refused, 2, tmp_path, what):
        assert f"{tmp_path}/step-00000001 is of another script: " in told
        assert wanted in told


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for told in run(refused, 2, tmp_path / "file" / "checkpoints", "save"):
        assert "rank 0 (" in told
        assert "cannot write the checkpoint of step 1" in told
        assert "Not a directory" in told


def test_the_run_to_resume_has_none(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    environment = {checkpoints.RESUME_FROM: str(tmp_path / "old")}
    for told in run(refused, 2, tmp_path / "new", "restore", environment=environment):
        assert "rank 0 (" in told
        assert f"found no complete checkpoint in {tmp_path}/old, the run to resume" in told


def test_the_run_to_resume_is_taken_until_this_one_has_its_own(tmp_path: Path) -> None:
    run(train, 2, tmp_path / "old", 2, "sgd", False, 2)
    environment = {checkpoints.RESUME_FROM: str(tmp_path / "old")}
    found = run(train, 2, tmp_path / "new", 4, "sgd", False, 3, environment=environment)
    assert [each["start"] for each in found] == [2, 2]
    found = run(train, 2, tmp_path / "new", 4, "sgd", False, 0, environment=environment)
    assert [each["start"] for each in found] == [3, 3]
    assert files.steps(tmp_path / "old") == [2]


class Unwilling:
    def state_dict(self) -> dict[str, Any]:
        raise KeyError("no state yet")

    def load_state_dict(self, state: Any) -> None:
        raise AssertionError


class Unpicklable(Unwilling):
    def state_dict(self) -> dict[str, Any]:
        return {"open": open(os.devnull)}


def saves_unwilling(rank: int, size: int, store: Any, folder: Path, kind: str, culprit: int) -> tuple[str, str]:
    """What `save` raised, and its cause; then a save without the unwilling object."""
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    thing: Any = (Unpicklable() if kind == "pickle" else Unwilling()) if rank == culprit else torch.Generator()
    things = {"thing": thing}
    shared, own = (things, {}) if kind == "shared" else ({}, things)
    began = time.monotonic()
    with pytest.raises(CheckpointError) as caught:
        checkpoints.Checkpoints(network(), shared=shared, own=own, folder=folder).save(1)
    assert time.monotonic() - began < 100
    checkpoints.Checkpoints(network(), folder=folder).save(2)
    dist.destroy_process_group()
    return str(caught.value), repr(caught.value.__cause__)


@pytest.mark.parametrize(("kind", "culprit"), [("shared", 0), ("own", 1), ("pickle", 0)])
def test_an_object_without_a_state_fails_all_ranks(tmp_path: Path, kind: str, culprit: int) -> None:
    results = run(saves_unwilling, 2, tmp_path, kind, culprit)
    assert results[0][0] == results[1][0]
    name = "Unpicklable" if kind == "pickle" else "Unwilling"
    group = "own" if kind == "pickle" else kind
    assert re.match(rf"rank {culprit} \(.+\) cannot save the state of {group}\['thing'\], a {name}: ", results[0][0])
    assert "no state yet" in results[culprit][1] or kind == "pickle"
    assert results[1 - culprit][1] == "None"
    assert files.steps(tmp_path) == [2]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_no_room(small_disk: Path) -> None:
    assert run(refused, 2, small_disk, "save") == [None, None]
    (small_disk / "ballast").write_bytes(bytes(256 * 1024 - sum(used(path) for path in small_disk.rglob("*")) - 16384))
    for told in run(refused, 2, small_disk / "more", "no room"):
        assert "cannot write the checkpoint of step 1" in told
        assert "No space left on device" in told
        assert "0 MB are free there" in told
    assert list((small_disk / "more").iterdir()) == []
    assert files.newest(small_disk, print) is not None


def used(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_one_process_without_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    saver = checkpoints.Checkpoints(
        model, torch.optim.AdamW(model.parameters()), folder=tmp_path, every_steps=2, keep=2
    )
    assert saver.restore() == 0
    assert [step for step in range(1, 9) if saver.save_if_due(step)] == [2, 4, 6, 8]
    assert files.steps(tmp_path) == [6, 8]
    with torch.no_grad():
        model[0].weight.zero_()
    assert checkpoints.Checkpoints(model, torch.optim.AdamW(model.parameters()), folder=tmp_path).restore() == 8
    assert model[0].weight.abs().sum() > 0


def test_the_job_says_when_and_how_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(checkpoints.EVERY_STEPS, "3")
    monkeypatch.setenv(checkpoints.KEEP, "1")
    saver = checkpoints.Checkpoints(nn.Linear(1, 1), folder=tmp_path)
    assert [step for step in range(1, 8) if saver.save_if_due(step)] == [3, 6]
    assert files.steps(tmp_path) == [6]
    with pytest.raises(ValueError, match="Checkpoints got keep=0; wanted 1 or more"):
        checkpoints.Checkpoints(nn.Linear(1, 1), keep=0)
