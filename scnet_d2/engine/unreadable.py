"""Evaluation that goes on where an image cannot be read, and counts the image.

The image stays in the metrics, with score 0 for every label: see `MultiLabelEvaluator`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sized
from typing import Any

from torch import nn

from ..data import DatasetError, ImageError


class UnreadableImage(dict):
    """Dataset dict of an image that cannot be read; `unreadable` says why.

    It has no `image`: a program that asks for it all the same gets the `ImageError`.
    """

    def __missing__(self, key: str) -> Any:
        raise ImageError(self["unreadable"]) if key == "image" else KeyError(key)


class MarkUnreadable:
    """Dataset mapper that gives an `UnreadableImage` where another one raises `ImageError`."""

    def __init__(self, mapper: Callable[[dict], dict]):
        self._mapper = mapper

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one dataset dict."""
        try:
            return self._mapper(dataset_dict)
        except ImageError as error:
            return UnreadableImage(dataset_dict, unreadable=str(error))


class CountUnreadable:
    """Test loader that stops once too many images are unreadable."""

    def __init__(self, loader: Sized, max_bad_images: float):
        """
        Args:
            loader: gives lists of model inputs, of one image each.
            max_bad_images: share of the images that may be unreadable.
        """
        self._loader = loader
        self._allowed = math.ceil(max_bad_images * len(loader))

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[list[dict]]:
        """Batches of the loader.

        Raises:
            DatasetError: with the number of unreadable images and the last of them.
        """
        found = 0
        for batch in self._loader:
            for x in batch:
                found += "unreadable" in x
                if "unreadable" in x and found > self._allowed:
                    raise DatasetError(
                        f"{found} of {len(self)} images cannot be used for evaluation, and "
                        f"DATALOADER.MAX_BAD_IMAGES allows {self._allowed}: {x['unreadable']}"
                    )
            yield batch


class SkipUnreadable(nn.Module):
    """Model that is not asked about unreadable images; their output is an empty dict."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.training = model.training  # Detectron2 restores the mode that it finds

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Outputs of the model, in the order of the inputs."""
        readable = [x for x in batched_inputs if "unreadable" not in x]
        outputs = iter(self.model(readable) if readable else ())
        return [{} if "unreadable" in x else next(outputs) for x in batched_inputs]
