"""Several processes (gloo, on the CPU) train and evaluate as one process does."""

import argparse
import inspect
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

from scnet_d2.data import DatasetError, register_coco_multilabel
from scnet_d2.data.context_scenes import SceneConfig, generate
from scnet_d2.engine import Trainer, TrainingError
from scnet_d2.engine.launch import find_process, first_host, launch

import processes
import pytest
import torch
from conftest import NARROW, REPO, small_config
from detectron2.engine import HookBase, create_ddp_model
from detectron2.engine import launch as detectron2_launch
from detectron2.engine.defaults import default_setup
from detectron2.utils import comm
from tiny import BAD, tiny_trainer

several_processes = pytest.mark.skipif(
    "is_cuda" not in inspect.getsource(create_ddp_model),
    reason="this Detectron2 runs several processes on GPUs alone",
)

# Order and augmentation of the images are the same for any number of processes. Nothing else is
# drawn at random: every anchor and every proposal is used, and no statistics are those of a batch.
# Crops make all images equally large, so that every batch is padded alike.
DETERMINISTIC = (
    *NARROW, "SEED", 5, "MODEL.RESNETS.NORM", "FrozenBN", "MODEL.RPN.BATCH_SIZE_PER_IMAGE", 10000,
    "MODEL.RPN.POSITIVE_FRACTION", 1.0, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 10000,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION", 1.0, "INPUT.CROP.ENABLED", True,
    "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", [96, 96],
    "SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", 0.002, "SOLVER.WARMUP_ITERS", 0,
    "SOLVER.MAX_ITER", 3, "SOLVER.IMS_PER_BATCH", 4, "DATALOADER.NUM_WORKERS", 0,
    "DATASETS.TRAIN", ("own_train",), "DATASETS.VAL", (), "DATASETS.TEST", ("own_test",),
)  # fmt: skip


class Recorder(HookBase):
    """Keeps the losses of each iteration, averaged over the processes."""

    def __init__(self):
        self.losses = []

    def after_step(self):
        if comm.is_main_process():
            latest = self.trainer.storage.latest()
            self.losses.append({k: v for k, (v, _) in latest.items() if "loss" in k})


def own_data(scenes: Path):
    """Name, json and images of both splits, as `--register-coco` takes them."""
    for split in ("train", "test"):
        images = scenes / "images" / split
        yield f"own_{split}", str(scenes / "annotations" / f"{split}.json"), str(images)


def train_and_evaluate(scenes: Path, output: Path):
    """Three iterations and an evaluation; what they gave goes to a file of the main process."""
    for data in own_data(scenes):
        register_coco_multilabel(*data)
    cfg = small_config(*DETERMINISTIC, "OUTPUT_DIR", str(output))
    default_setup(cfg, None)
    trainer, recorder = Trainer(cfg), Recorder()
    trainer.register_hooks([recorder])
    trainer.train()
    if comm.is_main_process():
        metrics = trainer._last_eval_results["multilabel"]
        torch.save((recorder.losses, metrics), output / "result.pt")


# With four images in a batch, process 0 draws 0 and 2, 4 and 6, and so on, process 1 the odd ones.
# Of eight images a share of 0.125 is one.
TINY_RUNS = {
    "bad-loss": {"pixel": {7: BAD}},
    "too-many-bad-images": {"unreadable": (2, 5), "share": 0.125},
    "bad-images": {"unreadable": (2, 5), "share": 0.25},
}


TINY_OPTS = (
    "SOLVER.IMS_PER_BATCH", 4, "SOLVER.CHECKPOINT_PERIOD", 1, "DATALOADER.MAX_BAD_IMAGES",
)  # fmt: skip


def two_processes(scenes: Path, output: Path):
    """`train_and_evaluate`, and what each process says at the end of the tiny runs."""
    train_and_evaluate(scenes, output)
    for name, arguments in TINY_RUNS.items():
        folder, share = output / name, arguments.pop("share", 0.0)
        folder.mkdir(exist_ok=True)
        trainer = tiny_trainer(folder, *TINY_OPTS, share, **arguments)
        try:
            trainer.train()
            text = "trained"
        except (TrainingError, DatasetError) as error:
            text = f"{type(error).__name__}: {error}"
        (folder / f"end{comm.get_rank()}").write_text(text)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of the data, of a run of one process and of a run of two, same global batch."""
    root = tmp_path_factory.mktemp("datasets")
    generate(str(root), SceneConfig(sizes=(12, 1, 7)))
    scenes, one, two = (root / "context_scenes", *map(tmp_path_factory.mktemp, ("one", "two")))
    single = processes.start(train_and_evaluate, scenes, one)
    launch_two(two_processes, scenes, two)
    single.join()
    assert single.exitcode == 0
    return scenes, one, two


def launch_two(function, *args):
    """Detectron2's launch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.multiprocessing, "spawn", processes.spawn)
        detectron2_launch(function, 2, dist_url="auto", args=args)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(output, *command, popen, **variables):
    """A Python program whose output goes to a file of this name."""
    fixed = processes.CPU | {"PYTHONWARNINGS": "ignore"}
    with open(output, "w") as file:
        return popen(
            [sys.executable, *map(str, command)], cwd=REPO, env=os.environ | fixed | variables,
            stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip


def output_of(process, output) -> str:
    process.wait(200)
    text = output.read_text()
    assert process.returncode == 0, text[-4000:]
    return text


def train_net(scenes: Path, run: Path, *args) -> list:
    """Command of train_net.py on the config of a run."""
    registered = [x for data in own_data(scenes) for x in ("--register-coco", *data)]
    return ["train_net.py", "--config-file", run / "config.yaml", *registered, *args]


def assert_same_weights(folder, other):
    weights, others = (torch.load(f / "model_final.pth")["model"] for f in (folder, other))
    for name, weight in weights.items():
        torch.testing.assert_close(weight, others[name], atol=1e-5, rtol=0, msg=name)


def printed_metrics(text) -> list[float]:
    return [float(x) for x in re.findall(r"copypaste: ([\d.,]+)$", text, re.M)[-1].split(",")]


@several_processes
def test_two_processes_train_and_evaluate_as_one_with_the_same_global_batch(runs):
    _, one, two = runs
    (losses, metrics), (others, other_metrics) = (
        torch.load(f / "result.pt", weights_only=False) for f in (one, two)
    )
    assert len(losses) == len(others) == 3
    for step, other in zip(losses, others):
        for name in step:
            print(f"{name:20}{step[name]:12.7f}{other[name]:12.7f}")
        assert step == pytest.approx(other, abs=1e-4, rel=0)
    assert losses[0]["total_loss"] != pytest.approx(losses[2]["total_loss"], abs=1e-2)
    assert_same_weights(one, two)
    print(f"{'mAP':20}{metrics['mAP']:12.7f}{other_metrics['mAP']:12.7f}")
    assert metrics == pytest.approx(other_metrics, abs=1e-9, nan_ok=True)


def ends(runs, name) -> list[str]:
    return [(runs[2] / name / f"end{rank}").read_text() for rank in (0, 1)]


@several_processes
def test_both_processes_stop_where_one_has_a_bad_loss_and_name_its_batch_alone(runs):
    one, other = ends(runs, "bad-loss")
    assert one == other
    assert one.startswith("TrainingError: iteration 1: process 1 of 2: the loss is not finite")
    assert "Images of the batch: 5.png, 7.png. " in one
    assert (runs[2] / "bad-loss" / "before_non_finite_0000001.pth").exists()
    assert (runs[2] / "bad-loss" / "last_checkpoint").read_text() == "model_0000000.pth"


@several_processes
def test_bad_images_are_counted_over_the_processes_which_stop_together(runs):
    one, other = ends(runs, "too-many-bad-images")
    assert one == other
    assert one.startswith("DatasetError: 2 of 8 training images cannot be used, and ")
    assert ends(runs, "bad-images") == ["trained", "trained"]
    rows = map(json.loads, (runs[2] / "bad-images" / "metrics.json").open())
    assert list(rows)[-1]["bad_images"] == 2


@several_processes
def test_processes_of_torchrun_give_the_weights_and_metrics_of_one(runs, tmp_path):
    scenes, one, _ = runs
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2)
    log, command = tmp_path / "log", train_net(scenes, one, "OUTPUT_DIR", tmp_path)
    text = output_of(start(log, *torchrun, *command, popen=subprocess.Popen), log)
    assert "Rank of current process: 0. World size: 2" in text
    assert_same_weights(one, tmp_path)
    _, metrics = torch.load(one / "result.pt", weights_only=False)
    assert printed_metrics(text)[0] == pytest.approx(metrics["mAP"], abs=1e-4)


@several_processes
def test_processes_of_slurm_give_the_metrics_of_one(runs, tmp_path):
    scenes, one, _ = runs
    opts = ("OUTPUT_DIR", tmp_path, "MODEL.WEIGHTS", one / "model_final.pth")
    command = train_net(scenes, one, "--eval-only", *opts)
    port, logs = str(free_port()), [tmp_path / f"log{i}" for i in "01"]
    steps = [
        slurm(MASTER_PORT=port, SLURM_STEP_NODELIST="localhost", SLURM_PROCID=i, SLURM_LOCALID=i)
        for i in "01"
    ]
    started = [
        start(log, *command, popen=processes.Program, **step) for log, step in zip(logs, steps)
    ]
    text, _ = map(output_of, started, logs)
    assert "Rank of current process: 0. World size: 2" in text
    _, metrics = torch.load(one / "result.pt", weights_only=False)
    assert printed_metrics(text)[0] == pytest.approx(metrics["mAP"], abs=1e-4)


class DieAfter(HookBase):
    """Process 1 is killed after an iteration."""

    def __init__(self, iteration):
        self.iteration = iteration

    def after_step(self):
        if comm.get_rank() == 1 and self.trainer.iter == self.iteration:
            os.kill(os.getpid(), signal.SIGKILL)


def train_and_lose_one(scenes, output, start_iteration=None):
    for data in own_data(scenes):
        register_coco_multilabel(*data)
    cfg = small_config(*DETERMINISTIC, "SOLVER.CHECKPOINT_PERIOD", 1, "OUTPUT_DIR", str(output))
    default_setup(cfg, None)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=start_iteration is not None)
    if start_iteration is None:
        trainer.register_hooks([DieAfter(1)])
    else:
        assert trainer.start_iter == start_iteration
    trainer.train()


def join_and_lose_one(rank, port, *args):
    """A process of two that something else than Detectron2's launch has started."""
    os.environ.update(TORCHRUN, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
    error_file = Path(args[1]) / f"error{rank}"
    try:
        launch(lambda _: train_and_lose_one(*args), argparse.Namespace(num_gpus=1, num_machines=1))
    except Exception as error:
        error_file.write_text(f"{type(error).__name__}: {error}")
        raise


@several_processes
def test_a_process_that_loses_the_other_says_so_within_a_minute_and_the_run_resumes(runs, tmp_path):
    scenes, one, _ = runs
    port = free_port()
    started = [processes.start(join_and_lose_one, i, port, scenes, tmp_path) for i in (0, 1)]
    started[1].join(200)
    assert started[1].exitcode == -signal.SIGKILL
    started[0].join(60)
    assert started[0].exitcode == 1
    text = (tmp_path / "error0").read_text()
    assert re.match(r"TrainingError: iteration 2: process 0 has lost another process", text)
    launch_two(train_and_lose_one, scenes, tmp_path, 2)
    assert_same_weights(one, tmp_path)


def test_launch_says_how_to_go_on_where_a_process_was_killed(monkeypatch):
    def killed(*_, **__):
        raise torch.multiprocessing.ProcessExitedException(
            "process 1 terminated with signal SIGKILL", 1, 9, 100, "SIGKILL"
        )

    monkeypatch.setitem(launch.__globals__, "detectron2_launch", killed)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    args = argparse.Namespace(num_gpus=2, num_machines=1, machine_rank=0, dist_url="auto")
    with pytest.raises(RuntimeError, match=r"process 1 terminated with signal SIGKILL.*--resume"):
        launch(print, args)


def test_several_gpus_on_a_machine_without_one_are_refused_before_anything_else(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    args = argparse.Namespace(num_gpus=8, num_machines=1, machine_rank=0, dist_url="auto")
    with pytest.raises(ValueError, match=r"--num-gpus 8, but there is no GPU on this machine"):
        launch(print, args)


def slurm(**variables) -> dict[str, str]:
    """What srun sets for process 1 of two on one node, with changes."""
    step = {"NUM_TASKS": "2", "TASKS_PER_NODE": "2", "NODELIST": "gpu[03-04]"}
    names = {f"SLURM_STEP_{k}": v for k, v in step.items()}
    names |= {"SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "40007"}
    return names | variables


TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "gpu03", "MASTER_PORT": "29500",
}  # fmt: skip


def find(env, num_gpus=1, num_machines=1):
    return find_process(env, argparse.Namespace(num_gpus=num_gpus, num_machines=num_machines))


def test_torchrun_and_slurm_say_which_process_this_is():
    assert find(TORCHRUN | slurm()) == ("torchrun", 3, 4, 1, 2, "env://")
    four = slurm(SLURM_STEP_NUM_TASKS="4", SLURM_STEP_TASKS_PER_NODE="2(x2)", SLURM_PROCID="3")
    assert find(four) == ("SLURM", 3, 4, 1, 2, "tcp://gpu03:12007")


@pytest.mark.parametrize(
    ("env", "args"),
    [
        ({}, (8, 2)),
        (TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0"}, ()),
        (slurm(SLURM_STEP_NUM_TASKS="1"), (8,)),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, ()),  # a batch script, without srun
        (slurm(SLURM_STEP_TASKS_PER_NODE="1(x2)", SLURM_LOCALID="0"), (8, 2)),
    ],
)
def test_otherwise_detectron2_starts_the_processes(env, args):
    assert find(env, *args) is None


@pytest.mark.parametrize(
    ("env", "args", "message"),
    [
        (TORCHRUN, (2,), "torchrun has started 4 processes and --num-gpus 2"),
        (slurm(), (2,), "SLURM has started 2 processes and --num-gpus 2"),
        ({"LOCAL_RANK": "0"}, (), "lacks RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR"),
        (slurm(SLURM_STEP_TASKS_PER_NODE="1,2"), (), "as many processes on every node"),
        (slurm(SLURM_STEP_TASKS_PER_NODE="2(x2)", SLURM_LOCALID="0"), (), "in blocks"),
    ],
)
def test_an_environment_that_contradicts_itself_is_refused(env, args, message):
    with pytest.raises(ValueError, match=message):
        find(env, *args)


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("gpu[03-05,9],cpu1", "gpu03"),
        ("a-1,b", "a-1"),
        ("rack[2-3]node[01-04]-ib,x[1-2]", "rack2node01-ib"),
    ],
)
def test_the_first_host_of_a_slurm_node_list(nodes, host):
    assert first_host(nodes) == host
