"""What computes the network of an optimised model: PyTorch, or a library that is faster."""

import logging
import warnings
from importlib.util import find_spec
from typing import NoReturn

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone

from ..modeling import SCNet, TimmBackbone

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "torch", "openvino", "compile")


class OpenVINONetwork(Backbone):
    """A network compiled by OpenVINO, for images of any size, in float32 on the CPU."""

    def __init__(self, network: Backbone):
        """
        Args:
            network: gives a dict of features (N, D, H / stride, W / stride).

        Raises:
            ImportError: without OpenVINO.
        """
        super().__init__()
        self._shapes = network.output_shape()
        self._size_divisibility = network.size_divisibility
        self._request = _compile(network, list(self._shapes)).create_infer_request()
        self.register_load_state_dict_pre_hook(_refuse_weights)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Features (N, D, H / stride, W / stride) of images (N, 3, H, W), by name."""
        found = self._request.infer([x.contiguous().numpy()], share_inputs=True)
        return {name: torch.from_numpy(found[i]) for i, name in enumerate(self._shapes)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every feature."""
        return dict(self._shapes)

    @property
    def size_divisibility(self) -> int:
        """As the network has it."""
        return self._size_divisibility


class _InOrder(torch.nn.Module):
    """A network whose features are a tuple, as tracing wants them."""

    def __init__(self, network: Backbone, names: list[str]):
        super().__init__()
        self.network, self.names = network, names

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.network(x)
        return tuple(found[name] for name in self.names)


def _compile(network: Backbone, names: list[str]):
    """OpenVINO's `CompiledModel` of a network, whose outputs come in the order of the names."""
    import openvino  # noqa: PLC0415 (an optional package)

    side = 2 * max(network.size_divisibility, 32)
    example = torch.zeros(1, 3, side, side)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # of checks of empty tensors
        traced = torch.jit.trace(_InOrder(network, names), example, check_trace=False)
    model = openvino.convert_model(
        traced, example_input=example, input=[openvino.PartialShape([-1, 3, -1, -1])]
    )
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,  # two processes would share one core
    }
    return openvino.Core().compile_model(model, "CPU", settings)


def check_backend(backend: str) -> None:
    """Raises: ValueError, if it is none of `BACKENDS`."""
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")


def convert_network(model: SCNet, backend: str) -> None:
    """Have a backend compute the network below the FPN, or the backbone without one, in place.

    Where that cannot be, it stays with PyTorch, and a warning says why.

    Args:
        model: in evaluation mode, its batch norms folded.
        backend: one of `BACKENDS`.
    """
    parent, name = model, "backbone"
    if hasattr(model.backbone, "bottom_up"):
        parent, name = model.backbone, "bottom_up"
    network = getattr(parent, name)
    if backend == "auto":
        backend = "openvino" if _openvino_is_best(network) else "torch"
    if backend == "compile":
        network.compile()
    elif backend == "openvino" and _can_use_openvino(network):
        setattr(parent, name, OpenVINONetwork(network))


def _openvino_is_best(network: Backbone) -> bool:
    """Of depthwise convolutions, which networks of timm have; docs/performance.md."""
    parameter = next(network.parameters())
    plain = parameter.device.type == "cpu" and parameter.dtype == torch.float32
    return plain and isinstance(network, TimmBackbone) and find_spec("openvino") is not None


def _can_use_openvino(network: Backbone) -> bool:
    parameter = next(network.parameters())
    faults = {
        "it is not installed (pip install 'scnet_d2[openvino]')": find_spec("openvino") is None,
        f"the model is on {parameter.device}": parameter.device.type != "cpu",
        f"the model computes in {parameter.dtype}": parameter.dtype != torch.float32,
    }
    for fault in (text for text, found in faults.items() if found):
        logger.warning("backend openvino: %s; PyTorch is used", fault)
        return False
    return True


def _refuse_weights(*args) -> NoReturn:
    raise RuntimeError(
        "this model is optimised for inference: OpenVINO has its weights compiled in. Load the "
        "checkpoint into a newly built model, then call optimize_for_inference again"
    )
