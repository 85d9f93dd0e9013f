"""Processes that start with PyTorch, Detectron2 and this package imported, and see no GPU.

A new interpreter imports them for five seconds. A fork server, which has a single thread and never
asks for a GPU, imports them once for all tests of a worker.
"""

import multiprocessing
import os
import runpy
import sys
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
from conftest import REPO

CPU = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
IMPORTED = ["hypothesis", "pytest", "scnet_d2.engine", "scnet_d2.inference"]


def context() -> multiprocessing.context.BaseContext:
    """What starts the processes."""
    multiprocessing.set_forkserver_preload(IMPORTED)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CPU.items():
            patch.setenv(name, value)
        forkserver.ensure_running()
    return multiprocessing.get_context("forkserver")


def start(function, *args) -> multiprocessing.Process:
    """A process that calls `function(*args)`."""
    process = context().Process(target=_call, args=(function, *args))
    process.start()
    return process


def _call(function, *args):
    # What a fork server starts would start its own processes, such as a loader's, by another one,
    # which outlives it if it is killed.
    multiprocessing.set_start_method(None, force=True)
    function(*args)


def spawn(function, args=(), nprocs=1, join=True, **_):
    """Stands in for `torch.multiprocessing.spawn`, which Detectron2's launch calls."""
    context()
    return torch.multiprocessing.start_processes(
        _call_ranked, (function, *args), nprocs, join, start_method="forkserver"
    )


def _call_ranked(rank, function, *args):
    _call(function, rank, *args)


class Program:
    """Stands in for `subprocess.Popen` of a program of the repository, with its output in a file.

    Args:
        command: Python, the program, its arguments.
        stdout: a file that has a name; gets the errors too.
        env: environment variables, of which those of a GPU are heeded.
    """

    def __init__(self, command, *, stdout, env, **_):
        _, *program = map(str, command)
        self._process = start(_run_program, program, stdout.name, dict(env))

    def poll(self) -> int | None:
        """Exit status; None while the program runs."""
        return self.returncode

    def wait(self, timeout: float) -> int | None:
        """Exit status, after the end of the program."""
        self._process.join(timeout)
        return self.returncode

    @property
    def returncode(self) -> int | None:
        """Exit status; None while the program runs."""
        return self._process.exitcode


def _run_program(program, output, environment):
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(REPO)
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    if program[0] == "-m":
        sys.argv = program[1:]
        runpy.run_module(program[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = program, str(Path(program[0]).resolve().parent)
        runpy.run_path(program[0], run_name="__main__")
