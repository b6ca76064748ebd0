"""The latency of a graph: at batch sizes that it takes, on the images that it is given."""

import pytest
import torch

from deploy.latency import of_graph
from deploy.runtime import GraphPredictor, Outputs


class Graph(GraphPredictor):
    """Remembers what it runs."""

    size, dtype, outputs, runner, device = (6, 8), torch.float32, ("scores",), "Toy 1", torch.device("cpu")

    def __init__(self, low: int, high: int | None) -> None:
        self.batch_range, self.seen = (low, high), set[tuple[float, ...]]()

    def _run(self, pixels: torch.Tensor) -> Outputs:
        self.seen.add(tuple(pixels[:, 0, 0, 0].tolist()))
        return {"scores": pixels[:, 0, 0]}


@pytest.mark.parametrize(
    ("low", "high", "asked", "taken"),
    [(1, None, [4, 1], [4, 1]), (3, 3, [1], [3]), (2, 4, [1, 2, 3, 9], [2, 3, 4]), (1, None, [], [])],
    ids=["any", "a fixed batch", "a profile", "none"],
)
def test_batch_sizes_are_those_that_the_graph_takes(
    low: int, high: int | None, asked: list[int], taken: list[int]
) -> None:
    graph = Graph(low, high)
    images = torch.arange(2.0)[:, None, None, None].expand(2, 3, 6, 8)
    found = of_graph(graph, images, asked)
    assert [row.batch for row in found.rows] == taken
    assert graph.seen == {tuple(float(place % 2) for place in range(batch)) for batch in taken}
    assert (found.height, found.width, found.runner) == (6, 8, "Toy 1")
