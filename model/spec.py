"""The spec tree: TAO's keys one to one, with our defaults and rules. Knows no files and builds nothing.

A value that is `null` is unset: the default stands. `ExperimentSpec.from_dict` reports every problem at once.
Where a default differs from TAO's template, `note` says why.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model.errors import SpecError
from schemas.fields import field
from schemas.structure import structure, unstructure

INF = float("inf")
ENGINES = (".engine", ".trt", ".plan")
"""Suffixes of TensorRT engines."""
DEPLOY_SECTIONS = ("export", "gen_trt_engine", "quantize", "deploy")
"""Sections of a shared spec file that belong to `deploy`; the tree here passes over them."""

RESNETS = ("resnet_tiny", "resnet_18", "resnet_34", "resnet_50", "resnet_101")
_GC_VIT_SIZES = ("xxtiny", "xtiny", "tiny", "small", "base", "large", "large_384")
GC_VITS = tuple(f"gc_vit_{size}" for size in _GC_VIT_SIZES)
GC_VIT_ALIASES = {f"gcvit_{size}": f"gc_vit_{size}" for size in _GC_VIT_SIZES}
"""The spelling of TAO's documentation, which its trainer refuses; taken for the other one."""


@dataclass(frozen=True, kw_only=True)
class Source:
    image_dir: str | None = field(None, title="Images", doc="Folder or archive of images, here or in S3.")
    json_file: str | None = field(None, title="Annotations", doc="COCO annotation file, here or in S3.")


@dataclass(frozen=True, kw_only=True)
class InferSource:
    image_dir: tuple[str, ...] = field(
        (), title="Images", doc="Folders or archives of images, here or in S3.", search=False
    )
    classmap: str | None = field(None, title="Class names", doc="One name a line; line i names category i + 1.")


@dataclass(frozen=True, kw_only=True)
class AugmentationSpec:
    scales: tuple[int, ...] = field(
        tuple(range(480, 801, 32)),
        title="Scales",
        doc="Short sides to resize to in training, pixels.",
        search=False,
        kind="list_2",
    )
    input_mean: tuple[float, ...] = field(
        (0.485, 0.456, 0.406),
        title="Mean",
        doc="Subtracted from each RGB channel, in units of 1 = white.",
        search=False,
    )
    input_std: tuple[float, ...] = field(
        (0.229, 0.224, 0.225), title="Standard deviation", doc="Divides each RGB channel.", search=False
    )
    train_random_resize: tuple[int, ...] = field(
        (400, 500, 600), title="Resize before a crop", doc="Short sides before a random crop, pixels.", search=False
    )
    horizontal_flip_prob: float = field(
        0.5,
        title="Flip probability",
        doc="Share of training images mirrored left to right.",
        low=0.0,
        high=1.0,
        search=True,
    )
    train_random_crop_min: int = field(
        384,
        title="Smallest crop",
        doc="Shortest side of a random crop, pixels.",
        low=32,
        high=INF,
        search=True,
        parent=True,
    )
    train_random_crop_max: int = field(
        600,
        title="Largest crop",
        doc="Longest side of a random crop, pixels.",
        low=32,
        high=1333,
        search=True,
        math_cond="> depends_on",
        depends_on="dataset.augmentation.train_random_crop_min",
    )
    random_resize_max_size: int = field(
        1333, title="Longest side", doc="No resize makes the long side longer than this, pixels.", low=1, high=INF
    )
    test_random_resize: int = field(
        800, title="Evaluation size", doc="Short side in validation and test, pixels.", low=32, high=INF, search=False
    )
    fixed_padding: bool = field(
        True, title="Fixed padding", doc="Pad every batch to the largest size there can be, against memory growth."
    )
    fixed_random_crop: int | None = field(
        None,
        title="Large-scale jitter",
        doc="Side of square crops after large-scale jitter; replaces resize and crop. Unset: off.",
        low=1,
        high=INF,
        note="TAO's template sets 1024, which silently disables scales and crops; its trainer's own default is unset",
    )
    pad_size_divisor: int | None = field(
        None,
        title="Padding multiple",
        doc="Pad to a multiple of this many pixels.",
        low=1,
        note="absent from the table",
    )

    def problems(self) -> list[str]:
        """All rules between keys, and of the items of lists, that are broken."""
        found = []
        if self.fixed_random_crop is None and self.train_random_crop_max <= self.train_random_crop_min:
            found.append(
                "`dataset.augmentation.train_random_crop_max` must be above `train_random_crop_min`, but they are "
                f"{self.train_random_crop_max} and {self.train_random_crop_min}; raise the one or lower the other."
            )
        for name in ("scales", "train_random_resize"):
            sides = list(getattr(self, name))
            if not sides or min(sides) < 1:
                found.append(
                    f"`dataset.augmentation.{name}` must be one or more sides of at least 1 pixel, but is {sides}; "
                    "correct it, or leave it out."
                )
        for name in ("input_mean", "input_std"):
            numbers = list(getattr(self, name))
            if len(numbers) != 3 or (name == "input_std" and min(numbers) <= 0):
                kind = "three numbers above 0" if name == "input_std" else "three numbers"
                found.append(
                    f"`dataset.augmentation.{name}` must be {kind}, one for each of red, green and blue, but is "
                    f"{numbers}; correct it, or leave it out."
                )
        return found


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    train_sampler: str = field(
        "default_sampler",
        title="Sampler",
        doc="default: all images shuffled. uniform: every annotation file equally likely, with replacement. "
        "non_uniform: each process shuffles its own share of the files.",
        enum=("default_sampler", "non_uniform_sampler", "uniform_sampler"),
    )
    train_data_sources: tuple[Source, ...] = field(
        (Source(),), title="Training data", doc="Images and annotations to train on.", search=False
    )
    val_data_sources: tuple[Source, ...] = field(
        (Source(),), title="Validation data", doc="Images and annotations that choose the best.", search=False
    )
    test_data_sources: Source = field(Source, title="Test data", doc="Held out; scores the final model.", search=False)
    infer_data_sources: InferSource = field(
        InferSource, title="Inference data", doc="Images without annotations.", search=False
    )
    quant_calibration_data_sources: Source = field(
        Source, title="Calibration data", doc="Images for quantisation.", search=False
    )
    batch_size: int = field(
        4, title="Batch size", doc="Images behind one optimizer step on one GPU.", low=1, high=INF, search=True
    )
    workers: int = field(8, title="Workers", doc="Data processes for one GPU, at most.", low=1, high=INF, search=True)
    pin_memory: bool = field(True, title="Pin memory", doc="Copy batches through page-locked memory.")
    dataset_type: str = field(
        "serialized",
        title="Index in memory",
        doc="Accepted for compatibility: either way one compact index is shared by all workers.",
        enum=("serialized", "default"),
    )
    num_classes: int = field(91, title="Classes", doc="Largest category id plus one.", low=1, high=INF, math_cond=">0")
    eval_class_ids: tuple[int, ...] | None = field(
        None,
        title="Evaluated classes",
        doc="Category ids that the metric averages over. Unset: all.",
        search=False,
        note="TAO's template says [1], which scores class 1 only",
    )
    augmentation: AugmentationSpec = field(
        AugmentationSpec, title="Augmentation", doc="Sizes, crops, flips, normalisation.", search=False
    )

    def problems(self) -> list[str]:
        return self.augmentation.problems()

    @property
    def has_validation(self) -> bool:
        return any(source.json_file for source in self.val_data_sources)

    @property
    def has_test(self) -> bool:
        return bool(self.test_data_sources.json_file)


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    backbone: str = field(
        "resnet_50",
        title="Backbone",
        doc="Image features.",
        enum=(*GC_VITS, *GC_VIT_ALIASES, *RESNETS),
        note="TAO offers resnet_50 and the gc_vit family, and spells it gcvit in its documentation",
    )
    pretrained_backbone_path: str | None = field(
        None, title="Backbone weights", doc="Checkpoint of the backbone. Unset: trained from random weights."
    )
    dld_model_dir_path: str | None = field(None, title="Unused", doc="Accepted for compatibility; read by nothing.")
    num_queries: int = field(
        300,
        title="Queries",
        doc="Most objects that one image can hold.",
        low=100,
        high=900,
        search=True,
        parent=True,
    )
    num_feature_levels: int = field(4, title="Levels", doc="Feature maps that attention reads.", low=1, high=5)
    return_interm_indices: tuple[int, ...] = field(
        (1, 2, 3, 4),
        title="Stages",
        doc="Backbone stages 0..3 (strides 4, 8, 16, 32); 4 adds one at stride 64.",
        search=False,
    )
    cls_loss_coef: float = field(2.0, title="Class loss", doc="Weight of the focal loss.", low=0.0, high=INF)
    bbox_loss_coef: float = field(5.0, title="Box loss", doc="Weight of the L1 loss.", low=0.0, high=INF)
    giou_loss_coef: float = field(2.0, title="GIoU loss", doc="Weight of the GIoU loss.", low=0.0, high=INF)
    with_box_refine: bool = field(
        True, title="Box refinement", doc="Each decoder layer corrects the boxes of the last (paper, section 4.2)."
    )
    two_stage: bool = field(
        False,
        title="Two-stage",
        doc="Queries start from the encoder's best boxes (paper, section 4.2); needs box refinement.",
        note="TAO leaves out this variant of the paper",
    )
    num_select: int = field(
        300,
        title="Detections",
        doc="Best query-class pairs kept for one image.",
        low=1,
        high=1000,
        search=True,
        depends_on="model.num_queries",
    )
    focal_alpha: float = field(0.25, title="Focal alpha", doc="Weight of the positive class.", math_cond="> 0.0")
    clip_max_norm: float = field(
        0.1, title="Unused", doc="Accepted for compatibility; `train.clip_grad_norm` clips the gradient."
    )
    nheads: int = field(8, title="Heads", doc="Attention heads.")
    dropout_ratio: float = field(0.3, title="Dropout", doc="In attention and feed-forward layers.", low=0.0, high=1.0)
    hidden_dim: int = field(256, title="Width", doc="Channels of queries and features.", search=False)
    enc_layers: int = field(6, title="Encoder layers", doc="Depth of the encoder.", low=1, high=12, search=True)
    dec_layers: int = field(6, title="Decoder layers", doc="Depth of the decoder.", low=1, high=12, search=True)
    dim_feedforward: int = field(1024, title="Feed-forward width", doc="Hidden channels of each layer's MLP.", low=1)
    dec_n_points: int = field(4, title="Decoder points", doc="Samples per head and level in the decoder.", low=1)
    enc_n_points: int = field(4, title="Encoder points", doc="Samples per head and level in the encoder.", low=1)
    aux_loss: bool = field(True, title="Auxiliary losses", doc="Supervise every decoder layer.")
    dilation: bool = field(False, title="Dilation", doc="Dilate the last stage in place of its stride.")
    train_backbone: bool = field(True, title="Train the backbone", doc="False freezes it whole.")
    loss_types: tuple[str, ...] = field(("labels", "boxes"), title="Losses", doc="Which losses count.", search=False)
    backbone_names: tuple[str, ...] = field(
        ("backbone.0",), title="Backbone parameters", doc="Name parts that get `lr_backbone`.", search=False
    )
    linear_proj_names: tuple[str, ...] = field(
        ("reference_points", "sampling_offsets"),
        title="Projection parameters",
        doc="Name parts whose learning rate is multiplied by `lr_linear_proj_mult`.",
        search=False,
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "backbone", GC_VIT_ALIASES.get(self.backbone, self.backbone))

    def network_problems(self) -> list[str]:
        """The rules between keys that the network needs (paper, sections 4 and A.4), those that are broken."""
        found = []
        indices = list(self.return_interm_indices)
        if len(indices) != self.num_feature_levels:
            found.append(
                "`model.return_interm_indices` must have `model.num_feature_levels` entries, but has "
                f"{indices} for num_feature_levels={self.num_feature_levels}; change one of them."
            )
        if sorted(set(indices)) != indices or not set(indices) <= set(range(5)):
            found.append(
                "`model.return_interm_indices` must be rising numbers within 0..4, each once, but is "
                f"{indices}; 4 stands for the extra level of stride 64."
            )
        if self.nheads < 1 or self.hidden_dim % self.nheads or self.hidden_dim % 4:
            found.append(
                "`model.hidden_dim` must be a multiple of `model.nheads` and of 4 (sine positions), but hidden_dim="
                f"{self.hidden_dim} and nheads={self.nheads}; choose such a multiple."
            )
        if self.two_stage and not self.with_box_refine:
            found.append(
                "`model.two_stage` needs `model.with_box_refine`, but with_box_refine is false; set it to true, or "
                "two_stage to false."
            )
        if self.dilation and self.backbone in GC_VITS:
            found.append(
                "`model.dilation` needs a ResNet, whose last stage can dilate its convolutions, but `model.backbone` "
                f"is {self.backbone}; set dilation to false."
            )
        return found

    def problems(self, num_classes: int) -> list[str]:
        """All rules between keys that are broken."""
        found = self.network_problems()
        if self.num_select >= self.num_queries * num_classes:
            found.append(
                "`model.num_select` must be below `model.num_queries` x `dataset.num_classes`, but num_select="
                f"{self.num_select}, num_queries={self.num_queries}, num_classes={num_classes}; lower num_select."
            )
        if not set(self.loss_types) <= {"labels", "boxes"} or not self.loss_types:
            found.append(f"`model.loss_types` may hold labels and boxes, but is {list(self.loss_types)}.")
        return found


@dataclass(frozen=True, kw_only=True)
class OptimSpec:
    optimizer: str = field("AdamW", title="Optimizer", doc="Update rule.", enum=("AdamW", "SGD"))
    monitor_name: str = field(
        "val_loss", title="Monitor", doc="Accepted for compatibility; no schedule here reads it.",
        enum=("val_loss", "train_loss"),
    )  # fmt: skip
    lr: float = field(
        2e-4, title="Learning rate", doc="Of the transformer, per optimizer step.", low=0.0, high=0.01,
        math_cond="> 0.0", search=True,
    )  # fmt: skip
    lr_backbone: float = field(
        2e-5, title="Backbone learning rate", doc="Of parameters named in `model.backbone_names`.", low=0.0, high=0.001,
        math_cond="> 0.0", search=True,
    )  # fmt: skip
    lr_linear_proj_mult: float = field(
        0.1, title="Projection multiplier", doc="Factor on `lr` for sampling offsets and reference points.",
        low=0.0, high=1.0, math_cond="> 0.0", search=True,
    )  # fmt: skip
    momentum: float = field(0.9, title="Momentum", doc="Of SGD.", low=0.0, high=1.0, math_cond="> 0.0", search=True)
    weight_decay: float = field(
        1e-4, title="Weight decay", doc="Pull of the weights towards zero.", low=0.0, high=0.1, math_cond="> 0.0",
        search=True,
    )  # fmt: skip
    lr_scheduler: str = field(
        "MultiStep", title="Schedule", doc="When the learning rate drops.", enum=("MultiStep", "StepLR")
    )
    lr_steps: tuple[int, ...] = field(
        (40,),
        title="Drops",
        doc="Epochs after which the rate is multiplied by `lr_decay`.",
        search=False,
        kind="list_2",
    )
    lr_step_size: int = field(
        40, title="Drop interval", doc="Epochs between drops under StepLR.", low=1, high=10000, math_cond="> 0",
        search=True,
    )  # fmt: skip
    lr_decay: float = field(
        0.1, title="Drop factor", doc="Multiplies the learning rate at a drop.", low=0.0, high=1.0, math_cond="> 0.0",
        search=True,
    )  # fmt: skip
    lr_drop: float | None = field(
        None, title="Drop as a fraction", doc="Share of the training after which the rate drops once, whatever its "
        "length; set, it replaces `lr_steps` and `lr_step_size`.", low=0.0, high=1.0, math_cond="> 0.0",
        note="TAO counts drops in epochs only, so a shorter training never drops",
    )  # fmt: skip
    warmup_steps: int = field(
        0, title="Warm-up", doc="Optimizer steps over which the rate rises from zero in a straight line.", low=0,
        note="TAO has no warm-up",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CudnnSpec:
    benchmark: bool = field(False, title="Benchmark", doc="Time convolution kernels at the start.")
    deterministic: bool = field(True, title="Deterministic", doc="Only kernels that repeat bit for bit.")


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    num_gpus: int = field(1, title="GPUs", doc="GPUs of one training.", low=1, popular=True)
    gpu_ids: tuple[int, ...] = field((0,), title="GPU ids", doc="Which GPUs.", search=False, popular=True)
    num_nodes: int = field(1, title="Nodes", doc="Machines of one training.", low=1, popular=True)
    seed: int = field(
        1234, title="Seed", doc="Of weights, order and augmentation; below 0: not fixed.", low=-1, high=INF
    )
    cudnn: CudnnSpec = field(CudnnSpec, title="cuDNN", doc="Choice of GPU kernels.", search=False)
    num_epochs: int = field(10, title="Epochs", doc="Passes over the training data.", low=1, high=INF, popular=True)
    checkpoint_interval: int = field(
        1, title="Checkpoint interval", doc="Epochs (or steps) between checkpoints.", low=1, popular=True
    )
    checkpoint_interval_unit: str = field(
        "epoch", title="Interval unit", doc="What the checkpoint interval counts.", enum=("epoch", "step")
    )
    keep_checkpoints: int = field(
        1, title="Checkpoints kept", doc="Newest checkpoints that stay beside the best one; -1 keeps all.", low=-1,
        math_cond="!= 0", note="TAO keeps all, about 0.5 GB each",
    )  # fmt: skip
    per_forward: int | None = field(
        None, title="Images at once", doc="Most images in memory at once; the gradients of `dataset.batch_size` images "
        "still make one step. Unset: all of them.", low=1, note="TAO has no gradient accumulation",
    )  # fmt: skip
    validation_interval: int = field(
        1, title="Validation interval", doc="Epochs between validations.", low=1, popular=True
    )
    resume_training_checkpoint_path: str | None = field(
        None, title="Resume from", doc="Checkpoint to go on from: weights, optimizer, epoch."
    )
    results_dir: str | None = field(None, title="Results folder", doc="Of this action alone.")
    freeze: tuple[str, ...] = field((), title="Freeze", doc="Dotted names of modules that do not train.", search=False)
    pretrained_model_path: str | None = field(
        None, title="Model weights", doc="Checkpoint of a whole detector to start from."
    )
    clip_grad_norm: float = field(
        0.1, title="Gradient clipping", doc="Largest L2 norm of the gradient; 0 switches it off.", math_cond="> 0.0",
        also=(0.0,),
    )  # fmt: skip
    is_dry_run: bool = field(False, title="Dry run", doc="One training and one validation batch, then stop.")
    optim: OptimSpec = field(OptimSpec, title="Optimizer", doc="Learning rates and their schedule.")
    precision: str = field(
        "fp32", title="Precision", doc="Number format of training.", enum=("fp16", "fp32", "bf16"),
        note="TAO has no bf16",
    )  # fmt: skip
    distributed_strategy: str = field(
        "ddp", title="Strategy", doc="How several GPUs share a model.", enum=("ddp", "fsdp")
    )
    activation_checkpoint: bool = field(
        True, title="Activation checkpointing", doc="Recompute activations backwards: less memory, more time.",
    )  # fmt: skip
    verbose: bool = field(False, title="Verbose", doc="Print more.")
    input_width: int | None = field(None, title="Unused", doc="Accepted for compatibility; read by nothing.", low=1)
    input_height: int | None = field(None, title="Unused", doc="Accepted for compatibility; read by nothing.", low=1)

    def problems(self) -> list[str]:
        found = []
        if self.checkpoint_interval_unit == "epoch" and self.checkpoint_interval > self.num_epochs:
            found.append(_interval_problem("checkpoint_interval", self.checkpoint_interval, self.num_epochs))
        if self.validation_interval > self.num_epochs:
            found.append(_interval_problem("validation_interval", self.validation_interval, self.num_epochs))
        if any(step < 1 for step in self.optim.lr_steps):
            found.append(
                "`train.optim.lr_steps` must be epochs of at least 1, but is "
                f"{list(self.optim.lr_steps)}; correct it, or set train.optim.lr_drop to a share of the training."
            )
        return found


def _interval_problem(name: str, interval: int, epochs: int) -> str:
    return (
        f"`train.{name}` must be at most `train.num_epochs`, but {name}={interval} and num_epochs={epochs}; "
        f"nothing would be written. Lower {name}."
    )


@dataclass(frozen=True, kw_only=True)
class EvaluateSpec:
    num_gpus: int = field(1, title="GPUs", doc="GPUs to evaluate on.", low=1, popular=True)
    gpu_ids: tuple[int, ...] = field((0,), title="GPU ids", doc="Which GPUs.", search=False, popular=True)
    num_nodes: int = field(1, title="Nodes", doc="Machines.", low=1, popular=True)
    checkpoint: str | None = field(None, title="Checkpoint", doc="The .pth or .onnx file to score.", mandatory=True)
    trt_engine: str | None = field(None, title="Engine", doc="TensorRT engine to score.")
    results_dir: str | None = field(None, title="Results folder", doc="Of this action alone.")
    batch_size: int = field(-1, title="Batch size", doc="Images at once; -1 takes `dataset.batch_size`.", low=-1)
    input_width: int | None = field(None, title="Input width", doc="Resize to exactly this width, pixels.", low=1)
    input_height: int | None = field(None, title="Input height", doc="Resize to exactly this height, pixels.", low=1)
    conf_threshold: float = field(0.0, title="Confidence", doc="Drop detections below this score.")
    latency_batch_sizes: tuple[int, ...] = field(
        (1,),
        title="Latency batch sizes",
        doc="Batch sizes whose latency is measured after scoring; empty measures none.",
        search=False,
        note="ours",
    )

    def problems(self, name: str) -> list[str]:
        found = _size_problems(name, self.input_height, self.input_width)
        if any(batch < 1 for batch in self.latency_batch_sizes):
            found.append(
                f"`{name}.latency_batch_sizes` must be sizes of at least 1, but is {list(self.latency_batch_sizes)}; "
                "correct it, or leave it empty."
            )
        return found


@dataclass(frozen=True, kw_only=True)
class InferenceSpec:
    num_gpus: int = field(1, title="GPUs", doc="GPUs to run on.", low=1, popular=True)
    gpu_ids: tuple[int, ...] = field((0,), title="GPU ids", doc="Which GPUs.", search=False, popular=True)
    num_nodes: int = field(1, title="Nodes", doc="Machines.", low=1, popular=True)
    checkpoint: str | None = field(None, title="Checkpoint", doc="The .pth or .onnx file to run.", mandatory=True)
    trt_engine: str | None = field(None, title="Engine", doc="TensorRT engine to run.")
    results_dir: str | None = field(None, title="Results folder", doc="Of this action alone.")
    batch_size: int = field(-1, title="Batch size", doc="Images at once; -1 takes `dataset.batch_size`.", low=-1)
    input_width: int | None = field(
        None, title="Input width", doc="Resize to exactly this width, pixels.", low=32,
        note="TAO's template says 640, so that inference would squash what evaluation does not",
    )  # fmt: skip
    input_height: int | None = field(
        None, title="Input height", doc="Resize to exactly this height, pixels.", low=32, note="as input_width"
    )
    conf_threshold: float = field(0.5, title="Confidence", doc="Drop detections below this score.")
    color_map: Mapping[str, str] | None = field(None, title="Colours", doc="Class name to colour.", search=False)
    is_internal: bool = field(False, title="Sequence folders", doc="Sort outputs into one folder per sequence.")
    outline_width: int = field(3, title="Outline", doc="Width of drawn boxes, pixels.", low=1)

    def problems(self, name: str) -> list[str]:
        return _size_problems(name, self.input_height, self.input_width)


def _size_problems(name: str, height: int | None, width: int | None) -> list[str]:
    if (height is None) == (width is None):
        return []
    return [
        f"`{name}.input_height` and `{name}.input_width` must be set together, but are {height} and {width}; "
        "set the other, or neither."
    ]


@dataclass(frozen=True, kw_only=True)
class WandbSpec:
    enable: bool = field(False, title="Enable", doc="Accepted for compatibility; runs are tracked in MLflow.",
                         note="TAO's default is true")  # fmt: skip
    project: str = field("TAO Toolkit", title="Project", doc="Project name.")
    entity: str | None = field(None, title="Entity", doc="Team name.")
    group: str | None = field(None, title="Group", doc="Group of runs.")
    tags: tuple[str, ...] = field(("tao-toolkit",), title="Tags", doc="Tags of the run.", search=False)
    reinit: bool = field(False, title="Reinit", doc="Start anew within a process.")
    sync_tensorboard: bool = field(False, title="Sync TensorBoard", doc="Copy TensorBoard scalars.")
    save_code: bool = field(False, title="Save code", doc="Upload the code.")
    name: str = field("TAO Toolkit Training", title="Name", doc="Name of the run.")
    run_id: str | None = field(None, title="Run id", doc="Id of the run.")


@dataclass(frozen=True, kw_only=True)
class ExperimentSpec:
    """A whole spec, valid field by field once built; `problems()` are the rules between fields."""

    model_name: str | None = field(None, title="Model name", doc="Label of the network.")
    encryption_key: str | None = field(
        None, title="Encryption key", doc="Of encrypted checkpoints; never written to a file."
    )
    results_dir: str | None = field(None, title="Results folder", doc="Every action writes below it.")
    wandb: WandbSpec = field(WandbSpec, title="Weights and Biases", doc="Accepted for compatibility.", search=False)
    model: ModelSpec = field(ModelSpec, title="Model", doc="The detector.", search=False)
    dataset: DatasetSpec = field(DatasetSpec, title="Dataset", doc="Images, annotations, augmentation.", search=False)
    train: TrainSpec = field(
        TrainSpec, title="Training", doc="Optimisation, precision, intervals.", search=False,
        popular=("validation_interval", "checkpoint_interval", "num_gpus", "num_nodes", "num_epochs", "gpu_ids"),
    )  # fmt: skip
    evaluate: EvaluateSpec = field(
        EvaluateSpec,
        title="Evaluation",
        doc="Scores a model.",
        search=False,
        popular=("num_gpus", "num_nodes", "gpu_ids"),
    )
    inference: InferenceSpec = field(
        InferenceSpec, title="Inference", doc="Draws and lists detections.", search=False,
        popular=("num_gpus", "num_nodes", "gpu_ids"),
    )  # fmt: skip

    @classmethod
    def from_dict(cls, given: Mapping[str, Any], *, network: bool = True) -> "ExperimentSpec":
        """Builds the tree from TAO's nested keys. Raises SpecError with every problem; `network=False` leaves out the
        rules that only an action which builds the network needs."""
        spec, problems = structure(cls, given, ignore=DEPLOY_SECTIONS)
        if network:
            problems += spec.problems()
        if problems:
            raise SpecError(problems)
        return spec

    def problems(self) -> list[str]:
        return (
            self.model.problems(self.dataset.num_classes)
            + self.train.problems()
            + self.dataset.problems()
            + self.evaluate.problems("evaluate")
            + self.inference.problems("inference")
        )

    def to_dict(self) -> dict[str, Any]:
        plain = unstructure(self)
        assert isinstance(plain, dict)
        return plain
