"""`scnet models` and `scnet models show`: what comes with scnet_d2, read without importing it."""

import argparse
from importlib.util import find_spec
from pathlib import Path


def run(args: argparse.Namespace) -> None:
    """Print the names of models and configs, or the card of a model."""
    zoo = Path(find_spec("scnet_d2").origin).parent / "model_zoo"
    models = {config.parent.name: config.parent for config in sorted(zoo.glob("*/config.yaml"))}
    if args.name is None:
        print(_overview(models, zoo / "configs"))
        return
    card = models.get(args.name, Path(args.name)) / "README.md"
    if not card.is_file():
        raise ValueError(
            f"there is no model card of '{args.name}': give the folder of a model that "
            f"`scnet models package` made, or a name of `scnet models`: {', '.join(models)}"
        )
    print(card.read_text(encoding="utf-8"), end="")


def _overview(models: dict[str, Path], configs: Path) -> str:
    sizes = {x: (folder / "model.safetensors").stat().st_size for x, folder in models.items()}
    lines = ["models, for --model:", *(f"  {x}  {n / 1e6:.1f} MB" for x, n in sizes.items())]
    lines += ["", "configs, for --config-file (MODEL_ZOO.md tells what each is for):"]
    names = (x.relative_to(configs).with_suffix("").as_posix() for x in configs.rglob("*.yaml"))
    shown = (x for x in names if not x.rpartition("/")[2].startswith(("Base-", "Backbone-")))
    return "\n".join([*lines, *(f"  {name}" for name in sorted(shown))])
