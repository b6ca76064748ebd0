from pathlib import Path

from rich.console import Console

from hpo.show_space import print_space, range_text
from hpo.spec import read_request
from schemas import packaged
from search_spaces.space import Parameter, SearchSpace


def shown(space: SearchSpace, width: int = 200) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_space(space, console)
    return console.export_text()


def test_every_default_parameter_is_shown(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("")
    text = shown(read_request(tmp_path / "a.yaml").space())
    for name in packaged.document("train")["automl_default_parameters"]:
        assert name in text
    assert "0.0001 to 0.005" in text
    assert "automl.params=[+lr_decay]" in text  # not taken for markup


def test_ranges_in_words() -> None:
    assert range_text(Parameter(name="x", kind="categorical", choices=("a", True, None))) == "a, True, None"
    assert range_text(Parameter(name="x", kind="int", low=8, high=64, step=8)) == "8 to 64 by 8"
    assert range_text(Parameter(name="x", kind="float", low=5e-324, high=0.5)) == ">0 to 0.5"


def test_an_empty_space_says_so() -> None:
    assert "0 parameters" in shown(SearchSpace(parameters=()))
