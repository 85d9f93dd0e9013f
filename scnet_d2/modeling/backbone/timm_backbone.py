"""Networks of timm, PyTorch Image Models, as Detectron2 backbones."""

import inspect
import logging
import math
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import nn

from ...config import ConfigError, pixel_contradictions

logger = logging.getLogger(__name__)

LAST = "last"  # feature after all stages: EfficientNet's 1 x 1 convolution, ConvNeXt's norm
NORMS = ("FrozenBN", "BN", "SyncBN")


class TimmBackbone(Backbone):
    """Stages of a timm network, named as Detectron2 names them: `res4` has stride 16.

    The parameters keep timm's names below `net.`.
    """

    def __init__(
        self,
        net: nn.Module,
        out_features: Sequence[str],
        *,
        norm: str = "FrozenBN",
        freeze_at: int = 0,
    ):
        """
        Args:
            net: a timm network with hierarchical features. Its head, and the stages after the last
                one that is used, are taken away.
            out_features: names of the features, of `res1` (stride 2) to `res5` (32), and "last",
                what the network computes of its last stage before its own pooling.
            norm: of the network's batch norms: "FrozenBN" keeps statistics and scale as they were
                loaded, "BN" trains them, "SyncBN" over all processes.
            freeze_at: number of stages that are not trained: 1, the stem; 2, `res2` too; and so on,
                as `MODEL.BACKBONE.FREEZE_AT` of Detectron2.

        Raises:
            ConfigError: for a feature that the network does not have, or an unknown norm.
        """
        super().__init__()
        stages = feature_stages(net)
        self._check(stages, out_features, norm)
        self._out_features = list(out_features)
        names = list(stages)
        self._indices = sorted(names.index(f) for f in out_features if f != LAST)
        self._last = LAST in out_features
        used = self._indices[-1] if self._indices and not self._last else len(stages) - 1
        frozen = _stage_parameters(net, stages, freeze_at)
        if self._last:
            net.reset_classifier(0)
        else:
            net.prune_intermediate_layers([used], prune_norm=True, prune_head=True)
        self.net = net
        shapes = {
            f: ShapeSpec(channels=s["num_chs"], stride=s["reduction"]) for f, s in stages.items()
        }
        stride = max(s["reduction"] for s in stages.values())
        shapes[LAST] = ShapeSpec(channels=net.num_features, stride=stride)
        self._shapes = {f: shapes[f] for f in self._out_features}
        self._stage_modules = {f: stage["module"] for f, stage in stages.items()}
        self._size_divisibility = max(s.stride for s in self._shapes.values())
        self._set_norm(norm)
        self._freeze(frozen)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Features (N, D, H / stride, W / stride) of images (N, 3, H, W), by name."""
        options = {"indices": self._indices or [0], "output_fmt": "NCHW"}
        if self._last:
            last, features = self.net.forward_intermediates(x, **options)
        else:
            features = self.net.forward_intermediates(
                x, intermediates_only=True, stop_early=True, **options
            )
        names = sorted((f for f in self._out_features if f != LAST), key=lambda f: int(f[3:]))
        found = dict(zip(names, features))
        if self._last:
            channels_last = last.shape[1] != self._shapes[LAST].channels  # Swin's
            found[LAST] = last.permute(0, 3, 1, 2).contiguous() if channels_last else last
        return {f: found[f] for f in self._out_features}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every feature."""
        return dict(self._shapes)

    def stage(self, name: str) -> nn.Module:
        """The module whose output is the feature `name`."""
        return self.net.get_submodule(self._stage_modules[name])

    @property
    def size_divisibility(self) -> int:
        """Sides of the images are padded to a multiple of this."""
        return self._size_divisibility

    @staticmethod
    def _check(stages: dict[str, dict], out_features: Sequence[str], norm: str) -> None:
        known = [*stages, LAST]
        if unknown := [f for f in out_features if f not in known]:
            raise ConfigError(f"MODEL.TIMM.OUT_FEATURES has {unknown}; the network has {known}")
        if not out_features:
            raise ConfigError(f"MODEL.TIMM.OUT_FEATURES is empty; the network has {known}")
        if norm not in NORMS:
            raise ConfigError(f"MODEL.TIMM.NORM is '{norm}'; choose one of {list(NORMS)}")

    def _set_norm(self, norm: str) -> None:
        from timm.layers import convert_sync_batchnorm, freeze_batch_norm_2d  # noqa: PLC0415

        if norm != "BN":
            self.net = {"FrozenBN": freeze_batch_norm_2d, "SyncBN": convert_sync_batchnorm}[norm](
                self.net
            )

    def _freeze(self, names: set[str]) -> None:
        from timm.layers import freeze_batch_norm_2d  # noqa: PLC0415

        parents = {name.rsplit(".", 1)[0] for name in names}
        for parent in parents:
            module = self.net.get_submodule(parent)
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                self.net.set_submodule(parent, freeze_batch_norm_2d(module))
        for name, parameter in self.net.named_parameters():
            if name in names:
                parameter.requires_grad = False


def feature_stages(net: nn.Module) -> dict[str, dict[str, Any]]:
    """What timm tells of the stages of a network, under Detectron2's names.

    Raises:
        ConfigError: if the network has no features of growing stride.
    """
    info = getattr(net, "feature_info", None) or []
    strides = [int(stage["reduction"]) for stage in info]
    grows = len(set(strides)) == len(strides) > 1 and strides == sorted(strides)
    powers = all(math.log2(stride).is_integer() for stride in strides)
    if not (grows and powers and hasattr(net, "forward_intermediates")):
        raise ConfigError(
            f"MODEL.TIMM.NAME {type(net).__name__}: its features have strides {strides}; a "
            "backbone needs stages whose strides double, as of ResNet, EfficientNet, ConvNeXt, Swin"
        )
    return {f"res{int(math.log2(stride))}": stage for stride, stage in zip(strides, info)}


def _stage_parameters(net: nn.Module, stages: dict[str, dict], freeze_at: int) -> set[str]:
    """Names of the parameters of the first stages, as timm itself groups them."""
    from timm.models import group_parameters  # noqa: PLC0415

    if freeze_at < 1:
        return set()
    group_of = {
        name: i
        for i, names in group_parameters(net, net.group_matcher(coarse=True)).items()
        for name in names
    }
    last = 0  # the stem
    for feature, stage in stages.items():
        if 1 < int(feature[3:]) <= freeze_at:
            prefix = stage["module"] + "."
            last = max([last, *(i for name, i in group_of.items() if name.startswith(prefix))])
    return {name for name, i in group_of.items() if i <= last}


def create_timm(name: str) -> nn.Module:
    """A timm network of random weights.

    Raises:
        ConfigError: naming close names, if timm has no such network.
    """
    import timm  # noqa: PLC0415 (seconds, which only those who use it should wait)

    if not timm.is_model(name):
        base = name.partition(".")[0]
        close = get_close_matches(base, timm.list_models(), 3) or timm.list_models("*lite*")[:3]
        raise ConfigError(f"MODEL.TIMM.NAME is '{name}', which timm does not have; near: {close}")
    entrypoint = inspect.unwrap(timm.model_entrypoint(name))
    options = {"strict_img_size": False} if "swin" in entrypoint.__module__ else {}
    try:
        return timm.create_model(name, **options)
    except RuntimeError as error:  # of a tag that the network does not have
        raise ConfigError(f"MODEL.TIMM.NAME is '{name}': {error}") from error


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """The stages `MODEL.TIMM.OUT_FEATURES` of the network `MODEL.TIMM.NAME`."""
    if input_shape.channels != 3:
        raise ConfigError(
            f"MODEL.TIMM: images of 3 channels are needed, not {input_shape.channels}"
        )
    for message in pixel_contradictions(cfg):
        logger.warning(message)
    return TimmBackbone(
        create_timm(cfg.MODEL.TIMM.NAME),
        cfg.MODEL.TIMM.OUT_FEATURES,
        norm=cfg.MODEL.TIMM.NORM,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )
