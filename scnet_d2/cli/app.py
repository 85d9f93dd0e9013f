"""A page to try a model: drop a photograph, see its labels and where they come from."""

import argparse
import logging
import os
import socket
import time
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.utils.logger import setup_logger
from PIL import Image

from ..app.label_page import (
    PHOTO_SIDE,
    SCRIPT,
    STYLE,
    LabelledPhoto,
    list_labels,
    page_html,
)
from ..data import ImageError, read_image
from ..inference import SCNetPredictor, load_arguments
from ..report.templates import jpeg_url

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
try:
    import gradio as gr
except ImportError as error:
    raise ImportError("scnet app needs Gradio: pip install 'scnet_d2[app]'") from error

logger = logging.getLogger("scnet_d2.app")

MAX_EXAMPLES = 24
THUMBNAIL_SIDE = 240
MAX_UPLOAD = "200mb"
# Gradio serves it itself; of its semi-bold fonts it has a few letters only.
FONTS = [gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700)), gr.themes.Font("sans-serif")]
EXAMPLE_SCRIPT = """element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-example]");
  if (button) trigger("select", { index: Number(button.dataset.example) });
});"""


class PhotoError(ValueError):
    """A photograph cannot be labelled; the message is for the person who chose it."""


def get_num_boxes(model) -> int:
    """Most proposals of the RPN that take part in the labels of an image, 0 without an RPN."""
    return model.proposal_generator.post_nms_topk[False] if _has_rpn(model) else 0


def set_num_boxes(model, number: int) -> None:
    """Let at most so many proposals of the RPN take part, where there is one."""
    if _has_rpn(model):
        model.proposal_generator.post_nms_topk[False] = number


def _has_rpn(model) -> bool:
    return getattr(model, "proposal_generator", None) is not None


def read_photo(path: str | Path) -> np.ndarray:
    """A photograph as (H, W, 3) uint8 BGR, turned as its EXIF says.

    Raises:
        PhotoError: if the file is damaged, no image, or too large.
    """
    path, name = os.fspath(path), Path(path).name
    try:
        return np.ascontiguousarray(read_image(path, format="BGR"))
    except ImageError as error:
        if error.__cause__ is None:  # readable, but of a kind that is refused
            raise PhotoError(str(error).replace(f"image '{path}'", name)) from error
        if isinstance(error.__cause__, FileNotFoundError):  # uploads are deleted after an hour
            raise PhotoError(f"{name} is no longer there: choose it again.") from error
        if isinstance(error.__cause__, Image.DecompressionBombError):
            raise PhotoError(f"{name} is too large: it has over 178 million pixels.") from error
        raise PhotoError(
            f"{name} cannot be read: it is damaged, or no JPEG, PNG, WebP, BMP, GIF or TIFF file."
        ) from error


def label_photo(predictor: SCNetPredictor, path: str, num_boxes: int) -> LabelledPhoto:
    """Read a photograph and predict its labels.

    Raises:
        PhotoError: if it cannot be read, or the model cannot take it.
    """
    image = read_photo(path)
    set_num_boxes(predictor.model, num_boxes)
    start = time.perf_counter()
    try:
        output = predictor(image)
        output = {key: value.to("cpu") for key, value in output.items()}  # waits for a GPU
    except Exception as error:
        logger.exception("%s", path)
        raise PhotoError(
            f"The model cannot label {Path(path).name}: see the program's log."
        ) from error
    milliseconds = 1000 * (time.perf_counter() - start)
    url = jpeg_url(image[:, :, ::-1], PHOTO_SIDE)
    name = Path(path).name
    return LabelledPhoto(path, name, image.shape[:2], url, output, num_boxes, milliseconds)


class LabelPage:
    """What the page does when something is clicked."""

    def __init__(self, predictor: SCNetPredictor, examples: dict[str, str]):
        """
        Args:
            predictor: of an SCNet or an ImageLabeler.
            examples: photographs offered, path → thumbnail's data URL.
        """
        self.predictor = predictor
        self.examples = examples
        self.max_boxes = get_num_boxes(predictor.model)

    @property
    def has_own_thresholds(self) -> bool:
        """Whether the config has a threshold for each label (`TEST.LABEL_THRESHOLDS`)."""
        return len(set(self.predictor.thresholds)) > 1

    def label(self, path: str, threshold: float, boxes: int, own: bool) -> tuple:
        """The labelled photograph, None where there is none, and the page's HTML.

        Args:
            path: of the photograph.
            threshold: for all labels.
            boxes: most proposals that take part.
            own: use the config's threshold of each label instead.
        """
        try:
            photo = label_photo(self.predictor, path, int(boxes))
        except PhotoError as error:
            return None, page_html("start", str(error))
        return photo, self.draw(photo, threshold, own)

    def label_example(self, threshold: float, boxes: int, own: bool, event: gr.EventData) -> tuple:
        """Label the example that was clicked."""
        return self.label(list(self.examples)[event.index], threshold, boxes, own)

    def label_again(
        self, photo: LabelledPhoto | None, threshold: float, boxes: int, own: bool
    ) -> tuple:
        """Label the photograph shown, with another number of boxes."""
        if photo is None:
            return None, gr.skip()
        return self.label(photo.path, threshold, boxes, own)

    def draw(self, photo: LabelledPhoto | None, threshold: float, own: bool) -> str:
        """The page's HTML at a threshold, or with the config's own one for each label."""
        if photo is None:
            return gr.skip()
        names = self.predictor.class_names
        thresholds = self.predictor.thresholds if own else np.full(len(names), threshold)
        return page_html("result", photo, list_labels(photo.output, names, thresholds))


def build_page(page: LabelPage) -> gr.Blocks:
    """The Gradio page; one photograph at a time goes through the model."""
    with gr.Blocks(
        title="scnet_d2: labels of a photograph", analytics_enabled=False, delete_cache=(600, 3600)
    ) as blocks:
        with gr.Row(elem_id="head"):
            gr.HTML(title_html(page.predictor), elem_id="title", scale=1)
            with gr.Column(elem_id="upload", scale=0):
                upload = gr.UploadButton("Another photograph", variant="primary", size="md")
        result = gr.HTML(
            page_html("start", ""), js_on_load=SCRIPT.read_text(), apply_default_css=False
        )
        settings = threshold, boxes, own = build_settings(page)
        examples = gr.HTML(
            page_html("examples", [(Path(f).name, url) for f, url in page.examples.items()]),
            js_on_load=EXAMPLE_SCRIPT, apply_default_css=False, visible=bool(page.examples),
        )  # fmt: skip
        photo = gr.State(time_to_live=3600)
        shown = [photo, result]
        model = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
        upload.upload(page.label, [upload, *settings], shown, **model)
        examples.select(page.label_example, settings, shown, **model)
        boxes.change(
            page.label_again, [photo, *settings], shown, trigger_mode="always_last", **model
        )
        drawing = {"trigger_mode": "always_last", "api_visibility": "private"}
        threshold.input(lambda: False, None, own, api_visibility="private")
        gr.on(
            [threshold.change, own.change], page.draw, [photo, threshold, own], result,
            show_progress="hidden", **drawing,
        )  # fmt: skip
    return blocks


def build_settings(page: LabelPage) -> tuple[gr.Slider, gr.Slider, gr.Checkbox]:
    """Threshold, number of boxes, and whether each label has its own threshold."""
    with gr.Column(elem_id="settings"):
        with gr.Row():
            start = np.median(page.predictor.thresholds)
            threshold = gr.Slider(0, 1, start, step=0.01, label="Threshold", min_width=260)
            boxes = gr.Slider(
                min(page.max_boxes, 1), max(page.max_boxes, 1), page.max_boxes, step=1,
                min_width=260, label="Boxes (RPN proposals)", visible=page.max_boxes > 0,
            )  # fmt: skip
        own = gr.Checkbox(
            page.has_own_thresholds, label="Each label's own threshold, of the config",
            visible=page.has_own_thresholds,
        )  # fmt: skip
    return threshold, boxes, own


def title_html(predictor: SCNetPredictor) -> str:
    """Heading of the page and which model it tries."""
    weights = "/".join(Path(predictor.cfg.MODEL.WEIGHTS).parts[-2:])
    return page_html("title", weights, len(predictor.class_names), predictor.model.device)


def load_examples(folder: str) -> dict[str, str]:
    """The first photographs of a folder, by name; what cannot be read is left out.

    Returns:
        Path → thumbnail's data URL.

    Raises:
        FileNotFoundError: if the folder is absent or holds no image.
    """
    examples = {}
    for file in sorted(Path(folder).glob("*")):
        if file.suffix.lower() not in Image.registered_extensions():
            continue
        try:
            examples[os.fspath(file)] = jpeg_url(read_photo(file)[:, :, ::-1], THUMBNAIL_SIDE)
        except PhotoError as error:
            logger.warning("%s", error)
        if len(examples) == MAX_EXAMPLES:
            break
    if not examples:
        raise FileNotFoundError(f"--examples {folder}: no images there")
    return examples


def setup(args) -> CfgNode:
    """Read the config and the key overrides."""
    cfg = load_arguments(args)
    if cfg.MODEL.META_ARCHITECTURE not in ("SCNet", "ImageLabeler"):
        raise ValueError(
            f"{args.model}: MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}; the "
            "page shows the boxes of SCNet and the class maps of ImageLabeler"
        )
    return cfg


def run(args: argparse.Namespace) -> None:
    """Serve the page until the program is interrupted."""
    setup_logger(name="fvcore")
    serve(args).block_thread()


def serve(args: argparse.Namespace) -> gr.Blocks:
    """Serve the page, from a thread of its own."""
    require_free(args.host, args.port)
    predictor = SCNetPredictor(setup(args))
    page = LabelPage(predictor, load_examples(args.examples) if args.examples else {})
    predictor(np.full((240, 320, 3), 127, dtype=np.uint8))  # the first run is slow
    blocks = build_page(page)
    blocks.launch(
        server_name=args.host,
        server_port=args.port,
        share=False,
        prevent_thread_lock=True,
        quiet=True,
        theme=gr.themes.Default(primary_hue="blue", font=FONTS),
        head=f"<style>{STYLE.read_text()}</style>",
        footer_links=[],
        max_file_size=MAX_UPLOAD,
        ssr_mode=False,
    )
    print(f"The page is at {blocks.local_url}", flush=True)
    return blocks


def require_free(host: str, port: int | None) -> None:
    """Check that the page can be served there, before the model is loaded.

    Args:
        host: name or address of this machine.
        port: None is any free one.

    Raises:
        ValueError: naming both, and the remedy.
    """
    family = socket.AF_INET6 if host.count(":") > 1 else socket.AF_INET
    try:
        socket.create_server((host, port or 0), family=family).close()
    except OSError as error:
        where = f"{host}, port {port}" if port else host
        why = str(error.strerror).partition(" (while")[0]
        raise ValueError(
            f"the page cannot be served on {where} ({why}): choose another --port, or "
            "none for the first free one, and a --host that is a name or address of this machine"
        ) from error
