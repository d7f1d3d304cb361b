"""Scalars read back by TensorBoard's own reader."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.record.events import Reported
from launcher.record.tally import Tally

reader = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator", reason="pip install 'narrowgauge[tensorboard]'"
)


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found = reader.EventAccumulator(str(folder))
    found.Reload()
    return {
        name: [(each.step, pytest.approx(each.value)) for each in found.Scalars(name)]
        for name in found.Tags()["scalars"]
    }


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    from launcher.monitor.tensorboard import Scalars

    scalars, tally = Scalars(tmp_path / "tensorboard"), Tally(2)
    for step, at in ((10, 1.0), (20, 6.0)):
        for rank in (0, 1):
            event = Reported(rank, at, step, loss=rank + 60 / step, tokens=50, wait_s=2.5 * rank, compute_s=1.0)
            scalars.on(event, tally.on(event))
    scalars.close()
    assert read(tmp_path / "tensorboard") == {
        "loss": [(10, 6.5), (20, 3.5)],
        "tokens_per_s": [(20, 20.0)],
        "step_s": [(20, 0.5)],
        "wait_share": [(20, 0.25)],
        "compute_s/rank-0": [(20, 0.1)],
        "compute_s/rank-1": [(20, 0.1)],
        "wait_s/rank-0": [(20, 0.0)],
        "wait_s/rank-1": [(20, 0.25)],
    }


def test_it_can_be_read_while_the_run_goes_on(tmp_path: Path) -> None:
    from launcher.monitor.tensorboard import Scalars

    scalars, tally = Scalars(tmp_path / "tensorboard"), Tally(1)
    scalars._flush_at = 0.0
    event = Reported(0, 1.0, 1, loss=2.0)
    scalars.on(event, tally.on(event))
    assert read(tmp_path / "tensorboard") == {"loss": [(1, 2.0)]}
    scalars.close()
