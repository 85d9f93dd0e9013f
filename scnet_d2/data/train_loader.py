"""Training batches as a function of seed and iteration, so that a resumed run repeats none."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, DatasetMapper
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import (
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from .catalog import get_training_dicts
from .errors import DatasetError, ImageError, exceeds_share
from .problems import counted

logger = logging.getLogger(__name__)

Sample = tuple[int, int]  # position in the stream of all processes, index in the data set


class TrainLoader:
    """Endless training batches of one process, from any iteration on.

    Batch i of all processes together depends on the seed, the data set and its size alone: neither
    on the number of processes or workers nor on where the loader started. Each process has its
    share of it. An image's augmentation depends on the seed and on its position in the stream of
    all processes. Detectron2's own loader starts over with every process. Images of similar aspect
    ratio share a batch as there, but that of all processes.

    A sample whose image cannot be read is replaced with another one. The loader names it in
    `take_bad_images`; who trains counts it over all processes with `count_bad_images`.

    Attributes:
        seed: of order and augmentation; may be set until the first batch is drawn.
        start: number of batches to skip, without reading them; may be set as `seed`.
        bad_images: file name → why it cannot be read, of the images counted since the start.
        last_files: file names of the last batch.
    """

    def __init__(
        self,
        dataset: list[dict],
        mapper: Callable[[dict], dict],
        *,
        build_sampler: Callable[[int], Iterable[int]],
        seed: int,
        batch_size: int,
        aspect_ratio_grouping: bool = True,
        num_workers: int = 0,
        max_bad_images: float = 0.0,
    ):
        """
        Args:
            dataset: dataset dicts.
            mapper: maps a dataset dict to a model input.
            build_sampler: maps a seed to the endless stream of indices of all processes.
            seed: of order and augmentation, equal in all processes.
            batch_size: of this process.
            aspect_ratio_grouping: whether landscape and portrait images come in separate batches.
            num_workers: processes that read images, 0 for none.
            max_bad_images: share of the data set that may be unreadable.
        """
        self.seed = seed
        self.start = 0
        self.bad_images: dict[str, str] = {}
        self.last_files: list[str] = []
        self._not_taken: dict[str, str] = {}
        self._samples = _MappedSamples(dataset, mapper)
        self._portrait = [aspect_ratio_grouping and _is_portrait(d) for d in dataset]
        self._build_sampler = build_sampler
        self._batch_size = batch_size
        self._num_workers = num_workers
        self._max_bad_images = max_bad_images

    @classmethod
    def from_config(cls, cfg: CfgNode, mapper: DatasetMapper) -> TrainLoader:
        """The loader that Detectron2's keys describe.

        Raises:
            ValueError: the batch does not divide among the processes, or the sampler is unknown.
        """
        per_process, rest = divmod(cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size())
        if rest or not per_process:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} does not divide among "
                f"{comm.get_world_size()} processes"
            )
        dataset = get_training_dicts(cfg)
        return cls(
            dataset,
            mapper,
            build_sampler=_sampler_builder(cfg, dataset),
            seed=cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed(),
            batch_size=per_process,
            aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            max_bad_images=cfg.DATALOADER.MAX_BAD_IMAGES,
        )

    def __iter__(self) -> Iterator[list[dict]]:
        """Batches from `start` on; reading begins with the first one that is drawn."""
        self._samples.seed = self.seed
        batches = DataLoader(
            self._samples,
            batch_sampler=_From(self._batches, self.start),
            num_workers=self._num_workers,
            collate_fn=trivial_batch_collator,
            generator=torch.Generator(),  # the global one is the model's
        )
        for batch in batches:
            self._not_taken |= {k: v for x in batch for k, v in x.pop("bad_images", {}).items()}
            self.last_files = [d["file_name"] for d in batch]
            yield batch

    def _batches(self) -> Iterator[list[Sample]]:
        """This process's share of the batches of all processes."""
        rank, world_size = comm.get_rank(), comm.get_world_size()
        buckets: tuple[list[Sample], list[Sample]] = ([], [])
        for position, index in enumerate(self._build_sampler(self.seed)):
            bucket = buckets[self._portrait[index]]
            bucket.append((position, index))
            if len(bucket) == self._batch_size * world_size:
                yield bucket[rank::world_size]
                bucket.clear()

    def take_bad_images(self) -> dict[str, str]:
        """File name → why it cannot be read, of what this process met since it was last asked."""
        taken, self._not_taken = self._not_taken, {}
        return taken

    def count_bad_images(self, found: dict[str, str]) -> None:
        """Add to `bad_images` what all processes have met.

        Raises:
            DatasetError: there are more of them than `max_bad_images` allows.
        """
        for file_name in found.keys() - self.bad_images.keys():
            logger.warning("%s Training goes on without it.", found[file_name])
        self.bad_images |= found
        images = len(self._samples)
        if exceeds_share(len(self.bad_images), images, self._max_bad_images):
            raise DatasetError(
                f"{len(self.bad_images)} of {counted(images, 'training image')} cannot be used, "
                f"and DATALOADER.MAX_BAD_IMAGES allows a share of {self._max_bad_images}. "
                f"One of them: {next(iter(self.bad_images.values()))}"
            )


def _is_portrait(dataset_dict: dict) -> bool:
    """Whether an image is no wider than high; one whose size cannot be read is taken for wide."""
    return "width" in dataset_dict and dataset_dict["width"] <= dataset_dict["height"]


class _From:
    """An endless iterable without its first items."""

    def __init__(self, iterate: Callable[[], Iterator], start: int):
        self._iterate = iterate
        self._start = start

    def __iter__(self) -> Iterator:
        items = self._iterate()
        for _ in range(self._start):
            next(items)
        return items


class _MappedSamples(Dataset):
    """Maps a sample to a model input, with random numbers that its position decides."""

    def __init__(self, dataset: list[dict], mapper: Callable[[dict], dict]):
        self.seed = 0
        self._dicts = DatasetFromList(dataset, copy=False)
        self._mapper = mapper

    def __len__(self) -> int:
        return len(self._dicts)

    def __getitem__(self, sample: Sample) -> dict[str, Any]:
        position, index = sample
        bad_images: dict[str, str] = {}
        with random_state((self.seed, position)):
            while True:
                try:
                    mapped = self._mapper(self._dicts[index])
                    return mapped | {"bad_images": bad_images} if bad_images else mapped
                except ImageError as error:
                    bad_images[self._dicts[index]["file_name"]] = str(error)
                    if len(bad_images) == len(self):
                        raise
                    index = random.randrange(len(self))


@contextmanager
def random_state(entropy: tuple[int, ...]) -> Iterator[None]:
    """Within it the global generators of random, numpy and torch (CPU) start from `entropy`."""
    # numpy's global generator is the one that Detectron2's augmentations draw from
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    seeds = np.random.SeedSequence(entropy).generate_state(3)
    random.seed(int(seeds[0]))
    np.random.seed(seeds[1])  # noqa: NPY002
    torch.random.default_generator.manual_seed(int(seeds[2]))
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])


def _with_categories(dataset_dict: dict) -> dict:
    """A dataset dict whose `annotations` have its classes, also where it has labels alone."""
    labels = dataset_dict.get("image_labels", ())
    return {"annotations": [{"category_id": c} for c in labels]} | dataset_dict


def _sampler_builder(cfg: CfgNode, dataset: list[dict]) -> Callable[[int], Iterable[int]]:
    """Detectron2's samplers by the name of `DATALOADER.SAMPLER_TRAIN`, before they are split.

    Their `__iter__` gives each process every n-th index, whichever batch it belongs to.
    """
    name, size = cfg.DATALOADER.SAMPLER_TRAIN, len(dataset)
    if name == "TrainingSampler":
        return lambda seed: TrainingSampler(size, seed=seed)._infinite_indices()
    if name == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            [_with_categories(d) for d in dataset], cfg.DATALOADER.REPEAT_THRESHOLD
        )
        return lambda seed: RepeatFactorTrainingSampler(factors, seed=seed)._infinite_indices()
    if name == "RandomSubsetTrainingSampler":
        share = cfg.DATALOADER.RANDOM_SUBSET_RATIO
        return lambda seed: RandomSubsetTrainingSampler(
            size, share, seed_shuffle=seed, seed_subset=seed
        )._infinite_indices()
    raise ValueError(
        f"DATALOADER.SAMPLER_TRAIN is '{name}'; choose TrainingSampler, "
        "RepeatFactorTrainingSampler or RandomSubsetTrainingSampler"
    )
