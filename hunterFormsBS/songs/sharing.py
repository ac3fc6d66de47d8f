"""Songs divided among the processes of one job, as torchrun, accelerate, srun and mpirun start them."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import NamedTuple, TypeVar

from hunterFormsBS.failures import UsageError

__all__ = ["Rank", "rank_in_job", "share_of", "wait_for_others"]

_T = TypeVar("_T")

VARIABLES = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
)
"""Variables in which torchrun and accelerate, Slurm, Open MPI, and MPICH and Intel MPI state rank and size.

SLURM_NTASKS counts the tasks of the whole allocation, even in a shell within it, which is one task."""


class Rank(NamedTuple):
    """Which process of a job this is, in all and on its machine, counted from 0, and of how many."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0


def rank_in_job(environment: Mapping[str, str] = os.environ) -> Rank:
    """Read from environment variables which process this is.

    Raises
    ------
    UsageError
        If the variables contradict each other.
    """
    for rank, size, local_rank in VARIABLES:
        if rank not in environment or size not in environment:
            continue
        try:
            job = Rank(int(environment[rank]), int(environment[size]), int(environment.get(local_rank, "0")))
        except ValueError:
            job = Rank(0, 0)
        if not (0 <= job.rank < job.size and job.local_rank >= 0):
            stated = ", ".join(f"{name}={environment.get(name)}" for name in (rank, size, local_rank))
            raise UsageError(f"the environment says {stated}, which is not a rank in a job: unset these variables")
        return job
    return Rank()


def wait_for_others(job: Rank, *, failed: bool, environment: Mapping[str, str] = os.environ) -> None:
    """Wait until the other processes of torchrun have ended, if songs of this one failed.

    torchrun ends all processes as soon as one of them ends with an error. Its store counts those that have ended.
    """
    if job.size == 1 or environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    address, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    key = f"hunterFormsBS/ended/{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    with suppress(RuntimeError):  # Without a store there is nothing to wait for.
        store = TCPStore(address, port, None, is_master=False, timeout=timedelta(seconds=30))
        ended = store.add(key, 1)
        while failed and ended < job.size:
            time.sleep(1)
            ended = store.add(key, 0)


def share_of(job: Rank, items: Sequence[_T], lengths: Sequence[float]) -> list[_T]:
    """Return the items of one process: longest first, each to the process that has the least so far.

    Processes with the same items and lengths compute the same shares without communicating.
    """
    if job.size == 1:
        return list(items)
    loads = [0.0] * job.size
    share: list[_T] = []
    for number in sorted(range(len(items)), key=lambda number: (-lengths[number], number)):
        rank = min(range(job.size), key=lambda rank: (loads[rank], rank))
        loads[rank] += max(lengths[number], 1e-3)
        if rank == job.rank:
            share.append(items[number])
    return share
