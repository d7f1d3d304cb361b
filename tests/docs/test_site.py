"""The site builds without a warning, fetches nothing from the web, and its generated parts say what the sources say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from launcher.cli import app
from launcher.config.job import Job
from launcher.monitor.metrics import METRICS
from tests.paths import REPOSITORY

needs_mkdocs = pytest.mark.skipif(
    find_spec("material") is None or find_spec("mkdocstrings") is None,
    reason="needs the extra docs; .ci/run builds the site with it",
)


@pytest.fixture(scope="module")
def parts() -> dict[str, str]:
    """The generated parts, by name."""
    sys.path.insert(0, str(REPOSITORY / "docs"))
    try:
        import generate
    finally:
        sys.path.pop(0)
    return {name: make() for name, make in generate.PARTS.items()}


@needs_mkdocs
def test_site_builds(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = [page.read_text(encoding="utf-8") for page in tmp_path.rglob("*.html")]
    fetched = re.compile(r'<(?:script|link|img)[^>]*(?:src|href)="(https?:[^"]*)')
    assert not [url for page in pages for url in fetched.findall(page)]
    api = (tmp_path / "reference" / "python-api.html").read_text(encoding="utf-8")
    assert 'id="collectives.attach"' in api
    assert 'id="launcher.checkpoint.Checkpoints"' in api


def test_every_key_of_a_job_file_is_documented(parts: dict[str, str]) -> None:
    rows = set(re.findall(r"^\| `([\w.]+)` \|", parts["job-file"], re.MULTILINE))
    for name, field in Job.model_fields.items():
        assert name in rows
        for inner in getattr(field.annotation, "model_fields", {}):
            assert f"{name}.{inner}" in rows


def test_every_command_is_documented(parts: dict[str, str]) -> None:
    for command in app.registered_commands:
        name = command.name or command.callback.__name__  # type: ignore[union-attr]
        assert f"### launcher {name}\n" in parts["command-line"]


def test_every_metric_is_documented(parts: dict[str, str]) -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([\w, ]+) \| (.+) \|$", parts["metrics"], re.MULTILINE)
    tags = {False: "run", True: "run, rank, host"}
    assert rows == [(each.name, each.kind, tags[each.of_rank], each.meaning) for each in METRICS]


def test_generated_parts_are_complete(parts: dict[str, str]) -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in (REPOSITORY / "docs").rglob("*.md"))
    assert set(re.findall(r"<!-- generate: ([\w-]+) -->", text)) == set(parts)
    for file in ("launcher.json", "cluster.json", "launcher.log", "report.html"):
        assert file in parts["run-folder"]
    assert "PeerLost" in parts["collectives-errors"]
    assert "ConfigError" in parts["launcher-errors"]
