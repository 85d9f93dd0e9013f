"""Arguments of the sub-commands: the same word for the same thing in all of them.

A function adds the arguments of the sub-command of its name; its docstring is the help.
"""

import argparse
import inspect
import os
from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

EXIT_STATUS = """\
exit status:
  0  done
  1  done, and it found problems; or the result was not good enough to be kept
  2  not done: wrong arguments, files or settings; a sentence says which
"""
SCORE_FORMATS = """\
formats, by the end of the file's name:

  .npz   what MultiLabelEvaluator saves: scores (N, C) float, labels (N, C) bool and, if they are
         there, ignored (N, C) bool, class_names (C,) and image_ids (N,).

  .csv   scores, one row an image, with the true labels in a second file given by --labels. Both
         have the same classes and the same images, in any order:
             image_id,cat,dog               image_id,cat,dog
             a.jpg,0.93,0.02                a.jpg,1,0
             b.jpg,0.10,0.75                b.jpg,-1,1
         A score is in [0, 1]; a label is 1 or True (present), 0 or False (absent), -1 or an
         empty cell (left out). ; or tabs may separate the columns of either file, and 0,93 is
         0.93 then. The endings of image files may be absent from one of them.

  .json  a list with one object an image. Classes are names:
             [{"image_id": "a.jpg", "scores": {"cat": 0.93, "dog": 0.02},
               "labels": ["cat"], "ignored": ["dog"]}, ...]
         or positions in a list of scores:
             [{"image_id": "a.jpg", "scores": [0.93, 0.02], "labels": [0]}, ...]
         "ignored" may be absent.
"""
TAG_NOTES = """\
inputs:
  A file; a folder, with all below it; a pattern in quotes ('photos/**/*.jpg'); - for a list of
  files on standard input. Taken from a folder are
  .avif .bmp .gif .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .ppm .tif .tiff .webp,
  but no names that begin with a dot and no links to folders.

output:
  One record an image, in the order of the inputs. Beside OUT stand OUT.settings.json (model and
  settings) and, unless OUT itself is JSON lines, OUT.lines.jsonl (what is finished). The same
  command goes on where a run was cut off and adds images that are new; with another model or other
  settings it refuses. docs/tagging.md describes the formats.

exit status:
  0    every image has its labels
  1    some images of the command could not be tagged: they have an "error"; all others have their
       labels
  2    nothing was done: wrong arguments, or the output is of other settings or another program
  3    ended early by a fault (disk full, out of memory); the same command goes on
  130  interrupted (^C, SIGTERM); the same command goes on
"""
_KEYS_LAST = "config keys stand after --opts, at the end of the command"
# Options of Detectron2's programs, and of other ones, that go by another name here.
_MEANT = dict.fromkeys(
    ("--input", "--inputs", "--image", "--images", "--source"),
    "images stand without an option, as in: scnet demo photos/ --model MODEL --output FOLDER",
) | {
    "--confidence-threshold": "the least score of a label is --threshold",
    "--conf": "the least score of a label is --threshold",
    "--eval-only": "evaluate with scnet eval",
    "--share": "--host 0.0.0.0 opens the page to the network; nothing leaves it",
    "--server-name": "its name here is --host",
    "--server-port": "its name here is --port",
    "--lr": "at the end of the command: --opts SOLVER.BASE_LR 0.01",
    "--epochs": "training counts iterations: --opts SOLVER.MAX_ITER 1000, at the end",
    "--batch": "at the end of the command: --opts SOLVER.IMS_PER_BATCH 8",
}


# ---- the sub-commands ---------------------------------------------------------------------------


def train(parser: argparse.ArgumentParser) -> None:
    """Train a model on image-level labels, and evaluate it.

    SCNet, another multi-label system of the configs, or any Detectron2 model.
    """
    _add_config(parser)
    parser.add_argument("--resume", action="store_true", help="go on where the run was cut off")
    _add_device(parser)
    _add_run_options(parser)
    _add_keys(parser)
    # ... and without --opts, as Detectron2's users write them
    parser.add_argument("opts", nargs=argparse.REMAINDER, action="extend", help=argparse.SUPPRESS)
    _examples(
        parser,
        "scnet train --config-file VOC-MultiLabel/scnet_R_18_FPN_256px --output run",
        "scnet train --config-file run/config.yaml --resume",
        "scnet train --config-file VOC-MultiLabel/scnet_R_18_FPN_256px --output run \\\n"
        "      --register-coco my_train train.json images/ \\\n"
        "      --register-coco my_val val.json images/ \\\n"
        "      --opts MODEL.ROI_HEADS.NUM_CLASSES 7 DATASETS.TRAIN \"('my_train',)\" \\\n"
        "      DATASETS.TEST \"('my_val',)\"",
    )
    parser.set_defaults(eval_only=False)


def evaluate(parser: argparse.ArgumentParser) -> None:
    """Evaluate a trained model on data sets.

    Those of DATASETS.TEST, or of --opts DATASETS.TEST.
    """
    _add_model_options(parser)
    _add_run_options(parser)
    _add_keys(parser)
    _examples(
        parser,
        "scnet eval --model run",
        "scnet eval --model scnet_lite_voc --output evaluated \\\n"
        "      --opts DATASETS.TEST \"('voc_2012_val_multilabel',)\"",
    )
    parser.set_defaults(eval_only=True, resume=False)


def tag(parser: argparse.ArgumentParser) -> None:
    """Tag any number of images: JSON lines, CSV or COCO json.

    A run that was cut off goes on with the same command. An image that cannot be read gets an
    "error" instead of labels and stops nothing.
    """
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="file, folder, pattern, or - for a list")
    add("--output", required=True, metavar="OUT", help="a file; that of a run that was cut off too")
    add(
        "--format", choices=("jsonl", "csv", "coco"),
        help="default: by OUT's ending (.jsonl .csv .json)",
    )  # fmt: skip
    _add_model_options(parser)
    _add_threshold(parser, None)
    add("--top-k", type=_number(int, 1), metavar="K", help="most labels of an image; default: all")
    add("--batch-size", type=_number(int, 1), default=8, metavar="N", help="default: %(default)s")
    _add_workers(parser, min(os.cpu_count() or 1, 8), "default: one a CPU, at most 8")
    add(
        "--dtype", choices=("float32", "bfloat16"),
        help="optimise the model in this type, docs/performance.md; default: as it was trained",
    )  # fmt: skip
    _add_backend(parser, "; default with --dtype: auto")
    add(
        "--fast-jpeg", action="store_true",
        help="decode large JPEG files smaller: scores move a little, docs/tagging.md",
    )  # fmt: skip
    add("--null", action="store_true", help="the list on standard input is of find -print0")
    add("--retry-failed", action="store_true", help="try images again that failed earlier")
    add(
        "--max-pixels", type=_number(int, 1), metavar="N",
        help="larger images fail, they are not decoded; default: 178,956,970",
    )  # fmt: skip
    add("--engine", choices=("local", "ray"), default="local", help="default: %(default)s")
    add("--ray-address", metavar="ADDRESS", help="running cluster; default: one on this machine")
    add("--ray-actors", type=_number(int, 1), metavar="N", help="processes with the model")
    _add_keys(parser)
    _examples(
        parser, "scnet tag photos/ --model scnet_lite_voc --output labels.csv", notes=TAG_NOTES
    )


def demo(parser: argparse.ArgumentParser) -> None:
    """Draw the labels of photographs, with their boxes.

    A picture with boxes and score bars is written for each, and one JSON line. The exit status is 1
    where an image could not be read.
    """
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="files, folders, patterns")
    parser.add_argument(
        "--output", required=True, metavar="FOLDER", type=_later("cli.demo", "picture_folder"),
        help="a new or empty folder",
    )  # fmt: skip
    _add_model_options(parser)
    _add_threshold(parser, None)
    _add_backend(parser)
    _add_keys(parser)
    _examples(parser, "scnet demo photos/ --model scnet_lite_voc --output labelled")


def app(parser: argparse.ArgumentParser) -> None:
    """Serve a page on which a model is tried.

    Drop a photograph, see its labels and their boxes.
    """
    _add_model_options(parser)
    parser.add_argument("--examples", metavar="FOLDER", help="images to pick from on the page")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 opens it to the network")
    parser.add_argument(
        "--port",
        type=_number(int, 1, 65535),
        metavar="N",
        help="default: the first free one from 7860 on",
    )
    _add_keys(parser)
    _examples(parser, "scnet app --model scnet_lite_voc --examples photos/")


def check(parser: argparse.ArgumentParser) -> None:
    """Check data sets before training on them.

    Files, counts, images and labels. Every kind of problem is one line that starts with "problem:",
    counts its cases, shows the first three and ends with what to do. The exit status is 1 where
    there is one.
    """
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="data sets; default: all that are there")
    add(
        "--images", nargs="?", choices=("header", "full"), const="header",
        help="also read the header of every image, or decode it",
    )  # fmt: skip
    _add_workers(parser, os.cpu_count(), "default: one a CPU")
    add("--config-file", metavar="CONFIG", help="whose label policy applies; default: the default")
    add("--complete", action="store_true", help="a part of a published data set is a problem")
    add_register_arguments(parser)
    _examples(
        parser,
        "scnet check voc_2012_train_multilabel --images full",
        "scnet check --register-coco my_train train.json images/ --images",
    )


def report(parser: argparse.ArgumentParser) -> None:
    """Write an HTML page about an evaluated run.

    One file that needs no other: metrics, curves, errors, images with their boxes.
    """
    add = parser.add_argument
    add("run_dir", metavar="RUN", type=Path, help="OUTPUT_DIR of the run")
    add("--output", metavar="FILE.html", type=Path, help="default: RUN/report.html")
    _add_overwrite(parser)
    add("--dataset", metavar="NAME", help="default: the first of DATASETS.TEST that was evaluated")
    add("--gallery", metavar="N", type=_number(int, 0), default=6, help="images; default: 6")
    _examples(parser, "scnet report run")


def scores(parser: argparse.ArgumentParser) -> None:
    """Evaluate saved image scores, of any program."""
    parser.add_argument("files", metavar="FILE", type=Path, nargs="+", help="saved image scores")
    _add_labels(parser)
    _add_threshold(parser, 0.5)
    parser.add_argument("--top-k", type=int, default=3, metavar="K", help="default: %(default)s")
    _add_json(parser)
    _examples(
        parser,
        "scnet scores run/inference/voc_2012_val_multilabel/multilabel_scores.npz",
        "scnet scores scores.csv --labels labels.csv",
        notes=SCORE_FORMATS,
    )


def compare(parser: argparse.ArgumentParser) -> None:
    """Compare two models on the same images.

    Both mAPs, their difference, 95 % intervals and p. Images are matched by id. Intervals and p are
    of the bootstrap over images, defined in scnet_d2/evaluation/intervals.py.
    """
    add = parser.add_argument
    add("first", metavar="A", type=Path, help="saved image scores")
    add("second", metavar="B", type=Path, help="saved image scores")
    _add_labels(parser)
    add("--replicates", type=int, default=1000, metavar="N", help="default: %(default)s")
    add("--seed", type=int, default=0, help="default: %(default)s")
    _add_json(parser)
    _examples(parser, "scnet compare a.npz b.npz", notes=SCORE_FORMATS)


def tune(parser: argparse.ArgumentParser) -> None:
    """Find the threshold of each class with the highest F1.

    On saved validation scores, to be used on others.
    """
    parser.add_argument("file", metavar="FILE", type=Path, help="saved validation scores")
    _add_labels(parser)
    parser.add_argument(
        "--output", metavar="JSON", type=_later("outputs", "new_file"), required=True,
        help="a new file, for --thresholds",
    )  # fmt: skip
    _examples(parser, "scnet tune val.npz --output thresholds.json", notes=SCORE_FORMATS)


def export(parser: argparse.ArgumentParser) -> None:
    """Write SCNet as TorchScript, ONNX or safetensors.

    The file is kept only if it agrees with PyTorch; else the exit status is 1.
    """
    add = parser.add_argument
    _add_model_options(parser, device=False)
    add("--format", required=True, choices=("torchscript", "onnx", "safetensors"))
    add("--output", required=True, metavar="FILE", type=Path)
    _add_overwrite(parser)
    _add_check(parser, "a generated scene")
    add(
        "--tolerance", type=float, default=1e-4, metavar="X",
        help="most that image scores may differ; default: %(default)s",
    )  # fmt: skip
    _add_keys(parser)
    _examples(parser, "scnet export --model run --format onnx --output scnet.onnx")


def convert(parser: argparse.ArgumentParser) -> None:
    """Convert torchvision's weights to a backbone's.

    Those of its ResNets and ResNeXts, to names of Detectron2's.
    """
    parser.add_argument(
        "input", metavar="FILE", help="torchvision's .pth, or the same names in .safetensors"
    )
    parser.add_argument(
        "--output", metavar="FILE", type=_later("outputs", "new_file"), required=True,
        help="a new file, .pkl or .pth",
    )  # fmt: skip
    _examples(parser, "scnet convert resnext101_32x8d.pth --output X-101.pkl")


def analyze(parser: argparse.ArgumentParser) -> None:
    """Count parameters, multiply-adds and training cost.

    Of SCNet by part, beside Detectron2's Faster R-CNN on the same backbone.
    """
    add = parser.add_argument
    _add_config(parser)
    add(
        "--sizes", type=_number(int, 1), nargs="+", default=[800, 448], metavar="PX",
        help="shorter side; default: 800 448",
    )  # fmt: skip
    add(
        "--gpu-tflops", type=_number(float, 0.001), default=15.7, metavar="X",
        help="peak; default: V100, fp32",
    )  # fmt: skip
    add(
        "--utilisation", type=_number(float, 0.001, 1), default=0.4, metavar="X",
        help="share of it; default: 0.4",
    )  # fmt: skip
    add("--bytes", type=int, default=4, metavar="N", help="of an activation; default: 4. 2: AMP")
    add(
        "--copies", type=float, default=1.0, metavar="X",
        help="of an activation that backward keeps; default: 1",
    )  # fmt: skip
    _add_keys(parser)
    _examples(parser, "scnet analyze --config-file VOC-MultiLabel/scnet_R_50_FPN --sizes 448")


def models(parser: argparse.ArgumentParser) -> None:
    """List, show and package models; list configs.

    Models and configs that come with scnet_d2, and the folder of a run of your own.
    """
    parser.set_defaults(module="scnet_command.models", name=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_command(commands, "list", models_list, "scnet_command.models")
    _add_command(commands, "show", models_show, "scnet_command.models")
    _add_command(commands, "package", package, "scnet_d2.cli.package")
    _examples(parser, "scnet models", "scnet models show scnet_lite_voc")


def models_list(parser: argparse.ArgumentParser) -> None:
    """List the models and configs that come with scnet_d2; so does `scnet models`."""
    parser.set_defaults(name=None)
    _examples(parser, "scnet models list")


def models_show(parser: argparse.ArgumentParser) -> None:
    """Print the card of a model: what it was trained on, how well it labels each class."""
    parser.add_argument("name", metavar="NAME", help="of `scnet models`, or folder of a model")
    _examples(parser, "scnet models show scnet_lite_voc")


def package(parser: argparse.ArgumentParser) -> None:
    """Make a model folder of a run: config.yaml, weights and a model card, to use or to share.

    The folder is kept only if it scores images as the run does; else the exit status is 1. Rounding
    to float16 changes a score in the fourth digit; where it makes the RPN choose another of two
    boxes, in the third.
    """
    add = parser.add_argument
    add("run", metavar="RUN", type=Path, help="OUTPUT_DIR of the run")
    add(
        "--output", metavar="FOLDER", required=True, type=_later("outputs", "new_folder"),
        help="a new folder; its name is the model's",
    )  # fmt: skip
    add(
        "--scores", nargs="+", type=Path, default=[], metavar="NPZ",
        help="evaluations for the card; default: those of the run on its DATASETS.TEST",
    )  # fmt: skip
    _add_check(parser, "generated scenes")
    add(
        "--dtype", choices=("float16", "float32"), default="float16",
        help="of the stored weights; default: %(default)s",
    )  # fmt: skip
    add("--licence", default="", metavar="TEXT", help="of the training data")
    add_register_arguments(parser)
    _add_keys(parser)
    _examples(parser, "scnet models package run --output my_model")


# Name → what adds the arguments, and the module whose `run(args)` does the work.
COMMANDS: dict[str, tuple[Callable, str]] = {
    "train": (train, "scnet_d2.cli.train"),
    "eval": (evaluate, "scnet_d2.cli.train"),
    "tag": (tag, "scnet_d2.cli.tag"),
    "demo": (demo, "scnet_d2.cli.demo"),
    "app": (app, "scnet_d2.cli.app"),
    "check": (check, "scnet_d2.cli.check"),
    "report": (report, "scnet_d2.cli.report"),
    "scores": (scores, "scnet_d2.cli.scores"),
    "compare": (compare, "scnet_d2.cli.compare"),
    "tune": (tune, "scnet_d2.cli.tune"),
    "export": (export, "scnet_d2.cli.export"),
    "convert": (convert, "scnet_d2.cli.convert"),
    "analyze": (analyze, "scnet_d2.cli.analyze"),
    "models": (models, "scnet_command.models"),
}


def get_parser() -> argparse.ArgumentParser:
    """The parser of `scnet`; what it parses has the sub-command's `module`."""
    parser = Parser(
        prog="scnet",
        description="Multi-label image classification with spatial context.",
        epilog=f"scnet COMMAND --help shows an example.\n\n{EXIT_STATUS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    parser.add_argument(
        "--print-completion", action=_PrintCompletion, choices=("bash", "zsh", "tcsh"),
        help='completion for a shell: eval "$(scnet --print-completion bash)"',
    )  # fmt: skip
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (add_arguments, module) in COMMANDS.items():
        _add_command(commands, name, add_arguments, module)
    return parser


def train_net_parser() -> argparse.ArgumentParser:
    """The parser of train_net.py: `scnet train` and Detectron2's `--eval-only`."""
    parser = Parser(formatter_class=argparse.RawDescriptionHelpFormatter)
    train(parser)
    parser.add_argument("--eval-only", action="store_true", help="evaluate, do not train")
    _add_traceback(parser)
    parser.description = inspect.getdoc(train)
    return parser


class Parser(argparse.ArgumentParser):
    """A parser that names its own sub-command in its errors, and tells where config keys stand."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs, allow_abbrev=False)  # --conf 0.3 would be --config-file 0.3

    def parse_known_args(self, args=None, namespace=None):
        """Refuse what is unknown here: the parser above knows no more of it."""
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._hint(unknown)}")
        return namespace, unknown

    def _hint(self, unknown: list[str]) -> str:
        """What may have been meant by arguments that are not known."""
        options = [option for action in self._actions for option in action.option_strings]
        for option in (word.partition("=")[0] for word in unknown if word.startswith("--")):
            if option in _MEANT:
                return f"; {_MEANT[option]}"
            if close := get_close_matches(option, options, 1, cutoff=0.75):
                return f"; did you mean {close[0]}?"
        if "--opts" in options and not unknown[0].startswith("--"):
            return f"; {_KEYS_LAST}"
        return ""

    def error(self, message: str) -> NoReturn:
        """Also where the keys after `--opts` have taken an option that is required."""
        has_keys = any("--opts" in action.option_strings for action in self._actions)
        if has_keys and message.startswith("the following arguments are requ"):
            message += f"; {_KEYS_LAST}"
        super().error(message)


# ---- options of several sub-commands ------------------------------------------------------------


def add_register_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --register-coco and --register-labels; see `scnet_d2.data.register_arguments`."""
    for option, file, what in (
        ("--register-coco", "JSON", "a COCO-format json"),
        ("--register-labels", "FILE", "a table of labels without boxes, CSV or JSON lines,"),
    ):
        parser.add_argument(
            option, nargs=3, action="append", default=[],
            metavar=("NAME", file, "IMAGE_ROOT"),
            help=f"{what} as a multi-label data set (repeatable)",
        )  # fmt: skip


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config-file", required=True, metavar="CONFIG", help="a file, or a name of `scnet models`"
    )


def _add_backend(parser: argparse.ArgumentParser, default: str = "") -> None:
    parser.add_argument(
        "--backend", choices=("auto", "torch", "openvino", "compile"),
        help=f"optimise the model, and have this compute its network{default}",
    )  # fmt: skip


def _add_model_options(parser: argparse.ArgumentParser, *, device: bool = True) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--model", metavar="MODEL",
        help="a name of `scnet models`, folder of a model or of a run, or user/name on the Hugging "
        "Face hub",
    )  # fmt: skip
    group.add_argument(
        "--config-file", dest="model", metavar="CONFIG",
        help="instead of --model; default: the config.yaml beside --weights",
    )  # fmt: skip
    parser.add_argument(
        "--weights", metavar="FILE", help="checkpoint; default: that of the model or of the config"
    )
    if device:
        _add_device(parser)


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--output", metavar="FOLDER", action=_SetKey, const="OUTPUT_DIR",
        help="default: OUTPUT_DIR of the config",
    )  # fmt: skip
    add_register_arguments(parser)
    add("--num-gpus", type=int, default=1, metavar="N", help="of each machine; default: 1")
    add("--num-machines", type=int, default=1, metavar="N", help="default: 1")
    add("--machine-rank", type=int, default=0, metavar="R", help="from 0 on")
    add("--dist-url", default="auto", metavar="URL", help="of machine 0: tcp://HOST:PORT")


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", action=_SetKey, const="MODEL.DEVICE",
        help="cpu, cuda, cuda:1, ...; default: a GPU where there is one",
    )  # fmt: skip


def _add_threshold(parser: argparse.ArgumentParser, default: float | None) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--threshold", type=_number(float, 0, 1), default=default, metavar="X",
        help=f"least score of a label; default: {default or 'the config' + chr(39) + 's'}",
    )  # fmt: skip
    action = {"type": Path} if default else {"action": _SetKey, "const": "TEST.LABEL_THRESHOLDS"}
    group.add_argument(
        "--thresholds", metavar="JSON", help="one for each class, of `scnet tune`", **action
    )


def _add_labels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--labels", metavar="CSV", type=Path, help="the labels of CSV scores")


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print every number as JSON instead")


def _add_check(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--check", nargs="+", default=[], metavar="IMAGE",
        help=f"photographs to compare scores on; default: {default}",
    )  # fmt: skip


def _add_overwrite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="a file that is there already")


def _add_workers(parser: argparse.ArgumentParser, default: int | None, text: str) -> None:
    parser.add_argument(
        "--workers", type=_number(int, 0), default=default, metavar="N",
        help=f"processes that read images; {text}",
    )  # fmt: skip


def _add_keys(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, action="extend", default=[], metavar="KEY VALUE",
        help="config keys, at the end of the command",
    )  # fmt: skip


def _add_traceback(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")


def _examples(parser: argparse.ArgumentParser, *commands: str, notes: str = "") -> None:
    lines = "".join(f"  {command}\n" for command in commands)
    parts = [f"example{'s' * (len(commands) > 1)}:\n{lines}", notes]
    if "exit status" not in notes:
        parts.append(EXIT_STATUS)
    parser.epilog = "\n".join(part for part in parts if part)


def _add_command(
    commands: Any, name: str, add_arguments: Callable[[argparse.ArgumentParser], None], module: str
) -> None:
    text = inspect.getdoc(add_arguments)
    parser = commands.add_parser(
        name, help=text.partition("\n")[0].rstrip(".").replace("%", "%%"), description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.set_defaults(module=module)
    add_arguments(parser)
    _add_traceback(parser)


# ---- types and actions --------------------------------------------------------------------------


def _later(module: str, name: str) -> Callable[[str], Any]:
    """A type of scnet_d2, which is imported with the first value."""

    def parse(text: str) -> Any:
        return getattr(import_module(f"scnet_d2.{module}"), name)(text)

    return parse


def _number(kind: type, least: float, most: float = float("inf")) -> Callable[[str], float]:
    """A number in a range."""

    def parse(text: str) -> float:
        number = kind(text)
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text} is not from {least} to {most}")
        return number

    parse.__name__ = kind.__name__  # named where the text is no number
    return parse


class _SetKey(argparse.Action):
    """Another way to write `--opts KEY VALUE` for the key `const`."""

    def __call__(self, parser, namespace, values, option_string=None):
        namespace.opts = [*namespace.opts, self.const, values]


class _Version(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        try:
            print(f"scnet_d2 {version('scnet_d2')}")
        except PackageNotFoundError:
            print("scnet_d2, not installed")
        parser.exit()


class _PrintCompletion(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        import shtab  # noqa: PLC0415 (for this alone)

        print(shtab.complete(parser, values))
        parser.exit()
