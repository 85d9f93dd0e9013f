"""Image files: Detectron2's reader, behind a look at the header that refuses what would harm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
from detectron2.data import detection_utils
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from .errors import ImageError

# PIL reads more; for EPS it starts Ghostscript, on whatever the name of the file ends in.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
MAX_ASPECT_RATIO = 200  # of a strip; resized to INPUT.MAX_SIZE it must keep a short side
_HEIF = (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1")  # how a file goes on after 4 bytes
_EXIF_ORIENTATION, _TURNED = 274, (5, 6, 7, 8)


def check_header(file_name: str) -> None:
    """Refuse an image that must not be decoded, without decoding it.

    Own decision, see docs/reliability.md: other formats than `FORMATS`, more pixels than PIL
    decodes (178,956,970, twice `PIL.Image.MAX_IMAGE_PIXELS`), more than 8 bits in grey, which PIL
    clips to white, and strips.

    Raises:
        ImageError: naming the file and what to do.
    """
    with _opened(file_name) as image:
        fault = _fault(image)
    if fault:
        raise ImageError(f"image '{file_name}' {fault[0]}", fault[1])


def image_size(file_name: str) -> tuple[int, int]:
    """Height and width of an image as it is shown: turned as its EXIF data say.

    Raises:
        ImageError: see `check_header`.
    """
    check_header(file_name)
    with _opened(file_name) as image:
        return image.size if _is_turned(image) else image.size[::-1]


def read_sizes(records: Sequence[dict[str, Any]], source: str) -> None:
    """Add `height` and `width` to the dataset dicts without them; says how long it takes.

    A file that cannot be read gets none: whoever needs it says so.

    Args:
        records: dataset dicts.
        source: name of the data, for the progress line.
    """
    unsized = [record for record in records if "height" not in record]
    with ThreadPoolExecutor() as pool:
        sizes = pool.map(_size_or_none, [record["file_name"] for record in unsized])
        progress = tqdm(
            sizes, f"{source}: sizes of images", len(unsized), delay=10, disable=None, leave=False
        )
        for record, size in zip(unsized, progress, strict=True):
            if size is not None:
                record["height"], record["width"] = size


def _size_or_none(file_name: str) -> tuple[int, int] | None:
    try:
        return image_size(file_name)
    except ImageError:
        return None


def is_turned(file_name: str) -> bool:
    """Whether the EXIF data of an image exchange its width and height."""
    with _opened(file_name) as image:
        return _is_turned(image)


def read_image(file_name: str, format: str | None = None) -> np.ndarray:
    """Detectron2's `read_image`, turned as the EXIF data say, behind `check_header`.

    Args:
        file_name: the file; what it holds counts, not what its name ends in.
        format: "BGR", "RGB" or another mode of PIL's.

    Returns:
        (H, W, C) uint8.

    Raises:
        ImageError: naming the file and what to do.
    """
    check_header(file_name)
    try:
        return detection_utils.read_image(file_name, format)
    except Exception as e:  # whatever a broken file makes a decoder raise
        raise _unreadable(file_name, e) from e


def read_reduced(
    file_name: str, format: str, shorter_side: int
) -> tuple[np.ndarray, tuple[int, int]]:
    """`read_image` of an image that will be scaled down: a large JPEG is decoded smaller at once.

    libjpeg decodes at a half, a quarter or an eighth in a fraction of the time. Other files are
    decoded as they are.

    Args:
        file_name: the file.
        format: as in `read_image`.
        shorter_side: what is decoded keeps at least so many pixels on its shorter side.

    Returns:
        The image (h, w, C) uint8, and the height and width of the file, both turned as its EXIF
        data say.

    Raises:
        ImageError: naming the file and what to do.
    """
    size = image_size(file_name)
    with _opened(file_name) as image:
        image.draft(None, (shorter_side, shorter_side))
        turned = detection_utils._apply_exif_orientation(image)
        return detection_utils.convert_PIL_to_numpy(turned, format), size


def _is_turned(image: Image.Image) -> bool:
    try:
        return image.getexif().get(_EXIF_ORIENTATION) in _TURNED
    except Exception:  # broken EXIF data turn nothing, as in Detectron2
        return False


@contextmanager
def _opened(file_name: str) -> Iterator[Image.Image]:
    try:
        with PathManager.open(file_name, "rb") as f, Image.open(f, formats=FORMATS) as image:
            yield image
    except Image.DecompressionBombError as e:
        raise ImageError(
            f"image '{file_name}' is too large to be decoded ({e})", "scale it down, or remove it"
        ) from e
    except Exception as e:
        raise _unreadable(file_name, e) from e


def _fault(image: Image.Image) -> tuple[str, str] | None:
    """What is wrong with an image by its header, and what to do."""
    if image.mode == "F" or image.mode.startswith("I"):
        fault = f"has more than 8 bits in grey (PIL's mode {image.mode})"
        return fault, "scale it to 8 bits, or remove it"
    if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
        width, height = image.size
        fault = f"is a strip of {width} x {height}, narrower than 1:{MAX_ASPECT_RATIO}"
        return fault, "cut it, or remove it"
    return None


def _unreadable(file_name: str, error: Exception) -> ImageError:
    if isinstance(error, UnidentifiedImageError) and _is_heif(file_name):
        return ImageError(
            f"image '{file_name}' cannot be read: it is a HEIF photograph (.heic, of a telephone)",
            "convert it to JPEG",
        )
    return ImageError(
        f"image '{file_name}' cannot be read ({type(error).__name__}: {error})",
        "get the file again or remove the image from the data set",
    )


def _is_heif(file_name: str) -> bool:
    with PathManager.open(file_name, "rb") as f:
        return f.read(12)[4:] in _HEIF
