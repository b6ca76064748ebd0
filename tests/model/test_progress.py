"""How far work is: to the listener of this thread and process, and to nobody else."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from model.data.sources import local
from model.progress import Work, heard_by, progress, start, track


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.progress.EVERY_S", 0.0)


def test_items_pass_unchanged_and_are_counted_by_size(heard: Any) -> None:
    with heard_by(heard):
        assert list(track(["a", "bcd", "ef"], "reading", 6, "letters", size=len)) == ["a", "bcd", "ef"]
    assert heard.begins == [Work("reading", "letters", 6)]
    assert [work.done for work in heard.moves] == [1, 4, 6, 6]
    assert heard.ends == [Work("reading", "letters", 6, 6)]


def test_silent_without_a_listener_and_after_its_block(heard: Any) -> None:
    with heard_by(heard):
        pass
    assert list(track(range(3), "counting")) == [0, 1, 2]
    with progress("working") as counting:
        counting.advance(5, "half")
    assert heard.begins == heard.moves == heard.ends == []


def test_an_error_ends_the_work_too(heard: Any) -> None:
    def broken() -> None:
        with progress("working", 3) as counting:
            counting.advance()
            raise KeyError

    with heard_by(heard), pytest.raises(KeyError):
        broken()
    assert [work.done for work in heard.ends] == [1]


def test_other_threads_and_processes_are_silent(heard: Any) -> None:
    with heard_by(heard):
        thread = threading.Thread(target=lambda: list(track(range(3), "in a thread")))
        thread.start()
        thread.join()
        child = os.fork()
        if child == 0:
            list(track(range(3), "in a child"))
            os._exit(len(heard.begins))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert heard.begins == []


def test_a_listener_is_spared_what_nobody_could_read(heard: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("model.progress.time.monotonic", lambda: now[0])
    monkeypatch.setattr("model.progress.EVERY_S", 1.0)
    with heard_by(heard):
        counting = start("working", 100)
        for _ in range(100):
            now[0] += 0.125
            counting.advance()
        counting.close()
    assert [work.done for work in heard.moves] == [*range(8, 97, 8), 100]


def test_preparing_data_is_told(
    heard: Any, digits_spec: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model.data.cache import open_images
    from model.data.datamodule import CocoDataModule
    from model.spec import ExperimentSpec

    monkeypatch.setenv("DDETR_CACHE", str(tmp_path / "cache"))
    with heard_by(heard):
        local(digits_spec["dataset"]["train_data_sources"][0]["image_dir"])
        index = CocoDataModule(ExperimentSpec.from_dict(digits_spec), cpus=1).train_index
        open_images(index.images)
    found = {work.what: work.done for work in heard.ends}
    assert found["unpacking images.tar.gz"] == len(index.images)
    assert found["decoding into the cache"] == len(index.images)


def test_a_training_tells_steps_epochs_and_metric(heard: Any, digits_spec: dict[str, Any], tmp_path: Path) -> None:
    from model.spec import ExperimentSpec
    from model.train import train

    digits_spec["train"] = {"num_epochs": 2, "activation_checkpoint": False}
    with heard_by(heard):
        result = train(ExperimentSpec.from_dict(digits_spec), tmp_path, cpus=1)
    steps = [work for work in heard.moves if work.what == "training"]
    assert [work.total for work in steps] == [6] * len(steps)
    assert sorted({work.done for work in steps}) == [0, 1, 2, 3, 4, 5, 6]
    first = result.measurements[0].values["val_mAP50"]
    assert f"epoch 2 of 2, val_mAP50 {first:.4f}" in [work.note for work in steps]
    assert "validating epoch 1 of 2" in [work.note for work in steps]
    assert [work.done for work in heard.ends if work.what == "training"] == [6]
