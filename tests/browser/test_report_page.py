"""The report as a browser shows it, on a desk and on a phone."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from hpo.reporting.report import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

WIDTHS = [(1280, 900), (390, 844)]
PATIENCE_MS = 120_000
Open = Callable[[Path, tuple[int, int]], "Page"]


@pytest.fixture
def shown(browser: "Browser") -> Iterator[Open]:
    """Opens a file; in the end nothing may have been said on the console, and nothing asked of a network."""
    said: list[str] = []
    asked: list[str] = []
    opened = []

    def show(path: Path, size: tuple[int, int]) -> "Page":
        page = browser.new_page(viewport={"width": size[0], "height": size[1]})
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri(), timeout=PATIENCE_MS)
        opened.append(page)
        return page

    yield show
    assert [line for line in said if not line.startswith(("info", "log"))] == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    for page in opened:
        page.close()


@pytest.fixture(scope="module")
def report(report_runs: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(report_runs.finished_search(tmp_path_factory.mktemp("search") / "digits", 24))


def too_wide(page: "Page") -> list[str]:
    """Elements that stick out of the window and do not scroll in a box of their own."""
    found: list[str] = page.evaluate(
        """() => [...document.body.querySelectorAll("*")]
            .filter(one => one.getBoundingClientRect().right > innerWidth + 1)
            .filter(one => !one.closest(".scroll, code, svg"))
            .map(one => one.tagName + "." + one.className)"""
    )
    return found


@pytest.mark.parametrize("size", WIDTHS, ids=["desk", "phone"])
def test_finished_search(shown: Open, report: Path, size: tuple[int, int]) -> None:
    page = shown(report, size)
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    assert too_wide(page) == []

    plots = page.locator(".plot")
    assert plots.count() == 6
    assert page.locator(".plot svg.main-svg").count() >= 6, "every plot is drawn"
    assert page.locator("#plot-curves .scatterlayer .trace").count() == 24
    assert page.locator("#plot-timeline .barlayer .point").count() == 24
    for place in range(plots.count()):
        box = plots.nth(place).bounding_box()
        assert box is not None
        assert box["height"] >= 150

    assert "won with val_mAP50" in page.locator("#verdict .lead").inner_text()
    assert "95% interval" in page.locator("#verdict").inner_text()
    assert page.locator("#trials tr.best").count() == 1
    assert page.locator("h1").count() == 1
    assert page.locator("h2").count() == page.locator("section").count() == page.locator("nav a").count()
    pictures = page.locator(".pictures img")
    assert pictures.count() > 0
    assert pictures.first.evaluate("async one => { await one.decode(); return one.naturalWidth }") == 480

    assert "<script>alert(1)</script>" in page.locator("#classes").inner_text(), "a name, not a script"
    page.locator("#space summary").click()
    assert "train.optim.optimizer is AdamW" in page.locator("#space").inner_text()


@pytest.mark.parametrize("size", WIDTHS, ids=["desk", "phone"])
def test_plain_training(shown: Open, report_runs: ModuleType, tmp_path: Path, size: tuple[int, int]) -> None:
    page = shown(write_report(report_runs.plain_run(tmp_path / "plain")), size)
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    assert too_wide(page) == []
    assert page.locator(".plot svg.main-svg").count() >= 3
    assert "One training, without a search" in page.locator("#verdict .lead").inner_text()


def test_live_page_shows_what_is_written_later(shown: Open, report_runs: ModuleType, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ledger = report_runs.begin(run, 4)
    report_runs.end(ledger, report_runs.train(ledger))
    path = write_report(run, live_since=time.time())
    text = path.read_text(encoding="utf-8").replace('data-reload="20"', 'data-reload="1"')
    path.write_text(text, encoding="utf-8")
    page = shown(path, WIDTHS[0])
    assert "Live since" in page.locator("#live").inner_text()
    assert "1 of 4" in page.locator("#verdict").inner_text()
    report_runs.end(ledger, report_runs.train(ledger))
    write_report(run)
    page.locator("#live").wait_for(state="detached", timeout=PATIENCE_MS)
    assert "2 of 4" in page.locator("#verdict").inner_text()


def test_page_of_a_driver_that_was_killed_says_so(shown: Open, report_runs: ModuleType, tmp_path: Path) -> None:
    run = tmp_path / "run"
    report_runs.begin(run, 4)
    path = write_report(run, live_since=time.time())
    text = path.read_text(encoding="utf-8")
    start = text.index('data-written="') + len('data-written="')
    path.write_text(text[:start] + str(time.time() - 900) + text[text.index('"', start) :], encoding="utf-8")
    page = shown(path, WIDTHS[0])
    assert "Nothing was written for 15 minutes" in page.locator("#live.stale").inner_text()
