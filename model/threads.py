"""How many threads this process, and those that it starts, compute with. Knows no training and no data."""

import os


def environment(cpus: int) -> dict[str, str]:
    """What a new process must find: OpenMP is PyTorch's, Rayon is hotcoco's."""
    return {"OMP_NUM_THREADS": str(cpus), "RAYON_NUM_THREADS": str(cpus)}


def limit(cpus: int) -> None:
    """Processes times threads must not exceed the cores: two trainings of two threads on two cores run four times
    slower. Also holds for libraries that were loaded before."""
    import torch
    from threadpoolctl import threadpool_limits

    os.environ.update(environment(cpus))
    torch.set_num_threads(cpus)
    threadpool_limits(cpus)
