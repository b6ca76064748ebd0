"""Keys of the deployment sections that are accepted and read by nothing in this version, each with its reason."""

from collections.abc import Mapping
from typing import Any

from deploy.spec import DeploySpec, ExportSpec, GenTrtEngineSpec, QuantizeSpec
from model.notices import lines
from schemas.structure import structure, unstructure

SECTIONS: Mapping[str, type] = {
    "export": ExportSpec,
    "gen_trt_engine": GenTrtEngineSpec,
    "quantize": QuantizeSpec,
    "deploy": DeploySpec,
}
UNUSED: Mapping[str, str] = {
    "export.gpu_id": "the export is traced on the CPU, and the file is the same",
    "export.on_cpu": "the export is traced on the CPU, and the file is the same",
    "quantize.device": "weights and graphs are quantised on the CPU, and the numbers are the same",
}
"""Key, or group of keys, to the reason."""


def notices(given: Mapping[str, Any]) -> list[str]:
    """One line for each reason, with the keys of `given` (nested, as the user wrote it) that it holds for."""
    own = {name: given.get(name) or {} for name in SECTIONS}
    meant = {name: unstructure(structure(cls, own[name], name)[0]) for name, cls in SECTIONS.items()}
    defaults = {name: unstructure(cls()) for name, cls in SECTIONS.items()}
    return lines(own, meant, defaults, UNUSED)
