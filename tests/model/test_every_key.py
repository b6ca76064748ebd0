"""Every key of model/spec.py has one row: an effect that is seen when the key changes, or a line that it has none.

The keys are walked from the spec classes, so a new key without a row fails here.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor, nn

from deploy.evaluate import evaluate_action
from deploy.inference import inference_action
from model import launch
from model.batch import ImageBatch, Target
from model.checkpoint import read_checkpoint, read_raw
from model.data.datamodule import CocoDataModule
from model.errors import CheckpointError
from model.evaluate import detector, evaluate, evaluate_detector
from model.fit import build_model
from model.inference import class_names, find_pictures, infer, inference
from model.memory import Batch
from model.module import Detector
from model.network import recompute
from model.network.criterion import Criterion
from model.network.detr import Output, Prediction
from model.network.dropout import Dropout
from model.notices import UNUSED, notices
from model.optim import factor, make_optimizer, parameter_groups
from model.spec import ExperimentSpec
from model.train import TrainResult, train
from schemas import dotted
from schemas.fields import members


def every_key(cls: type = ExperimentSpec, prefix: str = "") -> Iterator[str]:
    """Dotted names of all leaves; a list of groups is a leaf."""
    for name, hint, _, _ in members(cls):
        if is_dataclass(hint) and isinstance(hint, type):
            yield from every_key(hint, f"{prefix}{name}.")
        else:
            yield prefix + name


class Bench:
    """Specs that differ from a small one, and what comes of them."""

    def __init__(self, base: Mapping[str, Any], folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.base, self.folder, self.patch = base, folder, patch

    def given(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        plain = dict(self.base)
        for name, value in changes.items():
            plain = dotted.put(plain, name, value)
        return plain

    def spec(self, changes: Mapping[str, Any]) -> ExperimentSpec:
        return ExperimentSpec.from_dict(self.given(changes))

    def network(self, changes: Mapping[str, Any]) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return build_model(self.spec(changes))

    def shapes(self, changes: Mapping[str, Any]) -> dict[str, torch.Size]:
        return {name: value.shape for name, value in self.network(changes).state_dict().items()}

    def data(self, changes: Mapping[str, Any], cpus: int = 1) -> CocoDataModule:
        return CocoDataModule(self.spec(changes), cpus=cpus)

    def batch(self, changes: Mapping[str, Any], split: str = "train") -> ImageBatch:
        loader: Any = getattr(self.data(changes), f"{split}_dataloader")()
        return next(iter(loader))

    def groups(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        spec = self.spec(changes)
        return {group["name"]: group for group in parameter_groups(self.network(changes), spec)}

    def optimizer(self, changes: Mapping[str, Any]) -> torch.optim.Optimizer:
        spec = self.spec(changes)
        return make_optimizer(parameter_groups(nn.Linear(1, 1), spec), spec.train.optim, fused=False)

    def losses(self, changes: Mapping[str, Any]) -> Any:
        generator = torch.Generator().manual_seed(3)
        logits, boxes = (torch.rand(1, 6, size, generator=generator) for size in (3, 4))
        target = Target(torch.tensor([1, 2]), torch.rand(2, 4, generator=generator) * 0.5, 1, (48, 48))
        return Criterion(self.spec(changes).model, 3)(Output(Prediction(logits, boxes), ()), [target])

    def train(self, changes: Mapping[str, Any]) -> tuple[TrainResult, Path]:
        out = self.folder / f"train{len(list(self.folder.glob('train*')))}"
        return train(self.spec({"train.num_epochs": 1, **changes}), out, cpus=1), out

    def trainer(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """What Lightning is given, on a machine with four GPUs."""
        four_gpus(self.patch)
        seen: dict[str, Any] = {}
        self.patch.setattr(pl, "Trainer", lambda **options: seen.update(options))
        spec = self.spec(changes)
        launch.make_trainer(spec, launch.place(spec.train), pl.callbacks.Callback(), validates=True)
        return seen

    def detections(self, changes: Mapping[str, Any]) -> list[int]:
        """How many detections the evaluator keeps of each image, by a predictor of known scores."""
        spec = self.spec(changes)
        data = CocoDataModule(spec, cpus=1)
        _, evaluator = evaluate_detector(detector(known_scores, spec), data.test_dataloader(), data.test_index, spec)
        return np.unique(evaluator.rows()[:, 0], return_counts=True)[1].tolist()

    def pictures(self, changes: Mapping[str, Any]) -> Path:
        """Runs inference by the same predictor on two pictures; the folder that it wrote."""
        source, out = self.folder / "seq" / "images", self.folder / f"out{len(list(self.folder.glob('out*')))}"
        source.mkdir(parents=True, exist_ok=True)
        for name in ("a", "b"):
            Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(source / f"{name}.png")
        spec = self.spec({"dataset.infer_data_sources.image_dir": [str(source)], **changes})
        infer(detector(known_scores, spec), find_pictures(spec), {1: "one", 2: "two"}, spec, out)
        return out


def known_scores(pixels: Tensor, mask: Tensor | None) -> Prediction:
    """A hundred queries, twelve of them of scores 0.05 to 0.6 in steps of 0.05, all of class 1."""
    logits = torch.full((len(pixels), 100, 3), -20.0)
    logits[:, :12, 1] = torch.linspace(0.05, 0.6, 12).logit()
    boxes = torch.tensor([0.5, 0.5, 0.4, 0.4]).expand(len(pixels), 100, 4)
    return Prediction(logits, boxes)


def four_gpus(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch.cuda, "device_count", lambda: 4)


Row = Callable[[Bench], None]
HONOURED: dict[str, Row] = {}


def row(name: str) -> Callable[[Row], Row]:
    def register(check: Row) -> Row:
        assert name not in HONOURED, name
        HONOURED[name] = check
        return check

    return register


unchanged: dict[Callable[..., Any], Any] = {}
"""What each way of looking sees of the base spec."""


def different(how: Callable[[Bench, Mapping[str, Any]], Any], changes: Mapping[str, Mapping[str, Any] | Any]) -> None:
    """Rows for keys of which it is enough to see that something differs. A mapping changes several keys together."""
    for name, value in changes.items():
        together = value if isinstance(value, Mapping) and name in value else {name: value}

        def check(bench: Bench, together: Mapping[str, Any] = together) -> None:
            if how not in unchanged:
                unchanged[how] = how(bench, {})
            assert how(bench, together) != unchanged[how]

        row(name)(check)


# --- the network ---

different(
    Bench.shapes,
    {
        "model.backbone": "resnet_18",
        "model.num_queries": 101,
        "model.num_feature_levels": {"model.num_feature_levels": 3, "model.return_interm_indices": [2, 3, 4]},
        "model.return_interm_indices": [1, 3],
        "model.nheads": 4,
        "model.hidden_dim": 64,
        "model.enc_layers": 2,
        "model.dec_layers": 3,
        "model.dim_feedforward": 48,
        "model.dec_n_points": 3,
        "model.enc_n_points": 3,
        "model.two_stage": True,
        "dataset.num_classes": 5,
    },
)


@row("model.dilation")
def _(bench: Bench) -> None:
    pixels = torch.rand(1, 3, 64, 64)
    plain, dilated = (bench.network({"model.dilation": on}).eval().backbone(pixels)[-1] for on in (False, True))
    assert (plain.shape[-1], dilated.shape[-1]) == (2, 4)


@row("model.with_box_refine")
def _(bench: Bench) -> None:
    apart, shared = (bench.network({"model.with_box_refine": on}).bbox_embed for on in (True, False))
    assert apart[0] is not apart[1]
    assert shared[0] is shared[1]


@row("model.aux_loss")
def _(bench: Bench) -> None:
    counts = [len(bench.network({"model.aux_loss": on})(torch.rand(2, 3, 48, 48)).auxiliary) for on in (True, False)]
    assert counts == [1, 0]


@row("model.dropout_ratio")
def _(bench: Bench) -> None:
    ratios = {
        module.p for module in bench.network({"model.dropout_ratio": 0.7}).modules() if isinstance(module, Dropout)
    }
    assert ratios == {0.7}


@row("model.train_backbone")
def _(bench: Bench) -> None:
    assert not any(p.requires_grad for p in bench.network({"model.train_backbone": False}).backbone.parameters())
    assert any(p.requires_grad for p in bench.network({}).backbone.parameters())


@row("model.pretrained_backbone_path")
def _(bench: Bench) -> None:
    body = bench.network({"train.seed": 9}).backbone[0].body
    state = {name: torch.rand_like(value.float()) for name, value in body.state_dict().items()}
    torch.save(state, bench.folder / "body.pth")
    model = bench.network({"model.pretrained_backbone_path": str(bench.folder / "body.pth")})
    assert torch.equal(model.backbone[0].body.conv1.weight, state["conv1.weight"])


@row("train.freeze")
def _(bench: Bench) -> None:
    model = bench.network({"train.freeze": ["transformer.encoder", "input_proj"]})
    moving = [name for name, p in model.named_parameters() if p.requires_grad]
    assert not any(name.startswith(("transformer.encoder.", "input_proj.")) for name in moving)
    assert any(name.startswith("transformer.decoder.") for name in moving)


@row("train.activation_checkpoint")
def _(bench: Bench) -> None:
    counts = []
    for on in (True, False):
        calls: list[nn.Module] = []

        def spy(module: nn.Module, *inputs: Any, calls: list[nn.Module] = calls, **_: Any) -> Any:
            calls.append(module)
            return module(*inputs)

        bench.patch.setattr(recompute, "checkpoint", spy)
        bench.network({"train.activation_checkpoint": on}).train()(torch.rand(2, 3, 48, 48))
        counts.append(len(calls))
    assert counts == [3, 0]  # one encoder layer, two of the decoder


# --- losses ---

different(
    lambda bench, changes: float(bench.losses(changes).total),
    {
        "model.cls_loss_coef": 3.0,
        "model.bbox_loss_coef": 3.0,
        "model.giou_loss_coef": 3.0,
        "model.focal_alpha": 0.6,
    },
)
different(lambda bench, changes: set(bench.losses(changes).terms), {"model.loss_types": ["labels"]})

# --- optimizer ---

different(
    lambda bench, changes: {name: (group["lr"], len(group["params"])) for name, group in bench.groups(changes).items()},
    {
        "model.backbone_names": ["backbone.0.body.layer4"],
        "model.linear_proj_names": ["sampling_offsets"],
        "train.optim.lr": 5e-4,
        "train.optim.lr_backbone": 5e-4,
        "train.optim.lr_linear_proj_mult": 0.7,
    },
)
different(lambda bench, changes: type(bench.optimizer(changes)), {"train.optim.optimizer": "SGD"})
different(
    lambda bench, changes: bench.optimizer({"train.optim.optimizer": "SGD", **changes}).defaults["momentum"],
    {"train.optim.momentum": 0.5},
)
different(lambda bench, changes: bench.optimizer(changes).defaults["weight_decay"], {"train.optim.weight_decay": 0.01})


def rates(bench: Bench, changes: Mapping[str, Any]) -> list[float]:
    spec = bench.spec(changes).train.optim
    return [factor(spec, step // 4, progress=step / 80, step=step) for step in range(80)]


STEPS = {"train.optim.lr_scheduler": "StepLR", "train.optim.lr_step_size": 3}
different(
    rates,
    {
        "train.optim.lr_steps": [5],
        "train.optim.lr_decay": 0.5,
        "train.optim.lr_drop": 0.8,
        "train.optim.warmup_steps": 10,
        "train.optim.lr_scheduler": STEPS,
    },
)


@row("train.optim.lr_step_size")
def _(bench: Bench) -> None:
    assert rates(bench, STEPS) != rates(bench, {**STEPS, "train.optim.lr_step_size": 4})


# --- data ---


def train_content(bench: Bench, changes: Mapping[str, Any]) -> tuple[Any, ...]:
    batch = bench.batch(changes)
    return batch.pixels.shape, batch.pixels.flatten().tolist(), batch.sizes.tolist()


def test_content(bench: Bench, changes: Mapping[str, Any]) -> tuple[Any, ...]:
    batch = bench.batch(changes, "test")
    return batch.pixels.shape, batch.sizes.tolist()


test_content.__test__ = False  # type: ignore[attr-defined]
AUGMENTATION = "dataset.augmentation."
different(
    train_content,
    {
        AUGMENTATION + "scales": [44],
        AUGMENTATION + "train_random_resize": [40],
        AUGMENTATION + "horizontal_flip_prob": 1.0,
        AUGMENTATION + "train_random_crop_min": 47,
        AUGMENTATION + "train_random_crop_max": 36,
        AUGMENTATION + "random_resize_max_size": 42,
        AUGMENTATION + "fixed_random_crop": 40,
        AUGMENTATION + "pad_size_divisor": 32,
        "dataset.train_sampler": "uniform_sampler",
        "dataset.batch_size": 4,
    },
)
different(
    test_content,
    {
        AUGMENTATION + "test_random_resize": 40,
        AUGMENTATION + "fixed_padding": {
            AUGMENTATION + "fixed_padding": True,
            AUGMENTATION + "random_resize_max_size": 64,
        },
        "evaluate.batch_size": 3,
        "evaluate.input_width": {"evaluate.input_width": 32, "evaluate.input_height": 48},
        "evaluate.input_height": {"evaluate.input_width": 48, "evaluate.input_height": 32},
    },
)


def normalised(bench: Bench, changes: Mapping[str, Any]) -> float:
    """What the network sees of a batch."""
    spec, seen = bench.spec(changes), []

    def predict(pixels: Tensor, mask: Tensor | None) -> Prediction:
        seen.append(float(pixels.double().sum()))
        return known_scores(pixels, mask)

    detector(predict, spec)(bench.batch({}, "test"))
    return seen[0]


different(normalised, {AUGMENTATION + "input_mean": [0.1, 0.2, 0.3], AUGMENTATION + "input_std": [0.5, 0.5, 0.5]})


@row("dataset.train_data_sources")
def _(bench: Bench) -> None:
    assert len(bench.data({}).train_index.images) == 24
    both = [*bench.base["dataset"]["train_data_sources"], *bench.base["dataset"]["val_data_sources"]]
    assert len(bench.data({"dataset.train_data_sources": both}).train_index.images) > 24


@row("dataset.val_data_sources")
def _(bench: Bench) -> None:
    train_too = bench.base["dataset"]["train_data_sources"]
    assert len(bench.data({"dataset.val_data_sources": train_too}).val_index.images) == 24
    assert not bench.data({"dataset.val_data_sources": []}).has_validation


def test_source(bench: Bench, part: str) -> None:
    other = bench.base["dataset"]["train_data_sources"][0]
    both = {f"dataset.test_data_sources.{name}": other[name] for name in ("image_dir", "json_file")}
    assert len(bench.data(both).test_index.images) == 24
    with pytest.raises(ValueError, match=r"nowhere"):
        _ = bench.data({f"dataset.test_data_sources.{part}": str(bench.folder / "nowhere")}).test_index


test_source.__test__ = False  # type: ignore[attr-defined]
row("dataset.test_data_sources.image_dir")(lambda bench: test_source(bench, "image_dir"))
row("dataset.test_data_sources.json_file")(lambda bench: test_source(bench, "json_file"))


@row("dataset.infer_data_sources.image_dir")
def _(bench: Bench) -> None:
    bench.pictures({})
    folder = {"dataset.infer_data_sources.image_dir": str(bench.folder / "seq")}
    assert [picture.path.name for picture in find_pictures(bench.spec(folder))] == ["a.png", "b.png"]


@row("dataset.infer_data_sources.classmap")
def _(bench: Bench) -> None:
    (bench.folder / "map.txt").write_text("ant\nbee\n")
    spec = bench.spec({"dataset.infer_data_sources.classmap": str(bench.folder / "map.txt")})
    assert class_names(spec, {2: "digit"}) == {1: "ant", 2: "bee"}


def calibration_source(bench: Bench, changes: Mapping[str, Any]) -> list[str]:
    from deploy.calibration import from_spec

    described: Any = SimpleNamespace(input={"batch": -1})
    return sorted(path.name for path in from_spec(bench.spec(changes), described, 2).paths)


@row("dataset.quant_calibration_data_sources.image_dir")
def _(bench: Bench) -> None:
    bench.pictures({})
    folder = {"dataset.quant_calibration_data_sources.image_dir": str(bench.folder / "seq")}
    assert len(calibration_source(bench, {})) == 2  # training images
    assert calibration_source(bench, folder) == ["a.png", "b.png"]


@row("dataset.quant_calibration_data_sources.json_file")
def _(bench: Bench) -> None:
    test = bench.base["dataset"]["test_data_sources"]
    named = {f"dataset.quant_calibration_data_sources.{name}": test[name] for name in ("image_dir", "json_file")}
    assert len(calibration_source(bench, named)) == len(bench.data({}).test_index.images)


@row("dataset.workers")
def _(bench: Bench) -> None:
    assert [bench.data({"dataset.workers": most}, cpus=6).workers for most in (1, 3, 9)] == [1, 3, 5]


@row("dataset.pin_memory")
def _(bench: Bench) -> None:
    bench.patch.setattr(torch.cuda, "is_available", lambda: True)
    on, off = (bench.data({"dataset.pin_memory": value}).train_dataloader() for value in (True, False))
    assert (on.pin_memory, off.pin_memory) == (True, False)


@row("dataset.eval_class_ids")
def _(bench: Bench) -> None:
    source = bench.base["dataset"]["test_data_sources"]
    three = dotted.put(bench.base, "dataset.test_data_sources", source)
    spec = ExperimentSpec.from_dict(dotted.put(three, "dataset.eval_class_ids", [2]))
    data = CocoDataModule(spec, cpus=1)
    result, _ = evaluate_detector(detector(known_scores, spec), data.test_dataloader(), data.test_index, spec)
    assert set(result.per_class) == {2}
    with pytest.raises(ValueError, match="must be category ids"):
        _ = bench.data({"dataset.eval_class_ids": [1]}).test_index


# --- training ---


def weights_after(bench: Bench, changes: Mapping[str, Any]) -> list[float]:
    result, _ = bench.train({"train.is_dry_run": True, **changes})
    return read_raw(result.last)["state_dict"]["model.query_embed.weight"].flatten().tolist()


different(weights_after, {"train.seed": 5})
different(
    Bench.trainer,
    {
        "train.num_gpus": {"train.num_gpus": 2, "train.gpu_ids": [0, 1]},
        "train.gpu_ids": [3],
        "train.num_nodes": 2,
        "train.cudnn.benchmark": True,
        "train.cudnn.deterministic": False,
        "train.num_epochs": 7,
        "train.validation_interval": 2,
        "train.clip_grad_norm": 0.0,
        "train.is_dry_run": True,
        "train.precision": "bf16",
    },
)


@row("train.distributed_strategy")
def _(bench: Bench) -> None:
    four_gpus(bench.patch)
    two = launch.Place(gpu_ids=(0, 1), processes=2, nodes=1)
    kinds = [type(launch.strategy(bench.spec({"train.distributed_strategy": how}), two)) for how in ("ddp", "fsdp")]
    assert [kind.__name__ for kind in kinds] == ["DDPStrategy", "ModelParallelStrategy"]


def files(bench: Bench, changes: Mapping[str, Any]) -> list[str]:
    _, out = bench.train({"train.num_epochs": 2, "train.optim.lr_steps": [1], **changes})
    return sorted(path.name for path in out.glob("model_epoch_*.pth"))


@row("train.keep_checkpoints")
def _(bench: Bench) -> None:
    assert len(files(bench, {})) == 1
    assert len(files(bench, {"train.keep_checkpoints": -1})) == 2


@row("train.checkpoint_interval")
def _(bench: Bench) -> None:
    assert files(bench, {"train.keep_checkpoints": -1, "train.checkpoint_interval": 2}) == [
        "model_epoch_001_step_00006.pth"
    ]


@row("train.checkpoint_interval_unit")
def _(bench: Bench) -> None:
    steps = {"train.checkpoint_interval_unit": "step", "train.checkpoint_interval": 2, "train.keep_checkpoints": -1}
    assert [name[-9:-4] for name in files(bench, steps)] == ["00002", "00004", "00006"]


@row("train.per_forward")
def _(bench: Bench) -> None:
    spec = bench.spec({"train.per_forward": 4})
    module = Detector(build_model(spec), spec, None)
    assert module.batch == Batch(per_step=8, per_forward=4)


@row("train.resume_training_checkpoint_path")
def _(bench: Bench) -> None:
    first, _ = bench.train({})
    second, _ = bench.train({"train.num_epochs": 2, "train.resume_training_checkpoint_path": str(first.last)})
    assert [measurement.epoch for measurement in second.measurements] == [1, 2]
    assert second.measurements[0].values == first.measurements[0].values


@row("train.pretrained_model_path")
def _(bench: Bench) -> None:
    first, _ = bench.train({"train.is_dry_run": True})
    file = bench.folder / "start.pth"
    file.write_bytes(first.last.read_bytes())
    started = {"train.pretrained_model_path": str(file)}
    model = bench.network(started)
    assert torch.equal(model.query_embed.weight, read_raw(file)["state_dict"]["model.query_embed.weight"])
    second, _ = bench.train(started)
    file.unlink()  # going on needs it no more
    bench.train({**started, "train.num_epochs": 2, "train.resume_training_checkpoint_path": str(second.last)})


# --- folders and labels: where the commands put things ---


def command(bench: Bench, action: str, **changes: Any) -> Path:
    """The folder that a command of `deformable_detr` takes."""
    from argparse import Namespace

    from hpo.actions import _folder
    from hpo.spec import read_request

    overrides = [f"{name}={value}" for name, value in changes.items()]
    return _folder(read_request(None, overrides, action=action), action, Namespace(run=None))


row("results_dir")(lambda bench: _assert(command(bench, "train", results_dir="/x") == Path("/x/train")))
for _action in ("train", "evaluate", "inference"):

    def _own_folder(bench: Bench, action: str = _action) -> None:
        assert command(bench, action, **{"results_dir": "/x", f"{action}.results_dir": "/y/z"}) == Path("/y/z")

    row(f"{_action}.results_dir")(_own_folder)


def _assert(truth: bool) -> None:
    assert truth


@row("model_name")
def _(bench: Bench) -> None:
    result, _ = bench.train({"train.is_dry_run": True, "model_name": "counter"})
    assert read_checkpoint(result.last).spec.model_name == "counter"


# --- evaluation and inference ---


@row("model.num_select")
def _(bench: Bench) -> None:
    assert set(bench.detections({"model.num_select": 7})) == {7}


@row("evaluate.conf_threshold")
def _(bench: Bench) -> None:
    assert set(bench.detections({"evaluate.conf_threshold": 0.42})) == {4}  # 0.45, 0.5, 0.55, 0.6


@row("evaluate.checkpoint")
def _(bench: Bench) -> None:
    result, _ = bench.train({"train.is_dry_run": True})
    data = {"dataset": {"test_data_sources": bench.base["dataset"]["test_data_sources"]}}
    evaluate({**data, "evaluate": {"checkpoint": str(result.last)}}, bench.folder / "scored")
    assert (bench.folder / "scored" / "metrics.json").exists()
    with pytest.raises(CheckpointError, match="no file"):
        evaluate({**data, "evaluate": {"checkpoint": "nowhere.pth"}}, bench.folder / "scored")


@row("evaluate.latency_batch_sizes")
def _(bench: Bench) -> None:
    from deploy.evaluate import evaluate_action

    result, _ = bench.train({"train.is_dry_run": True})
    data = {"dataset": {"test_data_sources": bench.base["dataset"]["test_data_sources"]}}

    def measured(**keys: Any) -> list[int]:
        given = {**data, "evaluate": {"checkpoint": str(result.last), **keys}}
        latency = evaluate_action(given, bench.folder / "scored").latency
        return [] if latency is None else [row.batch for row in latency.rows]

    assert measured(latency_batch_sizes=[]) == []
    assert not (bench.folder / "scored" / "latency.json").exists()
    assert measured(latency_batch_sizes=[2, 1]) == [2, 1]
    with pytest.raises(ValueError, match=r"`evaluate\.latency_batch_sizes` must be sizes of at least 1"):
        measured(latency_batch_sizes=[0])


def an_engine_comes_before_the_checkpoint(action: Callable[..., object], name: str) -> Row:
    """What it needs to run is in tests/deploy."""

    def check(bench: Bench) -> None:
        with pytest.raises(ValueError, match=r"an engine must exist, but there is no file `nowhere\.engine`"):
            action({name: {"trt_engine": "nowhere.engine", "checkpoint": "nowhere.pth"}}, bench.folder / name)

    return check


row("evaluate.trt_engine")(an_engine_comes_before_the_checkpoint(evaluate_action, "evaluate"))
row("inference.trt_engine")(an_engine_comes_before_the_checkpoint(inference_action, "inference"))


@row("inference.checkpoint")
def _(bench: Bench) -> None:
    result, _ = bench.train({"train.is_dry_run": True})
    bench.pictures({})
    data = {"dataset": {"infer_data_sources": {"image_dir": str(bench.folder / "seq")}}}
    assert inference({**data, "inference": {"checkpoint": str(result.last)}}, bench.folder / "labelled") == 2
    with pytest.raises(CheckpointError, match="no file"):
        inference({**data, "inference": {"checkpoint": "nowhere.pth"}}, bench.folder / "labelled")


def lines(folder: Path) -> list[int]:
    return [len(path.read_text().splitlines()) for path in sorted((folder / "labels").rglob("*.txt"))]


@row("inference.conf_threshold")
def _(bench: Bench) -> None:
    assert lines(bench.pictures({})) == [3, 3]  # 0.5, 0.55, 0.6
    assert lines(bench.pictures({"inference.conf_threshold": 0.57})) == [1, 1]


def drawn(bench: Bench, changes: Mapping[str, Any]) -> bytes:
    (path,) = (bench.pictures(changes) / "images_annotated").rglob("a.png")
    return np.asarray(Image.open(path)).tobytes()


different(drawn, {"inference.color_map": {"inference.color_map": {"one": "red"}}, "inference.outline_width": 9})


def seen_by_network(bench: Bench, changes: Mapping[str, Any]) -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = []

    def predict(pixels: Tensor, mask: Tensor | None) -> Prediction:
        shapes.append(tuple(pixels.shape))
        return known_scores(pixels, mask)

    bench.pictures({})
    spec = bench.spec({"dataset.infer_data_sources.image_dir": str(bench.folder / "seq"), **changes})
    infer(detector(predict, spec), find_pictures(spec), {1: "one"}, spec, bench.folder / "seen")
    return shapes


different(
    seen_by_network,
    {
        "inference.batch_size": 1,
        "inference.input_width": {"inference.input_width": 96, "inference.input_height": 48},
        "inference.input_height": {"inference.input_width": 48, "inference.input_height": 96},
    },
)


@row("inference.is_internal")
def _(bench: Bench) -> None:
    frames = bench.folder / "drive7" / "images"
    frames.mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(frames / "0001.png")
    frame = {"dataset.infer_data_sources.image_dir": [str(frames)]}
    assert (bench.pictures(frame) / "labels" / "0001.txt").exists()
    assert (bench.pictures({**frame, "inference.is_internal": True}) / "drive7" / "labels" / "0001.txt").exists()


# --- keys without an effect: what is printed ---

WITHOUT_EFFECT: dict[str, Any] = {
    "encryption_key": "hush", "wandb.enable": True, "wandb.project": "x", "wandb.entity": "x", "wandb.group": "x",
    "wandb.tags": ["x"], "wandb.reinit": True, "wandb.sync_tensorboard": True, "wandb.save_code": True,
    "wandb.name": "x", "wandb.run_id": "x", "model.clip_max_norm": 1.0, "model.dld_model_dir_path": "x",
    "dataset.dataset_type": "default", "train.input_width": 9, "train.input_height": 9,
    "train.verbose": True, "train.optim.monitor_name": "train_loss", "evaluate.num_gpus": 2, "evaluate.gpu_ids": [1],
    "evaluate.num_nodes": 2, "inference.num_gpus": 2, "inference.gpu_ids": [1],
    "inference.num_nodes": 2,
}  # fmt: skip


def test_every_key_has_one_row() -> None:
    keys = list(every_key())
    assert sorted([*HONOURED, *WITHOUT_EFFECT]) == sorted(keys)
    assert all(any(f"{name}.".startswith(f"{unused}.") for unused in UNUSED) for name in WITHOUT_EFFECT)
    assert not any(f"{name}.".startswith(f"{unused}.") for unused in UNUSED for name in HONOURED)


@pytest.mark.parametrize("key", sorted(HONOURED))
def test_a_changed_key_has_an_effect(
    key: str,
    digits_spec: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    own_cache: None,
) -> None:
    HONOURED[key](Bench(digits_spec, tmp_path, monkeypatch))


@pytest.mark.parametrize("key", sorted(WITHOUT_EFFECT))
def test_a_key_without_an_effect_says_so(key: str) -> None:
    (line,) = notices(dotted.put({}, key, WITHOUT_EFFECT[key]))
    assert line.startswith(f"accepted and not used: {key}; ")
