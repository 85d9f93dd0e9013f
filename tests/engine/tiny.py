"""Training of a model of a few numbers on images of four numbers, without files."""

import itertools
from typing import ClassVar

from scnet_d2.data import ImageError, TrainLoader
from scnet_d2.engine import Trainer

import torch
from conftest import small_config
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn

BAD, STEEP = float("nan"), 1e9  # pixels: the loss is not finite; the loss is, its gradient is not
IMAGES = 8


@META_ARCH_REGISTRY.register()
class TinyModel(nn.Module):
    """Batch norm and a linear layer whose output should be 1."""

    def __init__(self, cfg):
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(4), nn.Linear(4, 1)
        self.register_buffer("pixel_mean", torch.zeros(1))

    def forward(self, batched_inputs):
        x = torch.stack([x["image"] for x in batched_inputs]).to(self.pixel_mean.device)  # (N, 4)
        get_event_storage().put_scalar("pixels", x.numel())
        loss = (self.linear(self.norm(x)) - 1).square().mean()
        if (x == STEEP).any():
            loss = loss + (0 * self.linear.weight).square().sum().sqrt()
        return {"loss_tiny": loss}


class TinyTrainer(Trainer):
    """Draws images 0, 1, 2, ... in turn, so that iteration i of batch size 2 has 2 i and 2 i + 1.

    Attributes:
        pixel: image → the value of one of its pixels.
        unreadable: images that cannot be read.
    """

    pixel: ClassVar[dict[int, float]] = {}
    unreadable: ClassVar[frozenset[int]] = frozenset()

    @classmethod
    def build_train_loader(cls, cfg):
        def read(dataset_dict):
            i = dataset_dict["image_id"]
            if i in cls.unreadable:
                raise ImageError(f"image '{i}.png' cannot be read.")
            image = torch.randn(4, generator=torch.Generator().manual_seed(i))
            image[0] = cls.pixel.get(i, image[0])
            return {"image": image, "file_name": f"{i}.png"}

        images = range(IMAGES)
        return TrainLoader(
            [{"image_id": i, "file_name": f"{i}.png", "width": 2, "height": 1} for i in images],
            read,
            build_sampler=lambda _: itertools.cycle(images),
            seed=3,
            batch_size=cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size(),
            max_bad_images=cfg.DATALOADER.MAX_BAD_IMAGES,
        )


def tiny_trainer(output, *opts, resume=False, pixel=None, unreadable=()):
    """A trainer of four iterations with a checkpoint after each second one."""
    cfg = small_config(
        "MODEL.META_ARCHITECTURE", "TinyModel", "OUTPUT_DIR", str(output),
        "DATASETS.TRAIN", (), "DATASETS.VAL", (), "DATASETS.TEST", (),
        "SOLVER.OPTIMIZER", "SGD", "SOLVER.IMS_PER_BATCH", 2,
        "SOLVER.BASE_LR", 0.1, "SOLVER.STEPS", (), "SOLVER.WARMUP_ITERS", 0, "SOLVER.MAX_ITER", 4,
        "SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR",
        "SOLVER.CLIP_GRADIENTS.ENABLED", False, *opts,
    )  # fmt: skip
    drawn = {"pixel": pixel or {}, "unreadable": frozenset(unreadable)}
    torch.manual_seed(0)
    trainer = type("TinyTrainer", (TinyTrainer,), drawn)(cfg)
    trainer.resume_or_load(resume=resume)
    return trainer
