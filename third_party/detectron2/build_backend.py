"""PEP 517 backend: Detectron2 v0.6 as a pure-Python wheel that runs on current libraries.

The sources are the sdist ``pb1-detectron2`` 0.6 of the configured pip index, whose ``detectron2/``
equals Detectron2's v0.6 tag. They are checked by hash, patched (``patches.py``) and handed to
setuptools.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import patches
from pypi_simple import PYPI_SIMPLE_ENDPOINT, PyPISimple
from setuptools import build_meta

PROJECT = "pb1-detectron2"
SDIST_SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
SDIST_VARIABLE = "DETECTRON2_SDIST"
ROOT = Path(__file__).resolve().parent
SUBPROJECTS = {  # projects/<key> becomes detectron2.projects.<value>, as in upstream's setup.py
    "PointRend/point_rend": "point_rend",
    "DeepLab/deeplab": "deeplab",
    "Panoptic-DeepLab/panoptic_deeplab": "panoptic_deeplab",
}
REMEDY = (
    f"Point pip at an index that has {PROJECT} 0.6 (PIP_INDEX_URL or `pip config set "
    f"global.index-url URL`), or set {SDIST_VARIABLE} to the path of its sdist."
)


class BuildError(Exception):
    """The wheel cannot be built; the message says why and what to do."""


def build_wheel(
    wheel_directory: str,
    config_settings: Mapping[str, object] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """Builds the wheel into ``wheel_directory`` and returns its file name (PEP 517 hook)."""
    destination = os.path.abspath(wheel_directory)
    with tempfile.TemporaryDirectory() as scratch:
        sources = stage_sources(get_sdist(Path(scratch)), Path(scratch))
        with contextlib.chdir(sources):
            return build_meta.build_wheel(destination)


def build_sdist(sdist_directory: str, config_settings: Mapping[str, object] | None = None) -> str:
    """Always refuses: the sources are downloaded, so only a wheel is meaningful (PEP 517 hook)."""
    raise UnsupportedOperation(f"only wheels are built here; the sdist to use is {PROJECT} 0.6")


class UnsupportedOperation(Exception):
    """Named by PEP 517 for a hook that a backend cannot serve."""


def get_requires_for_build_wheel(config_settings: Mapping[str, object] | None = None) -> list[str]:
    """Nothing beyond ``build-system.requires`` (PEP 517 hook)."""
    return []


def get_sdist(download_dir: Path) -> Path:
    """Returns the path of the sdist, from ``$DETECTRON2_SDIST`` or else from the index.

    Raises:
        BuildError: it is not to be had, or is not the file with ``SDIST_SHA256``.
    """
    local = os.environ.get(SDIST_VARIABLE)
    if local and not os.path.isfile(local):
        raise BuildError(f"{SDIST_VARIABLE}={local}: no such file. {REMEDY}")
    sdist = Path(local) if local else download_sdist(download_dir)
    check_hash(sdist)
    return sdist


def check_hash(sdist: Path) -> None:
    """Raises BuildError unless ``sdist`` is the known release, byte for byte."""
    digest = hashlib.sha256(sdist.read_bytes()).hexdigest()
    if digest != SDIST_SHA256:
        raise BuildError(
            f"{sdist.name} has sha256 {digest}, expected {SDIST_SHA256}: not the {PROJECT} 0.6 "
            f"release, or damaged on the way. {REMEDY}"
        )


def download_sdist(download_dir: Path) -> Path:
    """Downloads the sdist from the first configured index that has it."""
    settings = pip_settings()
    failures = []
    for url in index_urls(settings):
        try:
            return download_from(url, settings.get("cert"), download_dir)
        # Whatever goes wrong with one index, the next may still serve; all of it is reported.
        except Exception as error:
            failures.append(without_passwords(f"  {url}: {type(error).__name__}: {error}"))
    raise BuildError("\n".join([f"cannot download {PROJECT} 0.6:", *failures, REMEDY]))


def download_from(index_url: str, cert: str | None, download_dir: Path) -> Path:
    """Downloads the sdist from one index."""
    with PyPISimple(index_url) as client:
        if cert:
            client.s.verify = cert
        for package in client.get_project_page(PROJECT, timeout=60).packages:
            if (package.version, package.package_type) == ("0.6", "sdist"):
                target = download_dir / package.filename
                client.download_package(package, target, verify=False, timeout=60)  # see check_hash
                return target
    raise BuildError(f"has no sdist of {PROJECT} 0.6")


def pip_settings() -> dict[str, str]:
    """Options of pip that matter here, from its configuration files and ``PIP_*`` variables."""
    lines = pip_config_lines()
    settings: dict[str, str] = {}
    for section in ("global.", "install.", ":env:."):  # later ones win, as in pip
        for line in lines:
            key, _, value = line.partition("=")
            if key.startswith(section):
                settings[key.removeprefix(section)] = ast.literal_eval(value)
    return settings


def pip_config_lines() -> list[str]:
    """Lines ``section.option='value'`` of ``pip config list``; only the environment without pip."""
    # Build isolation hides pip through PYTHONPATH; without it this interpreter finds pip again.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    listing = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if listing.returncode == 0:
        return listing.stdout.splitlines()
    variables = {k: v for k, v in os.environ.items() if k.startswith("PIP_")}
    return [f":env:.{k[4:].lower().replace('_', '-')}={v!r}" for k, v in variables.items()]


def index_urls(settings: Mapping[str, str]) -> list[str]:
    """The index and the extra indexes, in pip's order; ``file:`` ones cannot be asked over HTTP."""
    urls = [settings.get("index-url") or PYPI_SIMPLE_ENDPOINT]
    urls += settings.get("extra-index-url", "").split()
    return [url for url in urls if url.startswith(("http://", "https://"))]


def without_passwords(message: str) -> str:
    """``message`` with user and password taken out of the URLs in it."""
    return re.sub(r"://[^/\s]*@", "://", message)


def stage_sources(sdist: Path, scratch: Path) -> Path:
    """Unpacks and patches ``sdist`` under ``scratch``; returns a tree that setuptools can build."""
    shutil.unpack_archive(sdist, scratch, format="gztar")
    sources = scratch / f"{PROJECT}-0.6"
    for directory, name in SUBPROJECTS.items():
        shutil.move(sources / "projects" / directory, sources / "detectron2" / "projects" / name)
    patches.apply_all(sources)
    for upstream_build_file in ("setup.py", "setup.cfg"):
        (sources / upstream_build_file).unlink()
    shutil.copy(ROOT / "pyproject.toml", sources)
    return sources
