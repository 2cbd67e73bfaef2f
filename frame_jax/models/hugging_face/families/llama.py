"""Llama, and its kin: Mistral, Qwen2 with biases, Qwen3 with normed heads."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from frame_jax.config.models import ModelConfig
from frame_jax.models.hugging_face.families.family import (
    ATTENTION,
    NORMS,
    OUTER,
    PREFIX,
    Family,
    Fields,
    dense_rules,
    read_shape,
    require_whole_rotation,
    write_shape,
)
from frame_jax.models.hugging_face.settings import HFSettings
from frame_jax.models.hugging_face.tensors import Layout

GROUPED = ("num_key_value_heads",)
LAYOUT = Layout(OUTER, PREFIX, (*NORMS, *ATTENTION, *dense_rules()))


def from_hf_config(s: HFSettings, sizes: Sequence[str] = (), **fields: Any) -> Fields:
    """`sizes` must be there beside the usual ones; `fields` are what sets a family apart."""
    require_whole_rotation(s)
    shape = read_shape(s, "intermediate_size", *sizes)
    return shape | {"intermediate_size": s.size("intermediate_size")} | fields


def to_hf_config(c: ModelConfig) -> dict[str, Any]:
    """The same for all of them."""
    return write_shape(c) | {"intermediate_size": c.intermediate_size}


READERS: dict[str, Callable[[HFSettings], Fields]] = {
    "llama": from_hf_config,
    "mistral": functools.partial(from_hf_config, sizes=GROUPED),
    "qwen2": functools.partial(from_hf_config, sizes=GROUPED, qkv_bias=True),
    # The only one of them whose heads are not hidden_size / num_heads by default.
    "qwen3": functools.partial(from_hf_config, sizes=(*GROUPED, "head_dim"), qk_norm=True),
}
FAMILIES = tuple(
    Family(
        name,
        f"{name.capitalize()}ForCausalLM",
        ("attention+dense",),
        reader,
        to_hf_config,
        (LAYOUT,),
    )
    for name, reader in READERS.items()
)
