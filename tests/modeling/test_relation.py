"""The relation branch: hand-worked attention, and what it never does."""

import math

from scnet_d2.modeling.roi_heads import ObjectRelation
from scnet_d2.modeling.roi_heads.relation import relative_geometry

import pytest
import torch
from conftest import make_input, small_config
from detectron2.modeling import build_model
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch.utils.flop_counter import FlopCounterMode

RELATION = ("MODEL.SCNET.RELATION.ENABLED", True)
BOXES = torch.tensor([[0.0, 0, 10, 20], [20, 0, 40, 10], [5, 5, 50, 60], [30, 30, 33, 90]])


def plain_relation(dim=1, **options) -> ObjectRelation:
    """One head: queries and keys are the features, values twice them, and all places are alike."""
    relation = ObjectRelation(dim, num_heads=1, key_dim=dim, **options)
    for layer, scale in ((relation.query, 1.0), (relation.key, 1.0), (relation.value, 2.0)):
        layer.weight.data = scale * torch.eye(dim)
    torch.nn.init.zeros_(relation.geometry.weight)
    torch.nn.init.ones_(relation.geometry.bias)
    return relation


def random_relation(dim=8, **options) -> ObjectRelation:
    relation = ObjectRelation(dim, num_heads=2, key_dim=4, **options)
    for p in relation.parameters():
        torch.nn.init.normal_(p)
    return relation


def test_a_box_alone_stays_itself():
    x = torch.randn(1, 8)
    assert torch.equal(random_relation()(x, BOXES[:1], torch.zeros(1)), x)


def test_of_two_boxes_each_takes_the_value_of_the_other():
    x = torch.tensor([[1.0, 10.0], [-3.0, 5.0]])
    out = plain_relation(2)(x, BOXES[:2], torch.zeros(2))
    assert out.tolist() == [[1 - 6, 10 + 10], [-3 + 2, 5 + 20]]


def test_of_three_boxes_the_values_are_weighed_by_the_products_of_query_and_key():
    x = torch.tensor([[1.0], [2.0], [3.0]])
    out = plain_relation()(x, BOXES[:3], torch.zeros(3))
    e = math.e
    # products 2 and 3 of the first with the others, 2 and 6 of the second, 3 and 6 of the third
    expected = [
        1 + 2 * (2 + 3 * e) / (1 + e),
        2 + 2 * (1 + 3 * e**4) / (1 + e**4),
        3 + 2 * (1 + 2 * e**3) / (1 + e**3),
    ]
    torch.testing.assert_close(out[:, 0], torch.tensor(expected))


def test_places_weigh_the_attention_and_a_weight_of_nought_everywhere_gives_the_mean():
    relation = plain_relation()
    torch.nn.init.zeros_(relation.query.weight)
    x = torch.tensor([[1.0], [2.0], [4.0]])
    relation.geometry.register_forward_hook(
        lambda _, x, y: torch.tensor([0.0, 1, 3]).repeat(3, 1)[:, :, None]
    )
    out = relation(x, BOXES[:3], torch.zeros(3))
    # the first: weights 1 and 3 of 4; the second: 0, which counts as 1e-6, and 3
    torch.testing.assert_close(out[:2, 0], torch.tensor([1 + 2 * 3.5, 2 + 2 * 4.0]))
    relation = plain_relation()
    torch.nn.init.zeros_(relation.query.weight)
    torch.nn.init.constant_(relation.geometry.bias, -1)
    out = relation(x, BOXES[:3], torch.zeros(3))
    torch.testing.assert_close(out[:, 0], torch.tensor([1 + 6.0, 2 + 5.0, 4 + 3.0]))


def test_relative_geometry_is_that_of_centres_and_sides():
    out = relative_geometry(BOXES[:2], BOXES[:2])
    # centres (5, 10) and (30, 5), sides 10 x 20 and 20 x 10
    near = math.log(1e-3)
    expected = [
        [[near, near, 0, 0], [math.log(x) for x in (2.5, 0.25, 0.5, 2)]],
        [[math.log(x) for x in (1.25, 0.5, 2, 0.5)], [near, near, 0, 0]],
    ]
    torch.testing.assert_close(out, torch.tensor(expected))


def test_neither_place_nor_scale_of_a_scene_matters():
    relation, x, scores = random_relation(), torch.randn(4, 8), torch.zeros(4)
    moved = 3 * BOXES + torch.tensor([7.0, 50, 7, 50])
    torch.testing.assert_close(
        relation(x, moved, scores), relation(x, BOXES, scores), rtol=1e-3, atol=1e-3
    )


def test_the_order_of_boxes_does_not_matter():
    relation, x = random_relation(max_keys=3), torch.randn(4, 8)
    scores, order = torch.tensor([0.5, -1.0, 2.0, 1.0]), torch.tensor([2, 0, 3, 1])
    out = relation(x[order], BOXES[order], scores[order])
    torch.testing.assert_close(out, relation(x, BOXES, scores)[order])


def test_beyond_the_budget_boxes_look_at_those_of_the_highest_objectness():
    x = torch.tensor([[1.0], [2.0], [3.0]])
    out = plain_relation(max_keys=1)(x, BOXES[:3], torch.tensor([0.0, 5.0, 1.0]))
    assert out[:, 0].tolist() == [1 + 4, 2, 3 + 4]


def test_with_no_budget_every_box_stays_itself():
    x = torch.randn(3, 8)
    assert torch.equal(random_relation(max_keys=0)(x, BOXES[:3], torch.zeros(3)), x)


def test_ground_truth_among_the_proposals_is_looked_at_by_none():
    x = torch.tensor([[1.0], [2.0], [3.0]])
    truth = math.log((1 - 1e-10) / 1e-10)  # Detectron2's objectness of ground truth
    out = plain_relation()(x, BOXES[:3], torch.tensor([0.0, truth, truth]))
    assert out[:, 0].tolist() == [1, 2 + 2, 3 + 2]


def test_the_cost_grows_with_the_number_of_boxes_and_not_with_its_square():
    relation, flops = random_relation(max_keys=8), []
    for count in (10, 20, 30):
        with FlopCounterMode(display=False) as counter:
            relation(torch.randn(count, 8), torch.rand(count, 4), torch.zeros(count))
        flops.append(counter.get_total_flops())
    assert flops[2] - flops[1] == flops[1] - flops[0] > 0


def test_heads_that_do_not_divide_the_features_are_refused():
    with pytest.raises(ValueError, match=r"NUM_HEADS is 3 .* length 8"):
        ObjectRelation(8, num_heads=3)


@pytest.fixture(scope="module")
def heads():
    """RoI heads with the relation branch alone, its weights large enough to matter."""
    opts = ("MODEL.SCNET.OBJECT.ENABLED", False, "MODEL.SCNET.CONTEXT.ENABLED", False)
    heads = build_model(small_config(*RELATION, *opts)).roi_heads.eval()
    torch.manual_seed(0)
    for p in heads.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return heads


def image_of(*rows: int) -> Instances:
    proposals = Instances((64, 96), proposal_boxes=Boxes(BOXES[list(rows)]))
    proposals.objectness_logits = torch.arange(len(rows), 0, -1.0)
    return proposals


@torch.no_grad()
def scores(heads, features, images) -> list[torch.Tensor]:
    batch = ImageList(torch.zeros(len(images), 3, 64, 96), [(64, 96)] * len(images))
    return [s.label_scores for s in heads.score_boxes(batch, features, images)]


def test_no_box_looks_into_another_image_of_the_batch(heads):
    features = {f: torch.randn(3, 64, 64 // s, 96 // s) for f, s in zip(
        ("p2", "p3", "p4", "p5"), (4, 8, 16, 32))}  # fmt: skip
    images = [image_of(0, 1, 2), image_of(), image_of(3, 2)]
    together = scores(heads, features, images)
    for i, image in enumerate(images):
        (alone,) = scores(heads, {f: x[i : i + 1] for f, x in features.items()}, [image])
        torch.testing.assert_close(together[i], alone)
    (single,) = scores(heads, {f: x[:1] for f, x in features.items()}, [image_of(0)])
    assert (single[0] - together[0][0]).abs().max() > 1e-3  # the others of its image do matter


def test_padding_of_a_smaller_image_changes_nothing():
    model = build_model(small_config(*RELATION)).eval()
    x = make_input([], [], (96, 128), height=96, width=128)
    padded = make_input([], [], (160, 160), height=160, width=160)
    with torch.no_grad():
        images = [model.preprocess_image(batch) for batch in ([x], [x, padded])]
        features = model.backbone(images[0].tensor)
        (found,), _ = model.proposal_generator(images[0], features, None)
        alone, beside = (
            model.roi_heads.score_boxes(i, {f: y[:1] for f, y in features.items()}, [found])[0]
            for i in (images[0], ImageList(images[1].tensor[:1], [(96, 128)]))
        )
    torch.testing.assert_close(alone.label_scores, beside.label_scores)


@pytest.mark.parametrize("off", [(), ("OBJECT", "CONTEXT")], ids=["three", "alone"])
@pytest.mark.parametrize("found", [True, False])
def test_branches_train_with_a_gradient_for_each_weight(off, found):
    switches = [x for name in off for x in (f"MODEL.SCNET.{name}.ENABLED", False)]
    model = build_model(small_config(*RELATION, *switches)).train()
    inputs = [make_input([[10, 10, 50, 60]], [3]), make_input([], [])]
    if not found:
        model.proposal_generator.forward = lambda images, *_: ([image_of(), image_of()], {})
        inputs = inputs[1:] * 2
    with EventStorage():
        losses = model(inputs)
        sum(losses.values()).backward()
    labels = {f"loss_{b}_label" for b in ("object", "context", "relation") if b.upper() not in off}
    assert {k for k in losses if k.endswith("label")} == labels
    assert all(x.isfinite() for x in losses.values())
    assert all(p.grad is not None for p in model.roi_heads.parameters())
