"""Features of a frozen backbone that are computed once and kept."""

import pytest
import torch
from conftest import small_config
from detectron2.modeling import build_model

from experiments.frozen_features import keep_features

ALL_FROZEN = ("MODEL.BACKBONE.FREEZE_AT", 5)


def _model(*opts):
    torch.manual_seed(0)
    return build_model(small_config(*opts)).eval()


@pytest.fixture(scope="module")
def images():
    """Two images (2, 3, 64, 64)."""
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_kept_features_are_equal_and_computed_once(tmp_path, images):
    expected = _model(*ALL_FROZEN).backbone(images)
    for kept in (0, 1):
        model = _model(*ALL_FROZEN)
        calls = []
        stem = model.backbone.bottom_up.stem
        stem.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        assert keep_features(model, tmp_path)
        found = model.backbone(images)
        assert len(calls) == 1 - kept
        assert all(torch.equal(found[name], x) for name, x in expected.items())


def test_other_weights_and_other_images_take_no_kept_features(tmp_path, images):
    model, other = _model(*ALL_FROZEN), _model(*ALL_FROZEN)
    other.backbone.bottom_up.stem.conv1.weight.data *= 2
    expected = other.backbone(images)["p3"], model.backbone(images.flip(-1))["p3"]
    assert keep_features(model, tmp_path) and keep_features(other, tmp_path)
    model.backbone(images)
    assert torch.equal(other.backbone(images)["p3"], expected[0])
    assert torch.equal(model.backbone(images.flip(-1))["p3"], expected[1])


def test_trained_or_changed_backbones_keep_nothing(tmp_path):
    assert not keep_features(_model("MODEL.BACKBONE.FREEZE_AT", 2), tmp_path)
    changed = _model(*ALL_FROZEN)
    changed.backbone.bottom_up.res4.register_forward_hook(lambda *_: None)
    assert not keep_features(changed, tmp_path)
    assert not list(tmp_path.iterdir())
