"""`moestro inspect`: what a model is, from its configuration and its files' sizes.

Next: model/count.py.
"""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from moestro.cli import options
from moestro.model.config import ModelConfig
from moestro.model.count import active_parameters, cache_numbers_per_token, count_parameters


def inspect(model: options.Model, as_json: options.Json = False) -> None:
    """Say what a model is: architecture, parameters, active parameters by budget, bytes.

    Example: [bold]moestro inspect runs/demo[/bold]
    """
    from moestro.weights.find import find_checkpoint
    from moestro.weights.load import load_config, open_weights

    folder = find_checkpoint(model)
    # A configuration alone is a shape; weights beside it must be those that it tells of.
    has_weights = folder.is_file() or any(folder.glob("*.safetensors*"))
    result = describe(open_weights(folder)[0] if has_weights else load_config(folder), folder)
    if as_json:
        options.print_json(result)
        return
    table = Table(show_header=False, box=None)
    budgets = result["active_parameters"].items()
    shown = {"active_parameters": "  ".join(f"{n:,} at {k} experts" for k, n in budgets)}
    for name, value in result.items():
        table.add_row(name, _readable(shown.get(name, value)))
    Console().print(table)


def describe(config: ModelConfig, folder: Path) -> dict[str, Any]:
    """Return what `moestro inspect --json` prints."""
    count = count_parameters(config)
    fewest, most = config.fewest_experts, config.num_experts_per_tok
    budgets = sorted({float(fewest), (fewest + most) / 2, float(most)})
    is_sparse = config.first_k_dense_replace < config.num_hidden_layers
    return {
        "architecture": config.to_hf()["architectures"][0],
        "parameters": count.total,
        "active_parameters": {f"{b:g}": round(active_parameters(config, b)) for b in budgets},
        "mtp_parameters": count.mtp,
        "bytes": sum(path.stat().st_size for path in files_of(folder)),
        # The cache holds the compute dtype's numbers; 2 bytes each in bfloat16.
        "cache_bytes_per_token": 2 * cache_numbers_per_token(config),
        "cache_numbers_per_token": cache_numbers_per_token(config),
        "experts": {
            "routed": config.n_routed_experts if is_sparse else 0,
            "shared": config.n_shared_experts if is_sparse else 0,
            "per_token": [fewest, most],
            "groups": config.n_group,
        },
        "budget": {
            "min": fewest,
            "max": most,
            "is_learned": config.has_budget,
            "grid": [fewest + f * (most - fewest) for f in config.budget.fractions],
        },
        "layers": {"dense": config.first_k_dense_replace, "all": config.num_hidden_layers},
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "mtp_modules": config.num_nextn_predict_layers,
        "path": str(folder),
    }


def files_of(checkpoint: Path) -> list[Path]:
    """Return the files that hold a checkpoint's weights."""
    return [checkpoint] if checkpoint.is_file() else list(checkpoint.glob("*.safetensors"))


def _readable(value: object) -> str:
    if isinstance(value, bool | str) or value is None:
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return "  ".join(f"{key} {_readable(item)}" for key, item in value.items())
    if isinstance(value, list):
        return f"{value[0]:g} to {value[-1]:g}" if value else "none"
    return f"{value:g}"
