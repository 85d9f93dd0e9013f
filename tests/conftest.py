"""Helpers: small models built from the shipped configs, and hand-made inputs."""

import os
from pathlib import Path

from scnet_command import main
from scnet_d2 import add_scnet_config

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.structures import Boxes, Instances
from hypothesis import settings

# Half of the examples that are usual, none with a time limit of its own.
settings.register_profile("busy", deadline=None, max_examples=50)
settings.load_profile("busy")

REPO = Path(__file__).resolve().parent.parent
CONFIGS = REPO / "configs"
DEVICES = ["cpu", *["cuda"] * torch.cuda.is_available()]
REAL_ROOT = os.environ.get("DETECTRON2_DATASETS", "datasets")


def _needs(file: str):
    """Marks a test that reads real photographs of a data set, of which `file` is one."""
    reason = f"no {file} under $DETECTRON2_DATASETS"
    return pytest.mark.skipif(not Path(REAL_ROOT, file).expanduser().exists(), reason=reason)


needs_coco_train = _needs("coco/annotations/instances_train2017.json")
needs_coco_val = _needs("coco/annotations/instances_val2017.json")
needs_voc = _needs("VOC2012/ImageSets/Main/train.txt")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


# A backbone of few channels, which ResNet-18 cannot have: a 14th of its parameters.
NARROW = (
    "MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.NUM_GROUPS", 1, "MODEL.RESNETS.WIDTH_PER_GROUP", 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS", 32, "MODEL.RESNETS.STEM_OUT_CHANNELS", 16,
    "MODEL.FPN.OUT_CHANNELS", 32,
)  # fmt: skip


def scnet(*arguments) -> int:
    """Exit status of the command `scnet` with these arguments, in this process."""
    try:
        return main([str(a) for a in arguments])
    except SystemExit as end:
        return end.code


def load_config(name: str, *opts, device: str = "cpu"):
    """The shipped config `name` with random weights and key overrides."""
    cfg = get_cfg()
    add_scnet_config(cfg)
    cfg.merge_from_file(str(CONFIGS / name))
    cfg.merge_from_list(["MODEL.DEVICE", device, "MODEL.WEIGHTS", "", *opts])
    return cfg


def small_config(*opts, device: str = "cpu"):
    """The smallest shipped model, made still smaller."""
    small = ("MODEL.ROI_BOX_HEAD.FC_DIM", 32)
    return load_config("ContextScenes/scnet_R_18_FPN_160px.yaml", *small, *opts, device=device)


def make_input(boxes, classes, size=(96, 128), **extra) -> dict:
    """A model input with a random image of `size` (height, width) and these objects."""
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    return {"image": image, "instances": instances, "file_name": "made.png", **extra}


TWO_IMAGES = (
    ([[10, 10, 50, 60], [60, 20, 100, 80]], [3, 7], (96, 128)),
    ([[5, 5, 40, 30]], [0], (128, 96)),
)


def two_images() -> list[dict]:
    """Inputs of mixed sizes, of originals twice as large."""
    return [make_input(*x, height=2 * x[2][0], width=2 * x[2][1]) for x in TWO_IMAGES]


def assert_contract(outputs, inputs, num_classes):
    """The outputs are as `SCNet.forward` promises them."""
    for output, x in zip(outputs, inputs, strict=True):
        scores, instances = output["image_scores"], output["instances"]
        assert scores.shape == (num_classes,)
        assert scores.dtype == torch.float32
        assert ((scores >= 0) & (scores <= 1)).all()
        assert instances.image_size == (x["height"], x["width"])
        assert instances.label_scores.shape == (len(instances), num_classes)
        for boxes in (output["label_boxes"], output["label_context_boxes"]):
            assert boxes.shape == (num_classes, 4)
            assert (boxes >= 0).all()
            assert (boxes[:, 0::2] <= x["width"]).all()
            assert (boxes[:, 1::2] <= x["height"]).all()
        for boxes in (instances.pred_boxes, instances.context_boxes):
            assert isinstance(boxes, Boxes)
            assert (boxes.tensor >= 0).all()
            assert (boxes.tensor[:, 2] <= x["width"]).all()
            assert (boxes.tensor[:, 3] <= x["height"]).all()


# Files in the order of how long they take. A worker takes one whole: the last should be short.
LONGEST = (
    "test_tagging", "test_timm_backbone", "test_export", "test_programs", "test_resume",
    "test_distributed", "test_context_scenes", "test_checkpoint", "test_scnet", "test_compare",
    "test_wheel", "test_tutorial",
    "test_faults", "test_app", "test_aggregation", "test_optimize", "test_studies",
    "test_metrics", "test_configs", "test_detectron2_build", "test_timm_weights",
    "test_data_scale",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session", params=DEVICES)
def device(request) -> str:
    """The CPU and, where there is one, the GPU: a test that takes it runs on each."""
    return request.param


@pytest.fixture
def real_data_root() -> str:
    """The datasets root with real photographs, where there is one."""
    root = os.environ.get("DETECTRON2_DATASETS", "")
    if not os.path.isdir(os.path.join(root, "coco", "val2017")):
        pytest.skip("DETECTRON2_DATASETS has no real photographs (coco/val2017)")
    return root
