"""Detectron2's training steps, with one exchange in which all processes agree whether to go on."""

from typing import NamedTuple

import numpy as np
import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.modeling.proposal_generator import RPN
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn

_LARGEST = 1e30  # of what an RPN predicts; its boxes overflow at 1e38


class NotFiniteError(FloatingPointError):
    """The loss or the gradient of a process is not finite; raised in every process."""


class _Report(NamedTuple):
    """What a process tells the others in every iteration."""

    losses: dict[str, float]
    data_time: float
    fault: str  # of its own loss; empty: none
    finite_gradient: bool
    files: list[str]
    bad_images: dict[str, str]


class _AgreedStep:
    """Mixin of Detectron2's steps: the exchange of losses comes before the optimizer's step."""

    def __init__(self, *args):
        super().__init__(*args)
        self._rpn_checks = [RPNCheck(m) for m in self.model.modules() if isinstance(m, RPN)]

    def _write_metrics(self, loss_dict: dict[str, torch.Tensor], data_time: float, *_, **__):
        """Stop where a process has a loss that is not finite; else write losses as Detectron2 does.

        Detectron2 gathers the losses on the main process, which stops alone.

        Raises:
            NotFiniteError: naming the process, its losses and its images.
            DatasetError: too many images cannot be read.
        """
        losses = {name: loss.detach().cpu().item() for name, loss in loss_dict.items()}
        fault = self._fault(losses)
        reports = comm.all_gather(
            _Report(
                losses,
                data_time,
                fault,
                bool(fault) or self._has_finite_gradient(),
                self.data_loader.last_files,
                self.data_loader.take_bad_images(),
            )
        )
        bad_images = {k: v for report in reports for k, v in report.bad_images.items()}
        self.data_loader.count_bad_images(bad_images)
        _check(reports)
        if comm.is_main_process():
            _write(reports)

    def _fault(self, losses: dict[str, float]) -> str:
        """What is wrong with this process's own loss; "" where nothing is."""
        if not all(check.finite for check in self._rpn_checks):
            return "the RPN's predictions, and with them the loss, are not finite"
        if np.isfinite(sum(losses.values())):
            return ""
        return f"the loss is not finite ({', '.join(f'{k} {v:.4g}' for k, v in losses.items())})"

    def _has_finite_gradient(self) -> bool:
        """Of all processes, which share it. A grad scaler leaves out such steps by itself."""
        if hasattr(self, "grad_scaler"):
            return True
        parameters = (p for group in self.optimizer.param_groups for p in group["params"])
        # a sum is finite where all its terms are, and costs a tenth of a maximum
        sums = [p.grad.sum() for p in parameters if p.grad is not None]
        return not sums or bool(torch.stack(sums).isfinite().all())


class Step(_AgreedStep, SimpleTrainer):
    """Detectron2's step in float32."""


class AMPStep(_AgreedStep, AMPTrainer):
    """Detectron2's step in mixed precision on a GPU."""


class RPNCheck:
    """Forward hook of an RPN's head: numbers that are not finite do not raise in the midst of it.

    Detectron2 raises where it makes proposals of them. In several processes the others would then
    wait for this one, in the exchanges of the rest of their forward and backward pass.

    Attributes:
        finite: whether the predictions of the last forward pass in training were.
    """

    def __init__(self, rpn: RPN):
        self.finite = True
        rpn.rpn_head.register_forward_hook(self)

    def __call__(
        self, head: nn.Module, inputs: tuple, outputs: tuple[list[torch.Tensor], ...]
    ) -> tuple[list[torch.Tensor], ...] | None:
        """Objectness logits (N, A, H, W) and box deltas (N, A * 4, H, W) of each level, finite."""
        if not head.training:
            return None
        largest = torch.stack([x.detach().float().abs().amax() for level in outputs for x in level])
        self.finite = bool((largest < _LARGEST).all())  # False for nan too
        if self.finite:
            return None
        return tuple(
            [x.nan_to_num(0.0, 0.0, 0.0).clamp(-_LARGEST, _LARGEST) for x in level]
            for level in outputs
        )


def _check(reports: list[_Report]) -> None:
    """Raises: NotFiniteError, naming the batch that is bad."""
    faults = [
        f"{_of_process(rank, reports)}{r.fault}. Images of the batch: {', '.join(r.files)}"
        for rank, r in enumerate(reports)
        if r.fault
    ]
    if not faults and not all(r.finite_gradient for r in reports):
        files = [file for r in reports for file in r.files]
        faults = [f"the gradient is not finite. Images of the batch: {', '.join(files)}"]
    if faults:
        raise NotFiniteError("; ".join(faults))


def _of_process(rank: int, reports: list[_Report]) -> str:
    return f"process {rank} of {len(reports)}: " if len(reports) > 1 else ""


def _write(reports: list[_Report]) -> None:
    """Put the scalars of `SimpleTrainer.write_metrics`: means over the processes."""
    storage = get_event_storage()
    storage.put_scalar("data_time", max(r.data_time for r in reports))
    losses = {name: np.mean([r.losses[name] for r in reports]) for name in reports[0].losses}
    storage.put_scalar("total_loss", sum(losses.values()))
    if len(losses) > 1:
        storage.put_scalars(**losses)
