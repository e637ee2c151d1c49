"""A model's layers as one native call: a step's rows through all of them, latents to their pages.

Answers can go on by several tokens in a call: embeddings, layers, head and picks, again and again.

The torch modules are the specification. Knows no model; model/stack.py takes one apart.
Next: layer_parts.py, native.py; native/run.h has the phases.

Shapes: T rows, D width, L sparse layers, K slots per row, A blocks, Z tokens per block, W cache
width, S sequences, M layers, V vocabulary.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from moestro.ops.layer_parts import Describer, LayerParts, StackParts, bytes_read
from moestro.ops.native import FORMATS, NativeKernels, address_of
from moestro.ops.packing import pack
from moestro.ops.panels import Panels, WeightKind, unpack
from moestro.ops.picking import Picked, PickRow, describe_row


@dataclass(frozen=True)
class StackStep:
    """Which rows there are: positions, slots of their latents, budgets, and whose they are.

    `sequences_S3` has each sequence's first row, its number of rows, and where in `tables` its
    blocks begin. `fractions_T` None takes all experts. With `may_expand`, and if the stack
    `can_expand`, long prompts attend to expanded latents: faster, with other last bits.
    """

    positions_T: Tensor
    slots_T: Tensor
    fractions_T: Tensor | None
    sequences_S3: Tensor
    tables: Tensor
    pages_LAZW: Tensor
    may_expand: bool = False


@dataclass(frozen=True)
class Choices:
    """What the gates of a run chose."""

    experts_LTK: Tensor
    weights_LTK: Tensor
    is_used_LTK: Tensor

    def first(self, num_rows: int) -> "Choices":
        """Return those of the first rows."""
        return Choices(
            self.experts_LTK[:, :num_rows],
            self.weights_LTK[:, :num_rows],
            self.is_used_LTK[:, :num_rows],
        )


@dataclass(frozen=True)
class Decoded:
    """What answers came to: picks step by step, N rows each, and the last step's states.

    The rows of `chosen` are all steps' rows, one step's behind the other's.
    """

    picked: list[Picked]
    chosen: Choices
    hidden_ND: Tensor


class NativeStack:
    """Layers ready to run, MTP modules' last; `can_expand` once `expand_prompts` was called."""

    def __init__(self, kernels: NativeKernels, parts: StackParts, cache_dtype: torch.dtype) -> None:
        """Describe everything to C++."""
        self.kernels = kernels
        self.layers = parts.layers
        self.cache_dtype = cache_dtype
        self.can_expand = False
        self._shape, self._head = parts.shape, parts.head
        is_sparse = (layer.gate is not None for layer in parts.layers)
        # How many sparse layers there are before each.
        self._num_sparse = list(accumulate(is_sparse, initial=0))
        self._describer = describer = Describer(kernels)
        layers = [describer.layer(layer) for layer in parts.layers]
        self._native = kernels.native.Stack(kernels.library, describer.shape(parts), layers)
        self._native.set_final_norm(describer.norm(parts.final_norm))
        self._native.set_ends(describer.ends(parts))

    def expand_prompts(self) -> None:
        """Hold what expands latents to keys and values beside what is there already."""
        if self.can_expand:
            return
        for index, parts in enumerate(self.layers):
            keys, values = map(self.kernels.matrices, self._expansion(parts))
            self._native.set_expansion(index, keys=keys, values=values)
        self.can_expand = True

    def _expansion(self, parts: LayerParts) -> tuple[Panels, Panels]:
        """Return what makes a head's keys, and its values, in the format of the cache."""
        kind: WeightKind = "float32" if self.cache_dtype == torch.float32 else "bfloat16"
        keys_HNC = unpack(parts.w_uk).transpose(1, 2)
        values = parts.w_uv
        if values.kind != kind:
            values = pack(unpack(values), kind, self.kernels)
        expansion = pack(keys_HNC, kind, self.kernels), values
        self._describer.kept += [panels.data_HnB for panels in expansion]
        return expansion

    def bytes_read(self, layers: range) -> int:
        """Return how many bytes of weights one row needs that visits all its slots' experts."""
        return sum(bytes_read(self.layers[index], self._shape["num_slots"]) for index in layers)

    def draft(self, embedded_TD: Tensor, hidden_TD: Tensor, layer: int, step: StackStep) -> None:
        """Run an MTP module in place of the tokens' embeddings, behind the states before them."""
        assert self.layers[layer].mtp is not None
        assert hidden_TD.shape == embedded_TD.shape
        assert hidden_TD.is_contiguous()
        self._run(embedded_TD, hidden_TD, range(layer, layer + 1), step, False)

    def run(self, x_TD: Tensor, layers: range, step: StackStep, has_final_norm: bool) -> Choices:
        """Send rows through some layers, in place; with the final norm if asked for."""
        return self._run(x_TD, None, layers, step, has_final_norm)

    def _run(
        self,
        x_TD: Tensor,
        hidden_TD: Tensor | None,
        layers: range,
        step: StackStep,
        has_final_norm: bool,
    ) -> Choices:
        chosen = self._choices(layers, x_TD.shape[0])
        self._native.run(
            first_layer=layers.start,
            last_layer=layers.stop,
            step=self._parts(x_TD, step, chosen),
            hidden=address_of(hidden_TD),
            has_final_norm=has_final_norm,
            num_threads=torch.get_num_threads(),
        )
        return chosen

    def decode(
        self,
        tokens_T: Tensor,
        layers: range,
        step: StackStep,
        rows: Sequence[PickRow],
        stops: Sequence[Collection[int]],
        num_steps: int,
        wake_file: int | None = None,
    ) -> Decoded:
        """Let answers, a row each, go on by up to `num_steps` tokens, all layers in every step.

        A row's pick is its next step's token; its blocks must be there already. Tokens, positions
        and slots stay where the last step left them. All stop behind a step in which a row picks
        one of its `stops`, or cannot pick, or in which `wake_file` (a descriptor) can be read.
        """
        T, V = tokens_T.shape[0], self._head.num_outputs
        assert T == len(rows) == len(stops) == step.sequences_S3.shape[0]
        assert tokens_T.dtype == torch.int64
        assert tokens_T.is_contiguous()
        assert layers.start == 0
        x_TD, logits_TV = torch.empty(T, self._shape["hidden"]), torch.empty(T, V)
        chosen = self._choices(layers, num_steps * T)
        first, stride = logits_TV.data_ptr(), V * logits_TV.element_size()
        picked: list[Picked] = self._native.decode(
            num_layers=layers.stop,
            num_steps=num_steps,
            step=self._parts(x_TD, step, chosen),
            tokens=tokens_T.data_ptr(),
            rows=[
                describe_row(self.kernels, row, first + index * stride, V)
                for index, row in enumerate(rows)
            ],
            stops=[list(stop) for stop in stops],
            wake_file=-1 if wake_file is None else wake_file,
            logits=first,
            num_logits=V,
            num_threads=torch.get_num_threads(),
        )
        if len(picked) < num_steps * T:
            chosen = chosen.first(len(picked))
        return Decoded(picked, chosen, x_TD)

    def _choices(self, layers: range, num_rows: int) -> Choices:
        L = self._num_sparse[layers.stop] - self._num_sparse[layers.start]
        size = (L, num_rows, self._shape["num_slots"])
        return Choices(
            experts_LTK=torch.empty(size, dtype=torch.int64),
            weights_LTK=torch.empty(size),
            is_used_LTK=torch.empty(size, dtype=torch.bool),
        )

    def _parts(self, x_TD: Tensor, step: StackStep, chosen: Choices) -> Any:
        """Say where a step's parts lie, having seen that they are as C++ reads them."""
        assert x_TD.dtype == torch.float32
        assert x_TD.is_contiguous()
        pages_LAZW, fractions_T = step.pages_LAZW, step.fractions_T
        assert pages_LAZW.dtype == self.cache_dtype
        assert pages_LAZW.is_contiguous()
        # Not len(): torch's is Python, and this runs for every token.
        M, A, Z, _ = pages_LAZW.shape
        assert len(self.layers) == M
        T = x_TD.shape[0]
        _check(step, T)
        native = self.kernels.native
        return native.StepParts(
            x=x_TD.data_ptr(),
            num_rows=T,
            positions=step.positions_T.data_ptr(),
            slots=step.slots_T.data_ptr(),
            fractions=address_of(fractions_T),
            sequences=step.sequences_S3.data_ptr(),
            num_sequences=step.sequences_S3.shape[0],
            tables=step.tables.data_ptr(),
            num_table_entries=step.tables.numel(),
            pages=pages_LAZW.data_ptr(),
            cache_format=FORMATS["float32" if self.cache_dtype == torch.float32 else "bfloat16"],
            layer_slots=A * Z,
            block_size=Z,
            may_expand=step.may_expand and self.can_expand,
            choices=native.Choices(
                experts=chosen.experts_LTK.data_ptr(),
                weights=chosen.weights_LTK.data_ptr(),
                is_used=chosen.is_used_LTK.data_ptr(),
                layer_rows=chosen.experts_LTK.shape[1],
            ),
        )


def _check(step: StackStep, num_rows: int) -> None:
    """See that C++ finds what it will read; it counts the sequences' rows itself."""
    whole = (step.positions_T, step.slots_T, step.sequences_S3, step.tables)
    assert all(each.dtype == torch.int64 and each.is_contiguous() for each in whole)
    assert step.positions_T.shape[0] == step.slots_T.shape[0] == num_rows
    fractions_T = step.fractions_T
    if fractions_T is not None:
        assert fractions_T.dtype == torch.float32
        assert fractions_T.is_contiguous()
        assert fractions_T.numel() == num_rows
