"""Packaging of scnet_d2. Detectron2 itself: see requirements.txt and third_party/detectron2."""

from setuptools import find_packages, setup

setup(
    name="scnet_d2",
    version="0.1.0",
    description="Multi-label image classification with spatial context, on Detectron2",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["scnet_d2", "scnet_d2.*"]),
    package_data={
        "scnet_d2.app": ["*.css", "*.js"],
        "scnet_d2.report": ["*.css", "*.js", "*.json"],
    },
    python_requires=">=3.10",
    install_requires=[
        "detectron2>=0.6",
        "torch>=2.1",
        "torchvision",
        "fvcore",
        "pycocotools>=2.0.6",
        "opencv-python>=4.6",
        "numpy>=1.24",
        "matplotlib>=3.6",
        "tabulate>=0.9",
        "tqdm",
    ],
    entry_points={"console_scripts": ["scnet-tag = scnet_d2.tagging.program:main"]},
    extras_require={
        "app": ["gradio>=6.31,<7"],
        "export": ["onnx", "onnxruntime"],
        "fuzz": ["atheris"],
        "ray": ["ray[data]"],
        "safetensors": ["safetensors"],
        "test": [
            "gradio>=6.31,<7",
            "hypothesis",
            "onnx",
            "onnxruntime",
            "pytest",
            "pytest-xdist",
            "ruff==0.17.6",
            "scikit-learn",
            "pypi-simple",
            "ray[data]",
            "safetensors",
            "scipy",
            "selenium>=4.11",
        ],
    },
)
