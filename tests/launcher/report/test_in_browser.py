"""The page in a real browser: no complaint in its console, nothing loaded, nothing wider than the screen, drawings of a
sane size, in light and dark, narrow and wide."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher import report
from tests.launcher.report.browser import CHROMIUM, Browser
from tests.launcher.report.made import folder

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; `apt-get install chromium`")

RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "failed": {"fails": True},
    "stillborn": {"steps": 0, "fails": True},
    "unfinished": {"summary": False},
    "gloo": {"planned": False},
    "one": {"ranks": 1, "hosts": 1},
    "sites": {"ranks": 8, "hosts": 8, "sites": True},
    "pairs": {"ranks": 8, "hosts": 8, "pairs": True},
    "many": {"ranks": 64, "hosts": 64, "steps": 12},
    "long": {"ranks": 2, "steps": 3000},
}
WIDEST = """[...document.querySelectorAll('main *')].filter((each) => {
  const box = each.getBoundingClientRect(), hidden = each.closest('.wide, svg, .plot');
  return !hidden && box.width && box.right > document.documentElement.clientWidth + 0.5;
}).map((each) => each.outerHTML.slice(0, 120))"""
DRAWINGS = """[...document.querySelectorAll('svg')].map((each) => each.getBoundingClientRect())
  .filter((box) => box.width).map((box) => [box.width, box.height])"""
SQUEEZED = """[...document.querySelectorAll('svg text')].filter((each) => each.getBoundingClientRect().width)
  .map((each) => each.getBoundingClientRect().height)"""
CONTRAST = """(() => {
  const part = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map(Number).map((each) => each / 255)
    .map((each) => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4);
  const light = (colour) => part(colour).reduce((sum, each, i) => sum + each * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (each) => {
    for (; each; each = each.parentElement) {
      const found = getComputedStyle(each).backgroundColor;
      if (!found.startsWith('rgba') && found.startsWith('rgb')) return found;
    }
  };
  return [...document.querySelectorAll('main *')].filter((each) => !each.closest('svg, .matrix') && each.offsetWidth
    && [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
    .map((each) => {
      const [a, b] = [light(getComputedStyle(each).color), light(ground(each))].sort((x, y) => y - x);
      return [(a + 0.05) / (b + 0.05), each.outerHTML.slice(0, 100)];
    }).filter(([ratio]) => ratio < 4.5);
})()"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: report.write(folder(tmp_path_factory.mktemp(name), **run)) for name, run in RUNS.items()}


@pytest.mark.parametrize("name", RUNS)
def test_the_page(browser: Browser, pages: dict[str, Path], name: str) -> None:
    for width, dark in itertools.product((400, 1400), (False, True)):
        browser.open(pages[name], width, dark=dark)
        assert browser.troubles == []
        assert browser.value("document.documentElement.scrollWidth") <= width
        assert browser.value(WIDEST) == []
        assert "Job and files" in browser.value("document.body.innerText")
        drawings = browser.value(DRAWINGS)
        assert all(40 < wide <= width and 40 < high < 6000 for wide, high in drawings), drawings
        assert all(9 <= height <= 24 for height in browser.value(SQUEEZED))
        assert browser.value(CONTRAST) == []
        ground = browser.value("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(14, 17, 22)" if dark else "rgb(245, 246, 248)")


def test_all_that_is_folded_fits_when_it_is_opened(browser: Browser, pages: dict[str, Path]) -> None:
    for name in ("failed", "pairs"):
        browser.open(pages[name], 400)
        browser.value("document.querySelectorAll('details').forEach((each) => each.open = true)")
        assert browser.value("document.documentElement.scrollWidth") <= 400
        assert browser.value(WIDEST) == []


def test_a_hand_over_a_chart_reads_it(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["plain"], 1400)
    box = browser.value("JSON.parse(JSON.stringify(document.querySelector('.plot').getBoundingClientRect()))")
    browser("Input.dispatchMouseEvent", type="mouseMoved", x=box["right"] - 1, y=box["top"] + 20)
    assert browser.value("document.querySelector('.reading').innerText").startswith("step 30\nloss ")
    assert browser.value("getComputedStyle(document.querySelector('.hair')).display") == "block"
    assert browser.troubles == []


def test_the_browser_tells_of_troubles(browser: Browser, tmp_path: Path) -> None:
    """Or the checks above would pass whatever the page did."""
    page = tmp_path / "bad.html"
    page.write_text(
        "<meta name='viewport' content='width=device-width'><main><p style='width: 900px; color: #999'>x</p></main>"
        "<script>console.error('oh'); nothing.here</script><style>body { background: #fff }</style>"
    )
    browser.open(page, 400)
    troubles, browser.troubles = browser.troubles, []
    assert any("oh" in trouble for trouble in troubles)
    assert len(troubles) >= 2
    assert browser.value("document.documentElement.scrollWidth") > 400
    assert len(browser.value(WIDEST)) == 1
    assert len(browser.value(CONTRAST)) == 1
