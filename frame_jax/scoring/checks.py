"""Checks of the reference models before a run starts, so that unusable ones cost no work."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from frame_jax.config.run import RunConfig
from frame_jax.corpus.tokenizer_training import load_given_tokenizer
from frame_jax.errors import UserError, print_warning
from frame_jax.files import find_remote_files, is_checkpoint, is_remote, local_copy
from frame_jax.models.hugging_face import weights
from frame_jax.models.transformer import Decoder
from frame_jax.parallel import processes
from frame_jax.run.directory import RunDirectory
from frame_jax.run.phases import REFERENCES
from frame_jax.run.special_tokens import read_special_tokens, special_tokens_path
from frame_jax.scoring import tokenizers
from frame_jax.scoring.model_tokenizers import bos_messages, load_own_tokenizer
from frame_jax.scoring.table import check_table

Tensors = dict[str, Path]


def check_references(
    config: RunConfig, directory: RunDirectory, *, tokenizer_anew: bool = False
) -> None:
    """Checks the reference models before the phases that need them; warns of what is unusual.

    `tokenizer_anew` says that this run makes its tokenizer anew: the one there does not matter.

    In their place it looks at a table of scores made elsewhere, where there is one.

    Raises:
        UserError: for an imported model that `load_reference` would refuse once the corpus is
            tokenized, and for models that are the same.
    """
    if config.scoring.table is not None:
        check_table(config)
        return
    anew = tokenizer_anew or not special_tokens_path(directory).exists()
    found = {name: check_imported(config, directory, name, anew) for name in (*REFERENCES, "third")}
    require_other_models(config, found)
    processes.print_notes(bos_messages(config))
    if config.scoring.reliability and not (config.reference.trained or config.reference.third):
        alone = "imported models have no half or replica to compare with; reference.third takes one"
        processes.print_notes([f"scoring.reliability compares nothing: {alone}"])
    if processes.is_first():
        for line in reference_warnings(config):
            print_warning(line)


def check_imported(
    config: RunConfig, directory: RunDirectory, name: str, tokenizer_anew: bool
) -> tuple[Decoder, Tensors] | None:
    """Checks an imported model and returns its shape and tensor files; None if it is trained here.

    Raises:
        UserError: as `check_references`.
    """
    if name not in config.reference.imported:
        return None
    key, checkpoint = config.reference.imported[name]
    folder, decoder, tensors = check_checkpoint(key, checkpoint, config.scoring.context)
    if config.scoring.unit == "byte":
        load_own_tokenizer(folder, key, config.tokenizer.bos_token, decoder.vocab_size)
    else:
        check_tokenizer(config, directory, key, folder, decoder.vocab_size, tokenizer_anew)
    return decoder, tensors


def check_checkpoint(key: str, checkpoint: str, longest: int) -> tuple[Path, Decoder, Tensors]:
    """Checks that a checkpoint can be read and computed; returns its folder, shape, tensor files.

    `key` is the setting that names it, `longest` as in `models.hugging_face.import_checkpoint`.

    Raises:
        UserError: saying why not.
    """
    folder = local_copy(checkpoint, is_checkpoint)
    if not folder.is_dir():
        raise UserError(f"{key}: there is no folder {checkpoint}: correct the path")
    if is_remote(checkpoint):
        refuse_pickled(key, checkpoint, folder)
    decoder = weights.read_decoder(folder, longest)
    return folder, decoder, weights.find_tensors(folder, decoder)


def check_tokenizer(
    config: RunConfig,
    directory: RunDirectory,
    key: str,
    folder: Path,
    rows: int,
    tokenizer_anew: bool,
    *,
    ends: bool = False,
) -> tuple[int, int]:
    """Checks that a model reads the run's tokens; returns the ids that begin and end a document.

    `key` is the setting that names the model, `folder` holds its tokenizer.json, `rows` are those
    of its embedding; `tokenizer_anew` is as in `check_references`. It must know the token that
    `ends` a document where that is asked for, as in training.

    Raises:
        UserError: saying what differs.
    """
    if not tokenizer_anew and special_tokens_path(directory).exists():
        path, special = directory.tokenizer, read_special_tokens(directory)
        parsed, framing = tokenizers.read_tokenizer(path), (special.bos_id, special.eos_id)
    elif config.tokenizer.path is None:
        raise UserError(
            f"{key}: this run would train a tokenizer of its own, which {folder} does not read; "
            f"set tokenizer.path to {folder / 'tokenizer.json'}"
        )
    else:
        _, chosen = load_given_tokenizer(config.tokenizer)
        path = local_copy(config.tokenizer.path)
        parsed = tokenizers.read_tokenizer(path)
        ids = tokenizers.token_ids(parsed)
        framing = ids[chosen.bos], ids[chosen.eos]
    for token in dict.fromkeys(framing if ends else framing[:1]):
        tokenizers.require_same_tokenizer(folder, path, key, token)
        tokenizers.require_rows(rows, parsed, token, key)
    return framing


def refuse_pickled(key: str, checkpoint: str, folder: Path) -> None:
    """Refuses a remote checkpoint of pickled weights, which are never downloaded.

    Raises:
        UserError: naming them.
    """
    if any(folder.glob("*.safetensors")):
        return
    pickled = [
        f.name for f in find_remote_files(checkpoint) if f.name.endswith((".bin", ".pt", ".pth"))
    ]
    if pickled:
        raise UserError(
            f"{key}: {checkpoint} has pickled weights ({', '.join(pickled)}), which can run code "
            "when they are read. Convert them where you trust them: "
            "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
        )


def require_other_models(
    config: RunConfig, found: dict[str, tuple[Decoder, Tensors] | None]
) -> None:
    """Refuses a weak and a strong model that are the same: PD would be 0 for every document; and a
    third that is one of them.

    Raises:
        UserError: naming both settings.
    """
    weak, strong = (found[name] for name in REFERENCES)
    if weak is None and strong is None:
        ours = (getattr(config.reference, name) for name in REFERENCES)
        same = len({repr((model.model, model.training)) for model in ours}) == 1
        what = "reference.weak and reference.strong have the same settings, so they would be one"
    else:
        same = weak is not None and strong is not None and same_weights(weak, strong)
        what = "reference.weak.checkpoint and reference.strong.checkpoint hold one and the same"
    if same:
        raise UserError(
            f"{what} model, and the perplexity difference of every document 0: the weak model must "
            "be a smaller or a less trained one"
        )
    for name in REFERENCES:
        if (third := found["third"]) and (model := found[name]) and same_weights(third, model):
            raise UserError(
                f"reference.third and reference.{name}.checkpoint hold one and the same model, and "
                "comparing it with itself says nothing: name another, or leave reference.third out"
            )


def same_weights(one: tuple[Decoder, Tensors], other: tuple[Decoder, Tensors]) -> bool:
    """Whether two checkpoints hold the same weights; reads up to the first difference."""
    (decoder, files), (other_decoder, other_places) = one, other
    if decoder != other_decoder or files.keys() != other_places.keys():
        return False
    return all(
        np.array_equal(
            weights.read_tensor(files[name], name), weights.read_tensor(other_places[name], name)
        )
        for name in files
    )


def reference_warnings(config: RunConfig) -> Iterator[str]:
    """Yields a warning for each choice of reference models that is allowed but rarely intended."""
    if (warning := long_context_warning(config)) is not None:
        yield warning
    for key, checkpoint in config.reference.imported.values():
        adapter = weights.find_adapter(local_copy(checkpoint, is_checkpoint))
        if adapter is not None:
            yield (
                f"{key}: {adapter} is not applied; the model is scored without it. Merge it into "
                "the weights first if it belongs to the model"
            )


def long_context_warning(config: RunConfig) -> str | None:
    """Warns of scoring windows that are longer than the rows that the models are trained on."""
    context, rows = config.scoring.context, config.reference.rows.sequence_length
    trained = config.reference.trained
    if not trained or context <= rows:
        return None
    return (
        f"scoring.context is {context:,} tokens, but the {' and the '.join(trained)} reference "
        f"model are trained on rows of {rows:,} (reference.rows.sequence_length): their losses "
        f"beyond {rows:,} tokens mean little. Set scoring.context to {rows}, or train on longer "
        "rows"
    )
