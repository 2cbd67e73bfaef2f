"""Translates a Hugging Face config.json to the shape of our decoder, and back."""

import dataclasses
from pathlib import Path
from typing import Any

from frame_jax.config.models import ExpertsConfig, Mamba2Config, ModelConfig, layer_pattern
from frame_jax.config.settings import flatten_settings
from frame_jax.errors import UserError
from frame_jax.models.hugging_face.families import attention, mamba2
from frame_jax.models.hugging_face.families.family import Family
from frame_jax.models.hugging_face.settings import HFSettings

# In the order in which a layout for a decoder is looked for.
FAMILIES: dict[str, Family] = {
    family.model_type: family for family in (*attention.FAMILIES, *mamba2.FAMILIES)
}
# Families that resemble the supported ones, and what our decoder does not compute of them.
NOT_COMPUTED = {
    "deepseek_v2": "multi-head latent attention",
    "deepseek_v3": "multi-head latent attention",
    "dots1": "groups of experts",
    "falcon_h1": "attention and Mamba-2 side by side in a layer",
    "falcon_mamba": "Mamba-1",
    "gemma2": "capped logits",
    "gpt_oss": "attention sinks",
    "jamba": "Mamba-1",
    "mamba": "Mamba-1",
    "nemotron_h": "squared ReLU",
    "olmo": "a norm without parameters",
    "olmo3": "attention that slides in some layers",
    "phi": "one norm for mixer and feed-forward",
    "qwen2_moe": "a gate on the shared expert",
    "qwen3_next": "gated delta rule",
    "zamba2": "layers that share their weights",
}
# Families whose attention slides unasked, and what an absent sliding_window means there.
WINDOWS = {"mistral": 4096, "mixtral": None}


def read_config(values: dict[str, Any], path: Path, longest: int | None) -> ModelConfig:
    """Reads the shape that the `values` of a config.json describe; `longest` is as in
    `models.hugging_face.weights.import_checkpoint`.

    Raises:
        UserError: naming the setting that is absent, malformed or not known to this project's
            decoder.
    """
    s = HFSettings(values, path)
    family = family_of(values, path)
    s.require("vocab_size")
    s.size("vocab_size")
    refuse_unsupported(s, longest)
    try:
        return ModelConfig(**family.from_hf_config(s))
    except UserError as error:
        if str(path) in str(error):
            raise
        raise s.error(str(error)) from error


def family_of(values: dict[str, Any], path: Path) -> Family:
    """The family of a config.json.

    Raises:
        UserError: for one that is not computed.
    """
    name = values.get("model_type")
    family = FAMILIES.get(str(name))
    if family is None:
        why = NOT_COMPUTED.get(str(name), "multimodal models and other kinds of layers")
        raise UserError(
            f"{path}: model_type {name!r} is not supported ({why}: not computed here); "
            f"{', '.join(FAMILIES)} are"
        )
    return family


def refuse_unsupported(s: HFSettings, longest: int | None) -> None:
    """Refuses what cannot be computed here in any family."""
    if s.values.get("quantization_config"):
        raise s.error(
            "the weights are quantized (quantization_config); use the original checkpoint in "
            "float32 or bfloat16"
        )
    window = sliding_window(s)
    if window is not None and (longest is None or longest > window):
        raise s.error(
            f"attention slides over {window} tokens (sliding_window), which is supported only for "
            f"sequences of at most {window} tokens"
            + (f"; these have {longest} (scoring.context, or rows)" if longest else "")
        )
    trained = s.optional("max_position_embeddings")
    if longest and trained and longest > trained:
        raise s.error(
            f"the model reads at most {trained} tokens (max_position_embeddings), not {longest}; "
            "a shorter scoring.context fits, and shorter rows of a model that is continued"
        )


def sliding_window(s: HFSettings) -> int | None:
    """The smallest number of tokens that a layer attends back to; None if all attend to all."""
    window, family = s.optional("sliding_window"), s.values["model_type"]
    slides = "sliding_attention" in s.list_of("layer_types") or s.flag("use_sliding_window")
    if family not in WINDOWS and not slides:
        return None
    return window if "sliding_window" in s.values else WINDOWS.get(family, 4096)


def find_layout(c: ModelConfig) -> tuple[Family, dict[str, Any]]:
    """Finds the first family that computes the same, and the settings of its config.json.

    It is one whose config.json, read again, gives the same model.

    Raises:
        UserError: if there is none, naming the settings that the nearest families lack.
    """
    found = {}
    for family in FAMILIES.values():
        if set(c.layers) <= set(family.layers):
            lacking = missing_settings(family, c)
            found[family.model_type] = lacking
            if not lacking:
                return family, family.to_hf_config(c)
    if not found:
        raise UserError(
            "transformers has no model of these layers together, so it cannot be exported: "
            f"model.layers is {', '.join(c.layers)}"
        )
    least = min(map(len, found.values()))
    nearest = [
        f"{family} has no {', no '.join(lacking)}"
        for family, lacking in found.items()
        if len(lacking) == least
    ]
    raise UserError(
        f"no model of transformers computes this one, so it cannot be exported: "
        f"{'; '.join(nearest)}"
    )


def missing_settings(family: Family, c: ModelConfig) -> list[str]:
    """The settings of a decoder, with their values, that a family has no place for."""
    written = family.to_hf_config(c)
    try:
        again = ModelConfig(**family.from_hf_config(HFSettings(written, Path("config.json"))))
    except UserError:  # its heads are hidden_size / num_heads wide
        regular = dataclasses.replace(c, hidden_size=c.num_heads * c.resolved_head_dim)
        if regular == c:
            raise
        return [f"model.head_dim = {c.resolved_head_dim}", *missing_settings(family, regular)]
    ours, theirs = (flatten_settings(without_unused_settings(each), "model") for each in (c, again))
    differs = [key for key, value in ours.items() if key not in theirs or theirs[key] != value]
    return [f"{key} = {ours[key]!r}" for key in differs]


def without_unused_settings(c: ModelConfig) -> ModelConfig:
    """The same model with settings that change nothing in it at one fixed value."""
    attention, dense = c.has("attention"), c.has("dense")
    changes: dict[str, Any] = {"layers": layer_pattern(c.layers), "head_dim": c.resolved_head_dim}
    if not dense:
        changes |= {"intermediate_size": 1, "activation": "swiglu"}
    if not attention:
        changes |= {"num_heads": 1, "num_kv_heads": 1, "head_dim": 2, "attention_multiplier": None}
        changes |= {"qkv_bias": False, "qk_norm": False, "partial_rotary_factor": 1.0}
    elif c.attention_multiplier == c.resolved_head_dim**-0.5:
        changes["attention_multiplier"] = None
    if not attention or c.rotary_dim == 0:
        changes |= {"rope_theta": 10_000.0, "rope_scaling": None}
    if not attention or not c.qk_norm:
        changes["qk_norm_over"] = "head"
    if not attention and not dense:
        changes["bias"] = False
    if not c.has("experts"):
        changes["experts"] = ExpertsConfig()
    if not c.has("mamba2"):
        changes["mamba2"] = Mamba2Config()
    return dataclasses.replace(c, **changes)
