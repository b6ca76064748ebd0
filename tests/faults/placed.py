"""The stand-in training, which also says on which node it was and which GPUs it was given, and begins no trial while
there is a file `hold` in the run folder."""

import json
import time
from pathlib import Path
from typing import Any

import bowl


def train(spec: Any, out: Path, **more: Any) -> Any:
    import ray

    while (out.parent.parent / "hold").exists():
        time.sleep(0.1)
    context = ray.get_runtime_context()
    said = {"node": context.get_node_id(), "gpus": context.get_accelerator_ids()["GPU"]}
    with (out / "places.jsonl").open("a") as file:
        file.write(json.dumps(said) + "\n")
    return bowl.train(spec, out, **more)
