"""Evaluation that goes on where an image cannot be read, and counts the image.

The image stays in the metrics, with score 0 for every label: see `MultiLabelEvaluator`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from typing import Any

from detectron2.utils import comm
from torch import nn

from ..data import DatasetError, ImageError
from ..data.errors import exceeds_share
from ..data.problems import counted


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
    """Test loader that stops once too many images of a data set are unreadable."""

    def __init__(self, loader: Sized, num_images: int, max_bad_images: float):
        """
        Args:
            loader: gives this process's lists of model inputs.
            num_images: of the whole data set, which the processes share.
            max_bad_images: share of the data set that may be unreadable.
        """
        self._loader = loader
        self._num_images = num_images
        self._max_bad_images = max_bad_images

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[list[dict]]:
        """Batches of the loader.

        Raises:
            DatasetError: with the number of unreadable images and the last of them; at the latest
                after the last batch, where the processes add up what each has found.
        """
        found: list[str] = []
        for batch in self._loader:
            found += [x["unreadable"] for x in batch if "unreadable" in x]
            self._check(found)
            yield batch
        self._check([reason for share in comm.all_gather(found) for reason in share])

    def _check(self, found: list[str]) -> None:
        if exceeds_share(len(found), self._num_images, self._max_bad_images):
            raise DatasetError(
                f"{len(found)} of {counted(self._num_images, 'image')} cannot be used for "
                "evaluation, more than the share DATALOADER.MAX_BAD_IMAGES "
                f"{self._max_bad_images}: {found[-1]}"
            )


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
