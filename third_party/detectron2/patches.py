"""What Detectron2 v0.6 needs on current Python, PyTorch, NumPy and Pillow, without its C++ ops.

Every patch replaces one exact text. A text that is missing, or there more or less often than
stated, fails the build: the sources are then not the ones these patches were written for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class PatchError(Exception):
    """A patch does not fit the sources."""


@dataclass(frozen=True)
class Patch:
    """One replacement.

    Args:
        name: what error messages and tests call it.
        file: path below the root of the sources.
        old: text to replace; it must occur exactly ``count`` times.
        new: text that takes its place.
        reason: the fault without the patch.
        count: number of occurrences.
    """

    name: str
    file: str
    old: str
    new: str
    reason: str
    count: int = 1

    def apply(self, root: Path) -> None:
        """Rewrites ``root / file``; raises PatchError when ``old`` is not found ``count`` times."""
        path = root / self.file
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        found = text.count(self.old)
        if found != self.count:
            raise PatchError(
                f"patch '{self.name}': {self.file} has its target text {found} times, expected "
                f"{self.count}; these are not the sources of Detectron2 v0.6, or already patched"
            )
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")


def apply_all(root: Path, patches: Sequence[Patch] | None = None) -> None:
    """Applies ``patches`` (default: ``PATCHES``) to the sources under ``root``."""
    for patch in PATCHES if patches is None else patches:
        patch.apply(root)


def _builtin(file: str, name: str, old: str, new: str, count: int = 1) -> Patch:
    reason = "NumPy 1.24 removed its aliases of Python's types"
    return Patch(f"numpy-alias-{name}", f"detectron2/{file}", old, new, reason, count)


def _extension(file: str, name: str) -> Patch:
    return Patch(
        name=f"extension-{name}",
        file=f"detectron2/{file}",
        old="\nfrom detectron2 import _C\n",
        new="""
try:
    from detectron2 import _C
except ImportError:
    from detectron2.utils.env import MissingExtension

    _C = MissingExtension()
""",
        reason="the C++ ops are not built; only their use may fail",
    )


PATCHES = (
    # --- no C++ extension -------------------------------------------------------------------------
    Patch(
        name="extension-stand-in",
        file="detectron2/utils/env.py",
        old='__all__ = ["seed_all_rng"]\n\n\nTORCH_VERSION',
        new='''__all__ = ["seed_all_rng"]


class MissingExtension:
    """Stands in for ``detectron2._C``, absent from this build: using any op raises ImportError."""

    def __getattr__(self, name):
        raise ImportError(
            f"'{name}' is one of Detectron2's C++ ops (detectron2._C), which this pure-Python "
            "build leaves out. To use it, build Detectron2 from its official sources, "
            "https://github.com/facebookresearch/detectron2"
        )


TORCH_VERSION''',
        reason="one clear error for every use of an absent op",
    ),
    _extension("layers/deform_conv.py", "deform-conv"),
    _extension("layers/roi_align_rotated.py", "roi-align-rotated"),
    _extension("layers/rotated_boxes.py", "rotated-boxes"),
    _extension("evaluation/fast_eval_api.py", "fast-eval"),
    Patch(
        name="extension-nms-rotated",
        file="detectron2/layers/nms.py",
        old="\n    return torch.ops.detectron2.nms_rotated(boxes, scores, iou_threshold)\n",
        new="""
    if hasattr(torch.ops.detectron2, "nms_rotated"):
        return torch.ops.detectron2.nms_rotated(boxes, scores, iou_threshold)
    from detectron2.utils.env import MissingExtension

    return MissingExtension().nms_rotated
""",
        reason="the C++ extension registers the op; without it the AttributeError told nothing",
    ),
    Patch(
        name="coco-evaluation-fallback",
        file="detectron2/evaluation/coco_evaluation.py",
        old="\nfrom detectron2.evaluation.fast_eval_api import COCOeval_opt\n",
        new="""
try:
    from detectron2 import _C  # noqa: F401
    from detectron2.evaluation.fast_eval_api import COCOeval_opt
except ImportError:
    COCOeval_opt = COCOeval
""",
        reason="COCOEvaluator's default, a C++ rewrite of pycocotools' COCOeval, is absent",
    ),
    Patch(
        name="export-without-caffe2",
        file="detectron2/export/__init__.py",
        old="\nfrom .api import *\n",
        new="""
try:
    from caffe2.proto import caffe2_pb2 as _caffe2_pb2
except ImportError:
    pass  # only TorchScript and tracing
else:
    from .api import *
""",
        reason="PyTorch no longer contains caffe2, which the whole of detectron2.export imported",
    ),
    # --- Python and its packaging -----------------------------------------------------------------
    Patch(
        name="model-zoo-import",
        file="detectron2/model_zoo/model_zoo.py",
        old="import pkg_resources\n",
        new="from importlib.resources import files\n",
        reason="setuptools removed pkg_resources",
    ),
    Patch(
        name="model-zoo-files",
        file="detectron2/model_zoo/model_zoo.py",
        old="""    cfg_file = pkg_resources.resource_filename(
        "detectron2.model_zoo", os.path.join("configs", config_path)
    )
""",
        new="""    cfg_file = str(files("detectron2.model_zoo").joinpath("configs", config_path))
""",
        reason="setuptools removed pkg_resources",
    ),
    # --- Pillow and NumPy -------------------------------------------------------------------------
    Patch(
        name="pillow-bilinear",
        file="detectron2/data/transforms/transform.py",
        old="interp=Image.LINEAR, fill=0",
        new="interp=Image.BILINEAR, fill=0",
        reason="Pillow 10 removed Image.LINEAR",
    ),
    _builtin("data/build.py", "histogram", "dtype=np.int\n", "dtype=int\n"),
    _builtin("data/build.py", "histogram-bins", "dtype=np.int)\n", "dtype=int)\n"),
    _builtin("data/datasets/pascal_voc.py", "voc-file-ids", "dtype=np.str)", "dtype=str)"),
    _builtin("evaluation/pascal_voc_evaluation.py", "voc-difficult", "(np.bool)", "(bool)", 2),
    _builtin(
        "evaluation/sem_seg_evaluation.py", "sem-seg-labels", "dtype=np.int)", "dtype=int)", 2
    ),
    _builtin(
        "evaluation/sem_seg_evaluation.py", "sem-seg-scores", "dtype=np.float)", "dtype=float)", 2
    ),
    _builtin("evaluation/sem_seg_evaluation.py", "sem-seg-counts", "(np.float)", "(float)", 3),
    _builtin("structures/masks.py", "masks", "astype(np.bool)", "astype(bool)", 2),
    _builtin("structures/masks.py", "masks-nonempty", "dtype=np.bool)", "dtype=bool)"),
    _builtin("utils/video_visualizer.py", "video-crowd", "dtype=np.bool)", "dtype=bool)"),
    _builtin("utils/visualizer.py", "panoptic-masks", "(np.bool)", "(bool)", 3),
    # --- PyTorch ----------------------------------------------------------------------------------
    Patch(
        name="meshgrid-anchors",
        file="detectron2/modeling/anchor_generator.py",
        old="torch.meshgrid(shifts_y, shifts_x)",
        new='torch.meshgrid(shifts_y, shifts_x, indexing="ij")',
        reason="torch warns of a coming change of the default indexing",
    ),
    Patch(
        name="meshgrid-panoptic-deeplab",
        file="detectron2/projects/panoptic_deeplab/post_processing.py",
        old="        torch.arange(width, dtype=offsets.dtype, device=offsets.device),\n    )",
        new="        torch.arange(width, dtype=offsets.dtype, device=offsets.device),\n"
        '        indexing="ij",\n    )',
        reason="torch warns of a coming change of the default indexing",
    ),
    Patch(
        name="amp-grad-scaler",
        file="detectron2/engine/train_loop.py",
        old="from torch.cuda.amp import GradScaler\n\n            grad_scaler = GradScaler()",
        new='from torch.amp import GradScaler\n\n            grad_scaler = GradScaler("cuda")',
        reason="torch deprecates torch.cuda.amp",
    ),
    Patch(
        name="amp-autocast-import",
        file="detectron2/engine/train_loop.py",
        old="from torch.cuda.amp import autocast",
        new="from torch.amp import autocast",
        reason="torch deprecates torch.cuda.amp",
    ),
    Patch(
        name="amp-autocast",
        file="detectron2/engine/train_loop.py",
        old="with autocast():",
        new='with autocast("cuda"):',
        reason="torch.amp.autocast asks for the device",
    ),
    Patch(
        name="resume-optimizer",
        file="detectron2/engine/defaults.py",
        old="""        self._trainer.run_step()

    @classmethod
""",
        new="""        self._trainer.run_step()

    def state_dict(self):
        ret = super().state_dict()
        ret["_trainer"] = self._trainer.state_dict()
        return ret

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

    @classmethod
""",
        reason="checkpoints lacked the optimizer: --resume began with zero momentum",
    ),
    Patch(
        name="comm-typed-storage",
        file="detectron2/utils/comm.py",
        old="""    storage = torch.ByteStorage.from_buffer(buffer)
    tensor = torch.ByteTensor(storage).to(device=device)
""",
        new="""    tensor = torch.frombuffer(bytearray(buffer), dtype=torch.uint8).to(device=device)
""",
        reason="torch deprecates typed storages",
    ),
    # --- several processes without CUDA -----------------------------------------------------------
    Patch(
        name="launch-without-cuda",
        file="detectron2/engine/launch.py",
        old='    assert torch.cuda.is_available(), "cuda is not available. '
        'Please check your installation."\n',
        new="    has_gpu = torch.cuda.is_available()\n",
        reason="several processes on a CPU are refused",
    ),
    Patch(
        name="launch-gloo",
        file="detectron2/engine/launch.py",
        old='backend="NCCL",',
        new='backend="NCCL" if has_gpu else "GLOO",',
        reason="NCCL needs CUDA",
    ),
    Patch(
        name="launch-device",
        file="detectron2/engine/launch.py",
        old="""    assert num_gpus_per_machine <= torch.cuda.device_count()
    torch.cuda.set_device(local_rank)
""",
        new="""    if has_gpu:
        assert num_gpus_per_machine <= torch.cuda.device_count()
        torch.cuda.set_device(local_rank)
""",
        reason="no device to set on a CPU",
    ),
    Patch(
        name="ddp-on-cpu",
        file="detectron2/engine/defaults.py",
        old='    if "device_ids" not in kwargs:\n',
        new='    if "device_ids" not in kwargs and next(model.parameters()).is_cuda:\n',
        reason="DistributedDataParallel refuses device_ids for a module on the CPU",
    ),
)
