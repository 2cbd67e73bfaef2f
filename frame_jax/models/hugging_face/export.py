"""Writes a decoder as a Hugging Face checkpoint folder; PyTorch is not needed.

The inverse of `models.hugging_face`: config.json, generation_config.json, the tokenizer, and
safetensors in float32, so that importing the folder gives the same bits back. A decoder is written
as the first family (`models.hugging_face.config`) that computes it, a continued model as its own:
all but the weights is what training has copied of the checkpoint, so that the checkpoint may go.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from safetensors.numpy import save_file
from tokenizers.processors import TemplateProcessing

from frame_jax.models.hugging_face.config import family_of, find_layout
from frame_jax.models.hugging_face.tensors import Layout, Tensor, checkpoint_tensors
from frame_jax.models.hugging_face.weights import layout_in
from frame_jax.models.transformer import Decoder, Params
from frame_jax.run.directory import new_folder, read_json, read_object, write_json
from frame_jax.run.special_tokens import SpecialTokens

SHARD_BYTES = 5_000_000_000
PAD_NAMES = ("<pad>", "<|pad|>", "[PAD]", "<|padding|>", "<|finetune_right_pad_id|>")
ORIGIN = "origin"  # folder in that of a trial, with files of the checkpoint it continues
LAYOUT = "layout.json"  # in which of its family's ways its tensors are stored
ORIGIN_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "tokenizer.model", "spiece.model"),
    *("generation_config.json", "chat_template.jinja", "chat_template.json"),
)


def export_checkpoint(
    folder: Path,
    decoder: Decoder,
    params: Params,
    *,
    tokenizer: Path,
    special_tokens: SpecialTokens,
    context: int,
    shard_bytes: int = SHARD_BYTES,
    origin: Path | None = None,
) -> None:
    """Writes a checkpoint that `transformers` and `import_checkpoint` read.

    Args:
        folder: Exists; files go into it.
        decoder: The model. Its vocabulary may be larger than the tokenizer's (padding): the rows
            stay, because leaving them out would change every probability.
        params: Nested dict of float32 NumPy arrays.
        tokenizer: A tokenizer.json.
        special_tokens: Those that start and end a text.
        context: Tokens of the longest sequence the model was trained on.
        shard_bytes: Weights are split into files of about this size.
        origin: Of a continued model the folder in which `keep_origin` has put files.

    Raises:
        UserError: if no family of `transformers` computes what the decoder computes.
    """
    if origin is not None:
        write_weights(folder, decoder, params, shard_bytes, write_origin(origin, folder))
        return
    bos_id, eos_id = special_tokens.bos_id, special_tokens.eos_id
    config = model_config(decoder, bos_id, eos_id, context)
    write_json(folder / "config.json", config)
    pad_id = write_tokenizer(folder, tokenizer, special_tokens, context, decoder.vocab_size)
    generation = {"bos_token_id": bos_id, "eos_token_id": eos_id, "pad_token_id": pad_id}
    if not config["use_cache"]:
        generation["use_cache"] = False
    write_json(folder / "generation_config.json", generation)
    write_weights(folder, decoder, params, shard_bytes)


def model_config(decoder: Decoder, bos_id: int, eos_id: int, context: int) -> dict[str, Any]:
    """The settings of config.json; raises as `export_checkpoint`."""
    family, settings = find_layout(decoder.config)
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "vocab_size": decoder.vocab_size,
        **settings,
        "max_position_embeddings": context,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "pad_token_id": None,
        "torch_dtype": "float32",
        # The cache of a hybrid asks its first attention layer how long the text is.
        "use_cache": decoder.config.has("attention") or family.model_type == "mamba2",
    }


def pad_token_id(backend: tokenizers.Tokenizer, eos_id: int, vocab_size: int) -> int:
    """The padding token: one of PAD_NAMES that the model has an embedding of, else EOS.

    config.json does not name it: `transformers` would then keep its row from being trained, which
    EOS must be. It says null, because some families name one by default.
    """
    named = (backend.token_to_id(name) for name in PAD_NAMES)
    return next((i for i in named if i is not None and i < vocab_size), eos_id)


def write_tokenizer(
    folder: Path, path: Path, special_tokens: SpecialTokens, context: int, vocab_size: int
) -> int:
    """Writes the tokenizer as the run used it; returns the id of its padding token.

    BOS stands before a text or a pair of texts, as it stood before every training document, and a
    text that spells out a special token stays text.
    """
    bos_id, eos_id = special_tokens.bos_id, special_tokens.eos_id
    backend = tokenizers.Tokenizer.from_file(str(path))
    pad_id = pad_token_id(backend, eos_id, vocab_size)
    bos = backend.id_to_token(bos_id)
    backend.post_processor = TemplateProcessing(
        single=[bos, "$A"], pair=[bos, "$A", "$B"], special_tokens=[(bos, bos_id)]
    )
    backend.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": backend.id_to_token(eos_id),
        "pad_token": backend.id_to_token(pad_id),
        "padding_side": "left",  # a padded batch of prompts is continued at its right end
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": context,
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", settings)
    return pad_id


def write_weights(
    folder: Path, decoder: Decoder, params: Params, shard_bytes: int, layout: Layout | None = None
) -> None:
    """Writes model.safetensors, or several files of about `shard_bytes` and their index.

    In `layout`, or else in that of the first family that computes the model.
    """
    layout = layout or find_layout(decoder.config)[0].layouts[0]
    shards = list(group_tensors(checkpoint_tensors(decoder, layout), shard_bytes))
    weight_map: dict[str, str] = {}
    for index, shard in enumerate(shards, 1):
        file = "model.safetensors"
        if len(shards) > 1:
            file = f"model-{index:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: tensor.stored(params) for name, tensor in shard.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)  # safetensors makes it private
        weight_map |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        total = 4 * decoder.parameter_count()
        index_file = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(folder / "model.safetensors.index.json", index_file)


def group_tensors(tensors: dict[str, Tensor], shard_bytes: int) -> Iterator[dict[str, Tensor]]:
    """Consecutive groups of tensors, each of at most `shard_bytes` in float32 or of one tensor."""
    shard: dict[str, Tensor] = {}
    filled = 0
    for name, tensor in tensors.items():
        size = 4 * int(np.prod(tensor.shape))
        if shard and filled + size > shard_bytes:
            yield shard
            shard, filled = {}, 0
        shard[name] = tensor
        filled += size
    yield shard


def keep_origin(source: Path, trial: Path, decoder: Decoder) -> None:
    """Copies into the folder of a trial what its export needs, unless that is there.

    `source` is a checkpoint folder, or the folder of a trial, which may have been continued itself.
    """
    if (trial / ORIGIN).is_dir():
        return
    if (source / ORIGIN).is_dir():
        with new_folder(trial / ORIGIN) as folder:
            shutil.copytree(source / ORIGIN, folder, dirs_exist_ok=True)
    elif (source / "config.json").is_file():
        path = source / "config.json"
        layouts = family_of(read_object(path), path).layouts
        with new_folder(trial / ORIGIN) as folder:
            write_json(folder / LAYOUT, layouts.index(layout_in(source, decoder)))
            for name in ("config.json", *ORIGIN_FILES):
                if (source / name).is_file():
                    shutil.copyfile(source / name, folder / name)


def kept_origin(trial: Path) -> Path | None:
    """Where `keep_origin` has put the files; None for a model that was trained from scratch."""
    return trial / ORIGIN if (trial / ORIGIN).is_dir() else None


def write_origin(origin: Path, folder: Path) -> Layout:
    """Writes the kept files into the folder of a checkpoint in float32; returns its layout."""
    path = origin / "config.json"
    config = read_object(path)
    for key in {"torch_dtype", "dtype"} & config.keys() or {"torch_dtype"}:
        config[key] = "float32"
    write_json(folder / "config.json", config)
    for name in ORIGIN_FILES:
        if (origin / name).is_file():
            shutil.copyfile(origin / name, folder / name)
    return family_of(config, path).layouts[read_json(origin / LAYOUT)]
