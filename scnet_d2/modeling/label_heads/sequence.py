"""Heads that predict the labels of an image one after the other."""

from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from .features import ImageFeatures
from .head import LabelHead, LabelOutput

EPS = 1e-6  # scores count as no nearer to 0 or 1
PADDING = -100  # in sequences, after their end; what cross_entropy leaves out


class SequenceHead(LabelHead):
    """Base of heads that predict the next label from those before; class C stands for the end.

    Labels come in the order of their frequency in the training set, the most frequent first.
    Training is cross-entropy in each step, given the true labels before; `MODEL.IMAGE_LABELER.LOSS`
    does not apply. Inference takes the best label in each step, none twice, up to the end; the
    score of a label is its highest probability in any step: our reading, for the papers give sets.
    """

    needs: ClassVar[tuple[str, ...]] = ("counts",)

    def __init__(self, *, max_steps: int, **kwargs):
        """
        Args:
            max_steps: of inference.
            kwargs: of `LabelHead`.
        """
        super().__init__(**kwargs)
        self.max_steps = max_steps

    def start(self, features: ImageFeatures) -> Any:
        """State before the first label."""
        raise NotImplementedError

    def step(self, previous: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        """Logits (N, C + 1) of the next label, and the next state.

        Args:
            previous: (N,) ids of the labels before, C at first.
            state: of `start` or the step before.
        """
        raise NotImplementedError

    def forward(
        self,
        features: ImageFeatures,
        targets: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> LabelOutput:
        """As `LabelHead.forward`; the loss is that of the sequence."""
        self.context.check_filled()
        if targets is None:
            return self.predict(features)
        sequence = label_sequences(targets * mask, self.context.counts)  # (N, T)
        closed = torch.cat([mask == 0, mask.new_zeros(len(mask), 1) > 0], dim=1)  # (N, C + 1)
        previous, state = torch.full_like(sequence[:, 0], self.num_classes), self.start(features)
        logits = []
        for labels in sequence.T:
            step_logits, state = self.step(previous, state)
            logits.append(step_logits.float().masked_fill(closed, -torch.inf))
            previous = labels.clamp(min=0)
        logits = torch.stack(logits, dim=1)  # (N, T, C + 1)
        loss = F.cross_entropy(logits.flatten(0, 1), sequence.flatten(), ignore_index=PADDING)
        highest = logits.detach().softmax(dim=-1).amax(dim=1)[:, :-1]
        return LabelOutput(highest.logit(EPS), losses={"loss_label_sequence": loss})

    def predict(self, features: ImageFeatures) -> LabelOutput:
        """Logits of the highest probabilities."""
        state = self.start(features)
        device = features.maps[self.in_feature].device
        previous = torch.full((len(features.images),), self.num_classes, device=device)
        scores = torch.zeros(len(previous), self.num_classes + 1, device=device)
        closed = torch.zeros_like(scores, dtype=torch.bool)  # labels that were given
        ended = torch.zeros_like(previous, dtype=torch.bool)
        for _ in range(self.max_steps):
            logits, state = self.step(previous, state)
            probabilities = logits.float().masked_fill(closed, -torch.inf).softmax(dim=-1)
            scores = torch.where(ended[:, None], scores, scores.maximum(probabilities))
            previous = probabilities.argmax(dim=-1)
            ended |= previous == self.num_classes
            closed = closed.scatter(1, previous[:, None], True)
            closed[:, -1] = False
            if ended.all():
                break
        return LabelOutput(scores[:, :-1].logit(EPS))


def label_sequences(targets: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Labels of images in the order of frequency, then C, the end, then padding: (N, T).

    Args:
        targets: (N, C), above 0 where a label is present.
        counts: (C,) how often labels come.
    """
    order = counts.argsort(descending=True, stable=True)
    end = order.new_tensor([len(order)])
    rows = [torch.cat([order[row[order] > 0], end]) for row in targets]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PADDING)
