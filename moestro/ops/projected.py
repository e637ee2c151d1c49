"""What a layer's projections make of its tokens, and what attention takes: queries and latents.

Between the two lie the latent's norm and the rotations by position. Next: latent.py, causal.py.

Shapes: B sequences, S tokens, K keys, H heads, N and R query widths without and with rotary
position, Q = N + R, C latent width, M = C + R, P = R / 2 pairs.
"""

from dataclasses import dataclass

from torch import Tensor

from moestro.ops.rope import rotate
from moestro.ops.rowwise import rms_norm


@dataclass(frozen=True)
class Query:
    """What attends: the parts without and with rotary position, and the softmax scale."""

    nope_BSHN: Tensor
    rope_BSHR: Tensor
    scale: float


@dataclass(frozen=True)
class Latents:
    """What the cache holds for each key token: `latent_BKC` and its rotated part `rope_BKR`."""

    latent_BKC: Tensor
    rope_BKR: Tensor


@dataclass(frozen=True)
class Rotary:
    """Positions' angles, and whether the pairs that turn are neighbours."""

    cos_SP: Tensor
    sin_SP: Tensor
    is_interleaved: bool

    @property
    def width(self) -> int:
        """R."""
        return 2 * self.cos_SP.shape[-1]


@dataclass(frozen=True)
class Projected:
    """Queries and compressed keys and values as the projections leave them (eq. 1-9).

    A query's last R numbers and a compressed row's last R wait for their rotation, its first C for
    their norm by `norm_C`.
    """

    query_BSHQ: Tensor
    compressed_BSM: Tensor
    norm_C: Tensor
    epsilon: float
    rotary: Rotary
    scale: float

    def query(self) -> Query:
        """Return the queries, rotated."""
        R, rotary = self.rotary.width, self.rotary
        nope_BSHN, rope_BSHR = self.query_BSHQ.split([self.query_BSHQ.shape[-1] - R, R], dim=-1)
        cos_S1P, sin_S1P = rotary.cos_SP[:, None], rotary.sin_SP[:, None]
        return Query(
            nope_BSHN, rotate(rope_BSHR, cos_S1P, sin_S1P, rotary.is_interleaved), self.scale
        )

    def latents(self) -> Latents:
        """Return the latents, normalized, and their positions' part, rotated."""
        R, rotary = self.rotary.width, self.rotary
        latent_BSC, rope_BSR = self.compressed_BSM.split([len(self.norm_C), R], dim=-1)
        return Latents(
            rms_norm(latent_BSC, self.norm_C, self.epsilon),
            rotate(rope_BSR, rotary.cos_SP, rotary.sin_SP, rotary.is_interleaved),
        )
