"""Networks of timm as backbones: features, frozen stages, pixels, and SCNet on five families."""

from functools import partial

from scnet_d2 import ConfigError
from scnet_d2 import load_config as load
from scnet_d2.config import pixel_contradictions
from scnet_d2.inference import export, optimize_for_inference
from scnet_d2.modeling import StageFPN

import pytest
import timm
import torch
from conftest import load_config, two_images
from detectron2.modeling import build_backbone, build_model
from detectron2.utils.events import EventStorage

LITE = "VOC-MultiLabel/scnet_EfficientNet_Lite0_FPN_256px.yaml"
FAMILIES = {
    "resnet18": ("act1", "layer1", "layer2"),
    "resnext26ts": ("stem", "stages.0", "stages.1"),
    "tf_efficientnet_lite0": ("conv_stem", "blocks.1", "blocks.2"),
    "convnext_atto": ("stem", "stages.0", "stages.1"),
    "swin_tiny_patch4_window7_224": ("patch_embed", "layers.0", "layers.1"),
}
ALONE = ("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.BACKBONE.FREEZE_AT", 0)


def lite_config(*opts):
    small = ("MODEL.ROI_BOX_HEAD.FC_DIM", 32, "MODEL.FPN.OUT_CHANNELS", 16)
    return load_config(LITE, *small, *opts)


def timm_backbone(*opts):
    return build_backbone(lite_config(*ALONE, *opts))


@pytest.fixture(params=FAMILIES)
def family(request, monkeypatch):
    """Swin of five narrow blocks: the time of an export grows with their number."""
    if "swin" in request.param:
        small = partial(timm.create_model, depths=(2, 1, 1, 1), embed_dim=48)
        monkeypatch.setattr(timm, "create_model", small)
    return request.param


@pytest.mark.parametrize("features", [["res4", "last"], ["res3", "res2"]])
def test_features_are_timms_own_under_detectron2s_names(family, features):
    backbone = timm_backbone(
        "MODEL.TIMM.NAME", family, "MODEL.TIMM.OUT_FEATURES", features, "MODEL.TIMM.NORM", "BN"
    ).eval()
    state = {n: x for n, x in backbone.net.state_dict().items() if "attn_mask" not in n}
    net = timm.create_model(family)
    net.load_state_dict(state, strict=False)  # it has a head, and stages that are not used
    height, width = size = (224, 224) if "swin" in family else (64, 96)
    x = torch.randn(1, 3, *size)
    last, maps = net.eval().forward_intermediates(x, output_fmt="NCHW")
    strides = [stage["reduction"] for stage in net.feature_info]
    wanted = {f"res{int(s).bit_length() - 1}": m for s, m in zip(strides, maps)}
    wanted["last"] = last.permute(0, 3, 1, 2) if "swin" in family else last
    found, shapes = backbone(x), backbone.output_shape()
    assert list(found) == features
    for name, feature in found.items():
        torch.testing.assert_close(feature, wanted[name])
        stride = shapes[name].stride
        assert feature.shape == (1, shapes[name].channels, height // stride, width // stride)
    assert backbone.size_divisibility == (8 if "res3" in features else 32)


@pytest.mark.parametrize("freeze_at", [0, 2])
def test_the_first_stages_are_frozen(family, freeze_at):
    opts = ("MODEL.TIMM.NAME", family, "MODEL.TIMM.NORM", "BN")
    backbone = timm_backbone(*opts, "MODEL.BACKBONE.FREEZE_AT", freeze_at)
    _, *stages = FAMILIES[family]
    for stage, prefix in enumerate(stages, 2):
        trained = [
            p.requires_grad
            for n, p in backbone.net.named_parameters()
            if n.startswith(prefix + ".")
        ]
        if freeze_at == 0 or freeze_at < stage:
            assert all(trained), prefix
        else:
            assert trained, prefix
            assert not any(trained), prefix
    first = next(backbone.net.parameters())
    assert first.requires_grad == (freeze_at == 0)
    before = {n: x.clone() for n, x in backbone.net.named_buffers() if "running_mean" in n}
    backbone.train()(torch.randn(2, 3, 64, 64))
    moved = [n for n, x in backbone.net.named_buffers() if n in before and (x != before[n]).any()]
    frozen = tuple(f"{prefix}." for i, prefix in enumerate(stages, 2) if i <= freeze_at)
    assert not [n for n in moved if frozen and n.startswith(frozen)]
    if before and freeze_at < 3:
        assert moved


def test_a_frozen_batch_norm_keeps_its_statistics_and_activation():
    plain, frozen = (timm_backbone("MODEL.TIMM.NORM", norm) for norm in ("BN", "FrozenBN"))
    frozen.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(frozen.train()(x), plain.eval()(x))
    assert not [n for n, _ in frozen.named_parameters() if "bn" in n]


def test_scnet_trains_labels_and_is_exported_on_every_family(family, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    cfg = lite_config("MODEL.TIMM.NAME", family, "MODEL.SCNET.IMAGE.ENABLED", True)
    model = build_model(cfg)
    inputs = [
        x | {"image_labels": x["instances"].gt_classes.unique().tolist()} for x in two_images()
    ]
    with EventStorage():
        losses = model(inputs)
    assert {"loss_whole_image_label", "loss_context_label", "loss_rpn_cls"} <= losses.keys()
    sum(losses.values()).backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    model.eval()
    with torch.no_grad():
        outputs = model(inputs)
    assert [o["image_scores"].shape for o in outputs] == [(20,)] * 2
    predictor = type("Predictor", (), {"model": model, "class_names": [str(i) for i in range(20)]})
    predictor.thresholds, predictor.input_format, predictor.cfg = torch.full((20,), 0.5), "RGB", cfg
    export.export_onnx(predictor, tmp_path / "model.onnx")
    image = torch.randint(0, 256, (128, 160, 3), dtype=torch.uint8)
    with torch.no_grad():
        wanted = export.predict_image(model, image).image_scores
    plain = onnxruntime.SessionOptions()  # optimising the graph takes longer than running it once
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), plain)
    found = session.run(["image_scores"], {export.INPUT_NAME: image.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(found), wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["resnet18", "resnext26ts", "tf_efficientnet_lite0"])
def test_folding_batch_norm_leaves_the_features(family):
    cfg = lite_config("MODEL.TIMM.NAME", family)
    model = build_model(cfg).eval()
    for module in model.modules():
        if hasattr(module, "running_mean"):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    x, before = torch.randn(1, 3, 64, 96), model.state_dict()
    with torch.no_grad():
        wanted = model.backbone(x)
        optimize_for_inference(model, backend="torch")
        torch.testing.assert_close(model.backbone(x), wanted, atol=1e-4, rtol=1e-3)
    assert not [n for n in model.state_dict() if "running_mean" in n]
    with pytest.raises(RuntimeError, match="batch norms are folded"):
        model.load_state_dict(before)


def test_pixels_come_from_timm_unless_the_config_has_its_own():
    config = "configs/" + LITE
    cfg = load(config)
    assert (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD) == ([127.5] * 3, [127.5] * 3)
    assert cfg.INPUT.FORMAT == "RGB"
    assert pixel_contradictions(cfg) == []
    cfg = load(config, ["MODEL.TIMM.NAME", "resnet18"])
    assert [round(x, 2) for x in cfg.MODEL.PIXEL_MEAN] == [123.67, 116.28, 103.53]
    own = load(config, ["MODEL.PIXEL_STD", [2.0, 2.0, 2.0]])
    assert own.INPUT.FORMAT == "BGR"
    mean, std, order = pixel_contradictions(own)
    assert "MODEL.PIXEL_MEAN is [103.53" in mean
    assert "MODEL.PIXEL_STD is [2.0, 2.0, 2.0], but tf_efficientnet_lite0 was trained" in std
    assert "INPUT.FORMAT is BGR" in order


def test_a_config_that_contradicts_the_pixels_is_told_so(caplog):
    build_backbone(lite_config("INPUT.FORMAT", "BGR"))
    assert "INPUT.FORMAT is BGR, but tf_efficientnet_lite0 was trained with RGB" in caplog.text


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.TIMM.NAME", "efficentnet_lite0"], "timm does not have; near:.*efficientnet_lite0"),
        (["MODEL.TIMM.NAME", "resnet18.no_such_tag"], "resnet18.no_such_tag': .*tag"),
        (["MODEL.TIMM.NAME", "vit_tiny_patch16_224"], "needs stages whose strides double"),
        (["MODEL.TIMM.OUT_FEATURES", ["res6"]], r"OUT_FEATURES has \['res6'\]; the network has"),
        (["MODEL.TIMM.OUT_FEATURES", []], "OUT_FEATURES is empty"),
        (["MODEL.TIMM.NORM", "GN"], "NORM is 'GN'; choose one of"),
    ],
)
def test_what_cannot_be_built_is_named(opts, message):
    with pytest.raises(ConfigError, match=message):
        timm_backbone(*opts)


def test_a_pyramid_gives_out_the_stages_below_it():
    opts = ("MODEL.BACKBONE.NAME", "build_resnet_stage_fpn_backbone", "MODEL.FPN.STAGES", ["res5"])
    cfg = load_config("ContextScenes/scnet_R_18_FPN_160px.yaml", *opts)
    backbone = build_backbone(cfg)
    assert isinstance(backbone, StageFPN)
    x = torch.randn(1, 3, 64, 64)
    features = backbone.eval()(x)
    assert list(features) == list(backbone.output_shape()) == ["p2", "p3", "p4", "p5", "p6", "res5"]
    torch.testing.assert_close(features["res5"], backbone.bottom_up(x)["res5"])
    assert not backbone.bottom_up._forward_hooks
    cfg.MODEL.FPN.STAGES = ["res6"]
    with pytest.raises(ValueError, match=r"MODEL.FPN.STAGES has \['res6'\]"):
        build_backbone(cfg)
