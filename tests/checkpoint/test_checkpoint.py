"""Weights: names, formats, the loading table, and what is refused."""

import itertools
import os
import pickle
import re
import struct

from scnet_command import main
from scnet_d2.checkpoint import (
    METADATA_KEY,
    CheckpointError,
    SCNetCheckpointer,
    UnsafeCheckpointError,
    read_checkpoint,
)
from scnet_d2.data import TrainLoader
from scnet_d2.engine import Trainer
from scnet_d2.inference import SCNetPredictor

import numpy as np
import pytest
import torch
import torchvision
from conftest import load_config, make_input, small_config
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine.hooks import PeriodicCheckpointer
from detectron2.modeling import build_backbone, build_model
from safetensors.torch import save_file
from torch import nn

DETECTOR = (
    "MODEL.META_ARCHITECTURE",
    "GeneralizedRCNN",
    "MODEL.ROI_HEADS.NAME",
    "StandardROIHeads",
)
AGNOSTIC = "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG"
NARROW_R50 = (
    "MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.NORM", "FrozenBN", "MODEL.FPN.OUT_CHANNELS", 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 32,
)  # fmt: skip


def detector(*opts):
    """A small Faster R-CNN of Detectron2, all of its tensors random."""
    return randomize(build_model(small_config(*DETECTOR, *opts)))


def scnet(*opts):
    return build_model(small_config(*opts))


def randomize(model):
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.1, 0.9)
    return model


def arrays(model):
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def write_pickle(path, data, **kwargs):
    path.write_bytes(pickle.dumps(data, **kwargs))
    return str(path)


def zoo_file(path, model):
    return write_pickle(path, {"model": arrays(model), "__author__": "Detectron2 Model Zoo"})


def load(model, path, **kwargs):
    checkpointer = SCNetCheckpointer(model, **kwargs)
    checkpointer.load(str(path))
    return checkpointer.report


def assert_same(state, expected):
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(state[name], torch.as_tensor(tensor)), name


# --- detectors -----------------------------------------------------------------------------------


def test_detector_of_the_zoo_fills_backbone_rpn_and_both_trunks(tmp_path):
    source = detector(AGNOSTIC, False)
    state = source.state_dict()
    model = scnet()
    report = load(model, zoo_file(tmp_path / "zoo.pkl", source))
    for part in ("backbone", "proposal_generator"):
        assert_same(getattr(model, part).state_dict(), getattr(source, part).state_dict())
    for head in (model.roi_heads.object_head, model.roi_heads.context_head):
        assert_same(head.box_head.state_dict(), source.roi_heads.box_head.state_dict())
    assert report.left_out.keys() == {k for k in state if "box_predictor" in k}
    why = report.left_out["roi_heads.box_predictor.bbox_pred.weight"]
    assert why == "class-specific box deltas (14 x 4); the regressor is class-agnostic"
    assert "sigmoids" in report.left_out["roi_heads.box_predictor.cls_score.bias"]
    assert {name.split(".")[2] for name in report.missing} == {
        "label_predictor", "location_regressor", "patch_classifier"
    }  # fmt: skip


def test_class_agnostic_box_deltas_go_to_the_location_regressor(tmp_path):
    source, model = detector(AGNOSTIC, True), scnet()
    load(model, zoo_file(tmp_path / "zoo.pkl", source))
    regressor = model.roi_heads.object_head.location_regressor
    assert_same(regressor.state_dict(), source.roi_heads.box_predictor.bbox_pred.state_dict())


def test_box_head_stays_out_where_the_config_says_so(tmp_path):
    model = scnet()
    before = {k: v.clone() for k, v in model.roi_heads.object_head.state_dict().items()}
    report = load(model, zoo_file(tmp_path / "zoo.pkl", detector()), init_trunk=False)
    assert_same(model.roi_heads.object_head.state_dict(), before)
    assert "INIT_TRUNK_FROM_DETECTOR" in report.left_out["roi_heads.box_head.fc1.weight"]


def test_box_head_of_other_layers_is_left_out_under_its_own_name(tmp_path):
    state = detector().state_dict() | {"roi_heads.box_head.0.fc1.weight": torch.ones(2)}
    torch.save({"model": state}, tmp_path / "cascade.pth")
    report = load(scnet(), tmp_path / "cascade.pth")
    assert report.left_out["roi_heads.box_head.0.fc1.weight"] == "the model has no such tensor"
    assert not [
        n
        for n in report.left_out
        if n.startswith(("roi_heads.object_head", "roi_heads.context_head"))
    ]


def test_single_branch_takes_the_trunk_it_has(tmp_path):
    source, model = detector(AGNOSTIC, True), scnet("MODEL.SCNET.OBJECT.ENABLED", False)
    report = load(model, zoo_file(tmp_path / "zoo.pkl", source))
    assert_same(
        model.roi_heads.context_head.box_head.state_dict(), source.roi_heads.box_head.state_dict()
    )
    why = report.left_out["roi_heads.box_predictor.bbox_pred.bias"]
    assert why == "the object branch is switched off"


def test_loading_table_counts_each_part_and_fits_100_columns(tmp_path):
    source = detector("MODEL.ROI_BOX_HEAD.FC_DIM", 48, AGNOSTIC, False)
    text = str(load(scnet(), zoo_file(tmp_path / "zoo.pkl", source)))
    table = text.split("\n", 1)[1]
    assert max(map(len, table.split("\n"))) <= 100
    assert re.search(r"backbone\.fpn +16 +0 +0", table)
    assert re.search(r"roi_heads\.object_head\.box_head +0 +0 +4 +file \(48, 3136\), model", table)
    assert re.search(r"context_head\.label_predictor +0 +2 +0 +keeps its initial values", table)
    assert re.search(r"roi_heads\.box_predictor\.cls_score +2 +softmax over", table)


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_detectors_of_detectron2_load_as_with_its_own_checkpointer(tmp_path, suffix):
    source = detector()
    path = tmp_path / f"model{suffix}"
    if suffix == ".pkl":
        zoo_file(path, source)
    else:
        torch.save({"model": source.state_dict(), "iteration": 7}, path)
    ours, theirs = detector(), detector()
    load(ours, path, require_all=True)
    DetectionCheckpointer(theirs).load(str(path))
    assert_same(ours.state_dict(), theirs.state_dict())
    assert_same(ours.state_dict(), source.state_dict())


# --- ImageNet weights ----------------------------------------------------------------------------


def caffe2_names(bottom_up):
    """A ResNet's state dict as Caffe2 names it, batch norm folded into scale and bias."""
    branches = {"conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}
    blobs = {}
    for name, array in arrays(bottom_up).items():
        if name.endswith(("running_mean", "running_var")):
            continue
        *module, kind = name.split(".")
        norm = module[-1] == "norm"
        end = {"weight": "_bn_s", "bias": "_bn_b"}[kind] if norm else "_w"
        stage, *rest = [m for m in module if m != "norm"]
        if stage == "stem":
            blobs["res_conv1_bn" + end[3:] if norm else "conv1_w"] = array
        else:
            block, conv = rest
            blobs[f"{stage}_{block}_{branches.get(conv, 'branch1')}{end}"] = array
    return blobs | {"pred_w": np.zeros((1000, 8)), "pred_b": np.zeros(1000)}


class Python2Pickler(pickle._Pickler):
    """Writes `bytes` as Python 2's strings, as in Caffe2's files."""

    def save_string(self, obj):
        self.write(b"T" + struct.pack("<i", len(obj)) + obj)

    dispatch = pickle._Pickler.dispatch | {bytes: save_string}


def test_caffe2_names_load_as_with_detectron2s_own_checkpointer(tmp_path):
    source = randomize(build_model(small_config(*NARROW_R50)))
    blobs = caffe2_names(source.backbone.bottom_up)
    path = tmp_path / "R-50.pkl"
    with path.open("wb") as f:
        Python2Pickler(f, protocol=2).dump({"blobs": blobs | {"conv1_w_momentum": np.ones(1)}})
    ours = scnet(*NARROW_R50)
    theirs = scnet(*NARROW_R50)
    theirs.load_state_dict(ours.state_dict())
    report = load(ours, path)
    DetectionCheckpointer(theirs).load(str(path))
    assert_same(ours.state_dict(), theirs.state_dict())
    weight = "res4.3.conv2.weight"
    assert torch.equal(ours.backbone.bottom_up.state_dict()[weight], dict_of(source)[weight])
    assert len(report.loaded) == len(blobs) - 2 == 159  # 53 convolutions, scales and biases
    assert len(report.filled) == 106
    assert report.left_out.keys() == {"linear.weight", "linear.bias"}


def dict_of(model):
    return model.backbone.bottom_up.state_dict()


def test_caffe2_detector_fills_both_trunks(tmp_path):
    source, model = scnet(*NARROW_R50), scnet(*NARROW_R50)
    trunk = arrays(randomize(source.roi_heads.object_head.box_head))
    names = {"fc1.weight": "fc6_w", "fc1.bias": "fc6_b", "fc2.weight": "fc7_w", "fc2.bias": "fc7_b"}
    blobs = caffe2_names(source.backbone.bottom_up) | {names[k]: v for k, v in trunk.items()}
    load(model, write_pickle(tmp_path / "detector.pkl", {"blobs": blobs}, protocol=2))
    for head in (model.roi_heads.object_head, model.roi_heads.context_head):
        assert_same(head.box_head.state_dict(), trunk)


class BackboneOf(nn.Module):
    """Only the backbone of a config's model."""

    def __init__(self, cfg):
        super().__init__()
        self.backbone = build_backbone(cfg)


def imagenet_like(network):
    """Random batch norm that neither amplifies nor is the identity."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 0.5)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


@pytest.mark.parametrize(
    ("name", "config", "end"),
    [
        ("resnet18", ("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64), ".pth"),
        ("resnet50", ("MODEL.RESNETS.DEPTH", 50), ".pkl"),
        ("resnext101_32x8d", (), ".pkl"),
    ],
)
@torch.no_grad()
def test_converted_torchvision_weights_give_torchvisions_features(
    tmp_path, name, config, end, capsys
):
    network = imagenet_like(getattr(torchvision.models, name)(weights=None))
    torch.save(network.state_dict(), tmp_path / "in.pth")
    converted = str(tmp_path / f"out{end}")
    assert main(["convert", str(tmp_path / "in.pth"), "--output", converted]) == 0
    printed = capsys.readouterr().out
    if config:
        config += ("MODEL.RESNETS.NUM_GROUPS", 1, "MODEL.RESNETS.WIDTH_PER_GROUP", 64)
    cfg = load_config("COCO-MultiLabel/scnet_X_101_32x8d_FPN_paper.yaml", *config)
    for key, value in re.findall(r"(DEPTH|NUM_GROUPS|WIDTH_PER_GROUP): (\d+)", printed):
        assert cfg.MODEL.RESNETS[key] == int(value)
    assert "STRIDE_IN_1X1: False" in printed
    assert "FORMAT: RGB" in printed
    ours = BackboneOf(cfg).eval()
    report = load(ours, converted)
    assert not [n for n in report.missing if "bottom_up" in n]

    image = torch.rand(1, 3, 64, 64)
    features = ours.backbone.bottom_up(image)
    x = network.maxpool(network.relu(network.bn1(network.conv1(image))))
    for i in range(1, 5):
        x = getattr(network, f"layer{i}")(x)
        torch.testing.assert_close(features[f"res{i + 1}"], x, atol=1e-4, rtol=1e-4)


def test_converter_takes_what_training_programs_write(tmp_path, capsys):
    names = torchvision.models.resnet18(weights=None).state_dict()
    torch.save({"state_dict": {f"module.{n}": x for n, x in names.items()}}, tmp_path / "in.pth")
    assert main(["convert", str(tmp_path / "in.pth"), "--output", str(tmp_path / "y.pkl")]) == 0
    assert "DEPTH: 18" in capsys.readouterr().out
    assert "res5.1.conv2.weight" in read_checkpoint(str(tmp_path / "y.pkl"))["model"]


def test_converter_asks_for_the_file_of_an_address(capsys):
    with pytest.raises(SystemExit):
        main(["convert", "https://there.org/r.pth", "--output", "y.pkl"])
    assert "is an address: download the file" in capsys.readouterr().err


def test_converter_refuses_other_networks(tmp_path, capsys):
    torch.save({"layer1.0.conv1.weight": torch.ones(1), "cls_token": torch.ones(1)}, tmp_path / "x")
    with pytest.raises(SystemExit):
        main(["convert", str(tmp_path / "x"), "--output", str(tmp_path / "y.pkl")])
    assert (
        "x: 'cls_token' is no tensor of torchvision's ResNet or ResNeXt; files of Detectron a"
        in (capsys.readouterr().err)
    )
    assert not (tmp_path / "y.pkl").exists()


# --- files ---------------------------------------------------------------------------------------

DATA = {"model": {"a.weight": np.arange(6, dtype="float32").reshape(2, 3)}, "step": np.int64(3)}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
def test_arrays_of_any_pickle_protocol_and_numpy_are_read(tmp_path, protocol, module):
    content = pickle.dumps(DATA, protocol)
    if protocol < 4:  # later ones store the length of the name
        content = re.sub(rb"cnumpy\.\w+\.", b"c" + module.encode() + b".", content)
    (tmp_path / "a.pkl").write_bytes(content)
    read = read_checkpoint(str(tmp_path / "a.pkl"))
    np.testing.assert_array_equal(read["model"]["a.weight"], DATA["model"]["a.weight"])
    assert read["step"] == 3


class Hostile:
    """Runs a command when it is unpickled without care."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("name", ["zoo.pkl", "caffe2.pkl", "torch.pth", "plain.pth", "pycls.pyth"])
def test_code_in_a_checkpoint_does_not_run(tmp_path, name):
    touched = tmp_path / "touched"
    data = {"model": {"a": Hostile(f"touch {touched}")}, "__author__": "Detectron2 Model Zoo"}
    path = tmp_path / name
    if name in ("torch.pth", "pycls.pyth"):
        torch.save(data, path)
    else:
        write_pickle(path, data["model"] if name == "caffe2.pkl" else data)
    with pytest.raises(UnsafeCheckpointError, match=rf"{name} refused: .* 'posix\.system'"):
        load(scnet(), path)
    assert not touched.exists()
    pickle.loads(pickle.dumps(data))  # the same object does run elsewhere
    assert touched.exists()


@pytest.mark.parametrize(
    "payload",
    [
        b"cbuiltins\neval\n(Vprint()\ntR.",
        b"cnumpy\nload\n(Vx.npy\ntR.",
        b"cnumpy.core.multiarray\nfromfile\n(Vx\ntR.",
        b"\x80\x04\x8c\x05numpy\x8c\x15ndarray.__class__.mro\x93.",
    ],
)
def test_only_the_listed_globals_are_found(tmp_path, payload):
    (tmp_path / "x.pkl").write_bytes(payload)
    with pytest.raises(UnsafeCheckpointError, match=r"refused"):
        read_checkpoint(str(tmp_path / "x.pkl"))


POINTERS = (  # dtype('O') whose flags deny that it holds objects, and eight bytes for an address
    b"cnumpy\ndtype\n(\x8c\x02O8\x89\x88tR(K\x03\x8c\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
    b"C\x08AAAAAAAA",
)


@pytest.mark.parametrize(
    "payload",
    [
        b"cnumpy.core.multiarray\nscalar\n(" + b"".join(POINTERS) + b"tR.",
        b"cbuiltins\nset\n(cnumpy.core.numeric\n_frombuffer\n("
        + b"".join(reversed(POINTERS)) + b"K\x01\x85\x8c\x01CtRtR.",
    ],
)  # fmt: skip
def test_bytes_are_never_read_as_addresses_of_objects(tmp_path, payload):
    (tmp_path / "x.pkl").write_bytes(b"\x80\x04" + payload)
    with pytest.raises(CheckpointError, match=r"x\.pkl .*array or scalar of object"):
        read_checkpoint(str(tmp_path / "x.pkl"))


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0, 0.5])
def test_truncated_file_is_named(tmp_path, suffix, share):
    path = tmp_path / f"half{suffix}"
    save_as(path, {"a": torch.ones(1000)})
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=rf"half{suffix} cannot be read .* truncated"):
        load(scnet(), path)


def save_as(path, state):
    if path.suffix == ".safetensors":
        save_file(state, path)
    elif path.suffix == ".pth":
        torch.save(state, path)
    else:
        write_pickle(path, {"model": {k: v.numpy() for k, v in state.items()}, "__author__": ""})


def test_safetensors_load(tmp_path):
    source, model = randomize(scnet()), scnet()
    save_as(tmp_path / "model.safetensors", source.state_dict())
    load(model, tmp_path / "model.safetensors", require_all=True)
    assert_same(model.state_dict(), source.state_dict())


def test_safetensors_tell_the_names_of_their_classes(tmp_path):
    metadata = {METADATA_KEY: '{"class_names": ["a", "b"]}', "config": "anything"}
    for name, given, expected in (("with", metadata, ["a", "b"]), ("without", None, None)):
        save_file({"x": torch.ones(1)}, tmp_path / f"{name}.safetensors", given)
        found = read_checkpoint(str(tmp_path / f"{name}.safetensors"))["class_names"]
        assert found == expected


def test_names_of_a_backbone_alone_are_matched_on_request(tmp_path):
    source, model = randomize(scnet()), scnet()
    save_as(tmp_path / "b.safetensors", source.backbone.bottom_up.state_dict())
    load(model, f"{tmp_path / 'b.safetensors'}?matching_heuristics=True")
    assert_same(dict_of(model), dict_of(source))


@pytest.mark.parametrize("path", ["no/such/file.pth", "catalog://ImageNetPretrained/NO/SUCH.pkl"])
def test_missing_file_is_named_with_a_remedy(path):
    with pytest.raises(CheckpointError, match=f"{path}.*MODEL.WEIGHTS"):
        load(scnet(), path)


# --- checks --------------------------------------------------------------------------------------


def test_file_that_fits_nothing_is_an_error(tmp_path):
    torch.save({"encoder.weight": torch.ones(3)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth holds 0 of the 116 .*enc"):
        load(scnet(), tmp_path / "other.pth")


def test_file_without_a_backbone_is_an_error(tmp_path):
    heads = {k: v for k, v in scnet().state_dict().items() if not k.startswith("backbone")}
    torch.save(heads, tmp_path / "heads.pth")
    with pytest.raises(
        CheckpointError, match=r"holds 0 of the \d+ tensors of the model's backbone"
    ):
        load(scnet(), tmp_path / "heads.pth")


@pytest.mark.parametrize("query", ["", "?matching_heuristics=True"])
def test_unconverted_torchvision_file_points_to_the_converter(tmp_path, query):
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(CheckpointError, match=r"scnet convert"):
        load(scnet(), f"{tmp_path / 'resnet18.pth'}{query}")


def test_evaluation_refuses_partly_random_weights(tmp_path):
    state = scnet().state_dict()
    del state["roi_heads.context_head.label_predictor.label_score.bias"]
    state["roi_heads.object_head.patch_classifier.bias"] = torch.ones(5)
    torch.save({"model": state}, tmp_path / "part.pth")
    message = r"part\.pth lacks 2 of .*roi_heads\.context_head\.label_predictor\.label_score\.bias"
    with pytest.raises(CheckpointError, match=message):
        load(scnet(), tmp_path / "part.pth", require_all=True)
    cfg = small_config("MODEL.WEIGHTS", str(tmp_path / "part.pth"))
    with pytest.raises(CheckpointError, match=message):
        SCNetPredictor(cfg)


def test_file_with_a_little_of_the_backbone_is_an_error(tmp_path):
    state = scnet().state_dict()
    torch.save({k: v for k, v in state.items() if "bottom_up.res2" in k}, tmp_path / "res2.pth")
    with pytest.raises(CheckpointError, match=r"res2\.pth holds 20 of the 116 tensors"):
        load(scnet(), tmp_path / "res2.pth")


def test_backbone_of_another_depth_is_warned_about(tmp_path, caplog):
    state = scnet().state_dict()
    torch.save({k: v for k, v in state.items() if ".res5.1." not in k}, tmp_path / "short.pth")
    load(scnet(), tmp_path / "short.pth")
    assert "backbone.bottom_up is loaded in part and random in part" in caplog.text


def test_frozen_batch_norm_without_its_weights_counts_as_missing(tmp_path):
    model = scnet(*NARROW_R50)
    state = {k: v for k, v in model.state_dict().items() if ".res5.2." not in k}
    write_pickle(tmp_path / "a.pkl", {"model": {k: v.numpy() for k, v in state.items()}})
    report = load(model, tmp_path / "a.pkl")
    assert len(report.missing) == 15  # 3 convolutions, each with 4 tensors of batch norm
    assert not report.filled


# --- resume --------------------------------------------------------------------------------------


class TrainerOnOneBatch(Trainer):
    """Trains without files."""

    @classmethod
    def build_train_loader(cls, cfg):
        image = make_input([[8, 8, 60, 70]], [1])
        return TrainLoader(
            [{"width": 128, "height": 96}], lambda _: image,
            build_sampler=lambda _: itertools.repeat(0), seed=0, batch_size=1,
        )  # fmt: skip


def one_batch_config(tmp_path, *opts):
    no_data = ("DATASETS.VAL", (), "DATASETS.TEST", (), "TEST.EVAL_PERIOD", 0)
    return small_config("SOLVER.MAX_ITER", 3, "OUTPUT_DIR", str(tmp_path), *no_data, *opts)


def test_trainer_loads_a_detector_as_its_config_says(tmp_path):
    source = detector()
    weights = ("MODEL.WEIGHTS", zoo_file(tmp_path / "zoo.pkl", source))
    for key in (True, False):
        opts = (*weights, "MODEL.SCNET.INIT_TRUNK_FROM_DETECTOR", key)
        trainer = TrainerOnOneBatch(one_batch_config(tmp_path, *opts))
        trainer.resume_or_load(resume=False)
        trunk, box_head = trainer.model.roi_heads.context_head.box_head, source.roi_heads.box_head
        assert torch.equal(trunk.fc1.weight, box_head.fc1.weight) is key
        saver = next(h for h in trainer._hooks if isinstance(h, PeriodicCheckpointer))
        assert saver.checkpointer is trainer.checkpointer


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_resume_restores_optimizer_scheduler_and_iteration(tmp_path, optimizer):
    cfg = one_batch_config(tmp_path, "SOLVER.OPTIMIZER", optimizer)
    first, second = TrainerOnOneBatch(cfg), TrainerOnOneBatch(cfg)
    first.resume_or_load(resume=False)
    first.train()
    second.resume_or_load(resume=True)
    assert second.start_iter == 3
    assert_same(second.model.state_dict(), first.model.state_dict())
    assert second.scheduler.state_dict() == first.scheduler.state_dict()
    ours, theirs = (t.optimizer.state_dict()["state"] for t in (second, first))
    assert ours.keys() == theirs.keys() != set()
    for key, state in theirs.items():
        for name, value in state.items():
            torch.testing.assert_close(ours[key][name], value, rtol=0, atol=0)


@pytest.mark.parametrize("opts", [(), ("MODEL.META_ARCHITECTURE", "ImageLabeler")])
def test_weights_with_the_names_of_the_first_version_load(opts, tmp_path):
    if opts:
        opts += ("MODEL.IMAGE_LABELER.IN_FEATURE", "p5")
    source, model = randomize(scnet(*opts)), scnet(*opts)
    former = {
        re.sub(r"^head\.", "label_predictor.", n)
        .replace("roi_heads.", "")
        .replace("box_head", "trunk"): x
        for n, x in source.state_dict().items()
    }
    torch.save({"model": former}, tmp_path / "former.pth")
    SCNetCheckpointer(model, require_all=True).load(str(tmp_path / "former.pth"))
    assert_same(model.state_dict(), source.state_dict())


# --- class names ---------------------------------------------------------------------------------


OTHER_CLASSES = {
    "another-order": (["dog", "cat"], r"class 0 is 'cat' in \S+w\.pth and 'dog' in the config"),
    "missing": (["cat"], r"holds 2 classes, the config has 1: class 1 is 'dog' in .* and absent"),
    "added": (["cat", "dog", "emu"], r"the config has 3: class 2 is absent in .* and 'emu' in the"),
}


@pytest.mark.parametrize("where", ["in-the-file", "in-the-config-beside-it"])
@pytest.mark.parametrize("change", OTHER_CLASSES)
def test_weights_of_other_classes_are_refused_with_the_first_difference(tmp_path, change, where):
    names, message = OTHER_CLASSES[change]
    model, trained = torch.nn.Linear(1, 1), ["cat", "dog"]
    if where == "in-the-file":
        SCNetCheckpointer(model, str(tmp_path), class_names=trained).save("w")
    else:
        torch.save({"model": model.state_dict()}, tmp_path / "w.pth")
        (tmp_path / "config.yaml").write_text(f"DATASETS:\n  CLASS_NAMES: {trained}\n")
    load(model, tmp_path / "w.pth", require_all=True, class_names=trained)
    load(model, tmp_path / "w.pth", class_names=names)  # to start another training from
    with pytest.raises(CheckpointError, match=message):
        load(model, tmp_path / "w.pth", require_all=True, class_names=names)


def test_weights_that_tell_no_class_names_load(tmp_path):
    model = torch.nn.Linear(1, 1)
    torch.save({"model": model.state_dict()}, tmp_path / "w.pth")
    (tmp_path / "config.yaml").write_text("DATASETS:\n  TRAIN: [mine]\n")  # Detectron2's own
    load(model, tmp_path / "w.pth", require_all=True, class_names=["cat", "dog"])


def test_the_predictor_refuses_class_names_in_another_order(tmp_path):
    names = [f"c{i}" for i in range(14)]
    cfg = small_config("DATASETS.CLASS_NAMES", names[::-1])
    cfg.MODEL.WEIGHTS = str(tmp_path / "w.pth")
    SCNetCheckpointer(build_model(cfg), str(tmp_path), class_names=names).save("w")
    with pytest.raises(CheckpointError, match=r"class 0 is 'c0' in .*w\.pth and 'c13' in"):
        SCNetPredictor(cfg)
