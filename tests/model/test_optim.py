"""Learning rates as a function of epoch, progress and step, against values by hand."""

import pytest
import torch

from model.network.detr import build
from model.optim import factor, late_drops, make_optimizer, parameter_groups
from model.spec import ExperimentSpec, OptimSpec


def test_drops_by_epoch() -> None:
    multi = OptimSpec(lr_steps=(2, 5), lr_decay=0.5)
    assert [factor(multi, epoch) for epoch in range(7)] == [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]
    step = OptimSpec(lr_scheduler="StepLR", lr_step_size=3, lr_decay=0.1)
    assert [factor(step, epoch) for epoch in (0, 2, 3, 6)] == pytest.approx([1, 1, 0.1, 0.01])


def test_a_fraction_of_the_run_replaces_epochs() -> None:
    spec = OptimSpec(lr_drop=0.8, lr_steps=(1,), lr_decay=0.1)
    values = [factor(spec, epoch, progress=(epoch + half / 2) / 2) for epoch in range(2) for half in range(2)]
    assert values == [1, 1, 1, 1]  # 0, 0.25, 0.5, 0.75
    assert factor(spec, 1, progress=0.8) == pytest.approx(0.1)
    assert factor(spec, 0, progress=0.9) == pytest.approx(0.1)  # a training of one epoch drops too


def test_warm_up_is_a_straight_line_and_multiplies_the_drops() -> None:
    spec = OptimSpec(warmup_steps=4, lr_steps=(1,), lr_decay=0.5)
    assert [factor(spec, 0, step=step) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert factor(spec, 1, step=1) == 0.25


@pytest.mark.parametrize(
    ("spec", "epochs", "text"),
    [
        (OptimSpec(), 10, "lr_steps names epoch 40, beyond train.num_epochs=10: the learning rate never drops"),
        (OptimSpec(lr_steps=(3, 20)), 10, "names epoch 20.*not all drops come.*0.8 x 10 epochs would be 8"),
        (OptimSpec(lr_scheduler="StepLR"), 5, "lr_step_size names epoch 40.*would be 4"),
        (OptimSpec(), 41, None),
        (OptimSpec(lr_drop=0.5), 10, None),
        (OptimSpec(lr_steps=()), 10, None),
    ],
)
def test_drops_beyond_the_end_are_a_warning(spec: OptimSpec, epochs: int, text: str | None) -> None:
    said = late_drops(spec, epochs)
    if text is None:
        assert said is None
    else:
        with pytest.raises(ValueError, match=text):
            raise ValueError(said)


def test_groups_hold_every_trainable_parameter_once_at_its_rate(tiny_spec: ExperimentSpec) -> None:
    model = build(tiny_spec.model, 4, pretrained=False)
    model.get_submodule("transformer.encoder").requires_grad_(False)
    groups = {group["name"]: group for group in parameter_groups(model, tiny_spec)}
    rates = tiny_spec.train.optim
    assert groups["transformer"]["lr"] == rates.lr
    assert groups["backbone"]["lr"] == rates.lr_backbone
    assert groups["projections"]["lr"] == rates.lr * rates.lr_linear_proj_mult
    held = [id(parameter) for group in groups.values() for parameter in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    offsets = model.get_submodule("transformer.decoder.layers.0.cross_attn.sampling_offsets").weight
    assert any(offsets is parameter for parameter in groups["projections"]["params"])


@pytest.mark.parametrize(("name", "kind"), [("AdamW", torch.optim.AdamW), ("SGD", torch.optim.SGD)])
def test_the_optimizer_named_is_the_one_made(name: str, kind: type, tiny_spec: ExperimentSpec) -> None:
    spec = OptimSpec(optimizer=name, momentum=0.7, weight_decay=0.03)
    groups = parameter_groups(build(tiny_spec.model, 4, pretrained=False), tiny_spec)
    optimizer = make_optimizer(groups, spec, fused=False)
    assert type(optimizer) is kind
    assert all(group["weight_decay"] == 0.03 for group in optimizer.param_groups)
    assert all(group.get("momentum", 0.7) == 0.7 for group in optimizer.param_groups)
