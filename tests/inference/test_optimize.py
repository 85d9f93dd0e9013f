"""What makes inference faster leaves its results as they are."""

import copy
import logging
from pathlib import Path

from scnet_d2.inference import (
    backends,
    describe_labels,
    optimize,
    optimize_for_inference,
    rounded_scores,
)
from scnet_d2.inference.backends import OpenVINONetwork
from scnet_d2.inference.optimize import ThreadedROIAlign, fold_batch_norm, use_winograd

import pytest
import torch
from conftest import assert_contract, load_config, small_config, two_images
from detectron2.data.detection_utils import read_image
from detectron2.layers import Conv2d, FrozenBatchNorm2d, ROIAlign
from detectron2.modeling import build_model

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
TOLERANCE = {FLOAT32: 1e-3, BFLOAT16: 0.02}
NORMS = {"FrozenBN": FrozenBatchNorm2d, "BN": torch.nn.BatchNorm2d}
needs_bfloat16 = pytest.mark.skipif(
    not optimize.has_fast_bfloat16(torch.device("cpu")), reason="this CPU has no fast bfloat16"
)
DTYPES = [FLOAT32, pytest.param(BFLOAT16, marks=needs_bfloat16)]


def randomize(norm):
    """Random statistics and affine parameters, as after training."""
    with torch.no_grad():
        norm.running_mean.normal_(std=0.3)
        norm.running_var.uniform_(0.5, 2.0)
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_(std=0.3)


@torch.no_grad()
def like_trained(model, inputs):
    """Random statistics for the batch norms, and label logits of mean -2 and deviation 1."""
    for module in model.modules():
        if isinstance(module, tuple(NORMS.values())):
            randomize(module)
    for head in model.roi_heads.branches.values():
        layer, logits = head.label_predictor.label_score, []
        hook = layer.register_forward_hook(lambda _, x, y, logits=logits: logits.append(y))
        model(inputs)
        hook.remove()
        products = logits[0] - layer.bias  # (R, C)
        scale = 1 / products.std(dim=0)
        layer.weight *= scale[:, None]
        layer.bias.copy_(-2 - scale * products.mean(dim=0))
    return model


def small_model(*opts):
    cfg = small_config("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.3, *opts)
    return like_trained(build_model(cfg).eval(), two_images())


@torch.no_grad()
def image_scores(model, inputs) -> torch.Tensor:
    return torch.stack([output["image_scores"] for output in model(inputs)])


def assert_scores_stay(model, inputs, dtype) -> None:
    """With the proposals of the plain model: the RPN may rank boxes that are nearly equal anew."""
    proposals = []
    hook = model.proposal_generator.register_forward_hook(lambda _, x, y: proposals.append(y))
    plain = image_scores(model, inputs)
    hook.remove()
    optimize_for_inference(model, dtype)
    model.proposal_generator.register_forward_hook(lambda _, x, y: proposals[0])
    assert plain.std() > 0.05
    assert (image_scores(model, inputs) - plain).abs().max() < TOLERANCE[dtype]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 4])
def test_a_folded_convolution_equals_convolution_norm_and_activation(norm, bias, groups):
    conv = Conv2d(
        8, 12, 3, padding=1, bias=bias, groups=groups, norm=NORMS[norm](12), activation=torch.relu
    ).eval()
    randomize(conv.norm)
    x = torch.randn(2, 8, 9, 7)
    y = torch.nn.functional.conv2d(x, conv.weight, conv.bias, padding=1, groups=groups)
    mean, std = conv.norm.running_mean, (conv.norm.running_var + conv.norm.eps).sqrt()
    y = (y - mean[:, None, None]) / std[:, None, None]
    expected = torch.relu(y * conv.norm.weight[:, None, None] + conv.norm.bias[:, None, None])
    fold_batch_norm(conv)
    assert conv.norm is None
    torch.testing.assert_close(conv(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm", [None, torch.nn.GroupNorm(8, 40)], ids=["plain", "GN"])
@pytest.mark.parametrize("size", [(20, 33), (64, 48), (7, 5)])  # the last one is left to oneDNN
def test_winograd_convolutions_equal_a_convolution_norm_and_activation(size, norm):
    layer = torch.nn.Sequential(
        Conv2d(24, 40, 3, padding=1, norm=norm, activation=torch.relu),
        torch.nn.Conv2d(40, 8, 3, padding=1),
    )
    x = torch.randn(3, 24, *size).to(memory_format=torch.channels_last)
    expected = layer(x).detach()
    use_winograd(layer)
    assert {type(conv).__name__ for conv in layer} == {"WinogradConv2d"}
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    "other", [{"stride": 2}, {"dilation": 2, "padding": 2}, {"groups": 2}, {"padding": 0}]
)
def test_other_convolutions_are_left_in_place(other):
    layer = torch.nn.Sequential(Conv2d(4, 4, 3, **{"padding": 1} | other))
    use_winograd(layer)
    assert type(layer[0]) is Conv2d


def test_group_norm_is_left_in_place():
    conv = Conv2d(4, 32, 1, norm=torch.nn.GroupNorm(32, 32))
    fold_batch_norm(conv)
    assert isinstance(conv.norm, torch.nn.GroupNorm)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", NORMS)
def test_an_optimised_model_gives_the_scores_of_the_plain_one(dtype, norm):
    assert_scores_stay(small_model("MODEL.RESNETS.NORM", norm), two_images(), dtype)


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_in_float32_the_proposals_stay_too(backend):
    if backend == "openvino":
        pytest.importorskip("openvino", reason="pip install 'scnet_d2[openvino]'")
    model, inputs = small_model(), two_images()
    plain = image_scores(model, inputs)
    fast = image_scores(optimize_for_inference(model, backend=backend), inputs)
    torch.testing.assert_close(fast, plain, atol=1e-3, rtol=0)


def test_weights_are_not_loaded_into_what_openvino_has_compiled():
    pytest.importorskip("openvino", reason="pip install 'scnet_d2[openvino]'")
    model = optimize_for_inference(small_model(), backend="openvino")
    assert isinstance(model.backbone.bottom_up, OpenVINONetwork)
    compiled = model.backbone.bottom_up._request.get_compiled_model()
    assert not compiled.get_property("ENABLE_CPU_PINNING")  # processes would share a core
    with pytest.raises(RuntimeError, match="OpenVINO has its weights compiled in"):
        model.load_state_dict(model.state_dict())


def test_without_openvino_pytorch_is_used_and_said_to_be(monkeypatch, caplog):
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    model = optimize_for_inference(small_model(), backend="openvino")
    assert not isinstance(model.backbone.bottom_up, OpenVINONetwork)
    assert "pip install 'scnet_d2[openvino]'); PyTorch is used" in caplog.text


@pytest.mark.parametrize("dtype", DTYPES)
def test_real_photographs_score_alike(dtype, real_data_root):
    cfg = load_config("VOC-MultiLabel/scnet_R_18_FPN_256px.yaml", "MODEL.ROI_BOX_HEAD.FC_DIM", 32)
    files = sorted(Path(real_data_root, "coco", "val2017").glob("*.jpg"))[:3]
    images = [torch.as_tensor(read_image(str(f), "BGR")[::2, ::2].copy()) for f in files]
    inputs = [{"image": image.permute(2, 0, 1)} for image in images]
    assert_scores_stay(like_trained(build_model(cfg).eval(), inputs), inputs, dtype)


THREE = (
    "MODEL.SCNET.RELATION.ENABLED", True, "MODEL.SCNET.CONTEXT.RATIOS", [1.0, 2.0],
    "MODEL.SCNET.OBJECT.LOCATION_CONV_DIM", 64, "MODEL.FPN.NORM", "GN",
)  # fmt: skip
SUBSETS = {
    "context": ("MODEL.SCNET.OBJECT.ENABLED", False),
    "object": ("MODEL.SCNET.CONTEXT.ENABLED", False),
}


@pytest.mark.parametrize("opts", [*SUBSETS.values(), THREE], ids=[*SUBSETS, "three"])
def test_a_model_of_one_branch_or_three_is_optimised(opts):
    model, inputs = small_model(*opts), two_images()
    plain = image_scores(model, inputs)
    assert plain.std() > 0.05
    fast = image_scores(optimize_for_inference(model), inputs)
    torch.testing.assert_close(fast, plain, atol=1e-3, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_optimised_model_keeps_the_output_contract(dtype):
    model, inputs = optimize_for_inference(small_model(), dtype), two_images()
    with torch.no_grad():
        outputs = model(inputs)
    assert_contract(outputs, inputs, 14)
    for instances in (output["instances"] for output in outputs):
        assert len(instances)
        for key in ("scores", "label_scores"):
            assert instances.get(key).dtype == FLOAT32
        assert instances.pred_boxes.tensor.dtype == instances.context_boxes.tensor.dtype == FLOAT32


@needs_bfloat16
def test_boxes_logits_and_roi_align_stay_in_float32():
    model, seen = optimize_for_inference(small_model(), BFLOAT16), []
    for pooler in (model.roi_heads.object_head.pooler, model.roi_heads.context_head.pooler):
        for level in pooler.level_poolers:
            level.register_forward_pre_hook(lambda _, args: seen.extend(args))
    model.proposal_generator.rpn_head.register_forward_hook(
        lambda _, args, outputs: seen.extend(x for maps in outputs for x in maps)
    )
    image_scores(model, two_images())
    assert {x.dtype for x in seen} == {FLOAT32}
    assert model.backbone.bottom_up.stem.conv1.weight.dtype == BFLOAT16


def test_bfloat16_on_a_device_without_it_warns_and_stays_in_float32(monkeypatch, caplog):
    monkeypatch.setattr(optimize, "has_fast_bfloat16", lambda device: False)
    with caplog.at_level(logging.WARNING):
        model = optimize_for_inference(small_model(), BFLOAT16)
    assert "cpu has no fast bfloat16" in caplog.text
    assert {p.dtype for p in model.parameters()} == {FLOAT32}


def test_roi_align_in_threads_equals_roi_align():
    features = torch.randn(2, 8, 20, 30)
    corners = torch.rand(300, 2, 2).sort(dim=1).values * 100
    rois = torch.cat([torch.randint(2, (300, 1)), corners.flatten(1)], dim=1)
    arguments = ((7, 7), 0.25, 0, True)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    pooled = ThreadedROIAlign(*arguments)(features, rois)
    none = ThreadedROIAlign(*arguments)(features, rois[:0])
    torch.set_num_threads(threads)
    assert torch.equal(pooled, ROIAlign(*arguments)(features, rois))
    assert none.shape == (0, 8, 7, 7)


def test_a_training_checkpoint_is_refused_and_its_own_state_loads():
    model = small_model()
    checkpoint = copy.deepcopy(model.state_dict())
    optimize_for_inference(model)
    with pytest.raises(RuntimeError, match="optimised for inference"):
        model.load_state_dict(checkpoint)
    other, inputs = optimize_for_inference(small_model()), two_images()
    other.load_state_dict(model.state_dict())
    assert torch.equal(image_scores(model, inputs), image_scores(other, inputs))


def test_it_serves_inference_alone():
    model = optimize_for_inference(small_model())
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    with pytest.raises(ValueError, match="optimised already"):
        optimize_for_inference(model)


def test_other_models_and_types_are_refused():
    with pytest.raises(TypeError, match="takes an SCNet, got Linear"):
        optimize_for_inference(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"torch\.float16"):
        optimize_for_inference(small_model(), torch.float16)
    with pytest.raises(ValueError, match="auto, torch, openvino, compile, got 'tensorrt'"):
        optimize_for_inference(small_model(), backend="tensorrt")


def test_the_number_of_patches_is_that_of_the_boxes_with_the_highest_objectness():
    model, inputs, seen = small_model(), two_images(), []
    model.aggregator.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    image_scores(model, inputs)
    model.proposal_generator.post_nms_topk[False] = 7
    fewer = image_scores(model, inputs)
    assert [len(s) for s in seen[2:]] == [7, 7]
    expected = torch.stack([s[:7].amax(dim=0) for s in seen[:2]])
    torch.testing.assert_close(fewer, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("opts", [(), ("MODEL.SCNET.AGGREGATION.USE_PATCH_CONFIDENCE", True)])
def test_image_scores_alone_are_those_of_the_normal_mode(opts):
    model, inputs = small_model(*opts), two_images()
    with torch.no_grad():
        normal = model(inputs)
        alone = small_model_without_boxes(model, opts)(inputs)
    for a, b in zip(normal, alone, strict=True):
        assert set(b) == {"image_scores", "label_boxes", "label_context_boxes"}
        assert torch.equal(a["image_scores"], b["image_scores"])


def small_model_without_boxes(model, opts):
    other = build_model(small_config("MODEL.SCNET.IMAGE_SCORES_ONLY", True, *opts)).eval()
    other.load_state_dict(model.state_dict())
    return other


def test_labels_without_boxes_are_described():
    output = {"image_scores": torch.tensor([0.2, 0.9])}
    best = rounded_scores(describe_labels(output, ["cat", "dog"], top_k=1))
    assert best == [{"label": "dog", "score": 0.9, "box": None, "context_box": None}]
