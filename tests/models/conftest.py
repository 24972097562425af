"""Tiny architectures of each kind that open_clip knows, registered under names of their own."""

import json
from typing import Any

import open_clip
import pytest

TEXT = {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
VISION = {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
BASE: dict[str, Any] = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT}
KINDS = {
    "plain": BASE,
    "custom": BASE | {"custom_text": True, "quick_gelu": True},
    "eos": BASE | {"custom_text": True, "text_cfg": TEXT | {"pool_type": "eos", "eos_id": 49407}},
    "sigmoid": BASE
    | {
        "custom_text": True,
        "init_logit_bias": -10,
        "text_cfg": TEXT | {"no_causal_mask": True, "pool_type": "last", "proj_bias": True},
    },
    "bidirectional": BASE | {"custom_text": True, "text_cfg": TEXT | {"no_causal_mask": True}},
    "last": BASE | {"custom_text": True, "text_cfg": TEXT | {"pool_type": "last"}},
    "cls": BASE | {"custom_text": True, "text_cfg": TEXT | {"embed_cls": True}},
    "coca": BASE
    | {
        "custom_text": True,
        "multimodal_cfg": TEXT,
        "vision_cfg": VISION | {"output_tokens": True, "attentional_pool": True, "attn_pooler_heads": 2},
        "text_cfg": TEXT | {"embed_cls": True, "output_tokens": True},
    },
}


@pytest.fixture(scope="session", autouse=True)
def _kinds(tmp_path_factory: pytest.TempPathFactory) -> None:
    """open_clip knows every one of KINDS as "kind-NAME"."""
    folder = tmp_path_factory.mktemp("configs")
    for name, config in KINDS.items():
        (folder / f"kind-{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
