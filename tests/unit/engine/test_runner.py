"""A step lies where its model does."""

import pytest
import torch
from torch import Tensor

from moestro.engine import pages
from moestro.engine.batch import Layout
from moestro.engine.pages import Pages
from moestro.engine.request import Work
from moestro.engine.runner import Runner
from moestro.model.model import Transformer
from moestro.ops.paged import Group
from moestro.ops.projected import Query
from moestro.ops.rows import RowMultiples
from tests.builders import tiny_config
from tests.unit.engine.sequences import build_sequence

SIZE = 16


def test_all_that_attention_reads_lies_on_the_models_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # No numbers, so no experts to count; a device that is not the CPU on any machine.
    device = torch.device("meta")
    config = tiny_config(first_k_dense_replace=2)
    with device:
        model = Transformer(config)
    found: list[Tensor] = []

    def attend(
        query: Query, pages_AZW: Tensor, groups: list[Group], up: object, multiple: int
    ) -> Tensor:
        found.extend([query.nope_BSHN, query.rope_BSHR, pages_AZW])
        found.extend(part for group in groups for part in (group.table_GM, group.lengths_GS))
        return query.nope_BSHN.new_empty(*query.nope_BSHN.shape[1:3], config.v_head_dim)

    monkeypatch.setattr(pages, "paged", attend)
    runner = Runner(
        model, Pages(config, 2, SIZE, torch.float32, device), RowMultiples(), may_expand=False
    )
    sequence = build_sequence([1, 2, 3])
    sequence.blocks = [0]
    layout = Layout(block_size=SIZE, scratch_slot=2 * SIZE, row_multiple=1, most_experts=4)
    runner.forward(layout.gather([Work(sequence=sequence, start=0, end=3)]))
    assert found
    assert {each.device.type for each in found} == {"meta"}
