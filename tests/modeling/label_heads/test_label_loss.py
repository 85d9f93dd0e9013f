"""The losses of image labels against values worked by hand."""

import math

from scnet_d2.modeling import LabelLoss

import pytest
import torch

ASL = {"name": "asl", "gamma_neg": 4.0, "gamma_pos": 0.0, "clip": 0.05}


def logit(score):
    return math.log(score / (1 - score))


def loss_of(loss, score, target):
    return loss(torch.tensor([[logit(score)]]), torch.tensor([[target]]), torch.ones(1, 1)).item()


@pytest.mark.parametrize(
    ("score", "target", "value"),
    [
        (0.5, 1.0, math.log(2)),
        (0.5, 0.0, 0.45**4 * -math.log(0.55)),  # 0.02452
        (0.05, 0.0, 0.0),
        (0.01, 0.0, 0.0),
        (0.2, 1.0, -math.log(0.2)),
        (0.9, 0.0, 0.85**4 * -math.log(0.15)),
    ],
)
def test_the_asymmetric_loss_is_that_of_the_formula(score, target, value):
    assert loss_of(LabelLoss(**ASL), score, target) == pytest.approx(value, abs=1e-6)


def test_the_factor_of_present_labels_has_its_own_exponent():
    loss = LabelLoss(**ASL | {"gamma_pos": 2.0})
    assert loss_of(loss, 0.3, 1.0) == pytest.approx(0.7**2 * -math.log(0.3))


def test_the_factors_of_the_asymmetric_loss_have_no_gradient():
    x = torch.zeros(1, 1, requires_grad=True)
    LabelLoss(**ASL)(x, torch.zeros(1, 1), torch.ones(1, 1)).backward()
    # d/dx of -log(1 - p + 0.05) at p = 0.5 is p (1 - p) / 0.55
    assert x.grad.item() == pytest.approx(0.45**4 * 0.25 / 0.55)


def test_without_exponents_and_clip_it_is_the_cross_entropy():
    logits = torch.tensor([[-200.0, -3.0, 0.0, 2.0, 200.0]]).repeat(2, 1).requires_grad_()
    targets = torch.tensor([[0.0, 0.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0, 0.0]])
    plain = LabelLoss(name="asl", gamma_neg=0.0, gamma_pos=0.0, clip=0.0)
    losses = [loss(logits, targets, torch.ones_like(targets)) for loss in (plain, LabelLoss())]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(x, logits)[0] for x in losses))


@pytest.mark.parametrize("name", ["bce", "asl"])
def test_it_sums_over_classes_averages_over_images_and_weighs_entries(name):
    loss = LabelLoss(name=name, weight=3.0)
    logits, targets = torch.zeros(2, 4), torch.ones(2, 4)
    weights = torch.tensor([[1.0, 0.0, 1.0, 2.0], [0.0, 0.0, 1.0, 0.0]])
    assert loss(logits, targets, weights).item() == pytest.approx(3 * 5 * math.log(2) / 2)


def test_half_precision_does_not_overflow():
    logits = torch.tensor([[30.0, -30.0]], dtype=torch.bfloat16)
    targets = torch.tensor([[0.0, 1.0]])
    for name in ("bce", "asl"):
        assert LabelLoss(name=name)(logits, targets, torch.ones(1, 2)).isfinite()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "hinge"}, r"LOSS is 'hinge'; choose bce or asl"),
        ({"clip": 1.0}, r"ASL\.CLIP is 1"),
    ],
)
def test_an_unknown_loss_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LabelLoss(**options)
