"""The matcher against every possible assignment, and its costs against the formulas, one pair at a time."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.batch import Target
from model.network.boxes import giou, to_corners
from model.network.matcher import Costs, match, pair_costs

COSTS = Costs(label=2.0, box=5.0, giou=2.0, alpha=0.25)
CLASSES = 3


def target(labels: list[int], boxes: Tensor) -> Target:
    return Target(torch.tensor(labels, dtype=torch.int64), boxes, image_id=1, orig_size=(10, 10))


def random_case(seed: int, layers: int, queries: int, counts: list[int]) -> tuple[Tensor, Tensor, list[Target]]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(layers, len(counts), queries, CLASSES, generator=generator)
    boxes = torch.rand(layers, len(counts), queries, 4, generator=generator)
    targets = [
        target(
            torch.randint(CLASSES, (count,), generator=generator).tolist(), torch.rand(count, 4, generator=generator)
        )
        for count in counts
    ]
    return logits, boxes, targets


def cost_of(logits: Tensor, box: Tensor, label: int, truth: Tensor) -> float:
    """One query (C,), (4,) against one object, by the paper's formulas."""
    p = 1 / (1 + math.exp(-logits[label].item()))
    positive = -COSTS.alpha * (1 - p) ** 2 * math.log(p)
    negative = -(1 - COSTS.alpha) * p**2 * math.log(1 - p)
    distance = sum(abs(a - b) for a, b in zip(box.tolist(), truth.tolist(), strict=True))
    overlap = giou(to_corners(box), to_corners(truth)).item()
    return COSTS.label * (positive - negative) + COSTS.box * distance - COSTS.giou * overlap


def test_costs_equal_the_formula_for_every_pair() -> None:
    logits, boxes, targets = random_case(0, 2, 4, [3, 3])
    table = pair_costs(
        logits, boxes, torch.stack([t.labels for t in targets]), torch.stack([t.boxes for t in targets]), COSTS
    )
    assert table.shape == (2, 2, 4, 3)
    for layer, image, query, n in itertools.product(range(2), range(2), range(4), range(3)):
        expected = cost_of(
            logits[layer, image, query],
            boxes[layer, image, query],
            int(targets[image].labels[n]),
            targets[image].boxes[n],
        )
        assert table[layer, image, query, n].item() == pytest.approx(expected, abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    layers=st.integers(1, 2),
    queries=st.integers(1, 5),
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=3),
)
def test_assignment_is_the_cheapest_of_all(seed: int, layers: int, queries: int, counts: list[int]) -> None:
    logits, boxes, targets = random_case(seed, layers, queries, counts)
    matches = match(logits, boxes, targets, COSTS)
    starts = [0, *itertools.accumulate(counts)]
    for layer in range(layers):
        for image, count in enumerate(counts):
            mine = matches.image[layer] == image
            chosen = matches.query[layer, mine].tolist()
            objects = (matches.target[layer, mine] - starts[image]).tolist()
            pairs = min(queries, count)
            assert len(chosen) == len(set(chosen)) == len(set(objects)) == pairs
            assert all(0 <= n < count for n in objects)
            table = [
                [
                    cost_of(logits[layer, image, q], boxes[layer, image, q], int(label), box)
                    for label, box in zip(targets[image].labels, targets[image].boxes, strict=True)
                ]
                for q in range(queries)
            ]
            best = min(
                sum(table[q][n] for q, n in zip(some, others, strict=True))
                for some in itertools.permutations(range(queries), pairs)
                for others in itertools.combinations(range(count), pairs)
            )
            assert sum(table[q][n] for q, n in zip(chosen, objects, strict=True)) == pytest.approx(best, abs=1e-4)


def test_no_objects_at_all_gives_no_pairs() -> None:
    logits, boxes, targets = random_case(0, 3, 4, [0, 0])
    assert [tuple(index.shape) for index in match(logits, boxes, targets, COSTS)] == [(3, 0)] * 3


def test_an_image_is_matched_to_its_own_objects_only() -> None:
    """Image 1's object would fit image 0's query perfectly; it must not be taken."""
    logits = torch.zeros(1, 2, 1, 1)
    boxes = torch.tensor([[[[0.2, 0.2, 0.1, 0.1]], [[0.8, 0.8, 0.1, 0.1]]]])
    targets = [target([0], torch.tensor([[0.8, 0.8, 0.1, 0.1]])), target([0], torch.tensor([[0.2, 0.2, 0.1, 0.1]]))]
    matches = match(logits, boxes, targets, COSTS)
    assert matches.image.tolist() == matches.target.tolist() == [[0, 1]]


def test_broken_predictions_are_still_matched() -> None:
    """The loss, not scipy, must be what reports them."""
    logits, boxes, targets = random_case(0, 1, 3, [2])
    matches = match(logits.fill_(math.nan), boxes, targets, COSTS)
    assert matches.query.shape == (1, 2)
