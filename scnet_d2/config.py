"""Configuration keys that SCNet adds to Detectron2's own."""

import logging
import os
import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

logger = logging.getLogger(__name__)

CONFIGS = Path(__file__).parent / "model_zoo" / "configs"


class ConfigError(ValueError):
    """A config cannot be used; the message names the file or the key, and the remedy."""


def load_config(config_file: str | os.PathLike, opts: Sequence[Any] = ()) -> CN:
    """Detectron2's keys and the project's, as a config file and the command line set them.

    Unlike with `CfgNode.merge_from_file`, the file cannot run code.

    Args:
        config_file: a yaml file, or the name of a config that comes with the package.
        opts: KEY, VALUE, KEY, VALUE, ...

    Raises:
        ConfigError: naming the file or the command line, and the key.
    """
    cfg = get_cfg()
    add_scnet_config(cfg)
    file = find_config(config_file)
    if not file.is_file():
        raise no_config(config_file)
    try:
        cfg.merge_from_file(os.fspath(file), allow_unsafe=False)
    except Exception as error:  # Detectron2 and yaml raise nearly anything
        raise ConfigError(f"config file '{config_file}': {_explain(error, cfg)}") from error
    if late := [o for o in opts if isinstance(o, str) and o.startswith("--")]:
        raise ConfigError(
            f"command line: {late[0]} stands after {opts[0]}; options stand before config keys"
        )
    if joined := [o for o in opts[::2] if re.match(r"[\w.]+=", str(o))]:
        raise ConfigError(f"command line: write a space for the = of {joined[0]}: KEY VALUE")
    if len(opts) % 2:
        raise ConfigError(f"command line: key {opts[-1]} has no value; give KEY VALUE pairs")
    try:
        cfg.merge_from_list(list(opts))
    except Exception as error:
        raise ConfigError(f"command line: {_explain(error, cfg)}") from error
    for part, key in ((cfg, "OUTPUT_DIR"), (cfg.MODEL, "WEIGHTS"), (cfg.TEST, "LABEL_THRESHOLDS")):
        part[key] = os.path.expanduser(part[key])
    use_timm_pixels(cfg)
    return cfg


def find_config(name: str | os.PathLike) -> Path:
    """The file of a config.

    Args:
        name: of a file; or of a config that comes with the package, with or without .yaml, such as
            VOC-MultiLabel/scnet_R_50_FPN.

    Returns:
        The file that there is, or else the path as it was given.
    """
    path = Path(name).expanduser()
    return path if path.is_file() else shipped_config(os.fspath(name)) or path


def shipped_config(name: str) -> Path | None:
    """The file of a config that comes with the package; None where there is none of the name."""
    name = name.removeprefix("configs/")  # as they are named in a clone
    files = (CONFIGS / f"{name}{ending}" for ending in ("", ".yaml"))
    return next((file for file in files if file.is_file()), None)


def no_config(name: str | os.PathLike) -> ConfigError:
    """The error for a config that is not there; tells the nearest names of those of the package."""
    names = (x.relative_to(CONFIGS).with_suffix("").as_posix() for x in CONFIGS.rglob("*.yaml"))
    close = get_close_matches(os.fspath(name).removesuffix(".yaml"), names, 3, cutoff=0.4)
    hint = f"; did you mean {' or '.join(close)}?" if close else "; `scnet models` lists configs"
    return ConfigError(f"config file '{name}': it does not exist{hint}")


def read_run_config(config_file: str | os.PathLike) -> dict[str, Any]:
    """What the config.yaml of a run says, of this program's version or of another.

    Returns:
        The file as it is; `MODEL` and `DATASETS` are dicts, empty where it lacks them.

    Raises:
        ConfigError: if it is no config.
    """
    try:
        with open(config_file, encoding="utf-8") as f:
            content = yaml.safe_load(f) or {}
        parts = {key: dict(content.get(key) or {}) for key in ("MODEL", "DATASETS")}
    except (AttributeError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(
            f"'{config_file}' is no config of a run ({_one_line(error)}); correct or remove it"
        ) from error
    return content | parts


# As yacs and fvcore word what is wrong with a key.
_UNKNOWN = re.compile(r"Non-existent (?:config )?key: ([^\s']+)")
_MISMATCH = re.compile(
    r"Type mismatch \(<class '([^']+)'> vs. <class '([^']+)'>\) with values \(.* vs. (.*)\) "
    r"for config key: (\S+)"
)


def _explain(error: Exception, cfg: CN) -> str:
    """What is wrong in the words of the config, and the remedy."""
    text = _one_line(error)
    if unknown := _UNKNOWN.search(text):
        close = get_close_matches(unknown[1].upper(), _keys(cfg), 1, cutoff=0.7)
        listed = "Detectron2's defaults.py and scnet_d2/config.py list them"
        return f"there is no key {unknown[1]}; {f'did you mean {close[0]}?' if close else listed}"
    if mismatch := _MISMATCH.search(text):
        wanted, given, value, key = mismatch.groups()
        remedy = {
            "float": "write it with a point, as 2.0",
            "int": "write a whole number",
            "tuple": f"write ({value!r},)" if given == "str" else f"write ({value},)",
        }.get(wanted, "correct it")
        return f"{key} takes a value of type {wanted.rsplit('.', 1)[-1]}, not {given}; {remedy}"
    if isinstance(error, yaml.constructor.ConstructorError):
        return f"refused, because it asks for Python objects ({error.problem}); use plain yaml"
    if isinstance(error, (AttributeError, TypeError, RecursionError)):
        return f"not a config of keys and values ({text}); start from one in configs/"
    return f"{text}; correct it"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _keys(cfg: CN, prefix: str = "") -> Iterator[str]:
    for key, value in cfg.items():
        if isinstance(value, CN):
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def add_scnet_config(cfg: CN) -> None:
    """Add the project's keys to a Detectron2 config, in place; a second call changes nothing.

    Args:
        cfg: a Detectron2 config, as returned by `detectron2.config.get_cfg`.
    """
    if "SCNET" in cfg.MODEL:
        return
    _add_backbone_config(cfg)
    cfg.MODEL.SCNET = CN()
    _add_branches_config(cfg)
    _add_image_level_config(cfg)
    _add_image_labeler_config(cfg)
    _add_solver_config(cfg)
    _add_data_config(cfg)

    # A label is predicted for an image when its score reaches this.
    cfg.TEST.LABEL_THRESHOLD = 0.5
    # A json file with a threshold for each class, of `scnet tune`, to use instead.
    cfg.TEST.LABEL_THRESHOLDS = ""
    # k of the top-k metrics.
    cfg.TEST.LABEL_TOP_K = 3
    # Also report the mean AP over the classes with at least so many training images (0: do not).
    cfg.TEST.MIN_TRAIN_IMAGES = 0
    # Also report detection AP of the boxes, with Detectron2's COCOEvaluator.
    cfg.TEST.DETECTION_AP = False


def _add_solver_config(cfg: CN) -> None:
    # Optimizer: "SGD" (Detectron2's own builder) or "AdamW" (SOLVER.BASE_LR, SOLVER.WEIGHT_DECAY).
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Learning rate of a pre-trained network (the bottom-up one of an FPN) / that of all others.
    cfg.SOLVER.BACKBONE_MULTIPLIER = 1.0
    # Learning rate of the label head of ImageLabeler / that of all others.
    cfg.SOLVER.LABEL_HEAD_MULTIPLIER = 1.0
    # Iterations whose batch is left out: the weights stay as they are. For a batch that is bad.
    cfg.SOLVER.SKIP_ITERATIONS = []
    # Mixed precision in bfloat16 on a CPU that has it; programs switch it off on others.
    # (SOLVER.AMP.ENABLED is for GPUs alone.)
    cfg.SOLVER.AMP.CPU = False

    # Number of checkpoints model_<iteration>.pth that are kept, the newest ones; 0 keeps all. The
    # final and the best one stay.
    cfg.SOLVER.CHECKPOINTS_KEPT = 0


def _add_data_config(cfg: CN) -> None:
    # Of Detectron2's RandomSubsetTrainingSampler, whose config has it from v0.7 on alone.
    if "RANDOM_SUBSET_RATIO" not in cfg.DATALOADER:
        cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.1
    # Share of a data set's images that may be unreadable. They are counted; training leaves them
    # out, and in evaluation every label of theirs scores 0.
    cfg.DATALOADER.MAX_BAD_IMAGES = 0.01

    # Evaluated every TEST.EVAL_PERIOD iterations; the best checkpoint is chosen on the first one.
    # Empty: DATASETS.TEST is evaluated instead and no checkpoint is chosen, for that would be
    # tuning on the test split.
    cfg.DATASETS.VAL = ()
    # Names of the labels. Empty: training takes them from the training data, so that the
    # config.yaml of a run has them and its model can be used without the data set.
    cfg.DATASETS.CLASS_NAMES = []
    # A class all of whose objects in an image are "difficult" (VOC): ignored, present or absent.
    cfg.DATASETS.DIFFICULT_LABELS = "ignored"
    # A class that an image has as a crowd region alone (COCO): present, ignored or absent.
    cfg.DATASETS.CROWD_LABELS = "present"
    # Keep images without a single annotation (82,783 / 40,504 on COCO 2014, as in the slides).
    cfg.DATASETS.KEEP_UNANNOTATED = True


def check_dataset_names(cfg: CN) -> None:
    """Refuse a text where `DATASETS` has a list of names: Python code may set one.

    Raises:
        ConfigError: naming the key and how to write it.
    """
    for key in ("TRAIN", "VAL", "TEST", "CLASS_NAMES"):
        if isinstance(name := cfg.DATASETS[key], str):
            raise ConfigError(f'DATASETS.{key} is a text; write ("{name}",)')


def use_available_device(cfg: CN) -> None:
    """Set `MODEL.DEVICE` to the CPU, in place, where it asks for a GPU and there is none.

    Mixed precision is switched off where it would be slow: Detectron2's without a GPU, the
    project's on a CPU without bfloat16.
    """
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("no GPU found: MODEL.DEVICE %s becomes cpu", cfg.MODEL.DEVICE)
        cfg.MODEL.DEVICE = "cpu"
    if cfg.SOLVER.AMP.ENABLED and not cfg.MODEL.DEVICE.startswith("cuda"):
        logger.warning("MODEL.DEVICE is %s: SOLVER.AMP.ENABLED becomes False", cfg.MODEL.DEVICE)
        cfg.SOLVER.AMP.ENABLED = False
    if cfg.SOLVER.AMP.CPU and not has_fast_bfloat16(torch.device("cpu")):
        logger.warning(
            "this CPU has no fast bfloat16, in which a step would take several times as long: "
            "SOLVER.AMP.CPU becomes False"
        )
        cfg.SOLVER.AMP.CPU = False


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16 (a CPU: AVX512-BF16, AMX or Arm's)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has = getattr(torch.cpu, "get_capabilities", dict)()  # older PyTorch cannot tell
    return any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


_PIXEL_KEYS = ("MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "INPUT.FORMAT")


def use_timm_pixels(cfg: CN) -> None:
    """Take the pixels that a timm backbone was trained on, in place, where the config has none."""
    defaults, wanted = get_cfg(), timm_pixels(cfg)
    if wanted and all(attrgetter(key)(cfg) == attrgetter(key)(defaults) for key in _PIXEL_KEYS):
        cfg.merge_from_list([x for item in wanted.items() for x in item])
        logger.info("pixels as %s was trained on: %s", cfg.MODEL.TIMM.NAME, wanted)


def timm_pixels(cfg: CN) -> dict[str, Any]:
    """Mean and deviation of the pixels (0 to 255) and order of the channels, by config key.

    Empty where the backbone is none of timm, or timm tells nothing of it.
    """
    if "timm" not in cfg.MODEL.BACKBONE.NAME:
        return {}
    from timm.models import get_pretrained_cfg  # noqa: PLC0415 (slow to import)

    try:
        trained = get_pretrained_cfg(cfg.MODEL.TIMM.NAME)
    except RuntimeError:  # no such tag: the builder says so of the name
        trained = None
    if trained is None:
        return {}
    statistics = ([round(255 * x, 3) for x in values] for values in (trained.mean, trained.std))
    return dict(zip(_PIXEL_KEYS, (*statistics, "RGB")))


def pixel_contradictions(cfg: CN) -> list[str]:
    """What a config says of the pixels that its timm backbone was not trained on."""
    return [
        f"{key} is {attrgetter(key)(cfg)}, but {cfg.MODEL.TIMM.NAME} was trained with {value}: its "
        "pre-trained weights will be of less use"
        for key, value in timm_pixels(cfg).items()
        if not _close(attrgetter(key)(cfg), value)
    ]


def _close(a: Any, b: Any) -> bool:
    return a == b if isinstance(b, str) else all(abs(x - y) < 0.1 for x, y in zip(a, b))


def _add_backbone_config(cfg: CN) -> None:
    # Stages of the bottom-up network that an FPN also gives out, such as res5:
    # of build_timm_fpn_backbone and build_resnet_stage_fpn_backbone.
    cfg.MODEL.FPN.STAGES = []

    # Backbones build_timm_backbone and build_timm_fpn_backbone; MODEL.WEIGHTS timm://<name>.
    cfg.MODEL.TIMM = CN()
    # Name of a network of timm, with or without the tag of its weights.
    cfg.MODEL.TIMM.NAME = "tf_efficientnet_lite0"
    # Its features: res2 (stride 4) to res5 (32), and last, what follows the last stage.
    cfg.MODEL.TIMM.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    # Its batch norms: FrozenBN (as they were loaded), BN (trained) or SyncBN.
    cfg.MODEL.TIMM.NORM = "FrozenBN"


def _add_branches_config(cfg: CN) -> None:
    # Weights of a Detectron2 detector: its box head becomes that of both branches.
    cfg.MODEL.SCNET.INIT_TRUNK_FROM_DETECTOR = True

    # Side in px of the boxes that are pooled from P4; twice it: from P5. 224 is Detectron2's own.
    cfg.MODEL.SCNET.CANONICAL_BOX_SIZE = 224

    # Pool a box from each feature map and put their channels one after the other, instead of from
    # the one map of its size.
    cfg.MODEL.SCNET.POOL_ALL_LEVELS = False

    cfg.MODEL.SCNET.OBJECT = CN()
    # False leaves the object branch out: labels then come from the context branch alone.
    cfg.MODEL.SCNET.OBJECT.ENABLED = True
    # A tight box carries the classes of all ground-truth boxes with at least this IoU.
    cfg.MODEL.SCNET.OBJECT.LABEL_IOU = 0.5
    # Channels of a convolution over the pooled cells of a box that location regressor and patch
    # classifier read, in the place of the box head's output: one that averages has lost where in
    # the box its object lies. A multiple of 32; 0: none.
    cfg.MODEL.SCNET.OBJECT.LOCATION_CONV_DIM = 0
    # Weight of loss_object_patch. (That of loss_object_loc is ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT.)
    cfg.MODEL.SCNET.OBJECT.PATCH_LOSS_WEIGHT = 1.0

    cfg.MODEL.SCNET.CONTEXT = CN()
    # False leaves the context branch out.
    cfg.MODEL.SCNET.CONTEXT.ENABLED = True
    # Sides of a context box / sides of its tight box, before clipping to the image.
    cfg.MODEL.SCNET.CONTEXT.EXPANSION_RATIO = 2.0
    # Ratios, ascending from 1.0, among which each box chooses by its own features. Empty: all
    # boxes have the ratio above.
    cfg.MODEL.SCNET.CONTEXT.RATIOS = []
    # Feature maps that context boxes are pooled from. Empty: those of MODEL.ROI_HEADS.IN_FEATURES.
    cfg.MODEL.SCNET.CONTEXT.IN_FEATURES = []
    # A context box carries the classes of all ground-truth boxes that lie in it at least this far.
    cfg.MODEL.SCNET.CONTEXT.LABEL_COVERAGE = 0.5

    cfg.MODEL.SCNET.RELATION = CN()
    # True adds the relation branch: each tight box looks at the other boxes of its image.
    cfg.MODEL.SCNET.RELATION.ENABLED = False
    # Its weight in the fused score, beside that of AGGREGATION.OBJECT_WEIGHT and its rest.
    cfg.MODEL.SCNET.RELATION.WEIGHT = 0.5
    # Relations beside each other, and the length of a query.
    cfg.MODEL.SCNET.RELATION.NUM_HEADS = 16
    cfg.MODEL.SCNET.RELATION.KEY_DIM = 64
    # Boxes of an image that the others look at: those with the highest objectness. 0: none, a
    # control that has the branch's weights and no relation.
    cfg.MODEL.SCNET.RELATION.MAX_KEYS = 64

    cfg.MODEL.SCNET.LABEL = CN()
    # Score that an untrained label predictor gives: sets the bias of its last layer.
    cfg.MODEL.SCNET.LABEL.PRIOR_PROB = 0.01
    # Normalisation of the features before the last layer: "" or LN. Also of GlobalPool's.
    cfg.MODEL.SCNET.LABEL.NORM = ""
    # Weight of the label loss of each branch.
    cfg.MODEL.SCNET.LABEL.LOSS_WEIGHT = 1.0


def _add_image_level_config(cfg: CN) -> None:
    # Predict the scores of images alone, without detections: saves NMS.
    cfg.MODEL.SCNET.IMAGE_SCORES_ONLY = False

    cfg.MODEL.SCNET.AGGREGATION = CN()
    # Boxes to image: max, topk_mean, noisy_or or logsumexp.
    cfg.MODEL.SCNET.AGGREGATION.METHOD = "max"
    # Weight of the object branch in the fused score; the context branch has the rest.
    cfg.MODEL.SCNET.AGGREGATION.OBJECT_WEIGHT = 0.5
    # Train the weights of the branches, from the config's on: branch, one of each; class, one of
    # each for each class; "": they stay.
    cfg.MODEL.SCNET.AGGREGATION.LEARN_WEIGHTS = ""
    # Multiply the fused scores of a box by the confidence that it holds an object.
    cfg.MODEL.SCNET.AGGREGATION.USE_PATCH_CONFIDENCE = False
    # Number of boxes that topk_mean averages.
    cfg.MODEL.SCNET.AGGREGATION.TOPK = 3
    # Sharpness of logsumexp: 0 tends to the mean over the boxes, infinity to the maximum.
    cfg.MODEL.SCNET.AGGREGATION.SHARPNESS = 10.0
    # Weight of loss_image_label, on the aggregated scores of an image's sampled boxes; 0: none.
    cfg.MODEL.SCNET.AGGREGATION.LOSS_WEIGHT = 0.0

    # A third label predictor that sees the image as a whole, the widest context.
    cfg.MODEL.SCNET.IMAGE = CN()
    cfg.MODEL.SCNET.IMAGE.ENABLED = False
    # A name in LABEL_HEAD_REGISTRY; loss and options as in MODEL.IMAGE_LABELER.
    cfg.MODEL.SCNET.IMAGE.HEAD = "GlobalPool"
    # Feature map that it reads, see MODEL.FPN.STAGES, and how GlobalPool pools it: average or max.
    cfg.MODEL.SCNET.IMAGE.IN_FEATURE = "res5"
    cfg.MODEL.SCNET.IMAGE.POOLING = "average"
    # Weight of its logit in the image's; that of the aggregated boxes has the rest.
    cfg.MODEL.SCNET.IMAGE.WEIGHT = 0.5


def _add_image_labeler_config(cfg: CN) -> None:
    cfg.MODEL.IMAGE_LABELER = CN()
    # Label head of the meta-architecture ImageLabeler: a name in LABEL_HEAD_REGISTRY.
    cfg.MODEL.IMAGE_LABELER.HEAD = "GlobalPool"
    # Feature map of the whole image that it reads.
    cfg.MODEL.IMAGE_LABELER.IN_FEATURE = "res5"
    # How GlobalPool pools it: average or max.
    cfg.MODEL.IMAGE_LABELER.POOLING = "average"
    # Loss of the labels, of any head: bce or asl, the asymmetric loss.
    cfg.MODEL.IMAGE_LABELER.LOSS = "bce"
    # Of the asymmetric loss: γ- and γ+, and the score up to which a negative counts nothing.
    cfg.MODEL.IMAGE_LABELER.ASL = CN({"GAMMA_NEG": 4.0, "GAMMA_POS": 0.0, "CLIP": 0.05})
    # Vectors of the class names, for heads that need them: a text file as GloVe's. Empty: the one
    # that comes with the package. And the length of a vector in it.
    cfg.MODEL.IMAGE_LABELER.WORD_VECTORS = ""
    cfg.MODEL.IMAGE_LABELER.WORD_DIM = 384
    # Each head's own, see its class in scnet_d2/modeling/label_heads. Defaults: published values.
    for name, options in LABEL_HEAD_OPTIONS.items():
        cfg.MODEL.IMAGE_LABELER[name] = CN(options)


LABEL_HEAD_OPTIONS = {
    "ATTENDANDIMAGINE": {
        "EMBEDDING_DIM": 256, "ATTENTION_DIM": 512, "HIDDEN_DIM": 512, "MAX_STEPS": 10,
    },
    "C2AE": {
        "LATENT_SHARE": 0.8, "HIDDEN_DIM": 512, "CORRELATION_WEIGHT": 1.0, "RANK_WEIGHT": 2.0,
    },
    "CNNRNN": {"EMBEDDING_DIM": 64, "HIDDEN_DIM": 512, "DROPOUT": 0.5, "MAX_STEPS": 10},
    "CRL": {"DIM": 512, "MARGIN": 0.2, "PROJECTION_WEIGHT": 0.5},
    "CSRA": {"NUM_HEADS": 1, "WEIGHT": 0.1, "BIAS": False},
    "CTRAN": {
        "DIM": 0, "NUM_HEADS": 4, "FFN_DIM": 2048, "NUM_LAYERS": 3, "MAX_KNOWN": 0.75,
        "DROPOUT": 0.1,
    },
    "DECOUPLENET": {"DIM": 512, "NUM_HEADS": 8},
    "DELTA": {"DIM": 512, "SHARPNESS": 5.0},
    "FEVLV": {"DIM": 64, "NUM_COMPONENTS": 8},
    "KSSNET": {"STATISTICS_WEIGHT": 0.5, "THRESHOLD": 0.03, "NEIGHBOURS": 0.4, "DROPOUT": 0.5},
    "MLDECODER": {
        "DIM": 768, "NUM_HEADS": 8, "FFN_DIM": 2048, "NUM_QUERIES": 100, "DROPOUT": 0.1,
    },
    "MLGCN": {"HIDDEN_DIM": 1024, "THRESHOLD": 0.4, "NEIGHBOURS": 0.2, "BIAS": False},
    "MSCMA": {"DIM": 256, "FINE_FEATURE": "res4"},
    "PRONET": {"NUM_BOXES": 3, "WINDOW": 4, "SIZE": 192, "SMALL": 0.7, "SHARPNESS": 5.0},
    "QUERY2LABEL": {
        "DIM": 2048, "NUM_HEADS": 4, "FFN_DIM": 8192, "NUM_ENCODER_LAYERS": 1,
        "NUM_DECODER_LAYERS": 2, "DROPOUT": 0.1,
    },
    "RNNATTENTION": {"MAP_DIM": 512, "HIDDEN_DIM": 4096, "CROP": 14, "LOCATION_WEIGHT": 0.1},
    "SRN": {"FINE_FEATURE": "res4", "DIM": 512, "FILTERS": 4, "GRID": 14, "WEIGHT": 0.5},
    "VAC": {"FLIP_WEIGHT": 0.6, "SCALE_WEIGHT": 0.8, "SMALL": 8 / 9},
    "WSLGCN": {
        "HIDDEN_DIM": 1024, "THRESHOLD": 0.4, "NEIGHBOURS": 0.2, "SHARE": 0.1, "LOW_WEIGHT": 0.2,
    },
}  # fmt: skip
