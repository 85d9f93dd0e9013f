"""Every shipped config: keys, data, one training step and one prediction at a small size."""

import re

from scnet_d2 import config, use_available_device
from scnet_d2.engine import Trainer
from scnet_d2.modeling import LABEL_HEAD_REGISTRY, ImageLabeler

import pytest
import torch
from conftest import CONFIGS, NARROW, load_config, make_input
from detectron2.config import LazyConfig, instantiate
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer
from detectron2.model_zoo import get_config
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler
from detectron2.utils.events import EventStorage
from omegaconf import ListConfig

PARTS = ("Base-", "Backbone-")
SHIPPED = sorted(
    str(path.relative_to(CONFIGS))
    for path in CONFIGS.rglob("*.yaml")
    if not path.name.startswith(PARTS)
)
RECIPES = [
    name for name in SHIPPED if not any(part in name for part in ("R_18", "Lite", "/compared/"))
]
PAPER = "COCO-MultiLabel/scnet_X_101_32x8d_FPN_paper"


def test_there_are_the_configs_that_the_model_zoo_lists():
    listed = re.findall(r"configs/(\S+\.yaml)", (CONFIGS.parent / "MODEL_ZOO.md").read_text())
    assert sorted(set(listed)) == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_it_trains_a_step_with_the_losses_of_its_branches_and_predicts(name, device):
    narrow = NARROW if name in RECIPES else ()
    cfg = load_config(name, "MODEL.ROI_BOX_HEAD.FC_DIM", 32, *narrow, device=device)
    num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    box = [20, 20, 90, 100]
    last = num_classes - 1
    inputs = [make_input([box], [last], (128, 128), height=64, width=64, image_labels=[last])]
    model = build_model(cfg).train()
    if needs_context(model):
        model.head.fill_context(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes, [[0, 1]])
    optimizer = Trainer.build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    with EventStorage():
        losses = model(inputs)
        sum(losses.values()).backward()
    optimizer.step()
    scheduler.step()
    assert all(torch.isfinite(v) for v in losses.values())
    with torch.no_grad():
        output = model.eval()(inputs)[0]
    if cfg.MODEL.META_ARCHITECTURE != "GeneralizedRCNN":
        assert output["image_scores"].shape == (num_classes,)
    if cfg.MODEL.META_ARCHITECTURE == "ImageLabeler":
        return
    for branch in ("object", "context", "relation"):
        enabled = cfg.MODEL.SCNET[branch.upper()].ENABLED
        assert (f"loss_{branch}_label" in losses) == enabled
    assert output["instances"].label_scores.shape[1:] == (num_classes,)
    assert output["instances"].image_size == (64, 64)


def needs_context(model):
    return isinstance(model, ImageLabeler) and model.head.needs


def test_every_label_head_has_a_config_to_compare_it_with():
    compared = [load_config(name) for name in SHIPPED if "/compared/" in name]
    heads = {cfg.MODEL.IMAGE_LABELER.HEAD for cfg in compared}
    heads |= {cfg.MODEL.SCNET.IMAGE.HEAD for cfg in compared}
    assert heads == {name for name, _ in LABEL_HEAD_REGISTRY}
    for cfg in compared:
        del cfg.SOLVER["BASE_LR"]
    assert len({cfg.SOLVER.dump() for cfg in compared}) == 1  # one recipe but for the rate


@pytest.mark.parametrize("name", SHIPPED)
def test_its_data_sets_have_as_many_classes_as_its_model(name):
    cfg = load_config(name)
    assert cfg.DATASETS.TEST
    for dataset in cfg.DATASETS.TRAIN + cfg.DATASETS.VAL + cfg.DATASETS.TEST:
        classes = MetadataCatalog.get(dataset).thing_classes
        assert len(classes) == cfg.MODEL.ROI_HEADS.NUM_CLASSES


@pytest.mark.parametrize("name", SHIPPED)
def test_its_output_folder_is_its_own(name):
    assert f"output/{name.removesuffix('.yaml')}" == load_config(name).OUTPUT_DIR


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_warm_up_clip_use_mixed_precision_and_decay_before_they_end(name):
    solver = load_config(name).SOLVER
    assert solver.CLIP_GRADIENTS.ENABLED
    assert solver.AMP.ENABLED
    assert solver.REFERENCE_WORLD_SIZE == 8
    assert 0 < solver.WARMUP_ITERS < solver.STEPS[0] < solver.STEPS[1] < solver.MAX_ITER


def test_two_gpus_scale_the_recipe_linearly():
    solver = DefaultTrainer.auto_scale_workers(load_config(f"{PAPER}.yaml"), 2).SOLVER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR) == (4, 0.005)
    assert (solver.MAX_ITER, solver.STEPS, solver.WARMUP_ITERS) == (360000, (240000, 320000), 4000)


def test_mixed_precision_is_switched_off_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = load_config(f"{PAPER}.yaml", "MODEL.DEVICE", "cuda")
    use_available_device(cfg)
    assert cfg.MODEL.DEVICE == "cpu"
    assert not cfg.SOLVER.AMP.ENABLED


@pytest.mark.parametrize("fast", [True, False])
def test_mixed_precision_of_a_cpu_is_switched_off_where_it_is_slow(monkeypatch, caplog, fast):
    monkeypatch.setattr(config, "has_fast_bfloat16", lambda device: fast)
    cfg = load_config("ContextScenes/scnet_R_18_FPN_160px.yaml", "SOLVER.AMP.CPU", True)
    use_available_device(cfg)
    assert fast == cfg.SOLVER.AMP.CPU
    assert ("no fast bfloat16" in caplog.text) != fast


def test_the_paper_backbone_is_that_of_detectron2s_zoo():
    ours = load_config(f"{PAPER}.yaml").MODEL
    zoo = get_config("COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x.yaml").MODEL
    for part in ("RESNETS", "FPN", "ANCHOR_GENERATOR", "BACKBONE", "PIXEL_MEAN", "PIXEL_STD"):
        if part == "FPN":  # which has a key of this project's too
            ours[part].pop("STAGES")
        assert ours[part] == zoo[part]
    for key in ("PRE_NMS_TOPK_TRAIN", "PRE_NMS_TOPK_TEST", "POST_NMS_TOPK_TRAIN"):
        assert ours.RPN[key] == zoo.RPN[key]


@pytest.mark.parametrize("data", ["COCO", "VOC"])
@pytest.mark.parametrize(("kept", "off"), [("object", "CONTEXT"), ("context", "OBJECT")])
def test_an_ablation_differs_from_its_parent_in_one_switch(data, kept, off):
    parent = f"{data}-MultiLabel/scnet_X_101_32x8d_FPN_paper"
    child = load_config(f"{parent}_{kept}_only.yaml")
    assert not child.MODEL.SCNET[off].ENABLED
    child.MODEL.SCNET[off].ENABLED = True
    child.OUTPUT_DIR = f"output/{parent}"
    assert child == load_config(f"{parent}.yaml")


@pytest.fixture(scope="module")
def twins():
    """The main config's model from yaml and from LazyConfig, without memory for the weights."""
    lazy = LazyConfig.load(str(CONFIGS / f"{PAPER}.py"))
    cfg = load_config(f"{PAPER}.yaml", "MODEL.DEVICE", "meta")
    with torch.device("meta"):
        return cfg, build_model(cfg), lazy, instantiate(lazy.model)


def plain(value):
    """A value that can be compared: attributes of Detectron2's objects, lists for sequences."""
    if isinstance(value, torch.nn.Module):
        return repr(value)
    if isinstance(value, (list, tuple, ListConfig)):
        return [plain(v) for v in value]
    if type(value).__module__.startswith("detectron2"):
        return {k: plain(v) for k, v in vars(value).items()}
    return value


def hyper_parameters(module):
    """The plain attributes of a module."""
    return {
        key: plain(value)
        for key, value in vars(module).items()
        if not (key.startswith("_") or isinstance(value, torch.Tensor))
    }


def test_the_lazy_twin_has_the_same_parameters_and_modules(twins):
    _, model, _, lazy_model = twins
    ours, lazys = dict(model.named_parameters()), dict(lazy_model.named_parameters())
    assert {n: (p.shape, p.requires_grad) for n, p in ours.items()} == {
        n: (p.shape, p.requires_grad) for n, p in lazys.items()
    }
    assert repr(model) == repr(lazy_model)


def test_the_lazy_twin_has_the_same_hyper_parameters(twins):
    _, model, _, lazy_model = twins
    for (name, ours), lazys in zip(model.named_modules(), lazy_model.modules(), strict=True):
        assert hyper_parameters(ours) == hyper_parameters(lazys), name
    assert model.pixel_std.shape == lazy_model.pixel_std.shape


def test_the_lazy_twin_has_the_same_data_and_solver(twins):
    cfg, _, lazy, lazy_model = twins
    lazy.optimizer.params.model = lazy_model
    optimizer = instantiate(lazy.optimizer)
    assert "GradientClip" in type(optimizer).__name__
    ours = Trainer.build_optimizer(cfg, lazy_model)
    for key in ("lr", "momentum", "weight_decay"):
        assert optimizer.defaults[key] == ours.defaults[key]
    assert lazy.train.max_iter == cfg.SOLVER.MAX_ITER
    assert lazy.train.amp.enabled == cfg.SOLVER.AMP.ENABLED
    assert lazy.train.eval_period == cfg.TEST.EVAL_PERIOD
    assert lazy.train.checkpointer.period == cfg.SOLVER.CHECKPOINT_PERIOD
    assert lazy.model.pixel_std == cfg.MODEL.PIXEL_STD
    assert (lazy.dataloader.train.dataset.names,) == cfg.DATASETS.TRAIN
    assert (lazy.dataloader.test.dataset.names,) == cfg.DATASETS.TEST
    resize = lazy.dataloader.train.mapper.augmentations[0]
    assert tuple(resize.short_edge_length) == cfg.INPUT.MIN_SIZE_TRAIN
    multiplier, scheduler = instantiate(lazy.lr_multiplier), build_lr_scheduler(cfg, ours)
    for i in (0, 500, 1000, 59999, 60000, 80000, 89999):
        by_hand = multiplier(i / cfg.SOLVER.MAX_ITER)
        assert scheduler._multiplier(i / cfg.SOLVER.MAX_ITER) == pytest.approx(by_hand)
