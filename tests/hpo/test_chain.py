"""What a job takes from an earlier one: which file, which keys, whose values; by the rules of the manifest."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpo import chain, jobs
from hpo.chain import RESOLVERS, Context, Rule, infer
from hpo.errors import RunError
from hpo.jobs import Job, find_job, ranked
from hpo.spec import read_request
from model.errors import SpecError
from schemas import dotted, packaged

RUNS = Path("/runs")
SPEC = {
    "model": {"num_queries": 200, "hidden_dim": 64},
    "dataset": {
        "augmentation": {"test_random_resize": 96},
        "test_data_sources": {"image_dir": "/t", "json_file": "/j"},
    },
    "export": {"input_height": 96, "input_width": 128},
}


def job(*names: str, folder: str = "run", unfinished: bool = False) -> Job:
    where = RUNS / folder
    files = tuple(where / name for name in names)
    return Job(id=folder, folder=where, store=RUNS, files=files, spec=SPEC, unfinished=unfinished)


def inferred(action: str, parent: Job, given: Any = None, stated: set[str] | None = None) -> dict[str, Any]:
    return infer(Context(action=action, given=given or {}, parent=parent), stated or set())


SEARCH = job("trials/4/model_best.pth", "model.onnx", "model.fp16.onnx", "model.engine")
OWN = job("model_epoch_002_step_00030.pth", "model_epoch_001_step_00020.pth", folder="results/train")
OUT = {"results_dir": "/runs/results"}
WON = "trials/4/model_best.pth"
BOTH = (".pth", ".onnx")
TABLE = [
    # resolver, key, suffixes, action, the user's keys, parent, what it gives
    ("key", "encryption_key", (), "train", {"encryption_key": "hush"}, SEARCH, "hush"),
    ("key", "encryption_key", (), "train", {}, SEARCH, None),
    ("parent_model", "evaluate.checkpoint", BOTH, "evaluate", {}, SEARCH, f"/runs/run/{WON}"),
    ("parent_model", "evaluate.checkpoint", BOTH, "evaluate", {}, job("model.onnx"), "/runs/run/model.onnx"),
    ("parent_model", "evaluate.trt_engine", (".engine",), "evaluate", {}, SEARCH, "/runs/run/model.engine"),
    ("parent_model", "gen_trt_engine.onnx_file", (".onnx",), "gen_trt_engine", {}, SEARCH, "/runs/run/model.onnx"),
    ("parent_model", "gen_trt_engine.onnx_file", (".onnx",), "gen_trt_engine", {}, job("model_best.pth"), None),
    ("parent_model_folder", "x", (".pth",), "evaluate", {}, SEARCH, "/runs/run/trials/4"),
    ("parent_model_folder", "x", (".pth",), "evaluate", {}, job("model.onnx"), None),
    ("resume_model", "x", (".pth",), "train", OUT, OWN, "/runs/results/train/model_epoch_002_step_00030.pth"),
    ("resume_model", "x", (".pth",), "train", OUT, SEARCH, None),
    ("resume_model", "x", (".pth",), "train", OUT, job("model_best.pth", folder="results/train"), None),
    ("ptm_if_no_resume_model", "x", (".pth",), "train", OUT, SEARCH, f"/runs/run/{WON}"),
    ("ptm_if_no_resume_model", "x", (".pth",), "train", OUT, OWN, None),
    ("ptm_if_no_resume_model", "x", (".pth",), "train",
     {"train": {"resume_training_checkpoint_path": "/x.pth"}}, SEARCH, None),
    ("output_dir", "results_dir", (), "train", {}, SEARCH, "/runs"),
    ("output_dir", "results_dir", (), "evaluate", {}, SEARCH, "/runs/run"),
    ("output_dir", "results_dir", (), "evaluate", OUT, SEARCH, "/runs/results"),
    ("create_onnx_file", "x", (), "export", {}, SEARCH, "/runs/run/export/model.onnx"),
    ("create_onnx_file", "x", (), "export", {"export": {"results_dir": "/o"}}, SEARCH, "/o/model.onnx"),
    ("create_engine_file", "x", (), "gen_trt_engine", {}, SEARCH, "/runs/run/gen_trt_engine/model.engine"),
    ("create_engine_file", "x", (), "gen_trt_engine", {"gen_trt_engine": {"tensorrt": {"data_type": "FP16"}}}, SEARCH,
     "/runs/run/gen_trt_engine/model.fp16.engine"),
    ("create_cal_cache", "x", (), "gen_trt_engine", OUT, SEARCH, "/runs/results/gen_trt_engine/cal.bin"),
    ("parent_spec", "export.input_width", (), "export", {}, SEARCH, 128),
    ("parent_spec", "export.batch_size", (), "export", {}, SEARCH, None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "key", "files", "action", "given", "parent", "value"), TABLE)
def test_a_resolver(
    name: str, key: str, files: tuple[str, ...], action: str, given: dict[str, Any], parent: Job, value: Any
) -> None:
    context = Context(action=action, given=given, parent=parent)
    assert RESOLVERS[name](context, Rule(key, name, files)) == value


def test_the_table_has_every_resolver_and_the_manifest_no_other() -> None:
    assert {row[0] for row in TABLE} == RESOLVERS.keys()
    manifest = packaged.manifest()
    assert manifest["inference"].keys() == manifest["actions"].keys()
    for action in manifest["inference"]:
        leaves = {*packaged.schema(action).leaves, *packaged.schema(action).groups}
        for rule in chain.rules(action):
            assert rule.by in RESOLVERS
            assert {rule.key, *rule.when} <= leaves


@pytest.mark.parametrize(
    ("action", "parent", "given", "stated", "files"),
    [
        ("evaluate", SEARCH, {}, (), {"evaluate.checkpoint": WON}),
        ("evaluate", job("model.engine"), {}, (), {"evaluate.trt_engine": "model.engine"}),
        # The command line has the last word on which file; the spec file's is replaced.
        ("evaluate", SEARCH, {"evaluate": {"trt_engine": "/a.engine"}}, ("evaluate.trt_engine",), {}),
        ("evaluate", SEARCH, {"evaluate": {"checkpoint": "/a.pth"}}, ("evaluate.checkpoint",), {}),
        ("evaluate", SEARCH, {"evaluate": {"checkpoint": "/a.pth", "trt_engine": "/a.engine"}}, (),
         {"evaluate.checkpoint": WON, "evaluate.trt_engine": None}),
        ("evaluate", SEARCH, {"evaluate": {"checkpoint": "???"}}, (), {"evaluate.checkpoint": WON}),
        ("inference", SEARCH, {}, (), {"inference.checkpoint": WON}),
        ("export", SEARCH, {}, (), {"export.checkpoint": WON,
                                    "export.onnx_file": "export/model.onnx"}),
        ("export", SEARCH, {"export": {"onnx_file": "/mine.onnx"}}, (), {"export.checkpoint": WON}),
        ("gen_trt_engine", SEARCH, {}, (), {"gen_trt_engine.onnx_file": "model.onnx",
                                            "gen_trt_engine.trt_engine": "gen_trt_engine/model.engine"}),
        ("gen_trt_engine", SEARCH, {"gen_trt_engine": {"tensorrt": {"data_type": "INT8"}}}, (),
         {"gen_trt_engine.onnx_file": "model.onnx", "gen_trt_engine.trt_engine": "gen_trt_engine/model.int8.engine",
          "gen_trt_engine.tensorrt.calibration.cal_cache_file": "gen_trt_engine/cal.bin"}),
        ("quantize", SEARCH, {}, (), {"quantize.model_path": WON}),
        ("quantize", SEARCH, {"quantize": {"mode": "static_ptq"}}, (), {"quantize.model_path": "model.onnx"}),
        ("train", SEARCH, {}, (), {"train.pretrained_model_path": WON}),
        ("train", SEARCH, {"train": {"resume_training_checkpoint_path": "/x.pth", "pretrained_model_path": "/y.pth"}},
         (), {"train.pretrained_model_path": None}),
    ],
)  # fmt: skip
def test_which_files_an_action_takes(
    action: str, parent: Job, given: Any, stated: tuple[str, ...], files: dict[str, str | None]
) -> None:
    found = inferred(action, parent, given, set(stated))
    taken = {name: value for name, value in found.items() if value is None or str(value).startswith("/runs/run/")}
    assert taken == {name: value and f"/runs/run/{value}" for name, value in files.items()}


def test_a_training_in_its_own_folder_goes_on() -> None:
    found = inferred("train", OWN, OUT)
    assert found["train.resume_training_checkpoint_path"] == str(OWN.files[0])
    assert "train.pretrained_model_path" not in found


def test_values_are_carried_where_the_user_says_nothing() -> None:
    found = inferred("train", SEARCH, {"model": {"hidden_dim": 32}})
    assert found["model.num_queries"] == 200
    assert "model.hidden_dim" not in found
    assert found["dataset.augmentation.test_random_resize"] == 96
    assert inferred("export", SEARCH)["export.input_height"] == 96
    unfilled = {"dataset": {"test_data_sources": {"image_dir": "", "json_file": "???"}}}
    assert inferred("evaluate", SEARCH, unfilled)["dataset.test_data_sources"] == SPEC["dataset"]["test_data_sources"]
    assert "dataset.test_data_sources" not in inferred("evaluate", SEARCH, {"dataset": SPEC["dataset"]})


@pytest.mark.parametrize(
    ("action", "parent", "words"),
    [
        ("evaluate", job(), "must hold a file for `evaluate.checkpoint` (.pth, .onnx) or `evaluate.trt_engine`"),
        ("gen_trt_engine", job("model_best.pth"), "but run holds model_best.pth; name another, or set the key"),
        ("evaluate", job("model.tlt"), "must not be encrypted, but run holds model.tlt; decrypt it"),
        ("gen_trt_engine", job("model.etlt"), "must not be encrypted, but run holds model.etlt"),
        ("evaluate", job("model.onnx", unfinished=True), "a finished run holds its winner, but /runs/run does not; "
         "`ddetr resume run` goes on"),
    ],
)  # fmt: skip
def test_a_parent_without_what_is_needed(action: str, parent: Job, words: str) -> None:
    with pytest.raises(RunError) as caught:
        inferred(action, parent)
    assert words in str(caught.value)


def test_results_in_the_order_in_which_they_are_taken() -> None:
    order = [
        "model_best.pth", "model_epoch_010_step_00110.pth", "model_epoch_009_step_00200.pth",
        "model_epoch_009_step_00099.pth", "model.onnx", "model.fp16.onnx", "train/model_best.pth", "export/model.onnx",
        "quantize/quantized_model.onnx",
    ]  # fmt: skip
    assert ranked(sorted(order)) == ranked(reversed(order)) == order


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished search `quick`, one at work `busy`, and what `deformable_detr` left in `tao`."""
    monkeypatch.chdir(tmp_path)
    runs = tmp_path / "runs"
    for name in ("quick", "busy"):
        for number in (0, 4):
            trial = runs / name / "trials" / str(number)
            trial.mkdir(parents=True)
            (trial / "spec.yaml").write_text(
                yaml.safe_dump({"model": {"num_queries": 100 + number}, "encryption_key": "x"})
            )
            for file in ("model_best.pth", "model_epoch_001_step_00009.pth"):
                (trial / file).touch()
            (trial / "dd_model_latest.pth").symlink_to("model_epoch_001_step_00009.pth")
        (runs / name / "spec.yaml").write_text("{}")
    quick = runs / "quick"
    (quick / "handoff.json").write_text(json.dumps({"checkpoint": "trials/4/model_best.pth"}))
    (quick / "deploy.yaml").write_text("export: {input_height: 96, input_width: 64}\n")
    for file in ("model.onnx", "model.onnx.json", ".model.onnx.partial", "model.engine"):
        (quick / file).touch()
    train = tmp_path / "tao" / "train"
    train.mkdir(parents=True)
    for file in ("model_epoch_001_step_00009.pth", "model_epoch_000_step_00005.pth", "status.json"):
        (train / file).touch()
    (train / "dd_model_latest.pth").symlink_to("model_epoch_001_step_00009.pth")
    (train / "experiment.yaml").write_text("model: {num_queries: 300}\n")
    return runs


@pytest.mark.parametrize(
    ("name", "id_", "folder", "files", "queries"),
    [
        ("quick", "quick", "runs/quick", ["trials/4/model_best.pth", "model.onnx", "model.engine"], 104),
        ("runs/quick", "quick", "runs/quick", ["trials/4/model_best.pth", "model.onnx", "model.engine"], 104),
        ("quick/0", "quick/0", "runs/quick/trials/0", ["model_best.pth", "model_epoch_001_step_00009.pth"], 100),
        ("runs/busy/4/", "busy/4", "runs/busy/trials/4", ["model_best.pth", "model_epoch_001_step_00009.pth"], 104),
        ("tao/train", "tao/train", "tao/train",
         ["model_epoch_001_step_00009.pth", "model_epoch_000_step_00005.pth"], 300),
        ("tao", "tao", "tao", ["train/model_epoch_001_step_00009.pth", "train/model_epoch_000_step_00005.pth"], 300),
        # The latest is taken where it is what was named, and then as the file that it is.
        ("tao/train/dd_model_latest.pth", "tao/train/dd_model_latest.pth", "tao/train",
         ["model_epoch_001_step_00009.pth"], 300),
    ],
)  # fmt: skip
def test_a_job_is_found_by_id_and_by_path(
    store: Path, name: str, id_: str, folder: str, files: list[str], queries: int
) -> None:
    found, where = find_job(name), store.parent / folder
    assert (found.id, found.folder) == (id_, where)
    assert [file.relative_to(where).as_posix() for file in found.files] == files
    assert dotted.get(found.spec, "model.num_queries") == queries
    assert "encryption_key" not in found.spec
    assert found.store == (store if "tao" not in name else where.parent)


def test_a_job_that_there_is_not(store: Path) -> None:
    assert find_job("busy").unfinished
    with pytest.raises(RunError, match=r"neither \(runs/ holds busy, quick\)"):
        find_job("quack")
    with pytest.raises(RunError, match=r"`quick/7` must name a trial of the run, but .*quick has 0, 4; name one"):
        find_job("quick/7")
    assert find_job("quick", store).id == "quick"
    assert jobs.find_job("quick/4").spec["export"]["input_height"] == 96


def test_a_request_with_a_parent(store: Path, tmp_path: Path) -> None:
    spec = tmp_path / "mine.yaml"
    spec.write_text("export:\n  checkpoint: ???\n  input_width: 32\nparent_job_id: busy/0\n")
    request = read_request(spec, action="export")
    best = store / "busy" / "trials" / "0" / "model_best.pth"
    assert request.sections["export"].checkpoint == str(best)
    assert request.parent is not None
    assert f"export.checkpoint: {best} (from busy/0)" in request.notices()

    request = read_request(spec, action="export", flags={"run": "quick"})  # the flag comes before the key
    section = request.sections["export"]
    assert section.checkpoint == str(store / "quick" / "trials" / "4" / "model_best.pth")
    assert section.onnx_file == str(store / "quick" / "export" / "model.onnx")
    assert (section.input_height, section.input_width) == (96, 32)
    assert request.raw["results_dir"] == str(store / "quick")
    assert "as quick has them: export.input_height" in request.notices()

    words = ["export.checkpoint=other.pth", f"results_dir={tmp_path}/out"]
    request = read_request(spec, words, action="export", flags={"run": str(store / "quick")})
    section = request.sections["export"]
    assert (section.checkpoint, section.onnx_file) == (str(tmp_path / "other.pth"), f"{tmp_path}/out/export/model.onnx")


@pytest.mark.parametrize("key", ["gen_trt_engine.onnx_file", "evaluate.checkpoint", "quantize.model_path"])
def test_an_encrypted_export_is_refused_by_name(key: str) -> None:
    with pytest.raises(
        SpecError, match=rf"`{key}` must not be encrypted, but is /x/model\.etlt; .*on the command line"
    ):
        read_request(None, [f"{key}=/x/model.etlt"], action=key.partition(".")[0])


def test_a_trade_off_of_a_search(store: Path) -> None:
    front = store / "quick" / "front" / "0"
    front.mkdir(parents=True)
    (front / "handoff.json").write_text(json.dumps({"checkpoint": "../../trials/0/model_best.pth"}))
    (front / "model.onnx").touch()
    found = find_job("quick/front/0")
    assert (found.id, found.store) == ("quick/front/0", store)
    assert found.files[0] == store / "quick" / "trials" / "0" / "model_best.pth"
    assert (found.spec["model"]["num_queries"], found.spec["export"]["input_width"]) == (100, 64)


def test_a_training_from_a_parent_without_a_spec_is_its_again(store: Path) -> None:
    trial = store / "quick" / "trials" / "4"
    known = {"model": {"num_queries": 150, "num_select": 20}, "train": {"num_epochs": 7, "results_dir": "/gone",
             "pretrained_model_path": "/gone.pth"}, "results_dir": "/gone", "dataset": {"num_classes": 9}}  # fmt: skip
    (trial / "spec.yaml").write_text(yaml.safe_dump(known))
    request = read_request(None, ["train.num_epochs=3"], flags={"run": "quick"})
    assert request.spec.train.pretrained_model_path == str(trial / "model_best.pth")
    assert (request.spec.train.num_epochs, request.spec.model.num_queries) == (3, 150)
    assert (request.spec.results_dir, request.spec.train.results_dir) == (str(store), None)
    assert not request.states_num_classes  # the data's own
    resuming = read_request(None, ["train.resume_training_checkpoint_path=x.pth"], flags={"run": "quick"})
    assert resuming.spec.train.pretrained_model_path is None
