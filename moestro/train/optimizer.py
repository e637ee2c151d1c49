"""Which weights go to which optimizer, and their state as named tensors.

Next: muon.py, schedule.py.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from moestro.errors import ConfigError
from moestro.model.model import Transformer
from moestro.train.config import OptimizerConfig
from moestro.train.muon import Muon

_NOT_MATRICES = ("embed_tokens.weight", "lm_head.weight", "gate.weight")


class Optimizers:
    """Muon and AdamW (or AdamW alone) over one model, driven as one."""

    def __init__(self, model: Transformer, config: OptimizerConfig) -> None:
        self.config = config
        self._parameters = dict(model.named_parameters())
        matrices = {
            name: parameter
            for name, parameter in self._parameters.items()
            if config.kind == "muon" and parameter.ndim >= 2 and not name.endswith(_NOT_MATRICES)
        }
        self._parts: list[tuple[torch.optim.Optimizer, float]] = []
        others = [p for name, p in self._parameters.items() if name not in matrices]
        rate = config.adamw_learning_rate if matrices else config.learning_rate
        self._parts.append((_adamw(others, rate, config), rate))
        if matrices:
            muon = _muon(matrices, config, model.compute_dtype)
            self._parts.append((muon, config.learning_rate))

    def apply(self, scale: float) -> float:
        """Clip gradients, update weights at `scale` times the learning rates, return the norm.

        ConfigError, and no weight is changed, where the norm is no finite number.
        """
        norm = float(nn.utils.clip_grad_norm_(self._parameters.values(), self.config.clip_norm))
        if not math.isfinite(norm):
            raise ConfigError(
                f"the gradients' norm is {norm}: lower train.optimizer.learning_rate in another"
                " --out, or look for what is odd in the data"
            )
        for optimizer, rate in self._parts:
            for group in optimizer.param_groups:
                group["lr"] = rate * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return norm

    def state(self) -> dict[str, Tensor]:
        """Return all state as named tensors, `parameter.name|kind`."""
        return {
            f"{name}|{kind}": torch.as_tensor(value)
            for name, parameter in self._parameters.items()
            for optimizer, _ in self._parts
            for kind, value in optimizer.state.get(parameter, {}).items()
        }

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `state` returned for an equal model; raise KeyError for any other."""
        owners = {
            id(parameter): optimizer
            for optimizer, _ in self._parts
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        named = {key.rpartition("|")[0] for key in tensors}
        if unlike := named ^ self._parameters.keys():
            raise KeyError(f"{min(unlike)} is on one side only")
        for key, value in tensors.items():
            name, _, kind = key.rpartition("|")
            parameter = self._parameters[name]
            is_count = kind == "step"
            if not is_count and value.shape != parameter.shape:
                raise KeyError(f"state of {name} has shape {list(value.shape)}")
            # AdamW wants its step count on the CPU; all else lives with the weights.
            moved = value if is_count else value.to(parameter.device)
            owners[id(parameter)].state[parameter][kind] = moved


def _adamw(
    parameters: list[nn.Parameter], rate: float, config: OptimizerConfig
) -> torch.optim.Optimizer:
    is_decayed = [parameter.ndim >= 2 for parameter in parameters]
    groups: list[dict[str, Any]] = [
        {"params": [p for p, yes in zip(parameters, is_decayed, strict=True) if yes]},
        {
            "params": [p for p, yes in zip(parameters, is_decayed, strict=True) if not yes],
            "weight_decay": 0.0,
        },
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=rate,
        betas=(config.beta1, config.beta2),
        weight_decay=config.weight_decay,
        fused=True,
    )


def _muon(
    matrices: Mapping[str, nn.Parameter], config: OptimizerConfig, dtype: torch.dtype
) -> Muon:
    for name, parameter in matrices.items():
        # Gate and up projection are two matrices that share a tensor.
        parameter.num_matrices = 2 if "gate_up_proj" in name else 1  # type: ignore[attr-defined]
    return Muon(
        matrices.values(),
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        num_steps=config.newton_schulz_steps,
        dtype=dtype,
    )
