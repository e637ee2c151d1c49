"""First weights of a model to be trained, from a seed.

Next: model.py.
"""

import math

import torch
from torch import Tensor, nn

from moestro.model.linear import RMSNorm
from moestro.model.model import Transformer

# Projections that write into the residual stream start smaller, so that depth does not inflate it
# (GPT-2's rule).
_WRITES_TO_STREAM = ("o_proj.weight", "down_proj.weight", "down_proj")


def initialize(model: Transformer, seed: int) -> None:
    """Fill the weights with normals of `initializer_range`, norms with ones, biases with zeros."""
    generator = torch.Generator().manual_seed(seed)
    std = model.config.initializer_range
    depth_scale = 1 / math.sqrt(2 * model.config.num_hidden_layers)
    norms = {id(module.weight) for module in model.modules() if isinstance(module, RMSNorm)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if id(parameter) in norms:
                parameter.fill_(1)
            elif name.endswith(".bias"):
                parameter.zero_()
            else:
                scale = depth_scale if name.endswith(_WRITES_TO_STREAM) else 1.0
                _fill_normal(parameter, std * scale, generator)
    model.reset_tables()


def _fill_normal(parameter: nn.Parameter, std: float, generator: torch.Generator) -> None:
    # Drawn on the CPU, so that a seed means the same weights on every device.
    drawn: Tensor = torch.randn(parameter.shape, generator=generator) * std
    parameter.copy_(drawn)
