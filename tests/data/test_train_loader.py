"""The batches of several processes are those of one, and their bad images are counted together."""

import random
from itertools import chain

from scnet_d2.data import DatasetError, TrainLoader

import pytest
from conftest import small_config
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm


@pytest.fixture
def mixed_orientations():
    """Eleven images, in a random half of which height and width change places."""
    name, chance = "mixed_orientations", random.Random(0)
    sizes = [chance.choice([(4, 3), (3, 4)]) for _ in range(11)]
    dicts = [
        {"file_name": str(i), "width": w, "height": h, "annotations": [{"category_id": i % 2}]}
        for i, (w, h) in enumerate(sizes)
    ]
    DatasetCatalog.register(name, lambda: dicts)
    MetadataCatalog.get(name).thing_classes = ["cat", "dog"]
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def batches(monkeypatch, config, rank, world_size, start=0):
    """File names of the first ten batches of a process, from `start` on."""
    monkeypatch.setattr(comm, "get_rank", lambda: rank)
    monkeypatch.setattr(comm, "get_world_size", lambda: world_size)
    loader = TrainLoader.from_config(config, lambda d: {"file_name": d["file_name"]})
    loader.start = start
    return [[x["file_name"] for x in batch] for batch, _ in zip(loader, range(10 - start))]


SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_several_processes_draw_the_batches_of_one(monkeypatch, mixed_orientations, seed, sampler):
    config = small_config(
        "DATASETS.TRAIN", (mixed_orientations,), "SEED", seed, "SOLVER.IMS_PER_BATCH", 4,
        "DATALOADER.SAMPLER_TRAIN", sampler, "DATALOADER.NUM_WORKERS", 0,
        "DATALOADER.MAX_BAD_IMAGES", 1.0,
    )  # fmt: skip
    config.DATALOADER.RANDOM_SUBSET_RATIO = 0.9  # a key that v0.6 reads and does not have
    one = batches(monkeypatch, config, 0, 1)
    assert len({tuple(batch) for batch in one}) > 5
    for world_size in (2, 4):
        of_each = [batches(monkeypatch, config, rank, world_size) for rank in range(world_size)]
        together = [list(chain(*parts)) for parts in zip(*of_each)]
        assert list(map(sorted, together)) == list(map(sorted, one))
        late = batches(monkeypatch, config, 1, world_size, start=4)
        assert late == of_each[1][4:]


def test_bad_images_of_all_processes_are_counted_by_name_and_the_share_is_not_rounded_up():
    loader = TrainLoader(
        [{"file_name": str(i), "width": 2, "height": 1} for i in range(10)],
        lambda d: d,
        build_sampler=lambda _: iter(range(10)),
        seed=0,
        batch_size=1,
        max_bad_images=0.29,
    )
    loader.count_bad_images({"a": "cannot be read", "b": "cannot be read"})
    loader.count_bad_images({"b": "cannot be read"})
    assert set(loader.bad_images) == {"a", "b"}
    with pytest.raises(DatasetError, match=r"3 of 10 training images .* allows a share of 0\.29"):
        loader.count_bad_images({"c": "cannot be read"})
