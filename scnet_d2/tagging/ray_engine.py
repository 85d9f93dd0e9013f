"""Labels of many image files on the machines of a Ray cluster."""

from __future__ import annotations

import json
import logging
import os
import pickle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

from detectron2.config import CfgNode

from ..inference.predictor import ImageMapper
from .local_engine import BatchLabeller, ImageReader, LabelOptions, build_predictor

_OBJECT_STORE = 512 * 2**20  # bytes, of a cluster that is started here


class _Actor:
    """Holds the model in a process of the cluster."""

    def __init__(self, cfg: CfgNode, options: LabelOptions):
        self.label = BatchLabeller(build_predictor(cfg, options), options)

    def __call__(self, batch: dict) -> dict:
        chunks = [self.label(pickle.loads(samples)) for samples in batch["samples"]]
        return {"records": [json.dumps(records) for records in chunks]}


def _read(row: dict, reader: ImageReader) -> dict:
    # images of many sizes are no array: Arrow gets bytes
    return {"samples": pickle.dumps([reader[file] for file in json.loads(row["files"])])}


@contextmanager
def label_with_ray(
    cfg: CfgNode,
    files: Iterable[str],
    options: LabelOptions,
    *,
    address: str | None = None,
    actors: int | None = None,
) -> Iterator[Iterator[list[dict]]]:
    """Label image files on a Ray cluster; all its machines open them by the same paths.

    Args:
        cfg: a config with `MODEL.WEIGHTS`.
        files: paths.
        options: what is said about each image.
        address: of a running cluster; by default one is started on this machine.
        actors: processes that hold the model; by default one for each GPU, or on CPUs one for
            every second CPU.

    Yields:
        An iterator of the records of one chunk of files after the other, see `BatchLabeller`.

    Raises:
        ImportError: if Ray is not installed.
        ValueError: if the cluster has too few GPUs or CPUs for the actors.
    """
    try:
        import ray.data  # noqa: PLC0415 (an optional package)
    except ImportError as error:
        raise ImportError("--engine ray needs Ray: pip install 'scnet_d2[ray]'") from error
    with _cluster(ray, address, actors):
        cfg, resources = _place(ray.cluster_resources(), cfg, actors)
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        chunks = [{"files": json.dumps(chunk)} for chunk in _chunks(files, options.chunk_size)]
        dataset = (
            ray.data.from_items(chunks, override_num_blocks=len(chunks))
            .map(_read, fn_args=(ImageReader(ImageMapper(cfg), options.max_pixels),), num_cpus=1)
            .map_batches(_Actor, fn_constructor_args=(cfg, options), batch_size=1, **resources)
        )
        yield (json.loads(row["records"]) for row in dataset.iter_rows())


@contextmanager
def _cluster(ray, address: str | None, actors: int | None) -> Iterator[None]:
    """Join the cluster at an address, or start one; leave or end it afterwards."""
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
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


def _place(found: dict[str, float], cfg: CfgNode, actors: int | None) -> tuple[CfgNode, dict]:
    """The config for the cluster's devices, and what Ray Data is told of the actors."""
    from ray.data import ActorPoolStrategy  # noqa: PLC0415 (an optional package)

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
    strategy = ActorPoolStrategy(size=actors)
    return cfg, {"compute": strategy, "num_gpus": 1} if on_gpu else {"compute": strategy}


def _chunks(files: Iterable[str], size: int) -> Iterator[list[str]]:
    files = iter(files)
    while chunk := list(islice(files, size)):
        yield chunk
