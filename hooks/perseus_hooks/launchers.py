"""What launchers tell a process of its job, in environment variables.

torchrun: docs.pytorch.org, "torchrun (Elastic Launch)". Slurm: srun(1), "Output environment
variables". Open MPI: its FAQ on environment variables. MPICH (Hydra), Intel MPI and Cray PALS set
PMI_*. JAX itself reads JAX_COORDINATOR_ADDRESS; the other JAX_* names are what its users' templates
set.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

_SLURM_JOB = ("{SLURM_JOB_ID}.{SLURM_STEP_ID}", "{SLURM_JOB_ID}")
_MASTER = "{MASTER_ADDR}:{MASTER_PORT}"


class Launcher(NamedTuple):
    """The variables in which one launcher says what it knows; of several, the first that is set.

    needs: variables without which it was not this launcher, beside a rank.
    job: templates of a name that all ranks of a job share, and no other job of this user does.
    """

    name: str
    needs: tuple[str, ...]
    rank: tuple[str, ...]
    world_size: tuple[str, ...]
    local_rank: tuple[str, ...]
    job: tuple[str, ...]


# In order of trust: an inner launcher (torchrun inside srun) knows better than an outer one.
LAUNCHERS = (
    Launcher(
        name="torchrun",  # also DeepSpeed, accelerate and Lightning, which set the same variables
        needs=("WORLD_SIZE",),
        rank=("RANK",),
        world_size=("WORLD_SIZE",),
        local_rank=("LOCAL_RANK",),
        job=("{TORCHELASTIC_RUN_ID}", _MASTER, *_SLURM_JOB),
    ),
    Launcher(
        name="jax",
        needs=("JAX_COORDINATOR_ADDRESS",),
        rank=("JAX_PROCESS_ID", "JAX_PROCESS_INDEX"),
        world_size=("JAX_NUM_PROCESSES", "JAX_PROCESS_COUNT"),
        local_rank=("JAX_LOCAL_PROCESS_ID",),
        job=("{JAX_COORDINATOR_ADDRESS}",),
    ),
    Launcher(
        name="openmpi",
        needs=(),
        rank=("OMPI_COMM_WORLD_RANK",),
        world_size=("OMPI_COMM_WORLD_SIZE",),
        local_rank=("OMPI_COMM_WORLD_LOCAL_RANK",),
        job=("{PMIX_NAMESPACE}", "{OMPI_MCA_ess_base_jobid}", *_SLURM_JOB, _MASTER),
    ),
    Launcher(
        name="pmi",
        needs=(),
        rank=("PMI_RANK",),
        world_size=("PMI_SIZE",),
        local_rank=("MPI_LOCALRANKID", "PMI_LOCAL_RANK", "PALS_LOCAL_RANKID", "SLURM_LOCALID"),
        job=("{PMI_JOBID}", *_SLURM_JOB, _MASTER),
    ),
    Launcher(
        name="slurm",
        needs=("SLURM_STEP_ID",),  # a batch script has SLURM_PROCID too, and is no rank
        rank=("SLURM_PROCID",),
        world_size=("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
        local_rank=("SLURM_LOCALID",),
        job=_SLURM_JOB,
    ),
)
_NOT_A_JOB = frozenset(("", "none"))  # "none": torchrun's run id where none was given


def launcher_of(environ: Mapping[str, str]) -> Launcher | None:
    """The launcher that started this process, as far as its variables tell."""
    for launcher in LAUNCHERS:
        ranked = any(environ.get(name) for name in launcher.rank)
        if ranked and all(environ.get(name) for name in launcher.needs):
            return launcher
    return None


def job_of(environ: Mapping[str, str], launcher: Launcher | None) -> str:
    """A name for this process's job."""
    if launcher is None:
        return f"pid-{os.getpid()}"
    for template in launcher.job:
        try:
            job = template.format_map(environ)
        except KeyError:
            continue
        if job.strip().lower() not in _NOT_A_JOB:
            return job
    return f"{launcher.name}-{os.getppid()}"  # ranks of one launch on one node share their parent
