"""Checks of imported models before anything is scored."""

import json
from pathlib import Path

import fsspec
import pytest

from frame_jax.config.file import load
from frame_jax.config.models import ModelConfig
from frame_jax.errors import UserError
from frame_jax.files import is_checkpoint, local_copy
from frame_jax.models.transformer import Decoder
from frame_jax.run.directory import RunDirectory
from frame_jax.scoring.checks import check_imported, refuse_pickled, same_weights


def test_checkpoints_of_other_families_are_not_the_same() -> None:
    """Though their decoders are equal, as those of a Llama and a Granite may be."""
    decoder, path = Decoder(ModelConfig(), 11), Path("not-read.safetensors")
    assert not same_weights((decoder, {"a": path}), (decoder, {"b": path}))


def test_pickled_weights_in_a_bucket_are_called_by_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are not fetched, so what was fetched has no weights at all."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bucket = fsspec.filesystem("memory")
    try:
        bucket.pipe("/model/config.json", json.dumps({}).encode())
        bucket.pipe("/model/pytorch_model.bin", b"pickled")
        (tmp_path / "config.yaml").write_text(
            f"run_directory: {tmp_path / 'run'}\n"
            "corpus: {sources: [{kind: python_library}], reference_fraction: 0}\n"
            "reference: {weak: {checkpoint: 'memory://model'}, "
            "strong: {checkpoint: 'memory://model'}}\n"
        )
        config = load(tmp_path / "config.yaml")
        with pytest.raises(UserError, match=r"pickled weights \(pytorch_model.bin\), which"):
            check_imported(config, RunDirectory(tmp_path / "run"), "weak", tokenizer_anew=True)
        folder = local_copy("memory://model", is_checkpoint)
        assert [path.name for path in folder.iterdir()] == ["config.json"]
        bucket.pipe("/model/model.safetensors", b"weights")
        refuse_pickled("x", "memory://model", local_copy("memory://model", is_checkpoint))
    finally:
        bucket.rm("/model", recursive=True)
