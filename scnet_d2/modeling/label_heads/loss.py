"""The loss of image labels, one switch for every head."""

import torch
from detectron2.config import configurable
from torch.nn import functional as F


class LabelLoss:
    """Binary cross-entropy or the asymmetric loss, summed over classes, averaged over images.

    The asymmetric loss makes easy negatives count less: with the score p of a label,
    L = -(1 - p)^γ+ log p where it is present, and -q^γ- log(1 - q), q = max(p - clip, 0), where it
    is absent. The factors before the logarithms have no gradient, as in the authors' recipe.

    Source: Ben-Baruch et al., "Asymmetric loss for multi-label classification", ICCV 2021.
    """

    @configurable
    def __init__(
        self,
        *,
        name: str = "bce",
        gamma_neg: float = 4.0,
        gamma_pos: float = 0.0,
        clip: float = 0.05,
        weight: float = 1.0,
    ):
        """
        Args:
            name: "bce" or "asl".
            gamma_neg: γ- of the asymmetric loss.
            gamma_pos: γ+.
            clip: score up to which a negative counts nothing, in [0, 1).
            weight: of the loss.
        """
        if name not in ("bce", "asl"):
            raise ValueError(f"MODEL.IMAGE_LABELER.LOSS is '{name}'; choose bce or asl")
        if not 0 <= clip < 1:
            raise ValueError(f"MODEL.IMAGE_LABELER.ASL.CLIP is {clip}; it must be in [0, 1)")
        self.name = name
        self.gamma_neg, self.gamma_pos, self.clip = gamma_neg, gamma_pos, clip
        self.weight = weight

    @classmethod
    def from_config(cls, cfg):
        part = cfg.MODEL.IMAGE_LABELER
        asl = {key.lower(): value for key, value in part.ASL.items()}
        return {"name": part.LOSS, "weight": cfg.MODEL.SCNET.LABEL.LOSS_WEIGHT, **asl}

    def __call__(
        self, logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """The loss of a batch.

        Args:
            logits: (N, C) label logits.
            targets: (N, C) float, 1 or 0.
            weights: (N, C) float of each entry; 0 leaves it out, such as an ignored label.

        Returns:
            Scalar.
        """
        logits = logits.float()
        if self.name == "asl":
            loss = (weights * self._asymmetric(logits, targets)).sum()
        else:
            loss = F.binary_cross_entropy_with_logits(
                logits, targets, weight=weights, reduction="sum"
            )
        return loss * (self.weight / len(logits))

    def _asymmetric(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """(N, C) asymmetric losses."""
        log_clip = logits.new_tensor(self.clip).log()  # of 0: -inf, which adds nothing
        log_absent = torch.logaddexp(F.logsigmoid(-logits), log_clip).clamp(max=0)  # log(1 - q)
        with torch.no_grad():
            present = targets * (1 - logits.sigmoid()) ** self.gamma_pos
            absent = (1 - targets) * (1 - log_absent.exp()) ** self.gamma_neg
        return -present * F.logsigmoid(logits) - absent * log_absent
