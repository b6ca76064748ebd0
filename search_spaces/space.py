"""What is searched: a box of parameters, the rules that turn its coordinates into spec values, and what was left out.

Knows no schema and no searcher. A coordinate is a number that no rule couples to another one, so that every searcher
sees a box: a ratio, a fraction of the run, a fraction of what is left above another value.
"""

import hashlib
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

from schemas import dotted, leaf

FORMAT = 2


class Dropped(NamedTuple):
    name: str
    """Spec key, `train.optim.momentum`."""
    because: str


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One dimension. Bounds are inclusive and finite; `default` is where the effective spec stands, clipped inside."""

    name: str
    """A spec key, or a coordinate (`train.optim.lr_backbone/lr`) that a Rule turns into one."""
    kind: Literal["float", "int", "categorical"]
    low: float | None = None
    high: float | None = None
    scale: Literal["linear", "log"] = "linear"
    step: int = 1
    """For int: the distance between neighbours, counted from `low`."""
    choices: tuple[Any, ...] = ()
    weights: tuple[float, ...] | None = None
    """Relative weights of `choices` in a random draw."""
    default: Any = None
    origin: str = ""
    """Where the range comes from, for people."""

    def __post_init__(self) -> None:
        if self.kind == "categorical":
            if not self.choices:
                raise ValueError(f"a categorical parameter needs choices, but `{self.name}` has none.")
            return
        low, high = self.low, self.high
        if low is None or high is None or not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise ValueError(f"`low <= high`, both finite, must hold for `{self.name}`, but they are {low} and {high}.")
        if self.scale == "log" and low <= 0:
            raise ValueError(f"a log scale needs low > 0, but `{self.name}` has low={low}.")

    def problem(self, value: Any) -> str | None:
        """The rule that `value` breaks, or None."""
        if self.kind == "categorical":
            # 1 == True and 1 == 1.0 in Python, hence the type.
            same = any(value == choice and type(value) is type(choice) for choice in self.choices)
            return None if same else f"must be one of {', '.join(map(str, self.choices))}"
        assert self.low is not None
        assert self.high is not None
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return f"must be a number in [{self.low:g}, {self.high:g}]"
        if self.kind == "int" and (value != int(value) or (int(value) - int(self.low)) % self.step):
            return f"must be {self.low:g} plus a multiple of {self.step}"
        return None

    def clip(self, value: Any) -> Any:
        """The nearest value inside; the first choice for a value that is no choice, the low end for no number."""
        if self.kind == "categorical":
            return value if self.problem(value) is None else self.choices[0]
        assert self.low is not None
        assert self.high is not None
        inside = min(max(value, self.low), self.high) if is_number(value) else self.low
        if self.kind == "float":
            return float(inside)
        steps = round((inside - self.low) / self.step)
        return int(self.low) + self.step * min(steps, int(self.high - self.low) // self.step)

    def draw(self, rng: random.Random) -> Any:
        """Uniform on the scale. A log int gives every integer the share that rounding gives it."""
        if self.kind == "categorical":
            return rng.choices(self.choices, self.weights)[0]
        assert self.low is not None
        assert self.high is not None
        if self.kind == "int":
            if self.scale == "linear":
                return int(self.low) + self.step * rng.randint(0, int(self.high - self.low) // self.step)
            return self.clip(math.exp(rng.uniform(math.log(self.low - 0.5), math.log(self.high + 0.5))))
        if self.scale == "log":
            return self.clip(math.exp(rng.uniform(math.log(self.low), math.log(self.high))))
        return self.clip(rng.uniform(self.low, self.high))


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How one spec value follows from coordinates, from other values, or from both."""

    kind: str
    """A name in FORWARD."""
    target: str
    of: tuple[str, ...] = ()
    """Spec keys it reads, searched or not."""
    coordinates: tuple[str, ...] = ()
    """Parameters of the space that only this rule reads."""
    low: float | None = None
    """Bounds of the target, or of each of its items."""
    high: float | None = None
    integer: bool = False
    step: int = 1
    """For whole numbers: each is a multiple of this."""
    factor: float = 1.0
    """The other values count this many times: a warm-up of at most half (0.5) of the epochs."""
    choices: tuple[Any, ...] = ()


At = Sequence[float]
"""One number for each coordinate of a rule."""


def _ratio(at: At, rule: Rule, of: list[Any]) -> float:
    """`at` times the other value, inside the target's bounds."""
    low = -math.inf if rule.low is None else rule.low
    return min(max(at[0] * float(of[0]), low), math.inf if rule.high is None else rule.high)


def _fraction(at: At, rule: Rule, of: list[Any]) -> int:
    """The whole epoch `at` of the way through a run; at least one epoch is left before and after it."""
    return max(1, min(round(at[0] * float(of[0])), int(of[0]) - 1))


def _below_product(at: At, rule: Rule, of: list[Any]) -> int:
    """The first value, lowered below the product of the others where it is not."""
    return min(int(of[0]), math.prod(map(int, of[1:])) - 1)


def _capped(at: At, rule: Rule, of: list[Any]) -> int:
    """The first value, lowered to the smallest of the others, yet not below its own bound."""
    return max(min(map(int, of)), int(of[0]) if rule.low is None else math.ceil(rule.low))


def _between(at: At, rule: Rule, of: list[Any]) -> float:
    """The value `at` of the way through what the bounds and the other values leave."""
    low, high = _edges(rule, of)
    if rule.integer:
        return int(low) + round(at[0] * (int(high) - int(low)))
    return min(max(low + at[0] * (high - low), low), high)


def _way_between(value: Any, rule: Rule, of: list[Any]) -> At:
    low, high = _edges(rule, of)
    return [(value - low) / (high - low) if high > low else 0.0]


def _edges(rule: Rule, of: list[Any]) -> tuple[float, float]:
    """The target's range as the other values leave it. The space is made so that it is never empty."""
    assert rule.low is not None
    assert rule.high is not None
    if rule.kind in ("above", "at_least"):
        return max(rule.low, beyond(max(of) * rule.factor, rule.kind == "above", rule.integer)), rule.high
    return rule.low, min(rule.high, beyond(min(of) * rule.factor, rule.kind == "below", rule.integer, side=-1))


def _rising(at: At, rule: Rule, of: list[Any]) -> list[Any]:
    """Rising numbers, each `at` of the way through what those before it leave; whole ones are all different as long
    as there is room. With another value the bounds are fractions of it."""
    values: list[Any] = []
    low, high = _span(rule, of)
    for after, each in zip(reversed(range(len(at))), at, strict=True):
        top = max(low, high - after) if rule.integer else high
        place = low + round(each * (top - low)) if rule.integer else min(low + each * (top - low), high)
        values.append(min(place, high) * (rule.step if rule.integer else 1))
        low = min(place + 1, high) if rule.integer else place
    return sorted(set(values)) if rule.integer else values


def _way_rising(value: Any, rule: Rule, of: list[Any]) -> At:
    ways: list[float] = []
    low, high = _span(rule, of)
    for after, each in zip(reversed(range(len(value))), sorted(value), strict=True):
        top = max(low, high - after) if rule.integer else high
        place = each / rule.step if rule.integer else each
        ways.append((place - low) / (top - low) if top > low else 0.0)
        low = min(place + 1, high) if rule.integer else place
    return ways


def _span(rule: Rule, of: list[Any]) -> tuple[Any, Any]:
    """First and last place of a rising list: numbers, or multiples of the step counted from 0."""
    assert rule.low is not None
    assert rule.high is not None
    low, high = (edge * float(of[0]) if of else edge for edge in (rule.low, rule.high))
    if not rule.integer:
        return low, high
    first, last = math.ceil(low / rule.step), math.floor(high / rule.step)
    if of:  # places within a run: at least one unit is left before and after
        first, last = max(1, first), max(1, min(last, math.ceil(of[0] / rule.step) - 1))
    return min(first, last), last


def _share(value: Any, of: Any) -> float:
    return value / of if of else math.inf


def _nearest(value: Any, rule: Rule, of: list[Any]) -> At:
    """The place of the nearest choice."""
    return [min(range(len(rule.choices)), key=lambda place: abs(rule.choices[place] - value))]


def beyond(value: float, strict: bool, integer: bool, *, side: int = 1) -> float:
    """The first number that is above (side 1) or below (side -1) `value`, or `value` itself unless strict."""
    if integer:
        return (
            (math.floor(value) + 1 if strict else math.ceil(value))
            if side > 0
            else (math.ceil(value) - 1 if strict else math.floor(value))
        )
    return math.nextafter(value, side * math.inf) if strict else value


FORWARD: Mapping[str, Callable[[At, Rule, list[Any]], Any]] = {
    "ratio": _ratio,
    "fraction": _fraction,
    "milestone": lambda at, rule, of: [_fraction(at, rule, of)],
    "below_product": _below_product,
    "capped": _capped,
    "above": _between,
    "at_least": _between,
    "below": _between,
    "at_most": _between,
    "rising": _rising,
    "items": lambda at, rule, of: [int(each) if rule.integer else each for each in at],
    "pick": lambda at, rule, of: rule.choices[int(at[0])],
}
BACKWARD: Mapping[str, Callable[[Any, Rule, list[Any]], At]] = {
    "ratio": lambda value, rule, of: [_share(value, of[0])],
    "fraction": lambda value, rule, of: [_share(value, of[0])],
    "milestone": lambda value, rule, of: [_share(value[0], of[0]) if value else 1.0],
    "above": _way_between,
    "at_least": _way_between,
    "below": _way_between,
    "at_most": _way_between,
    "rising": _way_rising,
    "items": lambda value, rule, of: value,
    "pick": _nearest,
}


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    parameters: tuple[Parameter, ...]
    rules: tuple[Rule, ...] = ()
    """In an order in which each finds what it reads."""
    context: Mapping[str, Any] = field(default_factory=dict)
    """Spec values that rules read and that are not searched."""
    dropped: tuple[Dropped, ...] = ()
    tier: str = ""

    def __getitem__(self, name: str) -> Parameter:
        return next(parameter for parameter in self.parameters if parameter.name == name)

    @property
    def targets(self) -> tuple[str, ...]:
        """The spec keys that a trial sets."""
        coordinates = self._coordinates
        direct = [parameter.name for parameter in self.parameters if parameter.name not in coordinates]
        return (*direct, *(rule.target for rule in self.rules))

    def check(self, sample: Mapping[str, Any]) -> None:
        """Raises ValueError unless `sample` has exactly one allowed value for each parameter."""
        names = [parameter.name for parameter in self.parameters]
        wrong = [f"`{name}` is not searched" for name in sample if name not in names]
        for parameter in self.parameters:
            if parameter.name not in sample:
                wrong.append(f"`{parameter.name}` is missing")
            elif broken := parameter.problem(sample[parameter.name]):
                wrong.append(f"`{parameter.name}` {broken}, but is {sample[parameter.name]!r}")
        if wrong:
            raise ValueError("; ".join(wrong) + ".")

    def resolve(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Spec key -> value, with every rule kept. ValueError for a sample outside the box."""
        self.check(sample)
        coordinates = self._coordinates
        values = {name: value for name, value in sample.items() if name not in coordinates}
        for rule in self.rules:
            at = [sample[name] for name in rule.coordinates]
            values[rule.target] = FORWARD[rule.kind](at, rule, self._read(rule, values))
        return values

    def encode(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """The sample nearest to a nested effective spec, clipped into the box. Undoes `resolve` for its values."""
        sample = {parameter.name: parameter.default for parameter in self.parameters}
        for name in sample.keys() - self._coordinates:
            if (value := dotted.get(spec, name)) is not None:
                sample[name] = self[name].clip(value)
        for rule in self.rules:
            value = dotted.get(spec, rule.target)
            of = [dotted.get(spec, key, self.context.get(key)) for key in rule.of]
            if rule.coordinates and _readable(value, rule) and all(map(is_number, of)):
                # A list that is longer or shorter than what is searched tells as many coordinates as it can.
                for name, at in zip(rule.coordinates, BACKWARD[rule.kind](value, rule, of), strict=False):
                    sample[name] = self[name].clip(at)
        return sample

    def draw(self, rng: random.Random) -> dict[str, Any]:
        return {parameter.name: parameter.draw(rng) for parameter in self.parameters}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, `from_dict` undoes it."""
        return {
            "format": FORMAT,
            "tier": self.tier,
            "parameters": [asdict(parameter) for parameter in self.parameters],
            "rules": [asdict(rule) for rule in self.rules],
            "context": dict(self.context),
            "dropped": [dropped._asdict() for dropped in self.dropped],
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "SearchSpace":
        if plain.get("format") != FORMAT:
            raise ValueError(f"a search space of format {FORMAT} is needed, but this one has {plain.get('format')!r}.")
        return cls(
            parameters=tuple(
                Parameter(**{**each, "choices": tuple(each["choices"]), "weights": _tuple(each["weights"])})
                for each in plain["parameters"]
            ),
            rules=tuple(
                Rule(**{**each, **{key: tuple(each[key]) for key in ("of", "coordinates", "choices")}})
                for each in plain["rules"]
            ),
            context=dict(plain["context"]),
            dropped=tuple(Dropped(**each) for each in plain["dropped"]),
            tier=plain["tier"],
        )

    @property
    def digest(self) -> str:
        """sha256 of what decides a draw's meaning: parameters, rules, context; not the wording of reasons."""
        plain = self.to_dict()
        told = {key: plain[key] for key in ("format", "parameters", "rules", "context")}
        told["parameters"] = [{k: v for k, v in each.items() if k != "origin"} for each in told["parameters"]]
        return hashlib.sha256(json.dumps(told, sort_keys=True, allow_nan=False).encode()).hexdigest()

    @property
    def _coordinates(self) -> set[str]:
        return {name for rule in self.rules for name in rule.coordinates}

    def _read(self, rule: Rule, values: Mapping[str, Any]) -> list[Any]:
        return [values[key] if key in values else self.context[key] for key in rule.of]


def _readable(value: Any, rule: Rule) -> bool:
    """Whether a spec value has the form that the rule writes: any spec may be encoded."""
    if isinstance(value, list | tuple):
        return rule.kind in ("milestone", "rising", "items") and all(map(is_number, value))
    return is_number(value) and rule.kind not in ("milestone", "rising", "items")


def is_number(value: Any) -> bool:
    """No flag, no text; infinity counts."""
    return leaf.is_number(value) or (isinstance(value, float) and math.isinf(value))


def _tuple(value: Any) -> tuple[Any, ...] | None:
    return None if value is None else tuple(value)
