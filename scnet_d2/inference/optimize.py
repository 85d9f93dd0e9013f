"""A trained SCNet made faster for inference: what it computes stays the same."""

import logging
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d, ROIAlign
from detectron2.modeling.poolers import ROIPooler
from torch import nn
from torch.nn.utils import fuse_conv_bn_weights

from ..config import has_fast_bfloat16
from ..modeling import SCNet, TimmBackbone
from .backends import check_backend, convert_network

logger = logging.getLogger(__name__)

BOXES_PER_THREAD = 32  # fewer are not worth a thread
WINOGRAD_PIXELS = 256  # of a map; on a smaller one transforming the weights takes longer
_BATCH_NORMS = (FrozenBatchNorm2d, nn.BatchNorm2d, nn.SyncBatchNorm)


def optimize_for_inference(
    model: SCNet, dtype: torch.dtype = torch.float32, *, backend: str = "auto"
) -> SCNet:
    """Make a trained SCNet faster, in place: it serves inference alone afterwards.

    Batch norm is folded into the convolutions; backbone, RPN head and the box heads compute in
    `dtype`, the convolutions with channels last where that is faster. On a CPU, 3 x 3 convolutions
    in float32 go by Winograd's algorithm, and ROIAlign runs in as many threads as PyTorch. Anchors,
    boxes, ROIAlign, NMS, label scores and aggregation stay in float32.

    With the same proposals, scores move by less than 1e-3 in float32 and 0.02 in bfloat16. Where
    two boxes are nearly equal in objectness, bfloat16 may have the RPN keep the other one, which
    moves single scores further. Gains and differences measured: docs/performance.md.

    In place, because a copy would need the memory of a second model (`copy.deepcopy` beforehand
    keeps one). The `state_dict` afterwards holds the folded weights in `dtype`: it loads into a
    model that is optimised in the same way, and loading a training checkpoint raises an error.

    Args:
        model: with its trained weights, on the device where it will run.
        dtype: torch.float32 or torch.bfloat16. Where the device computes bfloat16 no faster, a
            warning says so and float32 is used.
        backend: what computes the network below the FPN, one of :data:`backends.BACKENDS`. "auto"
            is OpenVINO for a network of timm on a CPU in float32, where it is installed, and
            otherwise PyTorch. "compile" is `torch.compile`, which needs a C++ compiler and up to
            some minutes at the first image of every new size. A backend that cannot be used here
            gives way to PyTorch, and a warning says so.

    Returns:
        The same model, in evaluation mode, without gradients.

    Raises:
        TypeError: if `model` is not an SCNet.
        ValueError: if `dtype` or `backend` is another one, or the model is optimised already.
    """
    if not isinstance(model, SCNet):
        raise TypeError(f"optimize_for_inference takes an SCNet, got {type(model).__name__}")
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"dtype must be torch.float32 or torch.bfloat16, got {dtype}")
    check_backend(backend)
    if any(isinstance(m, ThreadedROIAlign) for m in model.modules()):
        raise ValueError("the model is optimised already: build and load it again")
    if dtype == torch.bfloat16 and not has_fast_bfloat16(model.device):
        logger.warning("%s has no fast bfloat16: float32 is used", model.device)
        dtype = torch.float32
    model.eval().requires_grad_(False)
    folded = fold_batch_norm(model)
    # In float32 on a CPU, channels last gained no time and took more memory.
    plain = dtype == torch.float32 and model.device.type == "cpu"
    compute_in(model, dtype, torch.contiguous_format if plain else torch.channels_last)
    if plain:
        use_winograd(model)
    thread_roi_align(model)
    convert_network(model, backend)
    model.register_load_state_dict_pre_hook(partial(_refuse_unfolded, folded=folded))
    return model


def fold_batch_norm(model: nn.Module) -> list[str]:
    """Fold frozen and evaluated batch norms into the convolutions before them, in place.

    It applies to Detectron2's `Conv2d`, which holds its norm, and to the networks of timm. A bias
    of the convolution is kept in the sum, and an activation comes after the norm as before.

    Returns:
        Names of the norms that were folded.
    """
    folded = []
    for name, module in list(model.named_modules()):
        norm = getattr(module, "norm", None)
        if isinstance(module, Conv2d) and isinstance(norm, _BATCH_NORMS):
            _fold(module, norm)
            module.norm = None
            folded.append(f"{name}.norm")
        elif isinstance(module, TimmBackbone):
            folded += [f"{name}.{norm}" for norm in _fold_timm(module)]
    return folded


def _fold(conv: nn.Conv2d, norm: nn.Module) -> None:
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps,
        norm.weight, norm.bias,
    )  # fmt: skip


def _fold_timm(backbone: TimmBackbone) -> list[str]:
    """Fold the batch norms that take the output of a convolution; returns their names."""
    names = {module: name for name, module in backbone.named_modules()}
    norms = [m for m in names if hasattr(m, "running_mean")]
    outputs, pairs = [], {}

    def note_output(conv, inputs, output):
        outputs.append((conv, output))

    def note_input(norm, inputs):
        for conv, output in outputs:
            if output is inputs[0]:
                pairs[norm] = conv

    hooks = [m.register_forward_hook(note_output) for m in names if isinstance(m, nn.Conv2d)]
    hooks += [m.register_forward_pre_hook(note_input) for m in norms]
    side = 2 * backbone.size_divisibility
    device = next(backbone.parameters()).device
    with torch.no_grad():
        backbone(torch.zeros(1, 3, side, side, device=device))
    for hook in hooks:
        hook.remove()
    for norm, conv in pairs.items():
        _fold(conv, norm)
        after = [getattr(norm, part) for part in ("drop", "act") if hasattr(norm, part)]
        backbone.set_submodule(names[norm], nn.Sequential(*after))
    return [names[norm] for norm in pairs]


def compute_in(model: SCNet, dtype: torch.dtype, layout: torch.memory_format) -> None:
    """Have nearly all multiplications done in another type, in place.

    They are those of backbone, RPN head and the box heads. What goes into and comes out of these
    is cast; their output is float32 and contiguous.

    Args:
        model: in evaluation mode.
        dtype: of weights and computation.
        layout: of the convolutions' weights and features.
    """
    for part in (model.backbone, model.proposal_generator.rpn_head):
        _compute_part_in(part, dtype, layout)
    for head in model.roi_heads.branches.values():
        _compute_part_in(head.box_head, dtype, torch.contiguous_format)


def _compute_part_in(part: nn.Module, dtype: torch.dtype, layout: torch.memory_format) -> None:
    part.to(dtype=dtype, memory_format=layout)
    part.register_forward_pre_hook(partial(_cast_inputs, dtype=dtype, memory_format=layout))
    part.register_forward_hook(_cast_outputs)


def _cast_inputs(_, inputs, **kwargs):
    return _cast(inputs, **kwargs)


def _cast_outputs(_, inputs, outputs):
    return _cast(outputs, dtype=torch.float32, memory_format=torch.contiguous_format)


def _cast(x, **kwargs):
    """Cast a tensor, or all tensors of a dict, list or tuple."""
    if isinstance(x, torch.Tensor):
        return x.to(**kwargs)
    if isinstance(x, dict):
        return {key: _cast(value, **kwargs) for key, value in x.items()}
    return type(x)(_cast(value, **kwargs) for value in x)


def use_winograd(model: nn.Module) -> None:
    """Have NNPACK, which PyTorch has in it, compute 3 x 3 convolutions, in place.

    Winograd's algorithm (Lavin and Gray, arXiv 1509.09308) takes fewer multiplications than oneDNN,
    whose own needs AVX512. Those with stride, dilation, groups or another padding than 1 are left.
    """
    for conv in model.modules():
        if type(conv) in (Conv2d, nn.Conv2d) and _is_plain_3x3(conv):
            conv.__class__ = WinogradConv2d  # Detectron2's FPN holds its own in lists, too


def _is_plain_3x3(conv: nn.Conv2d) -> bool:
    shape = (conv.kernel_size, conv.stride, conv.dilation, conv.padding, conv.groups)
    return shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1) and conv.padding_mode == "zeros"


class WinogradConv2d(Conv2d):
    """A 3 x 3 convolution, computed by NNPACK in float32 on a CPU that NNPACK knows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features (N, D, H, W) of features (N, C, H, W), as `Conv2d` gives them."""
        traced = torch.jit.is_tracing() or torch.compiler.is_compiling()
        plain = x.dtype == torch.float32 and x.device.type == "cpu" and not traced
        if plain and x[0, 0].numel() >= WINOGRAD_PIXELS and torch.backends.nnpack.is_available():
            # one by one: with several images at once NNPACK takes four times as long
            maps = [self._nnpack(image) for image in x.contiguous().split(1)]
            x = torch.cat(maps) if len(maps) > 1 else maps[0]
        else:
            x = self._conv_forward(x, self.weight, self.bias)
        for name in ("norm", "activation"):  # of Detectron2's Conv2d alone
            if (layer := getattr(self, name, None)) is not None:
                x = layer(x)
        return x

    def _nnpack(self, image: torch.Tensor) -> torch.Tensor:
        """(1, D, H, W) of an image's features (1, C, H, W)."""
        return torch._nnpack_spatial_convolution(image, self.weight, self.bias, self.padding)


def thread_roi_align(model: nn.Module) -> None:
    """Replace every `ROIAlign` of a model's poolers by `ThreadedROIAlign`, in place."""
    for pooler in model.modules():
        if isinstance(pooler, ROIPooler):
            for i, level in enumerate(pooler.level_poolers):
                if type(level) is ROIAlign:
                    pooler.level_poolers[i] = ThreadedROIAlign(
                        level.output_size, level.spatial_scale, level.sampling_ratio, level.aligned
                    )


class ThreadedROIAlign(ROIAlign):
    """Detectron2's ROIAlign with the boxes shared out among threads.

    torchvision's kernel for CPUs runs in a single thread, and releases Python's lock meanwhile.
    """

    def forward(self, input: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
        """Pooled features (R, C, H, W) of the boxes (R, 5), as in `ROIAlign`."""
        threads = min(torch.get_num_threads(), len(rois) // BOXES_PER_THREAD)
        traced = torch.jit.is_tracing() or torch.compiler.is_compiling()
        if threads < 2 or traced or input.device.type != "cpu":
            return super().forward(input, rois)
        with ThreadPoolExecutor(threads) as pool:
            pooled = pool.map(partial(super().forward, input), rois.tensor_split(threads))
        return torch.cat(list(pooled))


def _refuse_unfolded(
    model: nn.Module, state_dict: dict, prefix: str, *args, folded: list[str]
) -> None:
    if any(key.startswith(f"{prefix}{name}.") for key in state_dict for name in folded):
        raise RuntimeError(
            "this model is optimised for inference: its batch norms are folded into the "
            "convolutions. Load the checkpoint into a newly built model, then call "
            "optimize_for_inference again"
        )
