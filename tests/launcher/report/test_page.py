"""The page as text: what stands in it, that nothing of the user's is markup, and that it needs no network."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from launcher import report
from tests.launcher.report.made import folder


class Checked(HTMLParser):
    """Collects text, and sees that every element that is opened is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.ids: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attributes if name == "id" and value]
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)


@pytest.mark.parametrize(
    ("run", "wanted"),
    [
        ({}, ["finished", "Loss", "Step time", "Speed", "Ranks", "Network", "Plan", "Timeline", "Job and files"]),
        ({"fails": True}, ["Why it failed: rank 1 on box-0", "Last words of rank 1's log", "trouble"]),
        ({"steps": 0, "fails": True}, ["No steps", "Why it failed: rank 1 on box-0", "the run reported no plan"]),
        ({"planned": False}, ["torch's Gloo has no plan", "Network"]),
        ({"summary": False}, ["unfinished", "no summary when this page was made"]),
        ({"ranks": 1, "hosts": 1}, ["1 on 1 host"]),
        ({"ranks": 64, "hosts": 16, "steps": 5}, ["64 on 16 hosts"]),
        ({"sites": True}, ["site north", "site south"]),
        ({"ranks": 3, "hosts": 3, "pairs": True}, ["From host to host"]),
        ({"ranks": 16, "hosts": 16, "pairs": True, "steps": 3}, ["Slower ways from host to host, the busiest of 15"]),
    ],
)
def test_what_it_shows(tmp_path: Path, run: dict[str, Any], wanted: list[str]) -> None:
    html = report.write(folder(tmp_path, **run)).read_text()
    checked = Checked(html)
    text = re.sub(r"\s+", " ", " ".join(checked.texts))
    assert [words for words in wanted if words not in text] == []
    assert len(checked.ids) == len(set(checked.ids))
    assert "None" not in text
    assert "nan" not in re.findall(r"\w+", text)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_the_user_s_is_markup(tmp_path: Path, fails: bool) -> None:
    html = report.write(folder(tmp_path, fails=fails)).read_text()
    assert len(re.findall(r"<script", html)) == 1
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &#34;quotes&#34; {{ 1 + 1 }}" in html


def test_it_loads_nothing(tmp_path: Path) -> None:
    html = report.write(folder(tmp_path)).read_text()
    assert re.findall(r"(?:src|href)=\"(?!logs/|traces/|data:)", html) == []
    assert "http:" not in html
    assert "https:" not in html
    assert "default-src 'none'" in html


def test_a_long_run_gives_a_page_of_bearable_size(tmp_path: Path) -> None:
    html = report.write(folder(tmp_path, ranks=2, steps=6000)).read_text()
    assert len(html) < 700_000
    curves = re.findall(r'<path class="curve" d="([^"]+)"', html)
    assert curves
    assert all(curve.count("L") < 1000 for curve in curves)


def test_it_can_be_renewed_while_the_run_goes_on(tmp_path: Path) -> None:
    path = folder(tmp_path, steps=4, summary=False)
    before = report.write(path).read_text()
    lines = (path / "events.jsonl").read_text().splitlines(keepends=True)
    (path / "events.jsonl").write_text("".join(lines[: len(lines) // 2]))
    assert report.write(path).read_text() != before
    assert sorted(each.name for each in path.glob("report*")) == ["report.html"]
