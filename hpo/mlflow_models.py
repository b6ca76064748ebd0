"""The winner as a model on an MLflow server: logged once in the ONNX flavour, registered, found by its alias.

Knows a file model.onnx and the run that it came from. Done again it changes nothing. No flavour pickles.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo.mlflow_store import quoted
from hpo.mlflow_values import LONGEST_TEXT

if TYPE_CHECKING:
    from mlflow import MlflowClient

NAME = "winner"
"""Of the logged model, in its run."""
FILE_HASH, MADE = "onnx.sha256", "handed_over"
LARGEST_FILE = 1_900_000_000
"""Bytes of an ONNX file up to which its weights lie in it."""


def register(
    client: "MlflowClient", experiment: str, run_id: str, folder: Path, event: Mapping[str, Any]
) -> str | None:
    """The version's address `models:/<name>/<version>`; None when another file has taken the place of `event`'s."""
    onnx = folder / event["file"]
    if not onnx.is_file() or sha256_of(onnx) != event["sha256"]:
        return None  # a later winner's, whose own event follows
    model_id, place = _logged(client, experiment, run_id, onnx, event)
    version = _version(client, run_id, model_id, place, event)
    if not _is_outdated(client, event):
        client.set_registered_model_alias(event["name"], event["alias"], version)
    return f"models:/{event['name']}/{version}"


def sha256_of(onnx: Path) -> str | None:
    """As its sidecar says, which was written with the file."""
    sidecar = onnx.with_name(f"{onnx.name}.json")
    if not sidecar.is_file():
        return None
    found: str = json.loads(sidecar.read_text(encoding="utf-8"))["onnx_sha256"]
    return found


def _logged(
    client: "MlflowClient", experiment: str, run_id: str, onnx: Path, event: Mapping[str, Any]
) -> tuple[str, str]:
    """Id and place of the logged model. One that an earlier try left unfinished is made anew."""
    from mlflow.entities import LoggedModelOutput

    query = f"tags.`{FILE_HASH}` = '{event['sha256']}' AND tags.`sweep.id` = '{quoted(event['tags']['sweep.id'])}'"
    for found in client.search_logged_models([experiment], filter_string=query):
        if str(found.status) == "READY" and found.source_run_id == run_id:
            return found.model_id, found.artifact_location
        client.delete_logged_model(found.model_id)
    made = client.create_logged_model(
        experiment,
        name=NAME,
        source_run_id=run_id,
        tags={**_texts(event["tags"]), FILE_HASH: event["sha256"]},
        params=_texts(event["params"]),
    )
    client.log_outputs(run_id, [LoggedModelOutput(made.model_id, event["trial"])])
    with tempfile.TemporaryDirectory() as name:
        _save(onnx, Path(name) / "model", made, run_id)
        client.log_model_artifacts(made.model_id, str(Path(name) / "model"))
    client.finalize_logged_model(made.model_id, "READY")
    return made.model_id, made.artifact_location


def _save(onnx: Path, folder: Path, made: Any, run_id: str) -> None:
    import mlflow.onnx
    import onnx as onnx_format
    import onnxruntime
    from mlflow.models import Model

    graph = onnx_format.load(onnx)
    mlflow.onnx.save_model(
        graph,
        str(folder),
        mlflow_model=Model(
            artifact_path=made.artifact_location, run_id=run_id, model_id=made.model_id, model_uuid=made.model_id
        ),
        signature=_signature(graph),
        # Said here: MLflow would load the model in a process of its own to find out.
        pip_requirements=[f"onnx=={onnx_format.__version__}", f"onnxruntime=={onnxruntime.__version__}"],
        onnx_execution_providers=["CUDAExecutionProvider", "CPUExecutionProvider"],
        save_as_external_data=onnx.stat().st_size > LARGEST_FILE,
    )
    sidecar = onnx.with_name(f"{onnx.name}.json")
    (folder / "extra_files").mkdir()
    (folder / "extra_files" / sidecar.name).write_bytes(sidecar.read_bytes())


def _signature(graph: Any) -> Any:
    """Names, types and shapes of the graph's own inputs and outputs; an open axis is -1."""
    import onnx as onnx_format
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    def spec(value: Any) -> Any:
        tensor = value.type.tensor_type
        shape = tuple(axis.dim_value if axis.HasField("dim_value") else -1 for axis in tensor.shape.dim)
        return TensorSpec(onnx_format.helper.tensor_dtype_to_np_dtype(tensor.elem_type), shape, value.name)

    inputs, outputs = (Schema([spec(value) for value in side]) for side in (graph.graph.input, graph.graph.output))
    return ModelSignature(inputs, outputs)


def _version(client: "MlflowClient", run_id: str, model_id: str, place: str, event: Mapping[str, Any]) -> str:
    from mlflow.exceptions import MlflowException

    name, tags = event["name"], {**_texts(event["tags"]), FILE_HASH: event["sha256"]}
    try:
        client.create_registered_model(name, description=event["description"])
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for known in client.search_model_versions(f"name='{quoted(name)}'"):
        if known.run_id == run_id and known.tags.get(FILE_HASH) == event["sha256"]:
            for key, value in tags.items():
                if known.tags.get(key) != value:
                    client.set_model_version_tag(name, known.version, key, value)
            return str(known.version)
    # In a local database MLflow would look a `models:/` address up in whatever store is the process's own.
    source = f"models:/{model_id}" if event["served"] else place
    made = client.create_model_version(
        name,
        source,
        run_id=run_id,
        tags=tags,
        model_id=model_id,
        description=event["description"],
        await_creation_for=0,
    )
    return str(made.version)


def _is_outdated(client: "MlflowClient", event: Mapping[str, Any]) -> bool:
    """Whether the alias is at a model that was handed over later: an event may be heard after the next run's."""
    holder = client.get_registered_model(event["name"]).aliases.get(event["alias"])
    if holder is None:
        return False
    return client.get_model_version(event["name"], holder).tags.get(MADE, "") > str(event["tags"][MADE])


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value)[:LONGEST_TEXT] for name, value in values.items()}
