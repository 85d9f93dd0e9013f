"""bfloat16 on a CPU for a whole model."""

from typing import Any

import torch
from torch import nn


class CPUAutocast:
    """Forward hooks within which a module runs in bfloat16 where that is safe.

    Unlike a wrapped `forward`, they are copied and pickled with their module.
    """

    def __init__(self, module: nn.Module):
        """
        Args:
            module: gets the hooks.
        """
        self._entered: list[torch.autocast] = []
        module.register_forward_pre_hook(self.enter)
        module.register_forward_hook(self.leave, always_call=True)

    def enter(self, module: nn.Module, inputs: tuple) -> None:
        """Before the forward pass."""
        autocast = torch.autocast("cpu", dtype=torch.bfloat16)
        autocast.__enter__()
        self._entered.append(autocast)

    def leave(self, module: nn.Module, inputs: tuple, outputs: Any) -> None:
        """After the forward pass, also where it raised."""
        self._entered.pop().__exit__(None, None, None)
