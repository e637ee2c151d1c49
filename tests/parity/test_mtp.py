"""Our MTP modules say what transformers' say, loaded from a folder that we wrote."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DeepseekV3ForCausalLM
from transformers.cache_utils import MtpCache
from transformers.modeling_layers import MtpModel

from moestro.weights.export import save_model
from tests.builders import random_model, random_tokens, tiny_config


class Reader(DeepseekV3ForCausalLM):
    """Finds the MTP modules of two layers: theirs knows those of the published 61 only."""

    _keys_to_ignore_on_load_unexpected = (r"model\.layers\.[23]\..*",)


@pytest.mark.parametrize(
    "changes", [{}, {"q_lora_rank": 12, "n_group": 2, "topk_group": 2}], ids=["plain", "other"]
)
def test_looking_ahead_gives_the_logits_of_transformers(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    # Their experts want rows of 16 bytes.
    ours = random_model(
        tiny_config(num_nextn_predict_layers=2, moe_intermediate_size=12, **changes)
    )
    save_model(ours, tmp_path)
    theirs = Reader.from_pretrained(tmp_path, dtype=torch.float32).eval()
    modules = MtpModel.from_pretrained(theirs, device_map={"": "cpu"}).eval()
    cache = MtpCache(config=theirs.config.get_mtp_config())
    tokens_BS = random_tokens(ours.config, 1, 20)
    with torch.no_grad():
        state_BSD = theirs.model(tokens_BS[:, :18]).last_hidden_state
        own_BSD = ours(tokens_BS[:, :18])
        for depth in range(2):
            next_BS = tokens_BS[:, depth + 1 : depth + 19]
            positions_BS = torch.arange(depth + 1, depth + 19)[None]
            state_BSD = modules.forward_layer(
                depth, state_BSD, positions_BS, cache, input_ids=next_BS
            )
            own_BSD = ours.look_ahead(own_BSD, next_BS, depth)
            expected = theirs.lm_head(state_BSD)
            assert expected.std() > 0.1
            assert (ours.logits(own_BSD) - expected).abs().max() <= 1e-4
