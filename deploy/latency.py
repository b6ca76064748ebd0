"""How long an exported graph takes. Knows what a predictor accepts; the clock is `model.latency`'s."""

from collections.abc import Sequence

from torch import Tensor

from deploy.runtime import EnginePredictor, GraphPredictor
from model.latency import Latency, Run, device_name, measure, repeated


def of_graph(graph: GraphPredictor, pixels: Tensor, batch_sizes: Sequence[int]) -> Latency:
    """pixels (B, 3, H, W): images as `graph` takes them, seen again and again. A batch size that it does not take
    becomes the nearest one that it does."""
    low, high = graph.batch_range
    taken = dict.fromkeys(min(max(batch, low), high or batch) for batch in batch_sizes)
    # ONNX Runtime is given memory of the CPU wherever it runs.
    place = graph.device if isinstance(graph, EnginePredictor) else "cpu"

    def make(batch: int) -> Run:
        images = repeated(pixels, batch).to(place)
        return lambda: graph.run(images)

    height, width = graph.size
    return Latency(
        runner=graph.runner,
        device=device_name(graph.device),
        threads=graph.threads,
        height=height,
        width=width,
        rows=measure(make, list(taken)),
    )
