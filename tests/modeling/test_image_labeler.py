"""ImageLabeler, the loss on image scores, and training in bfloat16 on a CPU."""

from scnet_d2.engine import Trainer
from scnet_d2.modeling import ImageLabeler
from scnet_d2.modeling.label_predictor import pool_images

import pytest
import torch
from conftest import make_input, small_config
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

LABELER = ["MODEL.META_ARCHITECTURE", "ImageLabeler"]
LABELER += [
    "MODEL.BACKBONE.NAME",
    "build_resnet_backbone",
    "MODEL.RESNETS.OUT_FEATURES",
    "['res5']",
]


def batch(*sizes, labels=((0, 2), (1,))):
    box = [4, 4, 30, 40]
    return [
        make_input([box] * len(present), present, size, image_labels=list(present))
        for size, present in zip(sizes, labels)
    ]


def labeler(*opts):
    return build_model(small_config(*LABELER, *opts))


def test_labeler_gives_scores_and_a_loss_with_gradients_everywhere():
    model = labeler()
    assert isinstance(model, ImageLabeler)
    (loss,) = model(batch((64, 96), (80, 64))).values()
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    outputs = model.eval()(batch((64, 96), (80, 64)))
    assert [o["image_scores"].shape for o in outputs] == [(14,), (14,)]


def test_labeler_scores_do_not_depend_on_the_padding_of_a_batch():
    """Up to what padding does to convolutions near the border."""
    model = labeler().eval()
    small, large = batch((64, 64), (64, 128))
    with torch.no_grad():
        feature = {"res5": torch.ones(2, 3, 2, 4)}
        feature["res5"][0, :, :, 2:] = 100  # padding of the first image
        pooled = pool_images(feature["res5"], model.preprocess_image([small, large]))
    torch.testing.assert_close(pooled, torch.ones(2, 3))


def test_maximum_pooling_takes_the_largest_value_inside_the_image():
    model = labeler("MODEL.IMAGE_LABELER.POOLING", "max")
    feature = torch.zeros(1, 2, 2, 4)
    feature[0, 0, 1, 1], feature[0, 1, 0, 3] = 7, 100  # the second lies in the padding
    images = model.preprocess_image(batch((64, 64), (64, 128)))
    images.image_sizes = images.image_sizes[:1]
    assert pool_images(feature, images, model.head.pooling).tolist() == [[7, 0]]
    with pytest.raises(ValueError, match=r"IMAGE_LABELER\.POOLING is 'sum'"):
        labeler("MODEL.IMAGE_LABELER.POOLING", "sum")


def test_ignored_labels_do_not_move_the_labeler():
    model = labeler()
    inputs = batch((64, 64), labels=((0,),))
    inputs[0]["ignored_labels"] = [c for c in range(14) if c != 0]
    model(inputs)["loss_image_label"].backward()
    gradient = model.head.label_score.bias.grad
    assert gradient[0] != 0
    assert (gradient[1:] == 0).all()


def test_labeler_names_a_feature_that_the_backbone_lacks():
    with pytest.raises(ValueError, match="IN_FEATURE is 'p7', the backbone has"):
        labeler("MODEL.IMAGE_LABELER.IN_FEATURE", "p7")


def test_the_pooling_head_keeps_the_names_of_stored_weights():
    names = [name for name in labeler().state_dict() if not name.startswith("backbone.")]
    assert names == ["head.label_score.weight", "head.label_score.bias"]


def test_an_unknown_head_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError, match=r"IMAGE_LABELER\.HEAD is 'Best'; choose one of \[.*'CSRA'"
    ):
        labeler("MODEL.IMAGE_LABELER.HEAD", "Best")


def test_the_loss_is_a_switch():
    inputs = batch((64, 64), (64, 64))
    model, other = labeler(), labeler("MODEL.IMAGE_LABELER.LOSS", "asl")
    other.load_state_dict(model.state_dict())
    bce, asl = (m(inputs)["loss_image_label"] for m in (model, other))
    assert 0 < asl < bce  # what is absent costs less
    with pytest.raises(ValueError, match=r"IMAGE_LABELER\.LOSS is 'mse'; choose bce or asl"):
        labeler("MODEL.IMAGE_LABELER.LOSS", "mse")


@pytest.mark.parametrize("method", ["max", "noisy_or", "topk_mean", "logsumexp"])
def test_image_loss_trains_both_branches(method):
    opts = ["MODEL.SCNET.AGGREGATION.LOSS_WEIGHT", 2.0, "MODEL.SCNET.AGGREGATION.METHOD", method]
    model = build_model(small_config(*opts))
    with EventStorage():
        losses = model(batch((64, 96), (80, 64)))
    losses["loss_image_label"].backward()
    for head in (model.roi_heads.object_head, model.roi_heads.context_head):
        assert head.label_predictor.label_score.weight.grad.abs().sum() > 0


def test_image_loss_is_the_cross_entropy_of_the_image_scores():
    model = build_model(small_config("MODEL.SCNET.AGGREGATION.LOSS_WEIGHT", 1.0))
    scores = torch.full((2, 14), 0.5)
    inputs = batch((64, 96), (80, 64))
    inputs[1]["ignored_labels"] = [5, 6]
    loss = model._image_loss(scores, inputs, boxed=[0, 1])
    torch.testing.assert_close(loss, torch.tensor(0.5).log().neg() * (14 + 12))


def test_cpu_mixed_precision_runs_the_backbone_in_bfloat16():
    seen = []
    for enabled in (True, False):
        cfg = small_config("SOLVER.AMP.CPU", enabled)
        model = Trainer.build_model(cfg)
        model.backbone.register_forward_hook(lambda m, i, out: seen.append(out["p2"].dtype))
        with EventStorage():
            losses = model(batch((64, 96), (80, 64)))
        assert all(loss.isfinite() for loss in losses.values())
        sum(losses.values()).backward()
        assert all(p.dtype == torch.float32 for p in model.parameters())
    assert seen == [torch.bfloat16, torch.float32]
