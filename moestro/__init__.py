"""Train, serve and route sparse Mixture-of-Experts language models on your own hardware."""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from moestro.lm.language_model import load as load


def __getattr__(name: str) -> object:
    # Lazily, so that `import moestro` on a machine that only plans or routes needs no torch.
    if name == "load":
        from moestro.lm.language_model import load

        return load
    raise AttributeError(f"module 'moestro' has no attribute {name!r}")
