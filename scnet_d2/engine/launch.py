"""Start of a program's processes: by Detectron2's launch, torchrun or SLURM."""

import argparse
import os
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.distributed as dist
from detectron2.engine import DEFAULT_TIMEOUT
from detectron2.engine import launch as detectron2_launch
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# What srun sets for a step. A batch script has SLURM_NTASKS and SLURM_PROCID too, as one process.
_SLURM = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE", "SLURM_STEP_NODELIST")


class Process(NamedTuple):
    """One process of several that were started from outside."""

    starter: str
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    init_method: str


def launch(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> object:
    """Call `main(args)` in every process of a training or an evaluation.

    torchrun and `srun` have started the processes; elsewhere, and where they started a single one,
    Detectron2's `launch` starts as many as `args` says.

    Args:
        main: what each process runs.
        args: those that Detectron2's `default_argument_parser` has for this.

    Returns:
        What `main` returned in this process; None where it ran in others.

    Raises:
        ValueError: if the environment contradicts itself or `args`, or there is no GPU for several.
        RuntimeError: if one of the processes that this one started was killed.
    """
    process = find_process(os.environ, args)
    if process is None:
        _check_gpus(args)
        try:
            return detectron2_launch(
                main,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(args,),
            )
        except ProcessExitedException as error:  # killed, for instance out of memory
            raise RuntimeError(
                f"{error}; the other processes were stopped. Training goes on with --resume"
            ) from error
    _join(process)
    result = main(args)
    dist.destroy_process_group()
    return result


def _check_gpus(args: argparse.Namespace) -> None:
    if args.num_machines > 1 and args.dist_url == "auto":
        raise ValueError("several machines need --dist-url tcp://HOST:PORT, of machine 0")
    if args.num_gpus > 1 and not torch.cuda.is_available():
        raise ValueError(
            f"--num-gpus {args.num_gpus}, but there is no GPU on this machine that torch can use: "
            "leave the option out (torchrun starts several processes on CPUs)"
        )


def lost_process(error: BaseException) -> bool:
    """Whether an error tells that another process is gone, or the connection to it.

    torch has classes of its own for what NCCL, its store and sockets raise; gloo's errors, and
    NCCL's in older versions, are known by their text.
    """
    if isinstance(error, getattr(dist, "DistError", dist.DistBackendError)):
        return True
    return isinstance(error, RuntimeError) and re.search("gloo|NCCL", str(error)) is not None


def find_process(env: Mapping[str, str], args: argparse.Namespace) -> Process | None:
    """Which of several processes torchrun or SLURM made this one.

    Args:
        env: the environment variables.
        args: see `launch`.

    Returns:
        None where this is the only process, or the only one of its machine and `args` has
        `--num-machines`.

    Raises:
        ValueError: see `launch`.
    """
    process = _torchrun(env) if "LOCAL_RANK" in env else _slurm(env)
    if process is None or process.world_size == 1:
        return None
    if process.starter == "SLURM" and process.world_size == args.num_machines:
        return None
    if args.num_gpus != 1 or args.num_machines != 1:
        raise ValueError(
            f"{process.starter} has started {process.world_size} processes and --num-gpus "
            f"{args.num_gpus} --num-machines {args.num_machines} asks for more from each of them: "
            "leave both options out, or start a single process on each machine"
        )
    return process


def _torchrun(env: Mapping[str, str]) -> Process:
    _require(env, _TORCHRUN, "torchrun")
    rank, world_size, local_rank, local_world_size = (int(env[name]) for name in _TORCHRUN[:4])
    return Process("torchrun", rank, world_size, local_rank, local_world_size, "env://")


def _slurm(env: Mapping[str, str]) -> Process | None:
    world_size = int(env.get("SLURM_STEP_NUM_TASKS", 1))
    if world_size == 1:
        return None
    _require(env, _SLURM, "SLURM")
    tasks = env["SLURM_STEP_TASKS_PER_NODE"]  # such as 8 or 8(x2); 8,4 where nodes differ
    rank, local_rank = int(env["SLURM_PROCID"]), int(env["SLURM_LOCALID"])
    local_world_size = int(re.match(r"\d+", tasks).group())
    if "," in tasks or rank % local_world_size != local_rank:
        raise ValueError(
            f"SLURM_STEP_TASKS_PER_NODE is '{tasks}' and process {rank} is number {local_rank} on "
            "its node: Detectron2 needs as many processes on every node, in blocks; use sbatch "
            "--ntasks-per-node and srun --distribution=block"
        )
    # Ports from 32768 on are handed out to others; each job has a port of its own.
    port = env.get("MASTER_PORT", 12000 + int(env.get("SLURM_JOB_ID", 0)) % 20000)
    host = env.get("MASTER_ADDR") or first_host(env["SLURM_STEP_NODELIST"])
    url = f"tcp://{host}:{port}"
    return Process("SLURM", rank, world_size, local_rank, local_world_size, url)


def first_host(nodes: str) -> str:
    """First name of a SLURM node list: "gpu[03-05,9],cpu1" gives "gpu03"."""
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", re.match(r"(\[[^\]]*\]|[^,\[])+", nodes).group())


def _require(env: Mapping[str, str], names: tuple[str, ...], starter: str) -> None:
    missing = [name for name in names if name not in env]
    if missing:
        raise ValueError(
            f"the environment is of {starter}, but lacks {', '.join(missing)}: start all processes "
            f"with {starter}, or unset its variables"
        )


def _join(process: Process) -> None:
    """Make this process one of Detectron2's, as its own `launch` does."""
    has_gpu = torch.cuda.is_available()
    if has_gpu and torch.cuda.device_count() < process.local_world_size:
        raise ValueError(
            f"{process.local_world_size} processes run on this machine and process {process.rank} "
            f"sees {torch.cuda.device_count()} GPU(s): start one for each GPU and let each see all "
            "of them (SLURM: --gpus-per-node with srun --gpu-bind=none)"
        )
    if has_gpu:
        torch.cuda.set_device(process.local_rank)
    dist.init_process_group(
        backend="nccl" if has_gpu else "gloo",
        init_method=process.init_method,
        world_size=process.world_size,
        rank=process.rank,
        timeout=DEFAULT_TIMEOUT,
    )
    _create_local_group(process.local_world_size)
    comm.synchronize()


def _create_local_group(size: int) -> None:
    """Group of the processes on this machine, which Detectron2's `comm` looks up."""
    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(size)
        return
    for first in range(0, comm.get_world_size(), size):  # v0.6: `launch` alone creates it
        group = dist.new_group(range(first, first + size))
        if first <= comm.get_rank() < first + size:
            comm._LOCAL_PROCESS_GROUP = group
