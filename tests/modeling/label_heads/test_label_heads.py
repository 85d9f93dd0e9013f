"""Every label head: outputs, losses, padding, ignored labels, and that it learns."""

import inspect
import io

from scnet_d2.config import LABEL_HEAD_OPTIONS
from scnet_d2.engine.autocast import CPUAutocast
from scnet_d2.evaluation import multilabel_metrics
from scnet_d2.modeling import LABEL_HEAD_REGISTRY, ImageFeatures, LabelLoss

import pytest
import torch
from conftest import REPO
from detectron2.structures import ImageList
from tiny_labeler import (
    HEADS,
    LABELS,
    NUM_CLASSES,
    OF_IMAGES,
    ON_BOXES,
    features,
    head,
    labeler,
    noise,
    pictures,
)
from torch.nn import functional as F

NEEDY = [name for name in HEADS if LABEL_HEAD_REGISTRY.get(name).needs]
SEQUENCES = ("AttendAndImagine", "CNNRNN")  # whose loss is not that of the config


def targets_of(labels):
    targets = torch.zeros(len(labels), NUM_CLASSES)
    for row, present in zip(targets, labels):
        row[present] = 1
    return targets


def losses_of(model, targets, mask, seed=0):
    torch.manual_seed(seed)
    return model(features(*pictures()), targets, mask).losses


@pytest.mark.parametrize("name", HEADS)
def test_it_gives_a_logit_for_each_label_and_maps_over_the_image(name):
    output = head(name).eval()(features(*noise((24, 32), (16, 24))))
    assert output.logits.shape == (2, NUM_CLASSES)
    assert output.logits.isfinite().all()
    assert not output.losses
    if output.class_maps is not None:
        grids = [(4, 4)] * 2 if name == "SRN" else [(3, 4), (2, 3)]
        assert [tuple(m.shape) for m in output.class_maps] == [(NUM_CLASSES, *g) for g in grids]


@pytest.mark.parametrize("size", [1, 2, 4, 7])
def test_a_grid_is_adaptive_pooling_of_each_image_without_padding(size):
    seen = features(*noise((72, 96), (40, 96), (24, 8)))  # 9 x 12, 5 x 12 and 3 x 1 cells
    cells = [seen.maps["res5"][i, :, :h, :w] for i, (h, w) in enumerate([(9, 12), (5, 12), (3, 1)])]
    highest = torch.stack([F.adaptive_max_pool2d(x, size) for x in cells])
    assert torch.equal(seen.grid("res5", size, "max"), highest)
    means = torch.stack([F.adaptive_avg_pool2d(x, size) for x in cells])
    torch.testing.assert_close(seen.grid("res5", size), means)


class Pooled(torch.nn.Module):
    """What heads read of an image (3, H, W): valid cells, their sum, grids, and the mean."""

    def forward(self, image):
        images = ImageList.from_tensors([image], 32)
        seen = ImageFeatures({"res5": F.avg_pool2d(images.tensor, 32)}, images)
        tokens, valid = seen.tokens("res5")
        grids = [seen.grid("res5", 2, pooling).flatten() for pooling in ("average", "max")]
        return valid[0].float(), tokens[0][valid[0]].sum(dim=0), *grids, seen.pooled("res5")[0]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_what_heads_read_is_exported_for_images_of_any_size():
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    file, model = io.BytesIO(), Pooled()
    torch.onnx.export(
        model, (torch.rand(3, 224, 320),), file, dynamo=False, opset_version=17,
        input_names=["image"], dynamic_axes={"image": {1: "height", 2: "width"}},
    )  # fmt: skip
    session = onnxruntime.InferenceSession(file.getvalue())
    for size in ((224, 320), (161, 97), (40, 300), (12, 8)):
        image = torch.rand(3, *size)
        found = session.run(None, {"image": image.numpy()})
        for wanted, array in zip(model(image), found, strict=True):
            torch.testing.assert_close(torch.from_numpy(array), wanted)


@pytest.mark.parametrize("name", HEADS)
def test_its_losses_reach_every_parameter(name):
    model, targets = head(name), targets_of(LABELS)
    losses = losses_of(model, targets, torch.ones_like(targets))
    assert all(loss.shape == () and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    untouched = {n for n, p in model.named_parameters() if p.grad is None}
    assert untouched == ({f"lateral.{s}.weight" for s in model.stages} if model.stages else set())


@pytest.mark.parametrize("name", HEADS)
def test_the_logits_of_an_image_do_not_depend_on_its_padding(name):
    model, (small, large) = head(name).eval(), noise((16, 24), (24, 32))
    with torch.no_grad():
        alone = model(features(small)).logits
        padded = model(features(small, large)).logits[:1]
    torch.testing.assert_close(padded, alone)


@pytest.mark.parametrize("name", HEADS)
def test_what_is_said_of_ignored_labels_does_not_change_the_losses(name):
    model, targets = head(name), targets_of(LABELS)
    mask = torch.ones_like(targets)
    mask[0, 1] = mask[3, 2] = 0
    other = targets.clone()
    other[0, 1], other[3, 2] = 0, 1
    losses = losses_of(model, targets, mask)
    for key, loss in losses_of(head_like(model), other, mask).items():
        torch.testing.assert_close(loss, losses[key], msg=key)


def head_like(model):
    """The same head with the weights that it had at first: losses may leave statistics behind."""
    name = type(model).__name__
    copy = head(name)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for key, parameter in copy.named_parameters():
            parameter.copy_(parameters[key])
        if name == "MLDecoder":
            copy.queries.copy_(model.queries)
    return copy


@pytest.mark.parametrize("name", [name for name in HEADS if name not in SEQUENCES])
def test_the_loss_is_the_one_of_the_config(name):
    targets = targets_of(LABELS)
    silent = LabelLoss(weight=0.0)
    for key, loss in losses_of(head(name, loss=silent), targets, torch.ones_like(targets)).items():
        assert (loss == 0) == key.endswith("label"), key


@pytest.mark.parametrize("name", HEADS)
def test_it_learns_a_few_images_by_heart(name):
    model = head(name, prior_prob=0.3)  # about what the labels are
    seen, targets = features(*pictures()), targets_of(LABELS)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(15):
        for _ in range(20):
            optimizer.zero_grad()
            sum(model(seen, targets, torch.ones_like(targets)).losses.values()).backward()
            optimizer.step()
        with torch.no_grad():
            scores = model.eval()(seen).logits.sigmoid()
        model.train()
        if (reached := multilabel_metrics(scores.numpy(), targets.numpy() > 0)["mAP"]) > 99:
            return
    raise AssertionError(f"mAP {reached}")


@pytest.mark.parametrize("name", NEEDY)
def test_it_refuses_to_work_before_it_knows_the_training_set(name):
    model, targets = head(name, fill=False), targets_of(LABELS)
    with pytest.raises(RuntimeError, match="needs the labels of the training set"):
        losses_of(model, targets, torch.ones_like(targets))


@pytest.mark.parametrize("name", HEADS)
def test_its_config_has_the_defaults_of_its_class(name):
    parameters = inspect.signature(LABEL_HEAD_REGISTRY.get(name).__init__).parameters
    defaults = {
        key.upper(): parameter.default
        for key, parameter in parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    if name == "GlobalPool":  # its options have keys elsewhere
        assert (defaults.pop("POOLING"), defaults.pop("NORM")) == ("average", "")
    assert LABEL_HEAD_OPTIONS.get(name.upper(), {}) == defaults


@pytest.mark.parametrize("name", OF_IMAGES)
def test_the_model_predicts_scores_and_does_not_look_at_labels(name):
    model = labeler(name).eval()
    images = torch.randint(0, 256, (2, 3, 16, 24))
    with torch.no_grad():
        one, other = (
            model([{"image": x, "image_labels": labels} for x in images])
            for labels in ([0], [1, 2])
        )
    for a, b in zip(one, other, strict=True):
        assert ((a["image_scores"] >= 0) & (a["image_scores"] <= 1)).all()
        assert torch.equal(a["image_scores"], b["image_scores"])
        assert a.keys() == b.keys() <= {"image_scores", "class_maps"}


@pytest.mark.parametrize("name", ON_BOXES)
def test_a_head_on_boxes_names_the_model_that_has_them(name):
    with pytest.raises(ValueError, match=r"META_ARCHITECTURE SCNet .* MODEL\.SCNET\.IMAGE\.HEAD"):
        labeler(name)([{"image": torch.zeros(3, 16, 24), "image_labels": []}])


@pytest.mark.parametrize("name", OF_IMAGES)
def test_it_trains_in_bfloat16_with_losses_in_float32(name):
    model = labeler(name)
    CPUAutocast(model)
    images = torch.randint(0, 256, (2, 3, 16, 24))
    losses = model([{"image": x, "image_labels": [0, 1]} for x in images])
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_class_maps_end_where_the_image_ends():
    # 8 x 12 px are 1 x 2 cells of 8 px: three quarters of their width is image
    pictured = features(torch.zeros(3, 8, 12), torch.zeros(3, 16, 16))
    maps = pictured.on_images("res5", [torch.tensor([[[0.0, 1.0]]]), torch.eye(2)[None]])
    # centres 3/16 and 9/16 of the cells' width; theirs are 1/4 and 3/4
    torch.testing.assert_close(maps[0], torch.tensor([[[0.0, 0.625]]]))
    torch.testing.assert_close(maps[1], torch.eye(2)[None])


def test_the_example_of_the_page_is_a_head():
    page = (REPO / "docs" / "label_heads.md").read_text()
    example = page.split("```python\n")[1].split("```")[0]
    try:
        exec(compile(example, "label_heads.md", "exec"), {"__name__": "example"})
        output = head("MeanOfMaps", weight=1.0)(features(*noise((16, 24))))
    finally:
        LABEL_HEAD_REGISTRY._obj_map.pop("MeanOfMaps", None)
    assert output.logits.shape == (1, NUM_CLASSES)
