"""Checks of imported models before anything is scored."""

from pathlib import Path

from frame_jax.config.models import ModelConfig
from frame_jax.models.functional import Decoder
from frame_jax.scoring.checks import same_weights


def test_checkpoints_of_other_families_are_not_the_same() -> None:
    """Though their decoders are equal, as those of a Llama and a Granite may be."""
    decoder, path = Decoder(ModelConfig(), 11), Path("not-read.safetensors")
    assert not same_weights((decoder, {"a": path}), (decoder, {"b": path}))
