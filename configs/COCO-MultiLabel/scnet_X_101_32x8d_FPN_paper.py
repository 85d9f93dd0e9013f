"""Twin of scnet_X_101_32x8d_FPN_paper.yaml for Detectron2's tools/lazyconfig_train_net.py."""

from scnet_d2.data import MultiLabelDatasetMapper
from scnet_d2.evaluation import MultiLabelEvaluator
from scnet_d2.modeling import (
    ContextHead,
    LabelAggregator,
    LabelPredictor,
    ObjectHead,
    SCNet,
    SCNetROIHeads,
    ScoreFusion,
)

import torch
from detectron2.config import CfgNode
from detectron2.config import LazyCall as L
from detectron2.data import (
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data import transforms as T
from detectron2.layers import ShapeSpec
from detectron2.model_zoo import get_config
from detectron2.modeling.backbone.resnet import BottleneckBlock, ResNet
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import FastRCNNConvFCHead
from detectron2.solver.build import maybe_add_gradient_clipping

NUM_CLASSES = 80
POOLED = ["p2", "p3", "p4", "p5"]
TRAIN, TEST = "coco_2014_train_multilabel", "coco_2014_val_multilabel"
CLIP = {"ENABLED": True, "CLIP_TYPE": "norm", "CLIP_VALUE": 10.0, "NORM_TYPE": 2.0}


def branch() -> dict:
    """What the object and the context head have in common."""
    return {
        "in_features": POOLED,
        "pooler": L(ROIPooler)(
            output_size=7,
            scales=(1 / 4, 1 / 8, 1 / 16, 1 / 32),
            sampling_ratio=0,
            pooler_type="ROIAlignV2",
        ),
        "box_head": L(FastRCNNConvFCHead)(
            input_shape=ShapeSpec(channels=256, height=7, width=7),
            conv_dims=[],
            fc_dims=[1024, 1024],
        ),
        "label_predictor": L(LabelPredictor)(
            input_dim=1024, num_classes=NUM_CLASSES, prior_prob=0.01, loss_weight=1.0
        ),
    }


def stage(index: int, num_blocks: int) -> dict:
    """Stage res2 + `index` of ResNeXt-101-32x8d."""
    return L(ResNet.make_stage)(
        block_class=BottleneckBlock,
        num_blocks=num_blocks,
        stride_per_block=[2 if index else 1] + [1] * (num_blocks - 1),
        in_channels=128 * 2**index if index else 64,
        out_channels=256 * 2**index,
        bottleneck_channels=32 * 8 * 2**index,
        num_groups=32,
        stride_in_1x1=False,
        norm="FrozenBN",
    )


def clipped_sgd(params, **kwargs) -> torch.optim.Optimizer:
    """SGD with the gradient clipping of `CLIP`."""
    cfg = CfgNode({"SOLVER": {"CLIP_GRADIENTS": CLIP}})
    return maybe_add_gradient_clipping(cfg, torch.optim.SGD)(params, **kwargs)


rcnn = get_config("common/models/mask_rcnn_fpn.py").model
model = L(SCNet)(
    backbone=rcnn.backbone,
    proposal_generator=rcnn.proposal_generator,
    roi_heads=L(SCNetROIHeads)(
        num_classes=NUM_CLASSES,
        batch_size_per_image=256,
        positive_fraction=0.25,
        proposal_matcher=L(Matcher)(
            thresholds=[0.5], labels=[0, 1], allow_low_quality_matches=False
        ),
        branches=[
            L(ObjectHead)(
                **branch(),
                box2box_transform=L(Box2BoxTransform)(weights=(10, 10, 5, 5)),
                feature_dim=1024,
                smooth_l1_beta=1.0,
                label_iou=0.5,
            ),
            L(ContextHead)(**branch(), label_coverage=0.5),
        ],
        fusion=L(ScoreFusion)(weights={"object": 0.5, "context": 0.5}),
        expansion_ratio=2.0,
        score_thresh=0.05,
        nms_thresh=0.5,
        detections_per_image=100,
    ),
    aggregator=L(LabelAggregator)(),
    input_format="BGR",
    pixel_mean=[103.530, 116.280, 123.675],
    pixel_std=[57.375, 57.120, 58.395],
)
model.backbone.bottom_up.freeze_at = 2
model.backbone.bottom_up.stages = [stage(i, num) for i, num in enumerate((3, 4, 23, 3))]
model.proposal_generator.smooth_l1_beta = 1.0
model.proposal_generator.post_nms_topk = (1000, 300)

dataloader = get_config("common/data/coco.py").dataloader
dataloader.train = L(build_detection_train_loader)(
    dataset=L(get_detection_dataset_dicts)(names=TRAIN, filter_empty=False),
    mapper=L(MultiLabelDatasetMapper)(
        is_train=True,
        augmentations=[
            L(T.ResizeShortestEdge)(
                short_edge_length=(640, 672, 704, 736, 768, 800),
                sample_style="choice",
                max_size=1333,
            ),
            L(T.RandomFlip)(horizontal=True),
        ],
        image_format="BGR",
    ),
    total_batch_size=16,
    num_workers=4,
)
dataloader.test = L(build_detection_test_loader)(
    dataset=L(get_detection_dataset_dicts)(names=TEST, filter_empty=False),
    mapper=L(MultiLabelDatasetMapper)(
        is_train=False,
        augmentations=[L(T.ResizeShortestEdge)(short_edge_length=800, max_size=1333)],
        image_format="BGR",
    ),
    num_workers=4,
)
dataloader.evaluator = L(MultiLabelEvaluator)(dataset_name=TEST)

optimizer = get_config("common/optim.py").SGD
optimizer._target_ = clipped_sgd
lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_1x

train = get_config("common/train.py").train
train.init_checkpoint = "detectron2://ImageNetPretrained/FAIR/X-101-32x8d.pkl"
train.output_dir = "output/COCO-MultiLabel/scnet_X_101_32x8d_FPN_paper_lazy"
train.amp.enabled = True
train.eval_period = 0  # at the end alone; 40,504 images every 5,000 iterations otherwise
