"""SCNet on another Detectron2 than v0.6, with backbones that v0.6 does not have.

`DETECTRON2_SOURCES` names a checkout of Detectron2's main branch; its ViT needs timm.
"""

import os
import subprocess
import sys

import pytest
from conftest import REPO

SOURCES = os.environ.get("DETECTRON2_SOURCES", "")
PROGRAM = """
import detectron2, torch
from conftest import make_input
from detectron2.modeling import (
    BACKBONE_REGISTRY, FPN, SimpleFeaturePyramid, SwinTransformer, ViT, build_model
)
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.utils.events import EventStorage
from scnet_d2 import load_config

@BACKBONE_REGISTRY.register()
def vit(cfg, input_shape):
    net = ViT(img_size=256, embed_dim=96, depth=2, num_heads=4, window_size=8,
              window_block_indexes=[0], use_rel_pos=True, out_feature="last")
    scales = (4.0, 2.0, 1.0, 0.5)
    return SimpleFeaturePyramid(net, "last", 64, scales, LastLevelMaxPool(), "LN", 256)

@BACKBONE_REGISTRY.register()
def swin(cfg, input_shape):
    net = SwinTransformer(depths=[1, 1, 1, 1], embed_dim=48, num_heads=[3, 6, 12, 24])
    return FPN(net, ["p0", "p1", "p2", "p3"], 64, top_block=LastLevelMaxPool())

cfg = load_config("configs/Base-SCNet-FPN.yaml", [
    "MODEL.META_ARCHITECTURE", {arch!r}, "MODEL.BACKBONE.NAME", {backbone!r}, "MODEL.DEVICE", "cpu",
    "MODEL.ROI_BOX_HEAD.FC_DIM", 64, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0,
])
model = build_model(cfg)
x = make_input([[20, 20, 120, 140]], [3], (200, 256), height=400, width=512, image_labels=[3])
with EventStorage():
    sum(model([x]).values()).backward()
assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
with torch.no_grad():
    (output,) = model.eval()([x])
assert output["instances"].image_size == (400, 512)
assert output["instances"].context_boxes.tensor.shape == (100, 4)
if {arch!r} == "SCNet":
    assert output["label_boxes"].shape == (80, 4)
print(detectron2.__file__)
"""


@pytest.mark.skipif(not SOURCES, reason="DETECTRON2_SOURCES names no checkout of Detectron2")
@pytest.mark.parametrize("arch", ["SCNet", "GeneralizedRCNN"])
@pytest.mark.parametrize("backbone", ["vit", "swin"])
def test_a_step_and_a_prediction_with_backbones_of_the_main_branch(arch, backbone):
    ours = [str(REPO), str(REPO / "tests"), os.environ.get("PYTHONPATH", "")]
    path = os.pathsep.join([SOURCES, *ours])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM.format(arch=arch, backbone=backbone)],
        cwd=REPO, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True,
        timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().startswith(os.path.realpath(SOURCES))
