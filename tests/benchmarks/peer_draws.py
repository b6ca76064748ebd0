"""How the peer draws the packaged schema's `automl_default_parameters`: linearly between the schema's bounds.

Of its two meanings of an infinite bound this is the one of its Bayesian searchers: twice the schema's default for an
integer, ten times for a float. As there, a bound that another parameter sets is kept: the largest crop is drawn at or
above the smallest (they may be equal), and `num_select` is cut to `num_queries`. Knows no training.
"""

import random
from typing import Any

from schemas.dialect import Leaf, Schema

INFINITE = {"int": 2, "float": 10}
"""The upper end of an unbounded parameter, in multiples of its default."""
CROP_MIN = "dataset.augmentation.train_random_crop_min"
CROP_MAX = "dataset.augmentation.train_random_crop_max"
QUERIES, SELECT = "model.num_queries", "model.num_select"


def default_parameters(schema: Schema) -> list[Leaf]:
    return [leaf for leaf in schema.leaves.values() if leaf.search]


def draw(schema: Schema, rng: random.Random) -> dict[str, Any]:
    """Spec key -> value for every default parameter; not checked, as the peer does not check."""
    values = {leaf.name: _uniform(*bounds(leaf), leaf.kind, rng) for leaf in default_parameters(schema)}
    if CROP_MAX in values:
        values[CROP_MAX] = _uniform(values[CROP_MIN], bounds(schema.leaves[CROP_MAX])[1], "int", rng)
    if SELECT in values:
        values[SELECT] = min(values[SELECT], values[QUERIES])
    return values


def bounds(leaf: Leaf) -> tuple[float, float]:
    """Both finite. An open end is treated as a closed one: a float never falls on it."""
    assert leaf.low is not None
    return leaf.low, leaf.high if leaf.high is not None else INFINITE[leaf.kind] * leaf.default


def _uniform(low: float, high: float, kind: str, rng: random.Random) -> float:
    return rng.randint(int(low), int(high)) if kind == "int" else rng.uniform(low, high)
