"""What a training costs on this machine: a few real steps and validation batches of the real detector on real images.

Knows no search and leaves nothing behind: the steps are run by a process of its own, `model.probe_process`, which takes
its threads, its memory of the GPU, its random numbers and its decoded images with it when it ends.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model import errors, threads
from model.spec import ExperimentSpec

PATIENCE_S = 120.0
"""How long the whole may take before it is given up."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one training, alone on its cores or its GPU."""

    step_seconds: float
    """Of one optimizer step, its data included."""
    val_seconds: float
    """Of one validation batch and its share of the scoring; 0 without validation data."""
    steps: int
    """Of an epoch."""
    val_batches: int
    """Of a validation."""
    weights: int
    """Numbers in the network."""
    per_forward: int
    """Images at once that fitted: below the batch after an out of memory."""
    most_per_forward: int | None = None
    """The largest power of two of images at once that fitted; None where that was not tried."""
    peak_bytes: int = 0
    """Of a GPU's memory, in a training step."""
    rough: bool = False
    """Whether one image was timed and multiplied, because a batch takes long here."""
    device: str = "CPU"

    def epoch_seconds(self, validation_interval: int = 1) -> float:
        return self.steps * self.step_seconds + self.val_batches * self.val_seconds / validation_interval


class ProbeError(RuntimeError):
    """The probe itself did not come to a result; says nothing of the training."""


def measure(
    spec: ExperimentSpec, *, cpus: int, gpu_share: float = 1.0, most: int | None = None, patience: float = PATIENCE_S
) -> Cost:
    """The cost of training `spec` with `cpus` cores and, where there is a GPU, `gpu_share` of its memory.

    most: tries, on a GPU, how many images fit at once, up to this many. Raises the training's own named error when it
    cannot run (OutOfMemory, DataError, ...), and ProbeError when the probe fails otherwise.
    """
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    asked = {"spec": spec.to_dict(), "cpus": cpus, "gpu_share": gpu_share, "most": most}
    with tempfile.TemporaryDirectory(
        prefix="ddetr-probe-"
    ) as scratch:  # ours, so that it goes even if we kill the probe
        try:
            # -P: not the user's folder, where a model.py may lie, but PYTHONPATH comes first on the path.
            ended = subprocess.run(
                [sys.executable, "-P", "-m", "model.probe_process"],
                input=json.dumps({**asked, "scratch": scratch}),
                capture_output=True,
                text=True,
                timeout=patience,
                env={**os.environ, "PYTHONPATH": path, "TMPDIR": scratch, **threads.environment(cpus)},
            )
        except subprocess.TimeoutExpired:
            raise ProbeError(f"a few steps took more than {patience:.0f} seconds") from None
    answer = ended.stdout.strip().rpartition("\n")[2]
    if ended.returncode or not answer.startswith("{"):
        raise ProbeError((ended.stderr.strip() or f"its process ended with code {ended.returncode}").splitlines()[-1])
    said: dict[str, Any] = json.loads(answer)
    if "error" in said:
        named = getattr(errors, said["error"])
        raise named(said["problems"] if "problems" in said else said["text"])
    return Cost(**said)
