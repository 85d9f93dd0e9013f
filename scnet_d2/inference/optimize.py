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

logger = logging.getLogger(__name__)

BOXES_PER_THREAD = 32  # fewer are not worth a thread
_BATCH_NORMS = (FrozenBatchNorm2d, nn.BatchNorm2d, nn.SyncBatchNorm)


def optimize_for_inference(
    model: SCNet, dtype: torch.dtype = torch.float32, compile: bool = False
) -> SCNet:
    """Make a trained SCNet faster, in place: it serves inference alone afterwards.

    Batch norm is folded into the convolutions; backbone, RPN head and the box heads compute in
    `dtype`, the convolutions with channels last where that is faster; on a CPU, ROIAlign runs in as
    many threads as PyTorch. Anchors, boxes, ROIAlign, NMS, label scores and aggregation stay in
    float32.

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
        compile: also compile the backbone with `torch.compile`, which needs a C++ compiler and up
            to some minutes at the first image of every new size.

    Returns:
        The same model, in evaluation mode, without gradients.

    Raises:
        TypeError: if `model` is not an SCNet.
        ValueError: if `dtype` is another one, or the model is optimised already.
    """
    if not isinstance(model, SCNet):
        raise TypeError(f"optimize_for_inference takes an SCNet, got {type(model).__name__}")
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"dtype must be torch.float32 or torch.bfloat16, got {dtype}")
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
    thread_roi_align(model)
    if compile:
        model.backbone.compile()
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
