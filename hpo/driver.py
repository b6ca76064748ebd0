"""What happens on each event of a sweep: a trial starts, reports, ends, is lost, is stuck. Knows nothing of Ray.

The ledger is told first, then MLflow and the console: what a person sees is on disk already.
"""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from hpo import cube, schedulers
from hpo.budget import Budget, Limit, Meter
from hpo.console import Console
from hpo.diagnosis import FirstEnds
from hpo.errors import DiskFullError
from hpo.faults import first_line, is_disk_full
from hpo.ledger import Ledger
from hpo.result import Outcome, TrialRecord
from hpo.stall import Stall
from hpo.tracking import Tracker
from hpo.trial import ADJUSTED, BEGUN, ERROR_FILE, FINAL, STACK_FILE, TAKEN_OVER
from model.metrics import Measurement
from model.spec import ExperimentSpec

if TYPE_CHECKING:
    from hpo.sweep_spec import SweepSpec

RETRIES = 3
"""How often a trial whose worker died is started again."""
STALLS = 1
"""How often a trial that was stuck is started again."""
SEEDS = 2
"""Further seeds for each trial that is to be confirmed."""
STOP_FILE = "stop"
"""In the run folder: a wish to end the sweep now and keep the best."""
TIME_KEPT_S = 5.0
"""Most seconds of a sweep's time that are not on disk yet."""
LOOK_S = 0.5
"""Seconds between two looks at what may end a sweep or a trial."""
AT_ONCE = ("hours", "gpu_hours", "stop")
"""Limits after which nothing more is trained, not even to confirm the winner."""


class Order(NamedTuple):
    """End this trial."""

    number: int
    pid: int | None = None
    """Kill this process: its trial is stuck, or other trials go on beside it. None: stop it as Tune does."""
    node: str | None = None
    stuck: bool = False
    """Whether it is to say first where it stands."""


@dataclass
class _Run:
    """A trial under way. Times are the driver's own, see `Driver._now`."""

    heard: float
    """When it was last heard of."""
    pid: int | None = None
    node: str | None = None
    silences: list[float] = field(default_factory=list)
    ordered: bool = False
    """Whether its worker was told to end."""


class Driver:
    """Called by the adapters to Ray Tune, from one thread."""

    def __init__(
        self,
        ledger: Ledger,
        spec: ExperimentSpec,
        sweep: "SweepSpec",
        console: Console,
        tracker: Tracker,
        *,
        clock: Callable[[], float] = time.monotonic,
        stall: Stall | None = None,
    ) -> None:
        self.ledger, self._console, self._tracker, self._sweep = ledger, console, tracker, sweep
        self._epochs, self._seed = spec.train.num_epochs, max(spec.train.seed, 0)
        self._rule = schedulers.make(sweep.scheduler, epochs=self._epochs, metric=ledger.metric, seed=ledger.seed)
        self._budget = Budget.of(sweep, ledger.metric, ledger.budget)
        self._finals: dict[int, dict[str, Any]] = {}
        """How running trials said they ended, or why they were told to stop."""
        self._stuck: dict[int, str] = {}
        self._ends = FirstEnds(
            (trial.outcome, trial.reason) for trial in ledger.result().trials if trial.outcome is not None
        )
        self._runs: dict[int, _Run] = {}
        self._stall = stall or Stall()
        self._silences: list[float] = []
        """Seconds between two reports of any trial."""
        self._meter, self._now, self._kept, self._looked = Meter(clock), 0.0, 0.0, 0.0
        self._seconds, self._gpu_seconds = ledger.seconds, ledger.gpu_seconds
        self.gpus = 0.0
        """Of each trial."""
        self._over: Limit | None = None
        self._exploits: set[int] = set()
        """Trials that stop in order to go on from another's checkpoint."""
        self.diagnosis: str | None = None
        self.broken: Exception | None = None
        """What went wrong in the driver itself; it goes through Ray as a value, because Ray would rename it."""

    @property
    def running(self) -> set[int]:
        return set(self._runs)

    @property
    def done(self) -> bool:
        """Whether nothing is left to start, now or after what runs has ended (a lost trial starts again)."""
        return self._halted or self.ledger.ended is not None

    @property
    def _halted(self) -> bool:
        """Whether the sweep stops without being finished, to go on another day."""
        return self.diagnosis is not None or self.broken is not None

    @contextmanager
    def carrying(self) -> Iterator[None]:
        """Keeps an error of the block in `broken`, and with it stops the sweep."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - raised again by `run_sweep`
            if self.broken is None:
                self.broken = self._named(error)

    def start(self) -> int | None:
        """The number of the next trial; None when there is none for now."""
        if self.done:
            return None
        number = self.ledger.next(fresh=not self.ledger.closed and self._over is None and self._full() is None)
        if number is None:
            self.look()
            return None
        self._runs[number] = _Run(heard=self._now)
        trial = self.ledger.record_of(number)
        self._tracker.child(trial)
        self._console.started(trial)
        return number

    def told(self, number: int, message: dict[str, Any]) -> bool:
        """Takes a worker's message. True when the trial should stop."""
        self._pass_time()
        run = self._runs[number]
        begun = message.get(BEGUN)
        if begun is not None:
            run.pid, run.node, run.heard = begun["pid"], begun["node"], self._now
            self.ledger.begun(number, pid=run.pid, node=run.node)
            self._console.placed(number, begun.get("host", ""))
            return self._halted or run.ordered
        if run.pid is not None:
            run.silences.append(self._now - run.heard)
            self._silences.append(run.silences[-1])
        run.heard = self._now
        if ADJUSTED in message:
            self.ledger.adjusted(number, message[ADJUSTED])
            self._console.adjusted(number, message[ADJUSTED])
            return False
        if TAKEN_OVER in message:
            self.ledger.taken_over(number, [Measurement(**one) for one in message[TAKEN_OVER]])
            return False
        final = message.get(FINAL)
        if final is not None:
            for one in final["measurements"]:
                self._measured(number, Measurement(**one))
            self._finals[number] = final
            return False
        if self._halted or run.ordered:
            return True
        return self._measured(number, Measurement(**message)) and self._judged(number, message["seconds"])

    def ended(self, number: int, *, error: str | None = None) -> None:
        """A trial is over: by its own word, by ours, or with `error`, what Tune says of a worker that said nothing."""
        self._pass_time()
        self._runs.pop(number)
        if self.broken is None:
            self.ledger.left(number)
        final = self._finals.pop(number, None)
        stuck = self._stuck.pop(number, None)
        if self.broken is not None or (final is None and self.diagnosis is not None):
            return  # stopped with the sweep: goes on when that is resumed
        if number in self._exploits:
            self._exploits.remove(number)
            self.ledger.again(number)
            return
        crash = self.ledger.folder(number) / ERROR_FILE
        if final is None and stuck is None and crash.exists():
            lines = crash.read_text(encoding="utf-8").strip().splitlines() or ["unknown"]
            final = {"outcome": Outcome.FAILED.value, "reason": f"{lines[-1]} (traceback in {crash})"}
        if final is not None and final.get("disk_full"):
            raise self._disk_full(final["reason"])
        if final is None or final["outcome"] == Outcome.LOST.value:
            said = stuck or (final or {}).get("reason") or _telling_line(error or "") or "the worker went away"
            final = self._lost(number, said, stuck is not None)
        if final is not None:
            self._close(number, final)
        self.look()

    def tick(self) -> list[Order]:
        """Called several times a second: looks at the clock, the stop file and silent trials. Returns whose workers are
        to be ended."""
        self._pass_time()
        if not self._halted and self._now - self._looked >= LOOK_S:
            self._looked = self._now
            self.look()
            self._find_stuck()
        return [self._order(number) for number in self._to_end()]

    def keep_time(self) -> None:
        """Writes the time that the sweep has taken so far."""
        self._pass_time()
        self._kept = self._now
        self.ledger.keep_time(self._seconds, self._gpu_seconds)

    def _pass_time(self) -> None:
        step = self._meter.step()
        self._now += step
        self._seconds += step
        self._gpu_seconds += step * self.gpus * sum(run.pid is not None for run in self._runs.values())
        if self._now - self._kept >= TIME_KEPT_S and self.broken is None:
            self._kept = self._now
            self.ledger.keep_time(self._seconds, self._gpu_seconds)

    # Endings of the sweep

    def look(self) -> None:
        """Whether a budget is used up; closes what waits and nobody will run, and in the end the search itself."""
        if self.done:
            return
        self.ledger.seconds, self.ledger.gpu_seconds = self._seconds, self._gpu_seconds
        if self._over is None:
            self._over = self._budget.over(self.ledger.spent)
            if (self.ledger.run_dir / STOP_FILE).exists():
                self._over = Limit("stop", "stopped by `ddetr stop`")
            if self._over is not None:
                self._console.note(f"the search ends: {self._over.text}")
        if self._over is not None:
            for number in self.ledger.waiting:
                if number not in self._reaching():
                    self.ledger.give_up(number)
                    self._close(number, self._cut_short())
        if not self._runs and not self.ledger.waiting:
            self._end_search()

    def _end_search(self) -> None:
        limit = self._over or self._full()
        if limit is None and self.ledger.exhausted:
            limit = Limit("space", f"all {len(self.ledger.curves)} configurations of the space were tried")
        if limit is None and not self.ledger.closed:
            return
        if self._sweep.confirm and not self.ledger.closed and not (limit is not None and limit.name in AT_ONCE):
            self._confirm()
            if self.ledger.waiting:
                return
        self.keep_time()
        self.ledger.end("confirmed" if limit is None else limit.text, self._budget.lines(self.ledger.spent))

    def _confirm(self) -> None:
        """Queues the best trials, and the default beside them, with other seeds."""
        result = self.ledger.result()
        chosen = [trial.number for trial in result.ranked()[: self._sweep.confirm]]
        if result.baseline in result.contenders:
            chosen = list(dict.fromkeys([*chosen, 0]))
        if chosen:
            shown = ", ".join(f"trial {number}" for number in chosen)
            self._console.note(f"running again with {SEEDS} other seeds each: {shown}")
            self.ledger.confirm(chosen, [self._seed + place for place in range(1, SEEDS + 1)])

    def _full(self) -> Limit | None:
        committed = sum(self._epochs - max(self.ledger.curve(number), default=0) for number in self._open())
        return self._budget.full(self.ledger.spent, committed=committed, epochs=self._epochs)

    def _open(self) -> list[int]:
        """Configurations under way or waiting to go on."""
        return [number for number in {*self._runs, *self.ledger.waiting} if number not in self.ledger.repeats]

    def _reaching(self) -> set[int]:
        """The trials that may end by themselves when the rest stops: the one that reached the target."""
        if self._over is None or self._over.name != "target":
            return set()
        best = self.ledger.spent.best
        return {number for number, curve in self.ledger.curves.items() if best in curve.values()}

    def _cut_short(self) -> dict[str, Any]:
        assert self._over is not None
        return {"outcome": Outcome.PRUNED.value, "reason": f"the search ended: {self._over.text}"}

    def _to_end(self) -> list[int]:
        if not self._halted and self._over is None and not self._stuck:
            return []
        spared = self._reaching()
        return [
            number
            for number, run in self._runs.items()
            if not run.ordered
            and (self._halted or number in self._stuck or (self._over is not None and number not in spared))
        ]

    def _order(self, number: int) -> Order:
        run = self._runs[number]
        run.ordered = True
        if number not in self._stuck and not self._halted:
            self._finals.setdefault(number, self._cut_short())
        if number in self._stuck or self._reaching():
            return Order(number, run.pid, run.node, number in self._stuck)
        return Order(number)

    def _find_stuck(self) -> None:
        for number, run in self._runs.items():
            silent = self._now - run.heard
            if run.pid is None or number in self._stuck or silent <= self._stall.limit(run.silences, self._silences):
                continue
            self._stuck[number] = (
                f"no progress for {silent:.0f} s, when it had reported every {max(self._silences, default=0.0):.0f} s "
                f"at most (its stack is in {self.ledger.folder(number) / STACK_FILE})"
            )

    # Endings of a trial

    def _judged(self, number: int, seconds: float) -> bool:
        """Whether the scheduler stops the trial after its last epoch."""
        self.look()
        if number in self.ledger.repeats or number in self._reaching():
            return False
        verdict = self._rule.judge(number, self.ledger.curves)
        if verdict.action == "go":
            return False
        if verdict.action == "exploit":
            assert verdict.parent is not None
            self._exploit(number, verdict.parent)
        else:
            self._finals[number] = {"outcome": Outcome.PRUNED.value, "seconds": seconds}
        return True

    def _exploit(self, number: int, parent: int) -> None:
        """Lets the trial go on from another's checkpoint, with a mutation of the other's values."""
        draws = cube.generator("mutate", self.ledger.seed, number, max(self.ledger.curve(number)))
        self.ledger.exploit(number, parent, lambda theirs, space: self._rule.mutate(number, theirs, space, draws))
        self._exploits.add(number)
        self._console.note(f"trial {number} goes on from the checkpoint of trial {parent}, with its values changed")

    def _lost(self, number: int, said: str, stuck: bool) -> dict[str, Any] | None:
        """Puts the trial back in the queue; or its end, when that has not helped."""
        most = STALLS if stuck else RETRIES
        losses = self.ledger.lose(number, "stalls" if stuck else "losses")
        what = "was stuck" if stuck else "its worker was lost"
        self._console.note(f"trial {number}: {what} ({losses}, tried again {most} times at most): {said}")
        if losses <= most:
            return None
        self.ledger.give_up(number)
        return {"outcome": Outcome.LOST.value, "reason": said}

    def _close(self, number: int, final: dict[str, Any]) -> None:
        outcome = Outcome(final["outcome"])
        reason = final.get("reason")
        if outcome is Outcome.COMPLETED and not self.ledger.curve(number):
            outcome, reason = Outcome.FAILED, f"the training reported no {self.ledger.metric.name}"
        facts = {name: final.get(name) for name in ("adjustments", "seconds", "checkpoint", "costs")}
        if facts["checkpoint"] is None and (self.ledger.folder(number) / "model_best.pth").exists():
            facts["checkpoint"] = f"trials/{number}/model_best.pth"
        if self.gpus:
            facts |= {"gpus": self.gpus, "sweep_gpu_seconds": round(self._gpu_seconds, 3)}
        trial = self.ledger.finish(number, outcome, reason=reason, **facts)
        self._tracker.finish(trial)
        self._tracker.progress(self.ledger.result())
        self._console.ended(trial)
        self._diagnose(trial)

    def _measured(self, number: int, measurement: Measurement) -> bool:
        if not self.ledger.record(number, measurement):
            return False
        self._tracker.log(number, measurement)
        self._console.measured(number, measurement)
        return True

    def _diagnose(self, trial: TrialRecord) -> None:
        assert trial.outcome is not None
        said = self._ends.add(trial.outcome, trial.reason)
        if said is not None:
            self.diagnosis = f"{said}. When that is mended, `ddetr resume {self.ledger.run_dir}` goes on."

    def _named(self, error: Exception) -> Exception:
        return self._disk_full(str(error)) if is_disk_full(error) else error

    def _disk_full(self, said: str) -> DiskFullError:
        run = self.ledger.run_dir
        return DiskFullError(
            f"the disk of {run} must have room for checkpoints and the study, but it is full ({first_line(said)}); "
            f"free some, for example old runs in {run.parent}, then `ddetr resume {run}` goes on without a loss."
        )


def _telling_line(text: str) -> str:
    """The line of Tune's long text that names an exception, else the first."""
    named = [re.match(r"(?:\w+\.)*(\w+(?:Error|Exception): .*)", line) for line in text.splitlines()]
    return next((found[1] for found in named if found), first_line(text))
