"""A Hugging Face config.json in, the shape of our decoder out, or the reason why there is none.

A model that is nearly right gives fluent, wrong numbers, so every setting that changes what is
computed is either understood or refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from frame_jax.config.models import ModelConfig, RopeScalingConfig
from frame_jax.errors import UserError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
# Settings that may be absent or null, and what they are where they are not.
OPTIONAL = {
    "head_dim": (int, "a whole number"),
    "max_position_embeddings": (int, "a whole number"),
    "sliding_window": (int, "a whole number"),
    "layer_types": (list, "a list"),
    "tie_word_embeddings": (bool, "true or false"),
}


def read_config(settings: dict[str, Any], path: Path, longest: int | None) -> ModelConfig:
    """The shape that a config.json describes.

    Args:
        settings: What is in the file.
        path: The file, for messages.
        longest: As in `models.hugging_face.import_checkpoint`.

    Raises:
        UserError: naming the setting that is absent, malformed or not known to this project's
            decoder.
    """
    family = settings.get("model_type")
    if family == "llama":  # checkpoints older than grouped-query attention
        settings.setdefault("num_key_value_heads", settings.get("num_attention_heads"))
    for key, (kind, name) in OPTIONAL.items():
        if settings.get(key) is not None and type(settings[key]) is not kind:
            raise UserError(f"{path}: {key} is {settings[key]!r}, must be {name}")
    for problem in unsupported(settings, longest):
        raise UserError(f"{path}: {problem}")
    # Qwen3 is the only family whose heads are not hidden_size / num_heads by default.
    sizes = [*SIZES, "head_dim"] if family == "qwen3" else SIZES
    absent = [key for key in (*sizes, "rms_norm_eps") if settings.get(key) is None]
    if absent:
        raise UserError(f"{path} does not say {', '.join(absent)}")
    for key in sizes:
        if type(settings[key]) is not int or settings[key] < 1:
            raise UserError(f"{path}: {key} is {settings[key]!r}, must be a positive whole number")
    theta, scaling = read_rope(settings, path)
    try:
        return ModelConfig(
            hidden_size=settings["hidden_size"],
            intermediate_size=settings["intermediate_size"],
            num_layers=settings["num_hidden_layers"],
            num_heads=settings["num_attention_heads"],
            num_kv_heads=settings["num_key_value_heads"],
            head_dim=settings.get("head_dim"),
            rope_theta=theta,
            rope_scaling=scaling,
            norm_eps=number(settings["rms_norm_eps"], "rms_norm_eps", path),
            qkv_bias=family == "qwen2",
            qk_norm=family == "qwen3",
            tie_embeddings=settings.get("tie_word_embeddings") or False,
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def number(value: Any, key: str, path: Path) -> float:
    """`value` if it is a positive number."""
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise UserError(f"{path}: {key} is {value!r}, must be a positive number")
    return float(value)


def unsupported(settings: dict[str, Any], longest: int | None) -> Iterator[str]:
    """Each reason why the model cannot be computed here."""
    family = settings.get("model_type")
    if family not in FAMILIES:
        yield (
            f"model_type {family!r} is not supported; {', '.join(FAMILIES)} are (mixtures of "
            "experts, multimodal models and other kinds of attention are not)"
        )
        return
    if settings.get("quantization_config"):
        yield (
            "the weights are quantized (quantization_config); use the original checkpoint in "
            "float32 or bfloat16"
        )
    for key in ("attention_bias", "mlp_bias"):
        if settings.get(key):
            yield f"{key} is not supported (Qwen2's bias of queries, keys and values is)"
    activation = settings.get("hidden_act", "silu")
    if activation != "silu":
        yield f"hidden_act {activation!r} is not supported, only 'silu'"
    for place in (settings, rope_settings(settings)[1]):
        if isinstance(place, dict) and place.get("partial_rotary_factor", 1) != 1:
            yield "partial_rotary_factor is not supported: all of a head is rotated"
    window = sliding_window(settings)
    if window is not None and (longest is None or longest > window):
        yield (
            f"attention slides over {window} tokens (sliding_window), which is supported only for "
            f"sequences of at most {window} tokens"
            + (f"; these have {longest} (scoring.context)" if longest else "")
        )
    trained = settings.get("max_position_embeddings")
    if longest and trained and longest > trained:
        yield (
            f"the model reads at most {trained} tokens (max_position_embeddings), not {longest}; "
            "a shorter scoring.context fits"
        )


def sliding_window(settings: dict[str, Any]) -> int | None:
    """Tokens that attention looks back in at least one layer; None if it looks at all."""
    if settings["model_type"] == "mistral":
        return settings.get("sliding_window", 4096)
    if "sliding_attention" in (settings.get("layer_types") or ()) or settings.get(
        "use_sliding_window"
    ):
        return settings.get("sliding_window", 4096)
    return None


def rope_settings(settings: dict[str, Any]) -> tuple[str, Any]:
    """The key under which the rotary settings are, in either of the two spellings, and they."""
    key = "rope_parameters" if settings.get("rope_parameters") else "rope_scaling"
    return key, settings.get(key) or {}


def read_rope(settings: dict[str, Any], path: Path) -> tuple[float, RopeScalingConfig | None]:
    """Base of the rotary frequencies and their stretch."""
    key, rope = rope_settings(settings)
    if not isinstance(rope, dict):
        raise UserError(f"{path}: {key} is {rope!r}, must be an object")
    theta = rope.get("rope_theta", settings.get("rope_theta", 10_000.0))
    theta = number(theta, "rope_theta", path)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise UserError(
            f"{path}: {key} of type {kind!r} is not supported; 'default' and 'llama3' are"
        )
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    numbers = [number(rope.get(name), f"{key}.{name}", path) for name in names]
    factor, low, high, original = numbers
    return theta, RopeScalingConfig(factor, low, high, int(original))
