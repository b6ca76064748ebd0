"""On which devices a training runs, in how many processes, and what they share. Knows no files and no checkpoint.

Lightning starts the processes of a node; see `model.rank` for how a training of several begins.
"""

import logging
import os
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy, Strategy

from model.errors import SpecError
from model.network.detr import DeformableDETR
from model.paced import Paced
from model.spec import ExperimentSpec, TrainSpec

log = logging.getLogger(__name__)

PRECISIONS = {"fp32": "32-true", "fp16": "16-mixed", "bf16": "bf16-mixed"}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one training runs. It is plain values, so that every rank can be told."""

    gpu_ids: tuple[int, ...]
    """Empty: on the CPU."""
    processes: int
    """On this node."""
    nodes: int

    @property
    def world(self) -> int:
        return self.processes * self.nodes

    def __str__(self) -> str:
        device = f"GPU {', '.join(map(str, self.gpu_ids))}" if self.gpu_ids else "CPU"
        nodes = f" on each of {self.nodes} nodes" if self.nodes > 1 else ""
        return f"{device}, {self.processes} process{'es' if self.processes > 1 else ''}{nodes}"


def is_first() -> bool:
    """Whether this process may write, log and create runs: rank 0 of node 0, by the environment."""
    return all(int(os.environ.get(name) or 0) == 0 for name in ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK"))


def is_started_by_others() -> bool:
    """Whether somebody (torchrun, Lightning) has started this process as one rank of several."""
    return "LOCAL_RANK" in os.environ


def place(train: TrainSpec, *, cpu_processes: int | None = None) -> Place:
    """Checks devices against the machine. Without a GPU one process trains on the CPU, unless `cpu_processes` says how
    many. Raises SpecError for GPUs that are not there and for a precision that the device does not have."""
    nodes = _nodes(train)
    if not torch.cuda.is_available():
        if train.precision == "fp16":
            raise SpecError(
                ["`train.precision` fp16 needs a GPU, but this machine has none; choose bf16 or fp32, which a CPU has."]
            )
        if is_started_by_others():
            cpu_processes = max(1, int(os.environ.get("WORLD_SIZE") or 1) // nodes)
        if cpu_processes is None and train.num_gpus > 1:
            log.info("no GPU here: training in one process on the CPU in place of %d GPUs", train.num_gpus)
        return Place(gpu_ids=(), processes=cpu_processes or 1, nodes=nodes)
    visible, wanted = torch.cuda.device_count(), train.num_gpus
    if wanted > visible:
        raise SpecError(
            [f"`train.num_gpus` must be at most the GPUs of this machine, but is {wanted} of {visible}; lower it."]
        )
    ids = tuple(dict.fromkeys(train.gpu_ids))
    if len(ids) < wanted:
        log.info("train.gpu_ids names %s for num_gpus=%d: using GPUs 0 to %d", list(ids), wanted, wanted - 1)
        ids = tuple(range(wanted))
    missing = [gpu for gpu in ids[:wanted] if gpu >= visible or gpu < 0]
    if missing:
        raise SpecError([f"`train.gpu_ids` must be below {visible}, the GPUs of this machine, but names {missing}."])
    return Place(gpu_ids=ids[:wanted], processes=wanted, nodes=nodes)


def _nodes(train: TrainSpec) -> int:
    """Nodes by the spec, or by WORLD_SIZE, which names nodes (TAO) or all processes (torch)."""
    world = int(os.environ.get("WORLD_SIZE") or 1)
    if is_started_by_others() or world in (1, train.num_nodes, train.num_nodes * train.num_gpus):
        return train.num_nodes
    if train.num_nodes > 1 or "NODE_RANK" not in os.environ:
        raise SpecError(
            [
                f"WORLD_SIZE must be `train.num_nodes` ({train.num_nodes}), or that times `train.num_gpus` "
                f"({train.num_gpus}), with NODE_RANK, MASTER_ADDR and MASTER_PORT beside it, but is {world}; set "
                "train.num_nodes, or unset WORLD_SIZE."
            ]
        )
    log.info("WORLD_SIZE=%d: training on %d nodes", world, world)
    return world


def strategy(spec: ExperimentSpec, where: Place) -> Strategy | str:
    if where.world == 1:
        return "auto"
    backend = "nccl" if where.gpu_ids else "gloo"
    if spec.train.distributed_strategy == "fsdp":
        if spec.train.precision == "fp16":
            raise SpecError(
                ["`train.precision` fp16 does not go with `train.distributed_strategy` fsdp; use bf16, or ddp."]
            )
        return ModelParallelStrategy(
            data_parallel_size=where.world,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,  # one file that any number of processes can load
            process_group_backend=backend,
        )
    # Buffers are shared once an epoch instead: in validation ranks may have different numbers of batches.
    # Only a loss that counts in part leaves heads without a gradient.
    unused = set(spec.model.loss_types) != {"labels", "boxes"}
    return DDPStrategy(process_group_backend=backend, broadcast_buffers=False, find_unused_parameters=unused)


def shard(model: DeformableDETR, mesh: Any) -> None:
    """FSDP: every transformer layer is gathered when it is used, the rest once a step."""
    from torch.distributed.fsdp import fully_shard

    data = mesh["data_parallel"]
    for name in ("transformer.encoder.layers", "transformer.decoder.layers"):
        for layer in model.get_submodule(name).children():
            fully_shard(layer, mesh=data)
    fully_shard(model, mesh=data)


def make_trainer(spec: ExperimentSpec, where: Place, keeper: pl.Callback, *, validates: bool) -> pl.Trainer:
    short, gpu = spec.train.is_dry_run, bool(where.gpu_ids)
    how = strategy(spec, where)
    sharded = isinstance(how, ModelParallelStrategy)
    return pl.Trainer(
        accelerator="gpu" if gpu else "cpu",
        devices=list(where.gpu_ids) if gpu else where.processes,
        num_nodes=where.nodes,
        strategy=how,
        precision="32-true" if sharded else PRECISIONS[spec.train.precision],  # type: ignore[arg-type]
        max_epochs=1 if short else spec.train.num_epochs,
        limit_train_batches=1 if short else None,
        limit_val_batches=(1 if short else None) if validates else 0,
        check_val_every_n_epoch=1 if short else spec.train.validation_interval,
        gradient_clip_val=spec.train.clip_grad_norm or None,
        num_sanity_val_steps=0,
        callbacks=[keeper, Paced()],
        plugins=[LightningEnvironment()],  # a Ray worker on a Slurm node must not be taken for a Slurm task
        deterministic="warn" if spec.train.cudnn.deterministic and gpu else None,
        benchmark=spec.train.cudnn.benchmark,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=True,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
