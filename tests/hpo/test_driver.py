"""The driver without Ray: budgets, the clock, silence, repeats with other seeds, and what a restart finds."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console as RichConsole

from hpo.budget import LONGEST_STEP_S
from hpo.console import Lines
from hpo.driver import SEEDS, STALLS, STOP_FILE, Driver, Order
from hpo.errors import DiskFullError
from hpo.ledger import Ledger
from hpo.result import Outcome, SweepResult, read_result
from hpo.stall import Stall
from hpo.sweep_spec import SweepSpec
from hpo.tracking import Tracker
from model.metrics import VAL_MAP50
from model.spec import ExperimentSpec
from search_spaces.space import SearchSpace

EPOCHS = 8


class Silent:
    """A tracker of nothing."""

    def child(self, trial: Any) -> None: ...
    def log(self, number: int, measurement: Any) -> None: ...
    def finish(self, trial: Any) -> None: ...
    def progress(self, result: Any) -> None: ...


class Play:
    """A sweep played by hand: trials of 8 epochs whose values are given, on a clock that is set."""

    def __init__(self, run: Path, space: SearchSpace, stall: Stall | None = None, **block: Any) -> None:
        self.run, self.space, self.now, self.stall = run, space, 0.0, stall
        self.spec = ExperimentSpec.from_dict({"train": {"num_epochs": EPOCHS, "seed": 3}})
        self.sweep = SweepSpec(**{"searcher": "random", "scheduler": "none", **block})
        self.said = io.StringIO()
        run.mkdir(exist_ok=True)
        Ledger.create(
            run,
            self.spec,
            space,
            searcher="random",
            seed=1,
            budget=self.sweep.trials,
            points=(),
            metric=VAL_MAP50,
        )
        self.restart()

    def restart(self) -> None:
        """As after kill -9: nothing but what is on disk."""
        self.ledger = Ledger.open(self.run, self.spec, self.space, "random")
        console = Lines(RichConsole(file=self.said, force_terminal=False, width=300))
        self.driver = Driver(
            self.ledger, self.spec, self.sweep, console, Silent(), clock=lambda: self.now, stall=self.stall  # type: ignore[arg-type]
        )  # fmt: skip
        self.driver.look()

    def wait(self, seconds: float) -> list[Order]:
        """Time passes as a driver sees it, in steps of a second."""
        orders = []
        for _ in range(int(seconds)):
            self.now += 1.0
            orders += self.driver.tick()
        return orders

    def start(self) -> int | None:
        number = self.driver.start()
        if number is not None:
            self.driver.told(number, {"begun": {"pid": 1000 + number, "node": "here"}})
        return number

    def epoch(self, number: int, value: float, seconds: float = 0.0) -> bool:
        """The next epoch of a trial; whether it is told to stop."""
        self.wait(seconds)
        epoch = max(self.ledger.curve(number), default=0) + 1
        one = {"epoch": epoch, "values": {VAL_MAP50.name: value}, "seconds": 10.0 * epoch, "peak_gpu_bytes": 0}
        return self.driver.told(number, one)

    def end(self, number: int, outcome: str = "completed", **facts: Any) -> None:
        final = {"outcome": outcome, "reason": None, "measurements": [], **facts}
        self.driver.told(number, {"final": final})
        self.driver.ended(number)

    def whole(self, number: int, value: float, seconds: float = 0.0) -> None:
        for _ in range(len(self.ledger.curve(number)), EPOCHS):
            self.epoch(number, value, seconds)
        self.end(number)

    @property
    def result(self) -> SweepResult:
        return read_result(self.run)


def test_a_trial_without_room_for_all_its_epochs_is_not_begun(tmp_path: Path, space: SearchSpace) -> None:
    play = Play(tmp_path / "run", space, total_epochs=27)
    assert [play.start(), play.start(), play.start(), play.start()] == [0, 1, 2, None]
    play.whole(0, 0.2)
    assert play.start() is None, "3 of 27 epochs are not promised to a trial"
    for _ in range(3):
        play.epoch(1, 0.1)
    play.end(1, "pruned")
    assert play.start() == 3, "what a stopped trial did not use is free again"
    play.whole(2, 0.3)
    play.whole(3, 0.3)
    assert play.start() is None
    assert play.driver.done
    assert play.result.finished
    assert play.result.ended == "27 of 27 epochs"
    assert sum(trial.epochs for trial in play.result.trials) == 27
    assert play.result.spent == ("trials: 4 of 20", "epochs: 27 of 27")


def test_deadline_stops_what_runs_and_keeps_its_best(tmp_path: Path, space: SearchSpace) -> None:
    play = Play(tmp_path / "run", space, hours=0.1)
    assert [play.start(), play.start()] == [0, 1]
    for value in (0.1, 0.5, 0.3):
        play.epoch(0, value, seconds=100)
    orders = play.wait(60)
    assert {order.number for order in orders} == {0, 1}
    assert orders[0] == Order(0)
    assert play.start() is None
    play.driver.ended(0, error="the worker died")
    play.driver.ended(1, error="the worker died")
    result = play.result
    assert [trial.outcome for trial in result.trials] == [Outcome.PRUNED, Outcome.PRUNED]
    assert result.trials[0].value(VAL_MAP50) == 0.5
    assert "0.1 hours" in (result.trials[0].reason or "")
    assert result.finished
    assert result.best is result.trials[0], "where none completed, the one that was trained longest"
    assert "after 3 epochs (none completed)" in result.verdict()


def test_time_of_earlier_sessions_counts(tmp_path: Path, space: SearchSpace) -> None:
    play = Play(tmp_path / "run", space, hours=0.1)
    assert play.start() == 0
    play.epoch(0, 0.1, seconds=200)
    play.now = 1e9  # the next driver's clock has nothing to do with this one's
    play.restart()
    assert 190 <= play.ledger.seconds <= 200, "five seconds may be lost"
    assert play.start() == 0, "it goes on"
    play.wait(100)
    assert not play.driver.done
    play.wait(70)
    play.driver.ended(0, error="killed")
    assert play.result.finished
    assert "hours: 0.1" in play.result.spent[1]


def test_deadline_that_passed_before_a_restart(tmp_path: Path, space: SearchSpace) -> None:
    play = Play(tmp_path / "run", space, hours=0.1)
    assert [play.start(), play.start()] == [0, 1]
    play.epoch(1, 0.4, seconds=355)
    play.wait(20)
    play.restart()
    assert play.driver.done
    assert [trial.outcome for trial in play.result.trials] == [Outcome.PRUNED, Outcome.PRUNED]


@pytest.mark.parametrize("leap", [-1e9, 1e9])
def test_a_clock_that_jumps_changes_no_deadline(tmp_path: Path, space: SearchSpace, leap: float) -> None:
    play = Play(tmp_path / "run", space, hours=1.0)
    assert play.start() == 0
    play.epoch(0, 0.1, seconds=100)
    play.now += leap
    assert play.wait(100) == []
    assert not play.driver.done
    assert 199 <= play.driver._seconds <= 201 + LONGEST_STEP_S


def test_gpu_hours(tmp_path: Path, space: SearchSpace) -> None:
    play = Play(tmp_path / "run", space, gpu_hours=0.1)
    play.driver.gpus = 2.0
    assert [play.start(), play.start()] == [0, 1]
    assert play.wait(85) == []
    assert {order.number for order in play.wait(10)} == {0, 1}, "360 s on four GPUs"


def test_target_lets_its_trial_finish(tmp_path: Path, space: SearchSpace) -> None:
    play = Play(tmp_path / "run", space, target=0.6)
    assert [play.start(), play.start()] == [0, 1]
    play.epoch(0, 0.3)
    assert not play.epoch(1, 0.7)
    assert play.wait(2) == [Order(0, 1000, "here")], "no waiting for an epoch to end beside one that trains"
    play.driver.ended(0, error="killed")
    assert play.start() is None
    assert not play.driver.done
    play.restart()
    assert play.start() == 1, "also after a restart"
    play.whole(1, 0.65)
    assert play.driver.done
    assert [trial.outcome for trial in play.result.trials] == [Outcome.PRUNED, Outcome.COMPLETED]
    assert play.result.ended == "val_mAP50 0.7000 for a target of 0.6"


def test_patience_counts_trials_without_a_better_one(tmp_path: Path, space: SearchSpace) -> None:
    play = Play(tmp_path / "run", space, patience=2)
    for place, value in enumerate((0.5, 0.4, 0.6, 0.3)):
        assert play.start() == place
        play.whole(place, value)
    assert [play.start(), play.start()] == [4, 5]
    play.whole(4, 0.2)
    assert play.start() is None
    play.whole(5, 0.7)
    assert play.start() == 6, "one that ran already was better after all"


def test_stop_file(tmp_path: Path, space: SearchSpace) -> None:
    play = Play(tmp_path / "run", space, confirm=1)
    assert [play.start(), play.start()] == [0, 1]
    play.epoch(0, 0.3)
    (play.run / STOP_FILE).touch()
    assert {order.number for order in play.wait(2)} == {0, 1}
    assert play.epoch(0, 0.9) is True, "a report that was on its way"
    play.driver.ended(0)
    play.driver.ended(1)
    assert play.result.finished
    assert play.result.ended == "stopped by `ddetr stop`"
    assert play.result.repeats == (), "nothing more is trained"


def test_stuck_trial_is_tried_again_once(tmp_path: Path, space: SearchSpace) -> None:
    play = Play(tmp_path / "run", space, stall=Stall(at_least=5, own=2, peers=3))
    assert [play.start(), play.start()] == [0, 1]
    assert play.wait(20) == [], "nobody knows how long an epoch takes"
    play.epoch(0, 0.1)
    play.epoch(0, 0.1, seconds=10)
    assert play.wait(29) == [], "one took 20 s to its first report: twice that, or three times for another"
    for attempt in range(STALLS + 1):
        orders = play.wait(65)
        assert Order(1, 1001, "here", True) in orders
        play.driver.ended(1, error="ActorDiedError: killed")
        if attempt < STALLS:
            assert play.result.trials[1].outcome is None
            assert play.start() == 1
    trial = play.result.trials[1]
    assert trial.outcome is Outcome.LOST
    assert "no progress for 61 s, when it had reported every 20 s at most" in (trial.reason or "")
    assert "stack.txt" in (trial.reason or "")


def test_worker_trouble_of_the_machine_is_no_failure(tmp_path: Path, space: SearchSpace) -> None:
    play = Play(tmp_path / "run", space)
    assert play.start() == 0
    play.end(0, "lost", reason="WorkerDied: a data process went away")
    assert play.result.trials[0].outcome is None
    assert play.start() == 0


def test_full_disk_stops_the_sweep_and_loses_nothing(tmp_path: Path, space: SearchSpace) -> None:
    play = Play(tmp_path / "run", space)
    assert [play.start(), play.start()] == [0, 1]
    with play.driver.carrying():
        play.end(0, "lost", reason="OSError: [Errno 28] No space left on device", disk_full=True)
    assert isinstance(play.driver.broken, DiskFullError)
    assert "ddetr resume" in str(play.driver.broken)
    assert [order.number for order in play.wait(1)] == [1]
    play.driver.ended(1, error="killed")
    assert play.driver.done
    assert [trial.outcome for trial in play.result.trials] == [None, None]
    play.restart()
    assert [play.start(), play.start()] == [0, 1]


def test_error_of_the_driver_itself(tmp_path: Path, space: SearchSpace) -> None:
    play = Play(tmp_path / "run", space)
    with play.driver.carrying():
        raise OSError(28, "No space left on device")
    assert isinstance(play.driver.broken, DiskFullError)
    with play.driver.carrying():
        raise KeyError("later")
    assert isinstance(play.driver.broken, DiskFullError), "the first one tells"


def test_pruned_trial_keeps_its_adjustments(tmp_path: Path, space: SearchSpace) -> None:
    play = Play(tmp_path / "run", space)
    assert play.start() == 0
    for _ in range(2):  # again after a lost worker
        play.driver.told(0, {"adjusted": "images at once 4 -> 2 (out of memory)"})
    play.epoch(0, 0.1)
    play.end(0, "pruned")
    assert play.result.trials[0].adjustments == ("images at once 4 -> 2 (out of memory)",)


def test_confirming_changes_the_winner(tmp_path: Path, space: SearchSpace) -> None:
    play = Play(tmp_path / "run", space, trials=4, confirm=2)
    for place, value in enumerate((0.5, 0.9, 0.8, 0.1)):
        assert play.start() == place
        play.whole(place, value)
    assert not play.driver.done
    order = [1, 1, 2, 2, 0, 0]
    values = [0.3, 0.4, 0.8, 0.7, 0.5, 0.6]
    for place, (of, value) in enumerate(zip(order, values, strict=True), start=4):
        if place == 6:
            play.restart()
        assert play.start() == place
        record = play.ledger.record_of(place)
        assert record.repeats == of
        assert record.params == play.ledger.record_of(of).params
        play.whole(place, value)
    assert play.driver.done
    result = play.result
    assert len(result.trials) == 4
    assert len(result.repeats) == 3 * SEEDS
    assert result.best is result.trials[2], "trial 1 was lucky"
    assert result.verdict() == (
        "Trial 2 won with val_mAP50 0.7667 ± 0.0577 of 3 seeds, +0.2333 to the default's 0.5333 ± 0.0577 of 3 seeds."
    )
    seeds = {
        yaml.safe_load((play.run / f"trials/{number}/spec.yaml").read_text())["train"]["seed"] for number in (2, 6, 7)
    }
    assert seeds == {3, 4, 5}
    kept = yaml.safe_load((play.run / "trials/2/spec.yaml").read_text())
    again = yaml.safe_load((play.run / "trials/6/spec.yaml").read_text())
    assert {**kept["train"], "seed": 0} == {**again["train"], "seed": 0}


def test_driver_killed_while_repeats_are_queued(
    tmp_path: Path, space: SearchSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    play = Play(tmp_path / "run", space, trials=2, confirm=1)
    for place, value in enumerate((0.5, 0.9)):
        play.start()
        if place == 0:
            play.whole(place, value)
    real, calls = Ledger._repeat, []

    def dies(self: Ledger, number: int, seed: int) -> None:
        if calls:
            raise KeyboardInterrupt
        calls.append(number)
        real(self, number, seed)

    monkeypatch.setattr(Ledger, "_repeat", dies)
    with pytest.raises(KeyboardInterrupt):
        play.whole(1, 0.9)
    monkeypatch.undo()
    play.restart()
    assert [play.start() for _ in range(5)] == [2, 3, 4, 5, None]
    assert [play.ledger.record_of(number).repeats for number in range(2, 6)] == [1, 1, 0, 0]


def test_sweep_that_is_extended_after_its_end(tmp_path: Path, space: SearchSpace) -> None:
    play = Play(tmp_path / "run", space, trials=2)
    for place in range(2):
        play.whole(play.start() or 0, 0.1 * place)
    assert play.result.finished
    play.restart()
    assert play.start() is None
    play.ledger.extend(3)
    play.restart()
    assert not play.result.finished
    assert [play.start() for _ in range(4)] == [2, 3, 4, None]
    assert len({json.dumps(dict(play.ledger.record_of(number).params)) for number in range(5)}) == 5


def population(play: Play) -> tuple[int, dict[str, Any]]:
    """Eight trials side by side up to the first comparison; the number of the worst, which is told to stop, and the
    values that it had until then."""
    assert [play.start() for _ in range(8)] == list(range(8))
    for number in range(8):
        play.epoch(number, 0.1)
    before = dict(play.ledger.record_of(7).params)
    values = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.1)
    assert [play.epoch(number, value) for number, value in enumerate(values)] == [False] * 7 + [True]
    return 7, before


@pytest.mark.parametrize("killed", [False, True])
def test_worst_of_a_population_goes_on_from_one_of_the_best(tmp_path: Path, space: SearchSpace, killed: bool) -> None:
    play = Play(tmp_path / "run", space, scheduler="pbt")
    worst, before = population(play)
    assert play.result.trials[worst].outcome is None
    if killed:  # after the decision, before the worker was stopped
        play.restart()
        while play.start() != worst:
            pass
    else:
        play.driver.ended(worst)
        assert play.start() == worst
    record = play.ledger.record_of(worst)
    play.space.check(record.sample)
    spec = yaml.safe_load((play.run / f"trials/{worst}/spec.yaml").read_text())
    assert spec["train"]["optim"]["lr"] == pytest.approx(record.params["train.optim.lr"])
    order = json.loads((play.run / f"trials/{worst}/take_over.json").read_text())
    parent = play.ledger.record_of(int(order["parent"].rsplit("/", 1)[1]))
    assert parent.number in (5, 6)
    assert order["serial"] == 1
    assert record.params != parent.params
    assert {name: record.params[name] / parent.params[name] for name in record.params} != dict.fromkeys(
        record.params, 1.0
    )

    # The worker took over three epochs of its parent's; its own two are no longer what the weights come from.
    past = [
        {"epoch": epoch, "values": {VAL_MAP50.name: value}, "seconds": 1.0, "peak_gpu_bytes": 0}
        for epoch, value in ((1, 0.1), (2, 0.8), (3, 0.85))
    ]
    play.driver.told(worst, {"taken_over": past})
    assert play.ledger.curve(worst) == {1: 0.1, 2: 0.8, 3: 0.85}
    play.epoch(worst, 0.86)
    play.restart()
    assert play.ledger.curve(worst) == {1: 0.1, 2: 0.8, 3: 0.85, 4: 0.86}
    after = play.ledger.record_of(worst)
    assert [one.values[VAL_MAP50.name] for one in after.measurements] == [0.1, 0.8, 0.85, 0.86]
    assert after.params == record.params != before
    assert len(play.result.trials) == 8


def test_taking_over_an_earlier_epoch_forgets_the_later_ones(tmp_path: Path, space: SearchSpace) -> None:
    play = Play(tmp_path / "run", space)
    assert play.start() == 0
    for value in (0.1, 0.2, 0.3):
        play.epoch(0, value)
    play.driver.told(0, {"taken_over": [{"epoch": 1, "values": {VAL_MAP50.name: 0.5}, "seconds": 1.0}]})
    assert play.ledger.curve(0) == {1: 0.5}
    assert [one.epoch for one in play.result.trials[0].measurements] == [1]
    play.epoch(0, 0.6)
    play.restart()
    assert play.ledger.curve(0) == {1: 0.5, 2: 0.6}


def test_tracker_stand_in_has_the_real_names() -> None:
    for name in ("child", "log", "finish"):
        assert callable(getattr(Tracker, name))
