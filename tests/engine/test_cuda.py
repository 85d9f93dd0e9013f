"""What a machine with GPUs alone runs: mixed precision, loader processes beside CUDA, NCCL."""

import itertools

from scnet_d2.data import TrainLoader
from scnet_d2.engine import Trainer, TrainingError

import pytest
import torch
from conftest import make_input, needs_cuda, small_config
from detectron2.engine import launch as detectron2_launch
from detectron2.utils import comm
from tiny import BAD, tiny_trainer

pytestmark = needs_cuda
MIXED = ("MODEL.DEVICE", "cuda", "SOLVER.AMP.ENABLED", True)


class OneImage(Trainer):
    """Trains on one image, which a loader process reads."""

    @classmethod
    def build_train_loader(cls, cfg):
        image = make_input([[8, 8, 60, 70]], [1])
        return TrainLoader(
            [{"width": 128, "height": 96}], lambda _: dict(image),
            build_sampler=lambda _: itertools.repeat(0), seed=0, batch_size=1, num_workers=1,
        )  # fmt: skip


def test_scnet_trains_in_mixed_precision_beside_a_loader_process(tmp_path):
    no_data = ("DATASETS.VAL", (), "DATASETS.TEST", (), "TEST.EVAL_PERIOD", 0)
    cfg = small_config("SOLVER.MAX_ITER", 3, "OUTPUT_DIR", str(tmp_path), *no_data, *MIXED)
    trainer = OneImage(cfg)
    before = [p.clone() for p in trainer.model.parameters() if p.requires_grad]
    trainer.train()
    after = [p for p in trainer.model.parameters() if p.requires_grad]
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in after)
    assert any((a != b).any() for a, b in zip(after, before))


def test_mixed_precision_resumes_with_its_grad_scaler(tmp_path):
    whole = tiny_trainer(tmp_path, *MIXED)
    whole._trainer.grad_scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
    whole.train()
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    resumed = tiny_trainer(tmp_path, *MIXED, resume=True)
    assert resumed._trainer.grad_scaler.get_scale() == 1024.0
    resumed.train()
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, msg=name)


def test_mixed_precision_stops_at_a_loss_that_is_not_finite(tmp_path):
    with pytest.raises(TrainingError, match=r"iteration 3: the loss is not finite.*6\.png, 7\.png"):
        tiny_trainer(tmp_path, *MIXED, pixel={6: BAD}).train()
    assert (tmp_path / "before_non_finite_0000003.pth").exists()


def train_with_a_bad_loss(folder):
    """On process 1 of two; the end of each goes to a file."""
    opts = ("MODEL.DEVICE", "cuda", "SOLVER.IMS_PER_BATCH", 4)
    try:
        tiny_trainer(folder, *opts, pixel={7: BAD}).train()
    except TrainingError as error:
        (folder / f"end{comm.get_rank()}").write_text(str(error))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_both_processes_of_nccl_stop_where_one_has_a_bad_loss(tmp_path):
    detectron2_launch(train_with_a_bad_loss, 2, dist_url="auto", args=(tmp_path,))
    one, other = ((tmp_path / f"end{rank}").read_text() for rank in (0, 1))
    assert one == other
    assert one.startswith("iteration 1: process 1 of 2: the loss is not finite")
