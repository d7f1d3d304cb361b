"""The YAML and Python samples of the documentation: job and lab files load, scripts run on two ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from launcher.config import job_file
from launcher.config.job import Job
from launcher.config.lab_file import LabFile, contradictions
from tests.docs.pages import Block, blocks
from tests.docs.run_samples import compiled_only
from tests.paths import REPOSITORY

LEAST_JOB = {"name": "sample", "entrypoint": "train.py", "workers": 4}
"""What a sample that shows a part of a job file leaves out."""


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_yaml_samples_load(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = yaml.safe_load(block.text)
    if "hosts" in content:
        lab = LabFile.model_validate(content)
        assert not list(contradictions(lab))
    elif "scrape_configs" not in content:
        assert set(content) <= set(Job.model_fields)
        monkeypatch.chdir(tmp_path)
        (tmp_path / "train.py").touch()
        missing = {key: value for key, value in LEAST_JOB.items() if key not in content}
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(missing) * bool(missing) + block.text)
        job_file.load(tmp_path / "job.yaml", [])


def test_python_samples_run(tmp_path: Path) -> None:
    samples = blocks("python")
    for block in samples:
        compile(block.text, str(block), "exec")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "tests.docs.run_samples"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for block in samples:
        assert compiled_only(block) or f"ran {block}\n" in done.stdout
