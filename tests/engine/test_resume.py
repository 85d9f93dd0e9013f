"""A killed run that is resumed equals an uninterrupted one; broken and full disks lose nothing."""

import json
import logging
import os
import resource
import shutil
import signal
from functools import partial

from scnet_command.arguments import train_net_parser
from scnet_d2.checkpoint import CheckpointError, SCNetCheckpointer, read_checkpoint
from scnet_d2.cli import train
from scnet_d2.data import DatasetError, TrainLoader, register_coco_multilabel
from scnet_d2.data.context_scenes import CLASSES, SceneConfig, generate
from scnet_d2.engine import Trainer, TrainingError
from scnet_d2.engine.trainer import cut_metrics

import numpy as np
import processes
import pytest
import torch
from conftest import NARROW, small_config
from detectron2.data import DatasetCatalog
from detectron2.engine import AMPTrainer, DefaultTrainer, HookBase, SimpleTrainer
from detectron2.engine.defaults import default_setup
from detectron2.modeling import build_model
from tiny import tiny_trainer
from torch import nn

# Its batch norms are trained: their running statistics have to go on as well.
TIMM = (
    "MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.NAME", "test_efficientnet",
    "MODEL.TIMM.NORM", "BN", "MODEL.FPN.OUT_CHANNELS", 32,
)  # fmt: skip
# Beyond the slides: they have to go on as well.
BRANCHES = (
    "MODEL.SCNET.RELATION.ENABLED", True, "MODEL.SCNET.CONTEXT.RATIOS", [1.0, 3.0],
    "MODEL.SCNET.AGGREGATION.LEARN_WEIGHTS", "class", "MODEL.SCNET.AGGREGATION.LOSS_WEIGHT", 1.0,
)  # fmt: skip
ITERATIONS = 7
OPTS = (
    "SOLVER.MAX_ITER", ITERATIONS, "SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.IMS_PER_BATCH", 2,
    "DATALOADER.NUM_WORKERS", 0, "INPUT.MIN_SIZE_TRAIN", (64, 96), "INPUT.CROP.ENABLED", True,
    "DATASETS.TRAIN", ("resume_train",), "DATASETS.VAL", ("resume_val",), "DATASETS.TEST", (),
    "TEST.EVAL_PERIOD", 3,
)  # fmt: skip


class KillAfter(HookBase):
    """SIGKILL to this process after an iteration."""

    def __init__(self, iteration):
        self.iteration = iteration

    def after_step(self):
        if self.trainer.iter == self.iteration:
            os.kill(os.getpid(), signal.SIGKILL)


def build(scenes, output, *opts, resume=False) -> Trainer:
    for split in ("train", "val"):
        annotations = scenes / "annotations" / f"{split}.json"
        register_coco_multilabel(f"resume_{split}", annotations, scenes / "images" / split)
    cfg = small_config(*TIMM, *BRANCHES, *OPTS, "OUTPUT_DIR", str(output), *opts)
    default_setup(cfg, None)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    return trainer


def train_and_be_killed(scenes, output, iteration, workers):
    trainer = build(scenes, output, "DATALOADER.NUM_WORKERS", workers)
    trainer.register_hooks([KillAfter(iteration)])
    trainer.train()


def train_and_be_killed_while_saving(scenes, output, number):
    """SIGKILL before the rename of the file with this number."""
    rename, calls = os.replace, iter(range(number))

    def replace(source, target):
        if next(calls, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    os.replace = replace
    build(scenes, output).train()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    generate(str(root), SceneConfig(sizes=(9, 2, 1)))
    yield root / "context_scenes"
    for split in ("train", "val"):
        if f"resume_{split}" in DatasetCatalog:
            DatasetCatalog.remove(f"resume_{split}")


# What is killed, and the iteration that is the last one in a whole and marked checkpoint. Files are
# renamed in this order: model_0000001, last_checkpoint, model_best (after iteration 2),
# model_0000003, last_checkpoint, ...
KILLS = {
    "between-checkpoints": (partial(train_and_be_killed, iteration=4, workers=0), 3),
    "with-a-worker": (partial(train_and_be_killed, iteration=2, workers=1), 1),
    "before-the-rename": (partial(train_and_be_killed_while_saving, number=3), 1),
    "before-the-mark": (partial(train_and_be_killed_while_saving, number=4), 1),
}


@pytest.fixture(scope="module")
def runs(scenes, tmp_path_factory):
    """Folders of an uninterrupted run and of killed ones."""
    folders = {name: tmp_path_factory.mktemp(name) for name in KILLS}
    started = [
        processes.start(target, scenes, folders[name]) for name, (target, _) in KILLS.items()
    ]
    whole = tmp_path_factory.mktemp("whole")
    build(scenes, whole).train()
    for process in started:
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
    return folders | {"whole": whole}


def assert_equal(a, b):
    """Tensors bit for bit, in nested containers."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list):
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert a == b


@pytest.mark.parametrize("name", KILLS)
def test_a_killed_run_resumes_to_the_weights_optimizer_and_best_score_of_an_uninterrupted_one(
    scenes, runs, name
):
    folder, (_, saved) = runs[name], KILLS[name]
    trainer = build(scenes, folder, resume=True)
    assert trainer.start_iter == saved + 1
    trainer.train()
    lines = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    iterations = [line["iteration"] for line in lines]
    assert len(iterations) == len(set(iterations))  # in Detectron2's order
    for file in ("model_final.pth", "model_best.pth"):
        assert len(read_checkpoint(str(folder / file))["class_names"]) == 14
        assert_equal(
            read_checkpoint(str(folder / file)), read_checkpoint(str(runs["whole"] / file))
        )
    assert not list(folder.glob("*.partial"))


def test_metrics_of_iterations_that_are_trained_again_are_taken_out(tmp_path, caplog):
    path = tmp_path / "metrics.json"
    path.write_text(
        '{"iteration": 19, "total_loss": 3.0}\n{"iteration": 20, "val/mAP": NaN}\n'
        '{"iteration": 39, "total_loss": 2.0}\n{"iteration": 59, "tot'
    )
    cut_metrics(str(path), 21)
    assert path.read_text() == (
        '{"iteration": 19, "total_loss": 3.0}\n{"iteration": 20, "val/mAP": NaN}\n'
    )
    assert "left out a line that is not whole" in caplog.text


def test_batches_are_those_of_the_seed_for_any_start_and_any_number_of_workers(scenes, tmp_path):
    def batches(start, workers):
        loader = build(scenes, tmp_path, "DATALOADER.NUM_WORKERS", workers).train_loader
        loader.start = start
        return [
            [(x["file_name"], x["image"].sum().item(), x["instances"].gt_boxes) for x in batch]
            for batch, _ in zip(loader, range(6 - start))
        ]

    every = batches(0, 0)
    assert len({str(batch) for batch in every}) == 6
    for start, workers in ((2, 0), (3, 2)):
        assert str(batches(start, workers)) == str(every[start:])


@pytest.mark.parametrize("damage", ["truncated", "empty", "absent"])
def test_a_broken_checkpoint_gives_way_to_the_one_before_it(tmp_path, caplog, damage):
    checkpointer = SCNetCheckpointer(nn.Linear(1, 1), str(tmp_path))
    for iteration in (1, 3, 5):
        checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
    last = tmp_path / "model_0000005.pth"
    if damage == "absent":
        last.unlink()
    else:
        last.write_bytes(last.read_bytes()[:1000] if damage == "truncated" else b"")
    with caplog.at_level(logging.WARNING):
        assert checkpointer.resume_or_load("", resume=True)["iteration"] == 3
    assert damage == "absent" or "model_0000005.pth cannot be read" in caplog.text


def test_nothing_is_trained_from_scratch_where_all_checkpoints_are_broken(tmp_path):
    checkpointer = SCNetCheckpointer(nn.Linear(1, 1), str(tmp_path))
    checkpointer.save("model_0000001")
    (tmp_path / "model_0000001.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of its checkpoints can be read"):
        checkpointer.resume_or_load("", resume=True)


@pytest.fixture
def full_disk():
    """Files of more than 50 KB cannot be written; the kernel says so."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_one_error_and_leaves_the_last_checkpoint_intact(tmp_path, full_disk):
    checkpointer = SCNetCheckpointer(nn.Linear(1, 1), str(tmp_path))
    checkpointer.save("model_0000001", iteration=1)
    checkpointer.model = nn.Linear(200, 200)
    with pytest.raises(CheckpointError, match=r"model_0000003\.pth cannot be written.*--resume"):
        checkpointer.save("model_0000003")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last_checkpoint", "model_0000001.pth"]
    checkpointer.model = nn.Linear(1, 1)
    assert checkpointer.resume_or_load("", resume=True)["iteration"] == 1


def test_a_folder_that_cannot_be_written_to_is_one_error():
    checkpointer = SCNetCheckpointer(nn.Linear(1, 1), "/proc")
    with pytest.raises(CheckpointError, match=r"/proc/model\.pth cannot be written"):
        checkpointer.save("model")


def test_the_newest_checkpoints_are_kept_also_when_a_run_went_back(tmp_path):
    checkpointer = SCNetCheckpointer(nn.Linear(1, 1), str(tmp_path), kept=2)
    for age, name in enumerate(("0000001", "0000009", "0000003", "0000005")):
        checkpointer.save(f"model_{name}")
        os.utime(tmp_path / f"model_{name}.pth", (age, age))
    checkpointer.save("model_final")
    assert sorted(p.name for p in tmp_path.glob("*.pth")) == [
        "model_0000003.pth", "model_0000005.pth", "model_final.pth",
    ]  # fmt: skip


# What Detectron2's v0.6 lacks, and third_party/detectron2 adds.
@pytest.fixture
def stock_detectron2(monkeypatch):
    for name in ("state_dict", "load_state_dict"):
        for cls in (DefaultTrainer, SimpleTrainer, AMPTrainer):
            monkeypatch.delattr(cls, name, raising=False)


def test_a_resumed_run_equals_an_uninterrupted_one_on_a_stock_detectron2(
    tmp_path, stock_detectron2
):
    whole = tiny_trainer(tmp_path)
    whole.train()
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    resumed = tiny_trainer(tmp_path, resume=True)
    assert resumed.start_iter == 2
    resumed.train()
    assert_equal(resumed.model.state_dict(), whole.model.state_dict())
    assert_equal(resumed.optimizer.state_dict(), whole.optimizer.state_dict())


def test_the_scale_of_a_grad_scaler_is_resumed(tmp_path, stock_detectron2):
    first, second = tiny_trainer(tmp_path), tiny_trainer(tmp_path)
    first._trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    second._trainer.grad_scaler = torch.amp.GradScaler("cpu")
    second.load_state_dict(first.state_dict())
    assert second._trainer.grad_scaler.get_scale() == 8.0


@pytest.mark.parametrize(
    "saved",
    [
        {"trainer": {"iteration": 1, "hooks": {"LRScheduler": {"last_epoch": 2}}}, "iteration": 1},
        {},
    ],
    ids=["its-trainer", "weights-alone"],
)
def test_a_checkpoint_of_detectron2s_own_trainer_is_refused_with_a_remedy(tmp_path, saved):
    weights = tiny_trainer(tmp_path).model.state_dict()
    torch.save({"model": weights, **saved}, tmp_path / "model_0000001.pth")
    message = r"model_0000001\.pth cannot be resumed from.*MODEL\.WEIGHTS .*model_0000001\.pth"
    with pytest.raises(CheckpointError, match=message):
        tiny_trainer(tmp_path, resume=True)


def test_the_checkpoints_of_a_run_hold_its_class_names_and_those_without_them_are_resumed(tmp_path):
    names = ("DATASETS.CLASS_NAMES", ["cat", "dog"])
    tiny_trainer(tmp_path).train()
    tiny_trainer(tmp_path, "SOLVER.MAX_ITER", 6, *names, resume=True).train()
    for file in ("model_0000005.pth", "model_final.pth"):
        assert read_checkpoint(str(tmp_path / file))["class_names"] == ["cat", "dog"]


def test_resume_without_a_checkpoint_says_from_what_it_starts(tmp_path, caplog):
    tiny_trainer(tmp_path, resume=True)
    assert f"{tmp_path} holds no checkpoint: starting from random weights" in caplog.text
    caplog.clear()
    tiny_trainer(tmp_path)
    assert "holds no checkpoint" not in caplog.text


def test_a_checkpoint_of_another_optimizer_is_refused_with_the_key(tmp_path):
    tiny_trainer(tmp_path).train()
    with pytest.raises(CheckpointError, match=r"model_final\.pth.*SOLVER\.OPTIMIZER"):
        tiny_trainer(tmp_path, "SOLVER.OPTIMIZER", "AdamW", resume=True)


def contents(folder):
    return {
        p.name: p.read_bytes() for p in folder.glob("*") if p.suffix in (".pth", ".json", ".yaml")
    }


def test_a_smaller_max_iter_than_the_iterations_trained_is_said_and_nothing_overwritten(
    scenes, runs, tmp_path
):
    shutil.copytree(runs["whole"], tmp_path, dirs_exist_ok=True)
    before = contents(tmp_path)
    command = f"--config-file {tmp_path}/config.yaml --resume OUTPUT_DIR {tmp_path}"
    args = train_net_parser().parse_args([*command.split(), "SOLVER.MAX_ITER", "3"])
    with pytest.raises(TrainingError, match="trained for 7 iterations, but SOLVER"):
        train.main(args)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("mode", ["--resume", "--eval-only"])
def test_a_json_with_its_categories_in_another_order_is_refused_and_nothing_overwritten(
    scenes, tmp_path, mode
):
    one = ("SOLVER.MAX_ITER", 1, "DATASETS.VAL", ())
    build(scenes, tmp_path, *one).train()
    content = json.loads((scenes / "annotations" / "train.json").read_text())
    first, second = content["categories"][:2]
    first["name"], second["name"] = second["name"], first["name"]
    swapped = tmp_path / "swapped.json"
    swapped.write_text(json.dumps(content))
    before = contents(tmp_path)
    register_coco_multilabel("resume_swapped", swapped, scenes / "images" / "train")
    command = f"--config-file {tmp_path}/config.yaml {mode} OUTPUT_DIR {tmp_path} SOLVER.MAX_ITER 2"
    weights = f"MODEL.WEIGHTS {tmp_path}/model_final.pth"
    args = train_net_parser().parse_args([*command.split(), *weights.split()])
    split = "TEST" if mode == "--eval-only" else "TRAIN"
    args.opts += [f"DATASETS.{split}", "('resume_swapped',)"]
    message = f"class 0 is '{second['name']}' in .*final.pth and '{first['name']}' in"
    with pytest.raises(CheckpointError, match=message):
        train.main(args)
    DatasetCatalog.remove("resume_swapped")
    assert contents(tmp_path) == before


def test_a_refused_evaluation_leaves_the_config_beside_foreign_weights_as_it_is(scenes, tmp_path):
    names = [CLASSES[1], CLASSES[0], *CLASSES[2:]]
    cfg = small_config(*NARROW, "DATASETS.CLASS_NAMES", names, "DATASETS.TEST", ("resume_val",))
    (tmp_path / "run").mkdir()
    torch.save(build_model(cfg).state_dict(), tmp_path / "run/w.pth")
    (tmp_path / "run/config.yaml").write_text(cfg.dump())
    cfg.DATASETS.CLASS_NAMES = []
    (tmp_path / "config.yaml").write_text(cfg.dump())
    before = contents(tmp_path / "run")
    val = scenes / "annotations" / "val.json", scenes / "images" / "val"
    command = ["--config-file", tmp_path / "config.yaml", "--eval-only", "--register-coco"]
    opts = "OUTPUT_DIR", tmp_path / "run", "MODEL.WEIGHTS", tmp_path / "run/w.pth"
    args = train_net_parser().parse_args(map(str, [*command, "resume_val", *val, *opts]))
    with pytest.raises(CheckpointError, match=f"class 0 is '{names[0]}' in .*w.pth"):
        train.main(args)
    assert contents(tmp_path / "run") == before
    assert [p.name for p in (tmp_path / "run").rglob("*.txt")] == ["log.txt"]
    assert not (tmp_path / "run/inference/config.yaml").exists()


def test_a_finished_run_that_is_resumed_writes_its_evaluation_again_at_the_same_iteration(tmp_path):
    def rows():
        return [json.loads(x)["iteration"] for x in (tmp_path / "metrics.json").open()]

    def evaluated(resume):
        trainer = tiny_trainer(tmp_path, resume=resume)
        trainer.test = lambda *_: {"multilabel": {"mAP": 50.0}}
        return trainer

    evaluated(resume=False).train()
    assert rows() == [3, 4]  # the last iteration, and what came after it
    evaluated(resume=True).train()
    assert rows() == [3, 4]


def test_an_evaluation_beside_a_training_leaves_its_half_written_checkpoint(tmp_path):
    tiny_trainer(tmp_path).train()
    half = tmp_path / "model_0000005.pth.4711.partial"
    half.write_bytes(b"half")
    model = tiny_trainer(tmp_path / "other").model
    SCNetCheckpointer(model, str(tmp_path), require_all=True).resume_or_load("", resume=True)
    assert half.exists()
    own = tmp_path / "notes.partial"
    own.write_bytes(b"")
    tiny_trainer(tmp_path, resume=True)
    assert not half.exists()
    assert own.exists()


def copy_with_bad_images(scenes, folder, count):
    """The training images, `count` of them with nothing in it."""
    images = folder / "images" / "train"
    images.mkdir(parents=True)
    for i, path in enumerate(sorted((scenes / "images" / "train").iterdir())):
        (images / path.name).write_bytes(b"" if i < count else path.read_bytes())
    return images


@pytest.mark.parametrize(("bad", "share"), [(1, 0.23), (2, 0.23), (1, 0.11)])
def test_bad_images_are_left_out_and_counted_up_to_the_share_of_a_key(
    scenes, tmp_path, caplog, bad, share
):
    name = f"resume_bad_{bad}_{share}"
    images = copy_with_bad_images(scenes, tmp_path, bad)
    register_coco_multilabel(name, scenes / "annotations" / "train.json", images)
    opts = (
        "DATASETS.TRAIN", (name,), "DATASETS.VAL", (), "DATALOADER.MAX_BAD_IMAGES", share,
        "SOLVER.MAX_ITER", 6,
    )  # fmt: skip
    trainer = build(scenes, tmp_path / "run", *opts)  # 9 images; 0.23 of them: 2
    if share == 0.11:  # of 9 images: 0.99
        with pytest.raises(
            DatasetError, match=r"DATALOADER\.MAX_BAD_IMAGES allows a share of 0\.11"
        ):
            trainer.train()
        return
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert f"left out, because it could not be used: {bad} training image" in caplog.text
    assert "000001.png" in caplog.text
    last = json.loads((tmp_path / "run" / "metrics.json").read_text().splitlines()[-1])
    assert last["bad_images"] == bad
    assert np.isfinite(last["total_loss"])


def test_a_loader_that_cannot_be_resumed_is_refused(scenes, tmp_path):
    class OwnLoader(Trainer):
        @classmethod
        def build_train_loader(cls, cfg):
            return [[]]

    cfg = build(scenes, tmp_path).cfg
    with pytest.raises(TypeError, match=r"OwnLoader.*TrainLoader\.from_config"):
        OwnLoader(cfg)


def test_a_batch_that_does_not_divide_among_the_processes_is_refused(monkeypatch):
    monkeypatch.setattr("scnet_d2.data.train_loader.comm.get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"SOLVER\.IMS_PER_BATCH 3 does not divide among 2"):
        TrainLoader.from_config(small_config("SOLVER.IMS_PER_BATCH", 3), mapper=None)


def test_an_unknown_sampler_is_refused_by_name(scenes, tmp_path):
    with pytest.raises(ValueError, match="SAMPLER_TRAIN is 'Shuffled'; choose TrainingSampler"):
        build(scenes, tmp_path, "DATALOADER.SAMPLER_TRAIN", "Shuffled")
