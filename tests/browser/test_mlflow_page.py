"""MLflow's own page over the store of a finished search: what the tracker writes is what a person can compare."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, urlencode

import pytest

from hpo.mlflow_store import EXPERIMENT
from hpo.result import SweepResult, read_result
from hpo.tracking import Tracker

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(1800)]

PATIENCE_MS = 240_000
TRIALS = 6


class Served(NamedTuple):
    url: str
    experiment: str
    result: SweepResult
    name: str


@pytest.fixture(scope="module")
def served(report_runs: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A search of six trials, told to an SQLite store by the tracker, and a server over that store."""
    from mlflow import MlflowClient

    root = tmp_path_factory.mktemp("runs")
    run = report_runs.finished_search(root / "digits", TRIALS)
    result = read_result(run)
    uri = f"sqlite:///{root / 'mlflow.db'}"
    tracker = Tracker(root, run.name, uri=uri)
    tracker.begin({"trials": TRIALS, "searcher": "random"})
    tracker.end(result, state="finished")
    found = MlflowClient(uri).get_experiment_by_name(EXPERIMENT)
    assert found is not None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", "127.0.0.1"]
    log = (root / "server.log").open("w")
    server = subprocess.Popen(
        [*command, "--port", str(port), "--workers", "1"],
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(url, server, root / "server.log")
        yield Served(url, str(found.experiment_id), result, run.name)
    finally:
        server.terminate()
        server.wait(60)
        log.close()


def _wait_for(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 240
    while True:
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.5)


@pytest.fixture
def shown(browser: "Browser", served: Served) -> Iterator[Callable[..., "Page"]]:
    """Opens the table of runs, with what follows its address, and waits for so many rows."""
    opened = []

    def show(rows: int, **query: str) -> "Page":
        page = browser.new_page(viewport={"width": 1600, "height": 900})
        page.set_default_timeout(PATIENCE_MS)
        opened.append(page)
        page.goto(f"{served.url}/#/experiments/{served.experiment}/runs?{urlencode(query, quote_via=quote)}")
        wait_for_names(page, rows)
        return page

    yield show
    for page in opened:
        page.close()


NAMES = "[...document.querySelectorAll('.ag-row a[href*=\"/runs/\"]')].map(one => one.innerText.trim())"
SORTED = {"orderByKey": "metrics.`val_mAP50`", "orderByAsc": "false"}


def names(page: "Page") -> list[str]:
    """Of the runs, from above."""
    found: list[str] = page.evaluate(NAMES)
    return found


def wait_for_names(page: "Page", count: int) -> None:
    page.wait_for_function(f"{NAMES}.length === {count}")


def picture(page: "Page", name: str) -> None:
    """For people, where they ask for it."""
    folder = os.environ.get("SHOTS")
    if folder:
        page.screenshot(path=f"{folder}/{name}.png")


def test_children_are_nested_in_their_parent(shown: Callable[..., "Page"], served: Served) -> None:
    page = shown(1)
    assert names(page) == [served.name]
    page.locator(".ag-row", has_text=served.name).locator("button").first.click()
    wait_for_names(page, 1 + TRIALS)
    first, *children = names(page)
    assert first == served.name
    assert sorted(children) == [f"trial-{number:03d}" for number in range(TRIALS)]
    picture(page, "mlflow-nested")


def test_trials_are_sorted_by_the_metric(shown: Callable[..., "Page"], served: Served) -> None:
    page = shown(1 + TRIALS, **SORTED)
    metric = served.result.metric.name
    assert f"Sort: {metric}" in page.inner_text("body")
    # The page sorts by a metric's last value; the parent has none and comes last.
    last = {f"trial-{trial.number:03d}": trial.measurements[-1].values[metric] for trial in served.result.trials}
    assert names(page) == [*sorted(last, key=lambda name: -last[name]), served.name]
    picture(page, "mlflow-sorted")


def test_chart_view_compares_the_trials(shown: Callable[..., "Page"]) -> None:
    """One plot for each metric, and in it a line for each trial."""
    page = shown(1 + TRIALS, **SORTED, compareRunsMode="CHART")
    card = page.locator("[data-testid='experiment-view-compare-runs-card']").filter(
        has=page.get_by_text("val_mAP50", exact=True)
    )
    card.first.scroll_into_view_if_needed()
    card.first.locator(".scatterlayer .trace").nth(TRIALS - 1).wait_for(state="attached")
    legend = card.first.inner_text()
    assert [f"trial-{number:03d} (val_mAP50)" in legend for number in range(TRIALS)] == [True] * TRIALS
    picture(page, "mlflow-charts")
