"""Detectron2's `DefaultTrainer` with the project's data, optimizer, evaluation and table."""

import json
import logging
import os
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.engine import DefaultTrainer, TrainerBase, hooks
from detectron2.evaluation import COCOEvaluator, DatasetEvaluators
from detectron2.solver import LRMultiplier
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
)

from ..checkpoint import CheckpointError, SCNetCheckpointer, replace_file
from ..checkpoint.files import remove_partial_files
from ..data import (
    DatasetError,
    LabelPolicy,
    MultiLabelDatasetMapper,
    TrainLoader,
    get_multilabel_dicts,
)
from ..data.problems import counted
from ..evaluation import MultiLabelEvaluator, label_thresholds
from ..modeling import LabelHead
from ..modeling.test_time_augmentation import build_tta
from .autocast import CPUAutocast
from .checks import all_problems, check_evaluation_data, check_num_classes, class_names
from .hooks import BestCheckpointer
from .launch import lost_process
from .steps import AMPStep, NotFiniteError, Step
from .unreadable import CountUnreadable, MarkUnreadable, SkipUnreadable

logger = logging.getLogger(__name__)


class TrainingError(RuntimeError):
    """Training cannot go on; the message names the iteration and the remedy."""


class Trainer(DefaultTrainer):
    """Trains and evaluates what a config describes; the meta-architecture may be any."""

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg: a config with the project's keys.

        Raises:
            ValueError: if the number of classes of the model and of a data set differ, or the
                evaluation data cannot be loaded.
        """
        with all_problems(cfg):
            check_num_classes(cfg)
            check_evaluation_data(cfg)
            super().__init__(cfg)
        if not isinstance(self.train_loader, TrainLoader):
            raise TypeError(
                f"{type(self).__name__}.build_train_loader must return a loader that can be "
                "resumed: TrainLoader.from_config(cfg, mapper) takes any mapper"
            )
        fill_label_contexts(self.model, cfg)
        step = AMPStep if cfg.SOLVER.AMP.ENABLED else Step
        self._trainer = step(self.model, self.train_loader, self.optimizer)
        self._statistics = batch_norm_statistics(self.model)
        self._resumes = self._has_state = self._is_cut_off = False

    @classmethod
    def build_model(cls, cfg: CfgNode) -> torch.nn.Module:
        """The model; with `SOLVER.AMP.CPU` it runs in bfloat16 where that is safe."""
        model = super().build_model(cfg)
        if cfg.MODEL.DEVICE == "cpu":
            model = model.to(memory_format=torch.channels_last)
            if cfg.SOLVER.AMP.CPU:
                CPUAutocast(model)
        return model

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        """Loader of `DATASETS.TRAIN`."""
        return TrainLoader.from_config(cfg, MultiLabelDatasetMapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        """Loader of one data set for evaluation; an unreadable image does not stop it."""
        dicts = get_multilabel_dicts(dataset_name, LabelPolicy.from_config(cfg))
        mapper = MarkUnreadable(MultiLabelDatasetMapper(cfg, is_train=False))
        loader = build_detection_test_loader(
            dicts, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS
        )
        return CountUnreadable(loader, len(dicts), cfg.DATALOADER.MAX_BAD_IMAGES)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        """The optimizer that `SOLVER.OPTIMIZER` names."""
        if cfg.SOLVER.OPTIMIZER == "SGD":
            optimizer = super().build_optimizer(cfg, model)
        elif cfg.SOLVER.OPTIMIZER == "AdamW":
            params = get_default_optimizer_params(
                model,
                base_lr=cfg.SOLVER.BASE_LR,
                weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
                bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
                weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
            )
            adamw = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)
            optimizer = adamw(params, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)
        else:
            raise ValueError(
                f"SOLVER.OPTIMIZER is '{cfg.SOLVER.OPTIMIZER}'; choose 'SGD' or 'AdamW'"
            )
        for part, multiplier in _parts_with_own_rate(cfg, model):
            optimizer.param_groups = _with_part_apart(optimizer.param_groups, part, multiplier)
        return optimizer

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluators:
        """Image-level labels, and detection AP where `TEST.DETECTION_AP` asks for it."""
        output_dir = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
        evaluators = [
            MultiLabelEvaluator(
                dataset_name,
                threshold=label_thresholds(cfg, class_names(dataset_name)),
                top_k=cfg.TEST.LABEL_TOP_K,
                output_dir=output_dir,
                baselines=_baselines(cfg, dataset_name),
                class_groups=_class_groups(cfg, dataset_name),
                label_policy=LabelPolicy.from_config(cfg),
            )
        ]
        if cfg.TEST.DETECTION_AP:
            detection = COCOEvaluator(dataset_name, ("bbox",), output_dir=output_dir)
            _check_detection_json(detection, dataset_name)
            evaluators.append(detection)
        return DatasetEvaluators(evaluators)

    @classmethod
    def test(cls, cfg: CfgNode, model: torch.nn.Module, evaluators=None) -> dict:
        """Evaluate on `DATASETS.TEST`; with `TEST.AUG.ENABLED`, over its sizes and flips."""
        if cfg.TEST.AUG.ENABLED:
            model = build_tta(cfg, model)
            cfg = cfg.clone()
            cfg.defrost()
            cfg.INPUT.MIN_SIZE_TEST = 0  # views are made from the photograph as it is
        return super().test(cfg, SkipUnreadable(model), evaluators)

    @property
    def train_loader(self) -> TrainLoader:
        """Loader of the training batches."""
        return self._trainer.data_loader

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on where the run in `OUTPUT_DIR` ended, or load `MODEL.WEIGHTS`.

        Raises:
            CheckpointError: the checkpoint to resume from lacks what another program did not save.
            TrainingError: it has more iterations than `SOLVER.MAX_ITER`.
        """
        super().resume_or_load(resume)
        if self.start_iter > 0 and not self._has_state:
            raise self._no_state()
        self._resumes = resume
        self.train_loader.start = self.start_iter
        if resume and comm.is_main_process():
            remove_partial_files(self.cfg.OUTPUT_DIR)

    def state_dict(self) -> dict:
        """Detectron2's state; of optimizer and grad scaler, which its v0.6 leaves out; the seed."""
        step = {"iteration": self.iter, "optimizer": self.optimizer.state_dict()}
        if hasattr(self._trainer, "grad_scaler"):
            step["grad_scaler"] = self._trainer.grad_scaler.state_dict()
        return TrainerBase.state_dict(self) | {"_trainer": step, "seed": self.train_loader.seed}

    def load_state_dict(self, state_dict: dict) -> None:
        """Take over the state of a checkpoint; rates and the like are those of the config.

        Raises:
            CheckpointError, TrainingError: see `resume_or_load`.
        """
        step = state_dict.get("_trainer", {})
        if "optimizer" not in step or "seed" not in state_dict:
            raise self._no_state()
        trained = state_dict["iteration"] + 1
        if trained > self.max_iter:
            raise TrainingError(
                f"{self.checkpointer.report.file} has been trained for {trained} iterations, but "
                f"SOLVER.MAX_ITER is {self.max_iter}: nothing is left to train. Set it higher than "
                f"{trained} to go on, or evaluate with scnet eval"
            )
        TrainerBase.load_state_dict(self, state_dict)
        self._load_optimizer(step["optimizer"])
        if hasattr(self._trainer, "grad_scaler") and step.get("grad_scaler"):
            self._trainer.grad_scaler.load_state_dict(step["grad_scaler"])
        self.train_loader.seed = state_dict["seed"]
        self._has_state = True

    def _no_state(self) -> CheckpointError:
        file = self.checkpointer.report.file
        return CheckpointError(
            f"{file} cannot be resumed from: it lacks the state of optimizer and data that this "
            "program saves (Detectron2's own trainer does not). Start from its weights in a new "
            f"folder: MODEL.WEIGHTS {file} OUTPUT_DIR <folder>, without --resume"
        )

    def _load_optimizer(self, state: dict) -> None:
        """Take over momentum and the like, but learning rate, decay etc. as the config says."""
        built = [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]
        saved = state["param_groups"]
        same_sizes = [len(g["params"]) for g in saved] == [
            len(g["params"]) for g in self.optimizer.param_groups
        ]
        if not same_sizes or ("betas" in saved[0]) != ("betas" in built[0]):
            raise CheckpointError(
                f"{self.checkpointer.report.file}: its optimizer is another one, or groups the "
                "parameters otherwise: set SOLVER.OPTIMIZER, SOLVER.WEIGHT_DECAY* and "
                "SOLVER.BIAS_LR_FACTOR as they were, or start from its weights in a new folder"
            )
        self.optimizer.load_state_dict(state)
        if not isinstance(self.scheduler, LRMultiplier):
            return  # one of a subclass, whose rates may follow from those before
        self.scheduler.base_lrs = [group["initial_lr"] for group in built]
        rates = self.scheduler.get_lr()
        for group, config, rate in zip(self.optimizer.param_groups, built, rates):
            if group["initial_lr"] != config["initial_lr"]:
                logger.info(
                    "base learning rate %g of the config replaces %g of the checkpoint",
                    config["initial_lr"], group["initial_lr"],
                )  # fmt: skip
            group.update(config, lr=rate)

    def build_writers(self) -> list[EventWriter]:
        """None: `train` opens them, once it is known what they go on from."""
        return []

    def train(self) -> OrderedDict | None:
        """Train from `start_iter` on; says at the end which images could not be used."""
        if self._resumes and comm.is_main_process():
            cut_metrics(os.path.join(self.cfg.OUTPUT_DIR, "metrics.json"), self.start_iter)
        for hook in self._hooks:
            if isinstance(hook, hooks.PeriodicWriter):
                hook._writers = open_writers(self.cfg.OUTPUT_DIR, self.start_iter, self.max_iter)
        try:
            return super().train()
        except RuntimeError as error:
            if comm.get_world_size() > 1 and lost_process(error):
                raise TrainingError(
                    f"iteration {self.iter + self._is_cut_off}: process {comm.get_rank()} has lost "
                    "another process of this training, whose own log may tell why. Go on with "
                    f"--resume. ({type(error).__name__}: {error})"
                ) from error
            raise
        finally:
            if bad_images := self.train_loader.bad_images:
                logger.warning(
                    "left out, because it could not be used: %s\n%s",
                    counted(len(bad_images), "training image"), "\n".join(bad_images.values()),
                )  # fmt: skip

    def run_step(self) -> None:
        """One iteration, whose random numbers the seed and the iteration decide.

        Raises:
            TrainingError: loss or gradient is not finite, in this process or in another one.
            DatasetError: the processes have met too many images that cannot be read.
        """
        if self.iter in self.cfg.SOLVER.SKIP_ITERATIONS:
            next(self._trainer._data_loader_iter)
            files = ", ".join(self.train_loader.last_files)
            logger.info(
                "iteration %d is left out, as SOLVER.SKIP_ITERATIONS says: %s", self.iter, files
            )
            return
        statistics = [statistic.clone() for statistic in self._statistics]
        scalars = dict(self.storage.latest())
        entropy = self.train_loader.seed, comm.get_rank(), self.iter
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))
        try:
            super().run_step()
        except BaseException as error:  # raised before the optimizer's step
            self._is_cut_off = True
            self.storage.latest().clear()  # of what the forward pass has put there
            self.storage.latest().update(scalars)
            if not isinstance(error, FloatingPointError):
                raise
            for statistic, value in zip(self._statistics, statistics):
                statistic.copy_(value)
            raise self._not_finite(error) from error
        bad_images = len(self.train_loader.bad_images)
        self.storage.put_scalar("bad_images", bad_images, smoothing_hint=False)

    def after_train(self) -> None:
        """Detectron2's, with the number of the last iteration that is in the weights.

        From it the hooks tell whether training came to its end and is to be evaluated.
        """
        self.iter = min(self.iter, self.max_iter)
        if self._is_cut_off and self.iter + 1 == self.max_iter:
            self.iter -= 1
        super().after_train()

    def _not_finite(self, error: FloatingPointError) -> TrainingError:
        """Save the state before this iteration beside the checkpoints, and say how to go on."""
        bad_iteration, kept = self.iter, "There is no state before it."
        if bad_iteration > 0:
            self.iter -= 1  # the last one that is in the weights
            kept = self._keep(f"before_non_finite_{bad_iteration:07d}")
            self.iter = bad_iteration
        if isinstance(error, NotFiniteError):  # in all processes: the first to end stops the rest
            comm.synchronize()
        last = next(iter(self.checkpointer.resumable()), "the beginning")
        mark = os.path.join(self.cfg.OUTPUT_DIR, "last_checkpoint")
        return TrainingError(
            f"iteration {bad_iteration}: {error}. Nothing of it is in the weights. {kept} --resume "
            f"goes on from {last}, or from another file whose name you write into {mark}. Where "
            "losses were growing, add a lower SOLVER.BASE_LR or SOLVER.CLIP_GRADIENTS.ENABLED "
            "True; where this batch alone is bad, correct its boxes or leave it out with "
            f'SOLVER.SKIP_ITERATIONS "[{bad_iteration}]"'
        )

    def _keep(self, name: str) -> str:
        """Save a state that may have diverged: not to resume from, unless the user marks it."""
        folder = self.cfg.OUTPUT_DIR
        try:
            self.checkpointer.save_unmarked(name, iteration=self.iter)
        except CheckpointError as error:
            return f"The state before it could not be kept: {error}."
        return f"The state before it is kept as {folder}/{name}.pth."

    def validate(self) -> dict:
        """Evaluate on the first of `DATASETS.VAL`; metrics under the key "val"."""
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.DATASETS.TEST = self.cfg.DATASETS.VAL[:1]
        results = self.test(cfg, self.model)
        return {"val": results["multilabel"]} if results else {}

    def build_hooks(self) -> list[hooks.HookBase]:
        """Detectron2's hooks; with `DATASETS.VAL`, periodic validation and the best checkpoint."""
        self.checkpointer = self._build_checkpointer()  # before hooks keep Detectron2's own
        ret = super().build_hooks()
        if not self.cfg.DATASETS.VAL:
            return ret
        period = self.cfg.TEST.EVAL_PERIOD
        i = next(i for i, hook in enumerate(ret) if isinstance(hook, hooks.EvalHook))
        ret[i]._period = 0  # DATASETS.TEST is evaluated once, at the end
        validation = [hooks.EvalHook(period, self.validate)]
        if comm.is_main_process():
            names = self.checkpointer.class_names
            best = BestCheckpointer(period, self.model, self.cfg.OUTPUT_DIR, "val/mAP", names)
            validation.append(best)
        return ret[:i] + validation + ret[i:]

    def _build_checkpointer(self) -> SCNetCheckpointer:
        names, train = self.cfg.DATASETS.CLASS_NAMES, self.cfg.DATASETS.TRAIN
        return SCNetCheckpointer(
            self.model,
            self.cfg.OUTPUT_DIR,
            init_trunk=self.cfg.MODEL.SCNET.INIT_TRUNK_FROM_DETECTOR,
            class_names=names or (class_names(train[0]) if train else ()),
            kept=self.cfg.SOLVER.CHECKPOINTS_KEPT,
            trainer=weakref.proxy(self),
        )


def fill_label_contexts(model: torch.nn.Module, cfg: CfgNode) -> None:
    """Give label heads what they need of the training set: counts, co-occurrence, word vectors."""
    heads = [m for m in model.modules() if isinstance(m, LabelHead) and m.needs]
    if not heads:
        return
    names = list(cfg.DATASETS.CLASS_NAMES) or class_names(cfg.DATASETS.TRAIN[0])
    dicts = get_multilabel_dicts(cfg.DATASETS.TRAIN, LabelPolicy.from_config(cfg))
    for head in heads:
        head.fill_context(names, [d["image_labels"] for d in dicts])


def _parts_with_own_rate(
    cfg: CfgNode, model: torch.nn.Module
) -> Iterator[tuple[torch.nn.Module, float]]:
    """Parts of the model whose learning rate is another one, and its multiplier."""
    if cfg.SOLVER.BACKBONE_MULTIPLIER != 1:
        bottom_up = getattr(model.backbone, "bottom_up", model.backbone)
        yield bottom_up, cfg.SOLVER.BACKBONE_MULTIPLIER
    head = getattr(model, "head", None)
    if cfg.SOLVER.LABEL_HEAD_MULTIPLIER != 1 and isinstance(head, LabelHead):
        yield head, cfg.SOLVER.LABEL_HEAD_MULTIPLIER


def _with_part_apart(groups: list[dict], part: torch.nn.Module, multiplier: float) -> list[dict]:
    """Parameter groups, those of a part of the model apart and with its learning rate."""
    of_part = {id(parameter) for parameter in part.parameters()}
    ret = []
    for group in groups:
        for inside, rate in ((False, group["lr"]), (True, group["lr"] * multiplier)):
            params = [p for p in group["params"] if (id(p) in of_part) == inside]
            if params:
                ret.append({**group, "params": params, "lr": rate})
    return ret


def batch_norm_statistics(model: torch.nn.Module) -> list[torch.Tensor]:
    """Running statistics, which a forward pass changes before the loss is known."""
    return [
        buffer
        for module in model.modules()
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
        for buffer in module.buffers(recurse=False)
    ]


def open_writers(output_dir: str, start_iter: int, max_iter: int) -> list[EventWriter]:
    """Detectron2's writers; TensorBoard hides what a killed run wrote of later iterations."""
    os.makedirs(output_dir, exist_ok=True)
    return [
        CommonMetricPrinter(max_iter),
        JSONWriter(os.path.join(output_dir, "metrics.json")),
        TensorboardXWriter(output_dir, purge_step=start_iter or None),
    ]


def cut_metrics(path: str, iteration: int) -> None:
    """Take what a resumed run writes again out of its metrics.json: lines from `iteration` on.

    A half-written last line goes with them.
    """
    if not os.path.exists(path):
        return
    kept = []
    with open(path) as file:
        for line in file:
            try:
                if json.loads(line)["iteration"] < iteration:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                logger.warning("%s: left out a line that is not whole: %.60s", path, line.strip())
    replace_file(path, lambda file: file.write("".join(kept).encode()))


def _baselines(cfg: CfgNode, dataset_name: str) -> dict[str, Callable[[], np.ndarray]]:
    """Functions that give scores (N, C) without a model, named by the registration of the data."""
    baselines = MetadataCatalog.get(dataset_name).get("baselines")
    train, policy = cfg.DATASETS.TRAIN[:1], LabelPolicy.from_config(cfg)
    if not (baselines and train and MetadataCatalog.get(train[0]).get("baselines") == baselines):
        return {}

    def scores(baseline):
        return baseline(*(get_multilabel_dicts(name, policy) for name in (train, dataset_name)))

    return {row: partial(scores, baseline) for row, baseline in baselines.items()}


def _class_groups(cfg: CfgNode, dataset_name: str) -> dict[str, list[str]]:
    """Classes over which a mean AP of their own is reported."""
    metadata = MetadataCatalog.get(dataset_name)
    groups = dict(metadata.get("class_groups", {}))
    if cfg.TEST.MIN_TRAIN_IMAGES:
        dicts = get_multilabel_dicts(cfg.DATASETS.TRAIN, LabelPolicy.from_config(cfg))
        images = Counter(label for d in dicts for label in d["image_labels"])
        groups[f"min{cfg.TEST.MIN_TRAIN_IMAGES}"] = [
            name
            for i, name in enumerate(metadata.thing_classes)
            if images[i] >= cfg.TEST.MIN_TRAIN_IMAGES
        ]
    return {group: names for group, names in groups.items() if names}


def _check_detection_json(evaluator: COCOEvaluator, dataset_name: str) -> None:
    """COCOEvaluator reads the json itself, and only as COCO writes it: boxes and ids as they are.

    Raises:
        DatasetError: for what this package's loader reads and COCOEvaluator would pass over.
    """
    coco = evaluator._coco_api  # what it has read
    for annotation in coco.anns.values():
        known = annotation["image_id"] in coco.imgs and annotation["category_id"] in coco.cats
        if not (known and annotation.get("bbox")):
            raise DatasetError(
                f"{dataset_name}: annotation {annotation['id']!r} has no bbox, or an id of another "
                "type than in 'images' and 'categories'. TEST.DETECTION_AP needs them as COCO "
                "writes them; correct the json or set it False."
            )
