"""Short names, in this folder, for the tiny detector of tests/conftest.py."""

from pathlib import Path

import pytest

from model.spec import ExperimentSpec, Source


@pytest.fixture
def spec(tiny_spec: ExperimentSpec) -> ExperimentSpec:
    return tiny_spec


@pytest.fixture
def checkpoint(tiny_checkpoint: Path) -> Path:
    return tiny_checkpoint


@pytest.fixture
def onnx(tiny_onnx: Path) -> Path:
    return tiny_onnx


@pytest.fixture
def pictures(tiny_pictures: Source) -> Source:
    return tiny_pictures


@pytest.fixture(autouse=True)
def _cache(own_cache: None) -> None:
    pass
