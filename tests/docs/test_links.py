"""Links, anchors, paths and commands that the documentation names are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from launcher.config.job import Job
from tests.docs import commands
from tests.docs.pages import PAGES
from tests.paths import REPOSITORY

NAMED_PATH = re.compile(r"`((?:collectives|launcher|tests|configs|docs)/[\w./-]+)`")
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)")


def anchors(page: Path) -> set[str]:
    """Of the headings of a page, as both GitHub and MkDocs make them, and of a generated part its sections."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    sections = set(Job.model_fields) if "<!-- generate: job-file -->" in text else set()
    return sections | {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target, anchor in LINK.findall(text):
        if "://" in target:
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"


def test_paths_that_are_named_exist() -> None:
    named = {name for page in PAGES for name in NAMED_PATH.findall(page.read_text(encoding="utf-8"))}
    assert named
    assert not [name for name in named if not (REPOSITORY / name).exists()]


def test_python_modules_that_are_named_exist() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"-m ((?:collectives|launcher|tests)[\w.]*)", text))
    assert named
    for name in named:
        path = REPOSITORY / name.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_launcher_commands_that_are_named_exist(page: Path) -> None:
    for words in re.findall(r"`launcher ((?:lab )?[a-z]\w*)\b", page.read_text(encoding="utf-8")):
        commands.find(words.split())
