"""Real runs and what is left of them to look at: the page, and scalars for TensorBoard."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launcher.test_submit import SCRIPTED, Submitted


@pytest.mark.slow
def test_a_finished_run_has_a_page_and_scalars(tmp_path: Path) -> None:
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="pip install 'narrowgauge[tensorboard]'"
    )
    job = {**SCRIPTED, "workers": {"count": 2, "hosts": 2}, "args": {"steps": 5, "step-s": 0.05}, "tensorboard": True}
    run = Submitted(tmp_path, job)
    status, out, err = run.finish()
    assert status == 0, err
    assert f"report {run.folder / 'report.html'}" in out
    page = (run.folder / "report.html").read_text()
    assert "Step time" in page
    assert "Why it failed" not in page
    assert run.summary["plan"]["algorithm"] in page
    found = reader.EventAccumulator(str(run.folder / "tensorboard"))
    found.Reload()
    assert [each.step for each in found.Scalars("loss")] == [1, 2, 3, 4, 5]
    assert {"wait_s/rank-0", "wait_s/rank-1", "tokens_per_s"} <= set(found.Tags()["scalars"])


@pytest.mark.slow
def test_a_page_that_cannot_be_made_is_reported_and_is_no_failure(tmp_path: Path) -> None:
    script = tmp_path / "spoils.py"
    script.write_text(
        "import os, pathlib\n"
        "run = pathlib.Path(os.environ['NARROWGAUGE_CHECKPOINT_DIR']).parent\n"
        "(run / 'events.jsonl').open('a').write('rubbish\\n')\n"
    )
    run = Submitted(tmp_path, {"name": "spoilt", "entrypoint": str(script), "workers": 1})
    status, out, err = run.finish()
    assert status == 0, err
    assert "no report.html" in out
    assert "not JSON" in out
    assert run.summary["status"] == "finished"
    assert not (run.folder / "report.html").exists()
