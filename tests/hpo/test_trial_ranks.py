"""A trial of several processes, inside a worker of Ray: they are started on the trial's spec, not on Ray's script."""

import json
import os
import sys
import types
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hpo.files import write_spec
from hpo.trial import execute
from model.spec import ExperimentSpec

ROOT = Path(__file__).parents[2]


def in_two_processes(out: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What a worker on two GPUs does, on a machine without any."""
    sys.path.insert(0, str(ROOT))
    from model.train import train

    module = types.ModuleType("two_processes")
    module.train = partial(train, cpu_processes=2)  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    said: list[dict[str, Any]] = []
    return execute(Path(out), "two_processes:train", 2, lambda message: said.append(dict(message))), said


@pytest.mark.slow
def test_ranks_start_from_within_a_worker(local_ray: None, digits_spec: dict[str, Any], tmp_path: Path) -> None:
    import ray

    digits_spec["train"]["num_epochs"] = 1
    digits_spec["dataset"]["batch_size"] = 4
    out = tmp_path / "trials" / "0"
    write_spec(ExperimentSpec.from_dict(digits_spec).to_dict(), out / "spec.yaml")
    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)])}}
    task = ray.remote(num_cpus=2, runtime_env=environment)(in_two_processes)
    final, said = ray.get(task.remote(str(out)))
    assert final["outcome"] == "completed"
    assert final["checkpoint"] == "trials/0/model_best.pth"
    assert [message["epoch"] for message in said] == [1]
    assert final["measurements"] == json.loads(json.dumps(said))
    assert (out / "model_epoch_000_step_00003.pth").exists()
