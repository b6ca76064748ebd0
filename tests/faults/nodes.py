"""A Ray cluster of several nodes on this machine. Arguments: CPUs of each node, the head first, as 1,1 or 0,2x2 (CPUs x
GPUs). Prints its address, then obeys lines on standard input: `cut N` (-9 to the raylet of node N, which its workers
notice), `kill N` (-9 to its workers too), `end`.
"""

import contextlib
import os
import signal
import sys
from pathlib import Path

from hpo.cluster import QUIET


def main(sizes: str) -> None:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    # A dead node is known after five seconds, not twenty.
    os.environ["RAY_health_check_period_ms"] = "1000"  # noqa: SIM112  Ray's own spelling
    from ray.cluster_utils import Cluster

    def size(text: str) -> dict[str, int]:
        cpus, _, gpus = text.partition("x")
        return {"num_cpus": int(cpus), "num_gpus": int(gpus or 0)}

    head, *others = map(size, sizes.split(","))
    cluster = Cluster(initialize_head=True, head_node_args={**head, "include_dashboard": False})
    nodes = [cluster.head_node, *(cluster.add_node(**each) for each in others)]
    print(cluster.address, flush=True)
    for line in sys.stdin:
        what, _, which = line.strip().partition(" ")
        if what == "end":
            break
        (raylet,) = nodes[int(which)].all_processes["raylet"]
        workers = children(raylet.process.pid) if what == "kill" else []
        for pid in [raylet.process.pid, *workers]:
            os.kill(pid, signal.SIGKILL)
        raylet.process.wait()  # as long as it is a zombie, its workers take it for alive
        print("done", flush=True)
    cluster.shutdown()


def children(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(stat.parent.name))
    return found


if __name__ == "__main__":
    main(sys.argv[1])
