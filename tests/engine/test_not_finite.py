"""A loss or gradient that is not finite: what is kept of the run, and how it goes on."""

import json
import re

from scnet_d2.checkpoint import read_checkpoint
from scnet_d2.data import DatasetError
from scnet_d2.engine import Trainer, TrainingError
from scnet_d2.engine.steps import RPNCheck

import pytest
import torch
from conftest import make_input, small_config
from detectron2.engine import HookBase
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from tiny import BAD, STEEP, tiny_trainer

BAD_BATCH = {6: BAD}  # in iteration 3


class Keep(HookBase):
    """The weights and the rate after each iteration."""

    def __init__(self):
        self.weights, self.rates = {}, {}

    def after_step(self):
        state = self.trainer.model.state_dict()
        self.weights[self.trainer.iter] = {k: v.clone() for k, v in state.items()}

    def before_step(self):
        self.rates[self.trainer.iter] = [g["lr"] for g in self.trainer.optimizer.param_groups]


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=0, atol=0, msg=name)


def fail(output, *opts, pixel=None):
    """Train until the loss is not finite; the message, and what was kept before."""
    trainer, keep = tiny_trainer(output, *opts, pixel=pixel or BAD_BATCH), Keep()
    trainer.register_hooks([keep])
    with pytest.raises(TrainingError) as error:
        trainer.train()
    return str(error.value), keep


def finish(output, *opts, pixel=None):
    """Resume and train to the end."""
    trainer, keep = tiny_trainer(output, *opts, resume=True, pixel=pixel or BAD_BATCH), Keep()
    trainer.register_hooks([keep])
    trainer.train()
    return trainer, keep


def test_the_state_before_is_kept_but_neither_marked_nor_pruned_nor_pruning(tmp_path):
    message, keep = fail(tmp_path, "SOLVER.CHECKPOINTS_KEPT", 1)
    checkpoints = {"model_0000001.pth", "before_non_finite_0000003.pth"}
    assert {p.name for p in tmp_path.glob("*.pth")} == checkpoints
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    kept = read_checkpoint(str(tmp_path / "before_non_finite_0000003.pth"))
    assert kept["iteration"] == kept["trainer"]["iteration"] == 2
    assert_same(kept["model"], keep.weights[2])  # batch norm's statistics too
    for text in ("iteration 3", "loss_tiny nan", "6.png, 7.png", "model_0000001.pth", "[3]"):
        assert text in message
    finish(tmp_path, "SOLVER.SKIP_ITERATIONS", [3], "SOLVER.CHECKPOINTS_KEPT", 1)
    assert (tmp_path / "before_non_finite_0000003.pth").exists()


def test_the_kept_state_is_resumed_from_where_the_user_marks_it(tmp_path):
    _, keep = fail(tmp_path)
    (tmp_path / "last_checkpoint").write_text("before_non_finite_0000003.pth")
    trainer = tiny_trainer(tmp_path, resume=True)
    assert trainer.start_iter == 3
    assert_same(trainer.model.state_dict(), keep.weights[2])


def test_a_resumed_run_that_skips_the_batch_equals_one_that_always_did(tmp_path):
    fail(tmp_path / "failed")
    opts = ("SOLVER.SKIP_ITERATIONS", [3])
    resumed, keep = finish(tmp_path / "failed", *opts)
    always, kept = finish(tmp_path / "always", *opts)
    assert resumed.start_iter == 2
    assert always.start_iter == 0
    assert_same(keep.weights[3], kept.weights[3])
    assert_same(keep.weights[3], keep.weights[2])  # nothing was learnt of it


def test_the_same_batch_fails_again_where_nothing_was_changed(tmp_path):
    fail(tmp_path)
    with pytest.raises(TrainingError, match="iteration 3"):
        finish(tmp_path)


def test_a_resumed_run_takes_the_learning_rate_of_its_config(tmp_path):
    fail(tmp_path)
    opts = ("SOLVER.BASE_LR", 0.01, "SOLVER.STEPS", (3,), "SOLVER.SKIP_ITERATIONS", [3])
    trainer, keep = finish(tmp_path, *opts)
    assert keep.rates == {2: pytest.approx([0.01] * 2), 3: pytest.approx([0.001] * 2)}
    momentum = read_checkpoint(str(tmp_path / "model_0000001.pth"))["trainer"]["_trainer"]
    assert len(momentum["optimizer"]["state"]) == 4
    assert all(g["initial_lr"] == 0.01 for g in trainer.optimizer.param_groups)


@pytest.mark.parametrize(
    "remedy", [("SOLVER.BASE_LR", 1e-3), ("SOLVER.CLIP_GRADIENTS.ENABLED", True)]
)
def test_a_diverged_run_goes_on_with_a_lower_rate_or_clipping(tmp_path, remedy):
    opts = (
        "SOLVER.MAX_ITER", 40, "SOLVER.BASE_LR", 0.5, "SOLVER.MOMENTUM", 0.0,
        "SOLVER.CHECKPOINT_PERIOD", 5,
    )  # fmt: skip
    images = {0: 0.0}
    message, _ = fail(tmp_path, *opts, pixel=images)
    assert int(re.match(r"iteration (\d+)", message)[1]) > 4  # there are checkpoints
    with pytest.raises(TrainingError, match=re.escape(message.split(".")[0])):
        finish(tmp_path, *opts, pixel=images)
    trainer, _ = finish(tmp_path, *opts, *remedy, pixel=images)
    assert trainer.start_iter > 0
    assert trainer.iter == 40


def test_a_gradient_that_is_not_finite_stops_before_it_reaches_the_weights(tmp_path):
    message, keep = fail(tmp_path, pixel={6: STEEP})
    assert "iteration 3: the gradient is not finite" in message
    assert "6.png, 7.png" in message
    kept = read_checkpoint(str(tmp_path / "before_non_finite_0000003.pth"))
    assert_same(kept["model"], keep.weights[2])


def test_in_the_first_iteration_there_is_no_state_to_keep(tmp_path):
    message, _ = fail(tmp_path, pixel={0: BAD})
    assert "There is no state before it" in message
    assert "goes on from the beginning" in message
    assert not list(tmp_path.glob("*.pth"))


def test_a_state_that_cannot_be_written_does_not_hide_which_batch_is_bad(tmp_path):
    (tmp_path / "before_non_finite_0000003.pth").mkdir()
    message, _ = fail(tmp_path)
    assert "could not be kept: " in message
    assert "6.png, 7.png" in message


def test_metrics_json_has_no_row_of_an_iteration_that_was_not_trained(tmp_path):
    fail(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [2]
    assert {"pixels", "total_loss", "bad_images", "lr"} <= rows[0].keys()


def test_a_fault_in_the_last_iteration_leaves_no_evaluation(tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "test", classmethod(lambda *_: {"multilabel": {"mAP": 50.0}}))
    with pytest.raises(DatasetError):
        tiny_trainer(tmp_path, unreadable=[7]).train()  # of iteration 3
    rows = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [2]
    assert not any("mAP" in key for key in rows[0])
    tiny_trainer(tmp_path, resume=True).train()
    last = json.loads((tmp_path / "metrics.json").read_text().splitlines()[-1])
    assert (last["iteration"], last["multilabel/mAP"]) == (4, 50.0)


def test_an_rpn_whose_predictions_are_not_finite_lets_the_forward_pass_go_to_its_end():
    model, inputs = build_model(small_config()), [make_input([[8, 8, 60, 70]], [1])]
    with torch.no_grad():
        model.proposal_generator.rpn_head.anchor_deltas.bias[0] = BAD
    with EventStorage(), pytest.raises(FloatingPointError, match="Predicted boxes or scores"):
        model(inputs)  # Detectron2
    check = RPNCheck(model.proposal_generator)
    with EventStorage():
        losses = model(inputs)
        assert not check.finite
        sum(losses.values()).backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        with torch.no_grad():
            model.proposal_generator.rpn_head.anchor_deltas.bias[0] = 0
        model(inputs)
        assert check.finite
