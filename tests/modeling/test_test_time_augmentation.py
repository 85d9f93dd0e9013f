"""Image scores averaged over sizes and flips."""

from scnet_d2.data import register_coco_multilabel
from scnet_d2.data.context_scenes import SceneConfig, generate
from scnet_d2.engine import Trainer
from scnet_d2.modeling.test_time_augmentation import SCNetWithTTA, build_tta

import pytest
import torch
from conftest import small_config
from detectron2.evaluation import inference_context
from detectron2.modeling import build_model
from detectron2.modeling.test_time_augmentation import DatasetMapperTTA
from torch import nn


class Stub(nn.Module):
    """Scores: the shorter side / 100, and the brightness of the left upper corner / 255."""

    def forward(self, inputs):
        image = inputs[0]["image"]
        height, width = image.shape[1:]
        scores = torch.tensor([min(height, width) / 100, image[0, 0, 0].item() / 255])
        return [{"image_scores": scores, "instances": f"{height}x{width}"}]


def left_white(height, width):
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[..., : width // 2] = 255
    return {"image": image, "height": height, "width": width}


@pytest.mark.parametrize(
    ("flip", "expected"),
    # sizes 20 and 40: mean 0.3; the white left half is on the right in half of the views
    [(False, [0.3, 1.0]), (True, [0.3, 0.5])],
)
def test_scores_are_the_mean_over_the_views(flip, expected):
    model = SCNetWithTTA(Stub(), DatasetMapperTTA([20, 40], 1000, flip))
    (output,) = model([left_white(80, 160)])
    torch.testing.assert_close(output["image_scores"], torch.tensor(expected))


def test_boxes_are_those_of_the_first_size_unflipped():
    model = SCNetWithTTA(Stub(), DatasetMapperTTA([40, 20], 1000, True))
    outputs = model([left_white(80, 160), left_white(160, 80)])
    assert [o["instances"] for o in outputs] == ["40x80", "80x40"]


def test_a_model_without_image_scores_is_refused():
    model = SCNetWithTTA(lambda inputs: [{"instances": None}], DatasetMapperTTA([20], 1000, False))
    with pytest.raises(ValueError, match=r"no image_scores.*TEST\.AUG\.ENABLED False"):
        model([left_white(80, 160)])


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_in_the_mode_that_evaluation_finds(training):
    model = build_model(small_config()).train(training)
    tta = build_tta(small_config(), model)
    with inference_context(tta):
        assert not model.training
    assert model.training is training


@pytest.mark.parametrize(
    ("arch", "heads"), [("SCNet", "SCNetROIHeads"), ("GeneralizedRCNN", "StandardROIHeads")]
)
def test_the_trainer_evaluates_with_it_when_the_config_asks(tmp_path, arch, heads):
    generate(str(tmp_path), SceneConfig(sizes=(1, 1, 3)))
    scenes, name = tmp_path / "context_scenes", f"three_scenes_{arch}"
    register_coco_multilabel(name, scenes / "annotations/test.json", scenes / "images/test")
    cfg = small_config(
        "TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (96, 64), "DATALOADER.NUM_WORKERS", 0,
        "OUTPUT_DIR", str(tmp_path), "DATASETS.TRAIN", (), "DATASETS.TEST", (name,),
        "MODEL.META_ARCHITECTURE", arch, "MODEL.ROI_HEADS.NAME", heads,
    )  # fmt: skip
    model = build_model(cfg)
    sizes = []
    model.backbone.register_forward_pre_hook(lambda _, x: sizes.append(min(x[0].shape[2:])))
    results = Trainer.test(cfg, model)
    assert "mAP" in results["multilabel"]
    # Detectron2's own wrapper batches three views
    views = [96, 96, 64, 64] if arch == "SCNet" else [96, 64]
    assert sizes == views * 3
