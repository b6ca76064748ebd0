"""Search algorithms by one name each: which searcher and which scheduler make them up. TAO's spellings are accepted.

A name stands for the algorithm of that name and for nothing else: one that we do not have is refused with the nearest
that we do have. Knows names only.
"""

from collections.abc import Mapping

ALGORITHMS: Mapping[str, tuple[str, str]] = {
    "auto": ("auto", "asha"),
    "random": ("random", "none"),
    "qmc": ("qmc", "none"),
    "tpe": ("tpe", "none"),
    "gp": ("gp", "none"),
    "bayesian": ("gp", "none"),
    "b": ("gp", "none"),
    "cmaes": ("cmaes", "none"),
    "de": ("de", "none"),
    "nsga2": ("nsga2", "none"),
    "asha": ("random", "asha"),
    "hyperband": ("random", "hyperband"),
    "h": ("random", "hyperband"),
    "bohb": ("bohb", "hyperband"),
    "dehb": ("de", "hyperband"),
    "median": ("random", "median"),
    "pbt": ("random", "pbt"),
}
"""Spelling to (`automl.searcher`, `automl.scheduler`). Those of the papers draw at random where they do: `auto` is
`asha` with a model."""

REFUSED: Mapping[str, str] = {
    "bfbo": "it is a Gaussian process with a penalty around known points; use bayesian, which counts running trials",
    "hyperband_es": "it is Hyperband that fits power laws to learning curves; use hyperband, or asha",
    "hes": "it is Hyperband that fits power laws to learning curves; use hyperband, or asha",
    "llm": "no language model is asked for values here; use auto",
    "hybrid": "no language model plans phases here; use auto",
    "autoresearch": "no language model judges trials here; use auto",
    "pb2": "it is population-based training with a bandit; use pbt",
}
"""What TAO or Ray has and we do not, and what to use in its place."""


def resolve(name: str) -> tuple[str, str]:
    """Searcher and scheduler of an algorithm. ValueError for one that we do not have."""
    spelling = name.strip().lower().replace("-", "_")
    if spelling in ALGORITHMS:
        return ALGORITHMS[spelling]
    if spelling in REFUSED:
        raise ValueError(f"`automl.algorithm` must be one that is built in, but is {name!r}: {REFUSED[spelling]}.")
    raise ValueError(f"`automl.algorithm` must be one of {', '.join(ALGORITHMS)}, but is {name!r}.")
