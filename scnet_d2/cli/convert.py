"""Convert torchvision's ResNet and ResNeXt weights to a backbone's for Detectron2.

Learnt from Detectron2's tools/convert-torchvision-to-d2.py.
"""

import argparse
import pickle
import re
from pathlib import Path

import torch

from ..checkpoint import CheckpointError, read_checkpoint
from ..outputs import replacing

RENAMES = (
    (r"^(?=conv1\.|bn1\.)", "stem."),
    (r"^layer(\d)", lambda m: f"res{int(m[1]) + 1}"),
    (r"\bbn(\d)\.", r"conv\1.norm."),
    (r"downsample\.0\.", "shortcut."),
    (r"downsample\.1\.", "shortcut.norm."),
)
KNOWN = re.compile(r"(stem\.conv1|res[2-5]\.\d+\.(conv[1-3]|shortcut))(\.norm)?\.\w+")
LEFT_OUT = re.compile(r"fc\.(weight|bias)|.*\.num_batches_tracked")
CONFIG = """\
# These weights need this in the config; torchvision's images are RGB in [0, 1], scaled here to 255.
MODEL:
  WEIGHTS: {path}
  PIXEL_MEAN: [123.675, 116.28, 103.53]
  PIXEL_STD: [58.395, 57.12, 57.375]
  RESNETS:
    DEPTH: {depth}
    NUM_GROUPS: {groups}
    WIDTH_PER_GROUP: {width}
    STRIDE_IN_1X1: False
INPUT:
  FORMAT: RGB"""


def detectron2_name(name: str) -> str:
    """Detectron2's name of a tensor of torchvision's ResNet.

    Raises:
        CheckpointError: if torchvision's ResNets have no such tensor.
    """
    new = name
    for pattern, replacement in RENAMES:
        new = re.sub(pattern, replacement, new)
    if not KNOWN.fullmatch(new):
        raise CheckpointError(f"'{name}' is no tensor of torchvision's ResNet or ResNeXt")
    return new


def convert(state: dict) -> dict[str, torch.Tensor]:
    """Rename the tensors of a state dict; the classifier and the batch counts stay behind.

    A "module." before every name, of DataParallel, is left out.
    """
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    kept = {k: torch.as_tensor(v) for k, v in state.items() if not LEFT_OUT.fullmatch(k)}
    return {detectron2_name(name): tensor for name, tensor in kept.items()}


def architecture(model: dict[str, torch.Tensor]) -> dict[str, int]:
    """Depth, groups and width of a converted network, as `MODEL.RESNETS` has them."""
    blocks = len({name.rsplit(".conv1", 1)[0] for name in model if re.match(r"res\d.*conv1", name)})
    bottleneck = "res2.0.conv3.weight" in model
    width, channels = model["res2.0.conv2.weight"].shape[:2]
    groups = width // channels
    depth = blocks * (3 if bottleneck else 2) + 2
    return {"depth": depth, "groups": groups, "width": width // groups}


def save(model: dict[str, torch.Tensor], path: Path) -> None:
    """Write a `.pkl` with numpy arrays, or a `.pth`, that Detectron2 loads as well."""
    checkpoint = {"model": model, "__author__": "torchvision", "matching_heuristics": True}
    with replacing(path) as file:
        if path.suffix == ".pth":
            torch.save(checkpoint, file)
        else:
            arrays = {name: tensor.numpy() for name, tensor in model.items()}
            pickle.dump(checkpoint | {"model": arrays}, file)


def run(args: argparse.Namespace) -> None:
    """Convert a file and say what the config must have."""
    if args.output.suffix not in (".pkl", ".pth"):
        raise ValueError(f"{args.output}: name the output .pkl or .pth")
    if "://" in args.input:
        raise ValueError(f"{args.input} is an address: download the file and give its path")
    state = read_checkpoint(args.input)["model"]
    try:
        model = convert(state)
    except CheckpointError as error:
        raise CheckpointError(
            f"{args.input}: {error}; files of Detectron and Detectron2 need no conversion: set "
            "MODEL.WEIGHTS"
        ) from error
    save(model, args.output)
    print(f"# {len(model)} of {len(state)} tensors of {args.input} are in {args.output};")
    print("# left out: the classifier fc.* and batch norm's num_batches_tracked")
    print(CONFIG.format(path=args.output, **architecture(model)))
