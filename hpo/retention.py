"""Which checkpoints of a finished search stay. Knows a run's files; deletes nothing before its winner is handed over.

The best trials keep everything, so that their training can go on; every other trial keeps its best checkpoint. What
is deleted follows from the study alone, so a run that was interrupted here is tidied by doing it again.
"""

from pathlib import Path

from hpo.result import TrialRecord, read_result
from hpo.runs import HANDOFF, read_sweep
from hpo.sweep_spec import SweepSpec
from hpo.trial import LATEST, NUMBERED

LEFTOVERS = ("*.unreadable", ".*.partial", ".*.taken")


def tidy(run_dir: Path, *, keep: int | None = None) -> str | None:
    """Deletes the last checkpoints of all but the `keep` best trials (None: `automl.keep` of the run). Returns a line
    that says so; None when there was nothing to do, or no winner has been handed over yet."""
    result = read_result(run_dir)
    if not result.finished or not (run_dir / HANDOFF).is_file():
        return None
    if keep is None:
        keep = int(read_sweep(run_dir).get("keep") or SweepSpec().keep)
    stay = {trial.number for trial in (*result.ranked()[:keep], *(result.pareto if result.goals else ()))}
    removed: list[int] = []
    touched = set()
    for trial in (*result.trials, *result.repeats):
        for path in _spare(run_dir, trial, trial.number in stay):
            removed.append(0 if path.is_symlink() else path.stat().st_size)
            path.unlink()
            touched.add(trial.number)
    if not removed:
        return None
    kept = ", ".join(map(str, sorted(stay)))
    return (
        f"removed the last checkpoints of {len(touched)} trials ({sum(removed) / 1e6:.0f} MB), not those of the best "
        f"({kept}); every trial keeps its best one"
    )


def _spare(run_dir: Path, trial: TrialRecord, stays: bool) -> list[Path]:
    folder = run_dir / "trials" / str(trial.number)
    found = [path for pattern in LEFTOVERS for path in folder.glob(pattern)]
    if not stays:
        found += [*folder.glob(NUMBERED), folder / LATEST]
    # Where nothing was validated the last checkpoint is the best one too.
    own = None if trial.checkpoint is None else trial.checkpoint.resolve()
    return [path for path in found if (path.is_symlink() or path.exists()) and path.resolve() != own]
