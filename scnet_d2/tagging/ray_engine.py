"""Labels of many image files on the machines of a Ray cluster."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from typing import Any

from detectron2.config import CfgNode

from ..inference.predictor import ImageMapper
from .local_engine import BatchTagger, ImageReader, TagOptions, build_predictor

IN_FLIGHT = 128 * 2**20  # bytes of images that wait for an actor at most, unless one has more
_OBJECT_STORE = 512 * 2**20  # bytes, of a cluster that is started here
_CHUNKS = 2  # of an actor: the one in work and the next


def images_in_flight(cfg: CfgNode, options: TagOptions) -> int:
    """How many images are read ahead for an actor: two batches, or as many as `IN_FLIGHT` holds.

    Each is an object of its own in Ray's store, of the size that the model gets: one byte for each
    of three channels and at most `INPUT.MIN_SIZE_TEST` x `INPUT.MAX_SIZE_TEST` pixels. With a
    `MIN_SIZE_TEST` of 0 images keep their size, which `max_pixels` limits.
    """
    pixels = cfg.INPUT.MIN_SIZE_TEST * cfg.INPUT.MAX_SIZE_TEST or options.max_pixels
    return max(1, min(2 * options.batch_size, IN_FLIGHT // (3 * pixels)))


def read_ahead(
    start: Callable[[Any], Any], finish: Callable[[Any], Any], items: Iterable, count: int
) -> Iterator:
    """Results for items in order, while the next ones are being worked on.

    Args:
        start: begins the work on an item.
        finish: waits for what `start` gave, and returns the result.
        items: drawn as they are needed.
        count: at most so many are begun and not yet finished.
    """
    begun: deque = deque()
    for item in items:
        if len(begun) == count:
            yield finish(begun.popleft())
        begun.append(start(item))
    while begun:
        yield finish(begun.popleft())


class _Actor:
    """Holds the model in a process of the cluster."""

    def __init__(self, cfg: CfgNode, options: TagOptions):
        import ray  # noqa: PLC0415 (an optional package)

        self.ray = ray
        self.read = ray.remote(num_cpus=1)(_read)
        self.reader = ImageReader(ImageMapper(cfg), options.max_pixels, fast_jpeg=options.fast_jpeg)
        self.count = images_in_flight(cfg, options)
        self.tag = BatchTagger(build_predictor(cfg, options), options)

    def tag_files(self, files: list[str]) -> list[dict]:
        """Records of one chunk of files."""
        return self.tag(read_ahead(self._start, self._finish, files, self.count))

    def _start(self, file: str) -> Any:
        return self.read.remote(self.reader, file)

    def _finish(self, reference: Any) -> dict:
        sample = self.ray.get(reference)  # its image lies in Ray's store: a copy lets it go
        return sample | {"image": sample["image"].copy()} if "image" in sample else sample


def _read(reader: ImageReader, file: str) -> dict:
    return reader[file]


@contextmanager
def tag_with_ray(
    cfg: CfgNode,
    files: Iterable[str],
    options: TagOptions,
    *,
    address: str | None = None,
    actors: int | None = None,
) -> Iterator[Iterator[list[dict]]]:
    """Tag image files on a Ray cluster; all its machines open them by the same paths.

    Args:
        cfg: a config with `MODEL.WEIGHTS`.
        files: paths, drawn as they are needed.
        options: what is said about each image.
        address: of a running cluster; by default one is started on this machine.
        actors: processes that hold the model; by default one for each GPU, or on CPUs one for
            every second CPU.

    Yields:
        An iterator of the records of one chunk of files after the other, see `BatchTagger`.

    Raises:
        ImportError: if Ray is not installed.
        ValueError: if the cluster has too few GPUs or CPUs for the actors.
    """
    try:
        import ray  # noqa: PLC0415 (an optional package)
    except ImportError as error:
        raise ImportError("--engine ray needs Ray: pip install 'scnet_d2[ray]'") from error
    with _cluster(ray, address, actors):
        cfg, count, resources = _place(ray.cluster_resources(), cfg, actors)
        remote = ray.remote(**resources)(_Actor)
        pool = [remote.remote(cfg, options) for _ in range(count)]
        yield _records(ray, pool, _chunks(files, options.chunk_size))


def _records(ray, pool: list, chunks: Iterator[list[str]]) -> Iterator[list[dict]]:
    """The records of each chunk, in order; the actors take turns."""
    turns = cycle(pool)

    def start(chunk: list[str]) -> Any:
        return next(turns).tag_files.remote(chunk)

    return read_ahead(start, ray.get, chunks, _CHUNKS * len(pool))


@contextmanager
def _cluster(ray, address: str | None, actors: int | None) -> Iterator[None]:
    """Join the cluster at an address, or start one; leave or end it afterwards."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    own = {
        "num_cpus": max(os.cpu_count() or 1, (actors or 1) + 1),
        "object_store_memory": _OBJECT_STORE,
        "include_dashboard": False,
    }
    ray.init(
        address or "local",
        **({} if address else own),
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    try:
        yield
    finally:
        ray.shutdown()


def _place(
    found: dict[str, float], cfg: CfgNode, actors: int | None
) -> tuple[CfgNode, int, dict[str, int]]:
    """The config for the cluster's devices, the number of actors, and what each of them takes."""
    cpus, gpus = int(found.get("CPU", 0)), int(found.get("GPU", 0))
    on_gpu = cfg.MODEL.DEVICE.startswith("cuda") and gpus > 0
    if not on_gpu:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.DEVICE = "cpu"
    actors = actors or (gpus if on_gpu else max(cpus // 2, 1))
    if actors > (gpus if on_gpu else cpus - 1):
        raise ValueError(
            f"{actors} actors do not fit the cluster's {gpus} GPUs and {cpus} CPUs (each takes "
            "one, and a CPU must remain to read images): choose a smaller --ray-actors"
        )
    return cfg, actors, {"num_gpus": 1, "num_cpus": 0} if on_gpu else {"num_cpus": 1}


def _chunks(files: Iterable[str], size: int) -> Iterator[list[str]]:
    files = iter(files)
    while chunk := list(islice(files, size)):
        yield chunk
