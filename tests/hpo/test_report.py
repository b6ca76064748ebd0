"""The report of runs in every state: what it says, that names stay names, that it needs nothing but the folder."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hpo.errors import RunError
from hpo.ledger import Ledger
from hpo.reporting.facts import read_facts
from hpo.reporting.importance import importance_of
from hpo.reporting.live import LiveReport
from hpo.reporting.markdown import escape
from hpo.reporting.names import short_names
from hpo.reporting.report import page_of, write_report
from hpo.reporting.verdict import over_seeds
from hpo.result import Outcome

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def runs() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        import report_runs

        yield report_runs


@pytest.fixture(scope="module")
def finished(runs: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search with its report, for all to look at; its very name wants to be markup."""
    run: Path = runs.finished_search(tmp_path_factory.mktemp("search") / "run & <i>")
    write_report(run)
    return run


class Reader(HTMLParser):
    """Elements, and the text that a person sees."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.seen: list[str] = []
        self._silent = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._silent = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._silent = False

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.seen.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.seen).split())

    def ids(self) -> list[str]:
        return [attrs["id"] or "" for tag, attrs in self.elements if tag == "section"]


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader


def figures(path: Path) -> dict[str, Any]:
    found = re.findall(
        r'<script type="application/json" data-plot="plot-(.*?)">(.*?)</script>', path.read_text(encoding="utf-8")
    )
    return {name: json.loads(text) for name, text in found}


def test_finished_search_is_told_whole(finished: Path) -> None:
    run, path = finished, finished / "report.html"
    page, text = read(path), read(path).text
    assert page.ids() == [
        "verdict", "trials", "curves", "parameters", "costs", "classes", "images", "files", "failures", "workers",
        "spent", "space", "next",
    ]  # fmt: skip
    result = read_facts(run).result
    assert result.best is not None
    assert result.verdict() in text
    assert "Over validation images, the gain in mAP50 is" in text
    assert "with a 95% interval" in text
    assert "On the test images, which chose nothing: mAP50 0.4200, the default's 0.3100 (+0.1100)." in text
    assert "3 of 18 trainings broke off" in text
    assert "out of memory: 6 GB do not fit 6, 11" in text, "two trials of one cause are one row"
    assert "train.optim.optimizer is AdamW" in text
    assert "model.onnx 2.1 MB 0.4398 0.4319 −0.0002 9.5 ms" in text  # noqa: RUF001
    assert "model.engine 3.1 MB not measured not measured" in text
    assert "INT8: loses too much" in text
    assert "ddetr evaluate --from '" in text, "quoted, as the shell needs it"
    assert "Live since" not in text
    plots = figures(path)
    assert plots.keys() == {
        "curves", "parallel", "importance", "front-seconds", "precision-recall", "timeline"
    }  # fmt: skip
    assert len(plots["curves"]["data"]) == 18
    assert {bar["y"][0] for bar in plots["timeline"]["data"]} == {"pid 4000", "pid 4001"}
    images = [attrs["src"] or "" for tag, attrs in page.elements if tag == "img"]
    assert len(images) == len(list((run / "evaluation/pictures").glob("*.jpg"))) > 0
    assert all(source.startswith("data:image/jpeg;base64,") for source in images)


def test_log_axes_where_the_space_is(finished: Path) -> None:
    plot = figures(finished / "report.html")["parallel"]
    ticks = {(note["x"], note["text"]): note["y"] for note in plot["layout"]["annotations"]}
    assert ticks[0, "2e-05"] == 0
    assert ticks[0, "0.0001"] == pytest.approx(0.3495, abs=1e-3)
    assert ticks[1, "0.2"] == 0.5
    assert (ticks[3, "AdamW"], ticks[3, "SGD"]) == (0, 1)
    by_name = {line["name"]: line["y"] for line in plot["data"]}
    assert by_name["default"][:4] == pytest.approx([0.5, 0.75, 0.25, 0.0])


def test_names_from_data_are_never_markup(runs: ModuleType, finished: Path) -> None:
    path = finished / "report.html"
    page, whole = read(path), path.read_text(encoding="utf-8")
    assert runs.EVIL in page.text, "it is there, as text"
    assert runs.EVIL not in whole
    assert sum(tag == "script" for tag, _ in page.elements) == len(figures(path)) + 2
    assert not [tag for tag, _ in page.elements if tag in ("i", "b")]
    for plot in figures(path).values():
        assert runs.EVIL not in json.dumps(plot), "plotly reads some HTML in its texts"
    twin = (finished / "report.md").read_text(encoding="utf-8")
    assert "<script" not in twin
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in twin


def test_nothing_is_loaded_from_elsewhere(finished: Path) -> None:
    page = read(finished / "report.html")
    for tag, attrs in page.elements:
        for name in ("src", "href", "srcset", "action", "data"):
            value = attrs.get(name) or "#"
            assert value.startswith(("#", "data:")), (tag, value[:80])
    policy = next(attrs["content"] for tag, attrs in page.elements if attrs.get("http-equiv"))
    assert (policy or "").startswith("default-src 'none'")


def test_rebuilt_from_the_folder_alone_without_torch(finished: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(finished, moved)
    for name in ("report.html", "report.md"):
        (moved / name).unlink()
    code = (
        "import sys; from hpo.cli import main; code = main(['report', sys.argv[1]]);"
        "sys.exit(code or ('torch' in sys.modules) or ('ray' in sys.modules) or ('mlflow' in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code, str(moved)], check=True, cwd=HERE.parent.parent)
    assert figures(moved / "report.html") == figures(finished / "report.html")
    before, after = (read(run / "report.html") for run in (finished, moved))
    assert before.ids() == after.ids()
    assert [each for each in before.elements if each[0] == "img"] == [
        each for each in after.elements if each[0] == "img"
    ]
    assert len((moved / "report.md").read_text()) > 4000


def test_plain_training_gets_what_applies(runs: ModuleType, tmp_path: Path) -> None:
    path = write_report(runs.plain_run(tmp_path / "plain"))
    page = read(path)
    assert page.ids() == ["verdict", "curves", "classes", "images", "files", "spent", "next"]
    assert "One training, without a search: val_mAP50 0.4000 at epoch 4." in page.text
    assert "default" not in page.text
    assert "ddetr resume" not in page.text
    assert figures(path).keys() == {"curves", "losses", "precision-recall"}
    going = read(write_report(runs.plain_run(tmp_path / "going", finished=False), live_since=time.time()))
    assert going.ids() == ["verdict", "curves", "spent", "next"]
    assert "at epoch 2 so far." in going.text


def test_sweep_without_a_trial(runs: ModuleType, tmp_path: Path) -> None:
    runs.begin(tmp_path / "run")
    path = write_report(tmp_path / "run", live_since=time.time())
    page = read(path)
    assert "So far no trial has measured anything." in page.text
    assert "No trial has begun." in page.text
    assert page.ids() == ["verdict", "trials", "parameters", "spent", "space", "next"]
    assert figures(path) == {}
    assert path.stat().st_size < 100_000, "without a plot there is no plotting library"


def test_all_failed(runs: ModuleType, tmp_path: Path) -> None:
    ledger: Ledger = runs.begin(tmp_path / "run", 3)
    for number in range(3):
        runs.end(ledger, runs.train(ledger, 0), Outcome.FAILED, reason=f"ValueError: trial {number} of data")
    ledger.end("3 of 3 trials", [])
    path = write_report(tmp_path / "run")
    text = read(path).text
    assert "No trial completed: there is no winner." in text
    assert "failed 3 ValueError: trial 0 of data 0, 1, 2" in text
    assert "ddetr resume" in text
    assert figures(path).keys() == {"timeline"}


def test_live_page_says_so_and_reloads(runs: ModuleType, tmp_path: Path) -> None:
    ledger = runs.begin(tmp_path / "run", 4)
    runs.end(ledger, runs.train(ledger, value=0.4))
    runs.train(ledger, 2, value=0.9)
    runs.train(ledger, 2, value=0.3)
    path = write_report(tmp_path / "run", live_since=time.time())
    page = read(path)
    assert "Live since" in page.text
    assert "location.reload()" in path.read_text(encoding="utf-8")
    assert "ddetr stop" in page.text
    assert "So far the default leads the trials that have ended, with val_mAP50 0.3750." in page.text
    assert "Still running: trial 1 has 0.6750." in page.text
    assert "location.reload()" not in write_report(tmp_path / "run").read_text(encoding="utf-8")


def test_markdown_twin_says_the_same(finished: Path) -> None:
    run = finished
    page = page_of(read_facts(run))
    twin = (run / "report.md").read_text(encoding="utf-8")
    assert [line[3:] for line in twin.splitlines() if line.startswith("## ")] == [
        section.title for section in page.sections
    ]
    assert escape(read_facts(run).result.verdict()) in twin
    pictures = re.findall(r"\]\(<(.*?)>\)", twin)
    assert pictures
    assert all((run / picture).is_file() for picture in pictures)
    for line in twin.splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) in {3, 4, 5, 6, 9, 13}, line


def test_interval_over_seeds_is_welchs(runs: ModuleType, tmp_path: Path) -> None:
    """Means 0.5 and 0.4 of three seeds each, both with a standard deviation of 0.02: the error of the difference is
    0.02 * sqrt(2 / 3), with four degrees of freedom, where t is 2.7764."""
    run = runs.confirmed_search(tmp_path / "run")
    facts = read_facts(run)
    found = over_seeds(facts)
    assert found is not None
    scale = 1 - 0.5**4
    interval, seeds = found
    half = 2.7764 * 0.02 * (2 / 3) ** 0.5 * scale
    assert interval == pytest.approx((0.1 * scale, 0.1 * scale - half, 0.1 * scale + half), abs=1e-5)
    assert seeds == (3, 3)
    text = read(write_report(run)).text
    assert "Over seeds, the gain is +0.0938 with a 95% interval" in text
    assert "4 further trainings repeat some of these with other seeds." in text
    assert facts.result.default_to_compare is None


def test_no_interval_is_said(runs: ModuleType, tmp_path: Path) -> None:
    ledger = runs.begin(tmp_path / "run", 2)
    for value in (0.4, 0.5):
        runs.end(ledger, runs.train(ledger, value=value))
    ledger.end("2 of 2 trials", [])
    assert "No interval is known" in read(write_report(tmp_path / "run")).text


def test_importance_from_twelve_full_trials_on(runs: ModuleType, finished: Path) -> None:
    facts = read_facts(finished)
    assert facts.importance is not None
    assert facts.importance.trials == 12
    shares = dict(facts.importance.shares)
    assert shares.keys() == {parameter.name for parameter in runs.SPACE.parameters}
    assert sum(shares.values()) == pytest.approx(1)
    assert max(shares, key=lambda name: shares[name]) == runs.LR, "the only one that the value depends on"
    fewer = importance_of(replace(facts.result, trials=facts.result.trials[:-1]), runs.SPACE)
    assert fewer.shares == ()
    assert "from 12 full trials on; there are 11" in (fewer.why_not or "")
    assert importance_of(facts.result, runs.SPACE, population=True).shares == ()


def test_every_plot_is_one_by_plotlys_own_rules(runs: ModuleType, finished: Path, tmp_path: Path) -> None:
    graphs = pytest.importorskip("plotly.graph_objects")
    for path in (finished / "report.html", write_report(runs.plain_run(tmp_path / "plain"))):
        for plot in figures(path).values():
            graphs.Figure(data=plot["data"], layout=plot["layout"])


def test_no_run_in_the_folder(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds no spec\.yaml"):
        write_report(tmp_path)


def test_short_names_stay_apart() -> None:
    names = ["train.optim.lr", "train.optim.lr_backbone/lr", "model.a.size", "model.b.size", "size"]
    assert short_names(names) == {
        "train.optim.lr": "lr",
        "train.optim.lr_backbone/lr": "lr_backbone/lr",
        "model.a.size": "a.size",
        "model.b.size": "b.size",
        "size": "size",
    }


def test_trouble_of_the_report_is_told_once_and_stops_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    live = LiveReport(tmp_path, said.append, every_s=0.02)  # there is no run
    live.start()
    time.sleep(0.3)
    live.close()
    assert len(said) == 1
    assert said[0].startswith("no report for now: RunError")
    assert "`ddetr report" in said[0]


def test_live_report_is_written_and_ends_as_no_longer_live(runs: ModuleType, tmp_path: Path) -> None:
    runs.end(ledger := runs.begin(tmp_path / "run", 4), runs.train(ledger))
    live = LiveReport(tmp_path / "run", print, every_s=0.05)
    live.start()
    deadline = time.monotonic() + 250
    while not (tmp_path / "run/report.html").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert "Live since" in read(tmp_path / "run/report.html").text
    live.close()
    assert "Live since" not in read(tmp_path / "run/report.html").text
