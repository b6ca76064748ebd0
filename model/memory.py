"""Out of memory: which errors mean it, and the next smaller batch to try. Knows no training loop."""

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Batch:
    """The batch that is a hyperparameter, and the batch that fits."""

    per_step: int
    """Images behind one optimizer step on one device: what was chosen."""
    per_forward: int
    """Images in memory at once: how we managed it; divides `per_step`."""

    @classmethod
    def of(cls, per_step: int, most: int | None) -> "Batch":
        """With the largest `per_forward` that divides `per_step` and is not above `most` (None: no limit)."""
        limit = min(per_step, most or per_step)
        return cls(per_step, next(n for n in range(limit, 0, -1) if per_step % n == 0))

    def smaller(self) -> "Batch | None":
        """The largest divisor of `per_step` at or below half of `per_forward`; None when one image already does not
        fit."""
        fits = [n for n in range(1, self.per_forward // 2 + 1) if self.per_step % n == 0]
        return replace(self, per_forward=fits[-1]) if fits else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator refused: CUDA's by its own type, the CPU's and cuBLAS' by what they say."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        ("DefaultCPUAllocator" in text and "allocate" in text) or "CUBLAS_STATUS_ALLOC_FAILED" in text
    )
