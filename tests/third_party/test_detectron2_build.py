"""third_party/detectron2: the patches, errors of the build, the wheel, what the patches do."""

import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import threading
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from conftest import REPO
from detectron2 import export, model_zoo
from detectron2.data import DatasetCatalog, MetadataCatalog, transforms
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultTrainer, SimpleTrainer, create_ddp_model, launch
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import COCOEvaluator
from detectron2.layers import ROIAlignRotated, nms_rotated
from detectron2.layers.rotated_boxes import pairwise_iou_rotated
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from torch import distributed

PACKAGE = REPO / "third_party" / "detectron2"
import build_backend  # noqa: E402  (needs the path above)
import patches  # noqa: E402  (needs the path above)

UNREACHABLE = "http://127.0.0.1:9/simple"
without_extension = pytest.mark.skipif(
    importlib.util.find_spec("detectron2._C") is not None,
    reason="Detectron2 was built from its official sources",
)


# --- patches -------------------------------------------------------------------------------------


def write_target(root: Path, patch: patches.Patch) -> Path:
    path = root / patch.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"before{patch.old * patch.count}after")
    return path


@pytest.mark.parametrize("patch", patches.PATCHES, ids=lambda patch: patch.name)
def test_patch_applies_once_and_only_once(patch, tmp_path):
    path = write_target(tmp_path, patch)
    patch.apply(tmp_path)
    assert path.read_text() == f"before{patch.new * patch.count}after"
    with pytest.raises(patches.PatchError, match=patch.name):
        patch.apply(tmp_path)


def test_patch_names_are_unique():
    names = [patch.name for patch in patches.PATCHES]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("text", ["nothing to replace", "target target", None])
def test_patch_that_does_not_fit_fails_with_its_name_and_file(text, tmp_path):
    if text is not None:
        (tmp_path / "module.py").write_text(text)
    patch = patches.Patch("some-fault", "module.py", "target", "replacement", "a test")
    with pytest.raises(patches.PatchError, match=r"'some-fault': module\.py"):
        patches.apply_all(tmp_path, [patch])


# --- where the sdist comes from ------------------------------------------------------------------


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index over HTTP serving ``tmp_path / "index"``; the only one pip knows of."""
    root = tmp_path / "index"
    root.mkdir()
    handler = functools.partial(SimpleHTTPRequestHandler, directory=root)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    use_index(monkeypatch, f"http://user:secret@127.0.0.1:{server.server_port}")
    yield root
    server.shutdown()
    server.server_close()


def use_index(monkeypatch, url: str) -> None:
    monkeypatch.delenv(build_backend.SDIST_VARIABLE, raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", url)
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "file:///nowhere/simple")


def publish(index: Path, content: bytes) -> None:
    project = index / build_backend.PROJECT
    project.mkdir()
    name = f"{build_backend.PROJECT}-0.6.tar.gz"
    (project / name).write_bytes(content)
    (project / "index.html").write_text(f'<a href="{name}">{name}</a>')


def test_sdist_is_taken_from_the_configured_index(index, tmp_path, monkeypatch):
    publish(index, b"the release")
    digest = hashlib.sha256(b"the release").hexdigest()
    monkeypatch.setattr(build_backend, "SDIST_SHA256", digest)
    assert build_backend.get_sdist(tmp_path).read_bytes() == b"the release"


def test_sdist_with_another_hash_is_refused(index, tmp_path):
    publish(index, b"something else")
    with pytest.raises(build_backend.BuildError, match="expected 5d2e9e51"):
        build_backend.get_sdist(tmp_path)


def test_index_without_the_project_is_named_with_the_remedy_but_not_its_password(index, tmp_path):
    with pytest.raises(build_backend.BuildError, match="PIP_INDEX_URL") as error:
        build_backend.get_sdist(tmp_path)
    assert "http://127.0.0.1" in str(error.value)
    assert "NoSuchProjectError" in str(error.value)
    assert "secret" not in str(error.value)


def test_unreachable_index_is_named_with_the_remedy(tmp_path, monkeypatch):
    use_index(monkeypatch, UNREACHABLE)
    with pytest.raises(build_backend.BuildError, match=f"{UNREACHABLE}: ConnectionError") as error:
        build_backend.get_sdist(tmp_path)
    assert build_backend.REMEDY in str(error.value)


def test_sdist_variable_that_names_no_file_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv(build_backend.SDIST_VARIABLE, "/nowhere/d2.tar.gz")
    with pytest.raises(build_backend.BuildError, match=r"/nowhere/d2\.tar\.gz: no such file"):
        build_backend.get_sdist(tmp_path)


def test_sdist_cannot_be_built():
    with pytest.raises(build_backend.UnsupportedOperation, match="only wheels"):
        build_backend.build_sdist("anywhere")


# --- the wheel -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel as pip builds it from the configured index.

    With the packages here; `make setup` had pip install those that the build needs.
    """
    directory = tmp_path_factory.mktemp("wheel")
    try:
        build_backend.get_sdist(directory)
    except build_backend.BuildError as error:
        if "cannot download" in str(error):
            pytest.skip(str(error))
        raise
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps"]
    subprocess.run([*command, "-w", directory, PACKAGE], check=True)
    with zipfile.ZipFile(directory / "detectron2-0.6-py3-none-any.whl") as archive:
        yield archive


def test_wheel_has_the_license_the_configs_and_every_patch(wheel):
    names = set(wheel.namelist())
    license_text = wheel.read("detectron2-0.6.dist-info/licenses/LICENSE").decode()
    assert license_text.startswith("Apache License\nVersion 2.0")
    assert "detectron2/model_zoo/configs/Base-RCNN-FPN.yaml" in names
    assert "detectron2/projects/point_rend/__init__.py" in names
    for patch in patches.PATCHES:
        assert patch.new in wheel.read(patch.file).decode(), patch.name


def test_wheel_metadata_names_license_and_dependencies(wheel):
    metadata = wheel.read("detectron2-0.6.dist-info/METADATA").decode().splitlines()
    assert "License-Expression: Apache-2.0" in metadata
    assert {"Requires-Dist: torch", "Requires-Dist: fvcore>=0.1.5"} <= set(metadata)


@without_extension
def test_installed_detectron2_is_the_patched_one_with_its_license():
    distribution = importlib.metadata.distribution("detectron2")
    assert "Apache License" in distribution.read_text("licenses/LICENSE")
    for patch in patches.PATCHES:
        installed = Path(distribution.locate_file(patch.file)).read_text(encoding="utf-8")
        assert patch.new in installed, patch.name


# --- what the patches are for --------------------------------------------------------------------


@without_extension
@pytest.mark.parametrize(
    ("op", "use"),
    [
        ("nms_rotated", lambda box: nms_rotated(box, torch.ones(1), 0.5)),
        ("box_iou_rotated", lambda box: pairwise_iou_rotated(box, box)),
        (
            "roi_align_rotated_forward",
            lambda box: ROIAlignRotated(2, 1.0, 0)(torch.ones(1, 1, 8, 8), torch.ones(1, 6)),
        ),
    ],
)
def test_absent_op_is_named_when_used(op, use):
    with pytest.raises(ImportError, match=f"'{op}' is one of Detectron2's C\\+\\+ ops"):
        use(torch.tensor([[4.0, 4.0, 2.0, 2.0, 0.0]]))


def test_export_imports_without_caffe2():
    assert {"TracingAdapter", "scripting_with_instances"} <= set(export.__all__)


def test_model_zoo_config_is_found():
    cfg = model_zoo.get_config("COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x.yaml")
    assert (cfg.MODEL.RESNETS.NUM_GROUPS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP) == (32, 8)


def test_pillow_transforms_keep_and_crop_pixels():
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    crop = transforms.ExtentTransform((1, 0, 4, 2), (2, 3)).apply_image(image)
    np.testing.assert_array_equal(crop, image[0:2, 1:4])
    gray = np.full((4, 6, 1), 7, dtype=np.uint8)
    resized = transforms.ResizeTransform(4, 6, 8, 12).apply_image(gray)
    np.testing.assert_array_equal(resized, np.full((8, 12, 1), 7))


@pytest.fixture
def one_box_dataset(tmp_path):
    """A registered COCO json: one image with one box of class 0."""
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": 64, "width": 96}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [20, 10, 40, 30], "area": 1200}
            | {"iscrowd": 0}
        ],
        "categories": [{"id": 1, "name": "cat"}],
        "info": {},
    }
    (tmp_path / "one.json").write_text(json.dumps(content))
    register_coco_instances("one_box", {}, str(tmp_path / "one.json"), str(tmp_path))
    yield "one_box"
    DatasetCatalog.remove("one_box")
    MetadataCatalog.remove("one_box")


def test_coco_evaluator_with_defaults_scores_a_perfect_detection_100(one_box_dataset):
    instances = Instances((64, 96), pred_boxes=Boxes(torch.tensor([[20.0, 10.0, 60.0, 40.0]])))
    instances.scores, instances.pred_classes = torch.tensor([0.9]), torch.tensor([0])
    evaluator = COCOEvaluator(one_box_dataset, distributed=False)
    evaluator.reset()
    (record,) = DatasetCatalog.get(one_box_dataset)
    evaluator.process([record], [{"instances": instances}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)


def make_trainer() -> DefaultTrainer:
    """A DefaultTrainer around one linear layer, past its first momentum step."""
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1)).backward()
    optimizer.step()
    trainer = DefaultTrainer.__new__(DefaultTrainer)  # its __init__ builds a detector from a config
    TrainerBase.__init__(trainer)
    trainer._trainer = SimpleTrainer(model, [], optimizer)
    trainer.iter = trainer._trainer.iter = 3
    return trainer


def test_trainer_checkpoint_keeps_momentum_and_loads_as_plain_weights(tmp_path):
    torch.save(make_trainer().state_dict(), tmp_path / "trainer.pth")
    resumed = make_trainer()
    resumed._trainer.optimizer.state.clear()
    resumed.load_state_dict(torch.load(tmp_path / "trainer.pth", weights_only=True))
    momenta = [state["momentum_buffer"] for state in resumed._trainer.optimizer.state.values()]
    assert resumed.iter == 3
    assert [momentum.item() for momentum in momenta] == [1.0, 1.0]  # d(wx + b) at x = 1


def report_from_cpu_process(directory: str) -> None:
    """Averages gradients over two gloo processes and writes what this one saw."""
    model = create_ddp_model(torch.nn.Linear(1, 1, bias=False))
    model(torch.full((1, 1), float(comm.get_rank()))).sum().backward()
    seen = [distributed.get_backend(), comm.all_gather(comm.get_rank()), model.module.weight.grad]
    seen[2] = seen[2].item()
    (Path(directory) / f"{comm.get_rank()}.json").write_text(json.dumps(seen))


def test_two_cpu_processes_average_their_gradients(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.multiprocessing, "spawn", processes.spawn)
    launch(report_from_cpu_process, 2, dist_url="auto", args=(str(tmp_path),))
    for rank in range(2):
        seen = json.loads((tmp_path / f"{rank}.json").read_text())
        assert seen == ["gloo", [0, 1], 0.5]  # gradients 0 and 1
