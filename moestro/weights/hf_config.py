"""A folder's config.json -> what the model is; whatever is wrong with it names the file.

Knows no tensors. Next: load.py.
"""

from pathlib import Path
from typing import Any

from moestro import settings
from moestro.errors import CheckpointError, ConfigError
from moestro.model.config import ModelConfig


def build_config(path: Path, raw: dict[str, Any]) -> ModelConfig:
    """Build the configuration that `path` holds as `raw`; a bad value is a CheckpointError."""
    try:
        config = ModelConfig.from_hf(raw)
        # JSON holds any type under any key; building it as settings refuses wrong ones.
        return settings.build(ModelConfig, settings.to_tables(config))
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        raise CheckpointError(
            f"{path}: a value has the wrong type ({error}): restore the file"
        ) from error
