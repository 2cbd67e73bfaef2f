"""Public functions that load a pair of language models and score texts under both."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from frame_jax.config.scoring import ScoringConfig
from frame_jax.errors import UserError
from frame_jax.run.directory import RunDirectory

if TYPE_CHECKING:  # these import JAX
    from frame_jax.corpus.tokenizer import Tokenizer
    from frame_jax.models.transformer import Decoder, Params
    from frame_jax.scoring.scorer import Scorer

ComputeDtype = Literal["auto", "bfloat16", "float32"]


@dataclass(frozen=True)
class ModelPair:
    """A weak and a strong language model on this machine's devices, with the tokenizer they share.

    Made by `load_models` and `load_run_models`, for `score_texts`.

    Attributes:
        parameter_counts: Parameters of the weak and of the strong model, embeddings included.
        context: Tokens that a model reads at most at one time.
        compute_dtype: Type of the operands of matrix products, `bfloat16` or `float32`.
    """

    parameter_counts: tuple[int, int]
    context: int
    compute_dtype: str
    _tokenizer: Tokenizer = field(repr=False)
    _scorer: Scorer = field(repr=False)


@dataclass(frozen=True)
class TextScores:
    """What a pair of models predicts of texts; every array has one number a text.

    Attributes:
        predicted_tokens: int64, tokens that each model has predicted; 0 for an empty text.
        nll_weak: float64, sum of their negative log-likelihoods under the weak model, in nats.
        nll_strong: The same under the strong model.
    """

    predicted_tokens: np.ndarray
    nll_weak: np.ndarray
    nll_strong: np.ndarray

    @property
    def ppl(self) -> np.ndarray:
        """Perplexity under the strong model, float64; NaN for an empty text."""
        return np.exp(self.nll_strong / self._counts)

    @property
    def pd(self) -> np.ndarray:
        """Perplexity difference (PPL_weak - PPL_strong) / PPL_weak, float64; NaN likewise."""
        return -np.expm1(self.nll_strong / self._counts - self.nll_weak / self._counts)

    @property
    def _counts(self) -> np.ndarray:
        return np.where(self.predicted_tokens > 0, self.predicted_tokens, np.nan)


def load_models(
    weak: str | Path,
    strong: str | Path,
    *,
    context: int = 1024,
    compute_dtype: ComputeDtype = "auto",
    per_device_batch_size: int = 8,
) -> ModelPair:
    """Loads two language models from local Hugging Face folders.

    Args:
        weak: A folder with config.json, tokenizer.json and *.safetensors: the smaller or less
            trained model.
        strong: The other model, which must read the same tokens.
        context: Tokens that a model reads at most at one time; longer texts are read in windows.
        compute_dtype: Type of the operands of matrix products; `auto` is bfloat16 where the device
            multiplies it in hardware, else float32.
        per_device_batch_size: Contexts of tokens that one device scores in a call.

    Raises:
        UserError: if a folder is no checkpoint of a family that is read, or the two do not share a
            tokenizer.

    Examples:
        >>> import frame_jax
        >>> models = frame_jax.load_models("small", "large", context=64)
        >>> models.parameter_counts
        (7152, 18912)
    """
    from frame_jax.models.hugging_face.weights import import_checkpoint
    from frame_jax.scoring import tokenizers
    from frame_jax.scoring.model_tokenizers import load_own_tokenizer

    folders = {"weak": Path(weak), "strong": Path(strong)}
    tokenizer, _ = load_own_tokenizer(folders["weak"], "weak", None)
    path = tokenizers.tokenizer_of(folders["weak"], "weak")
    tokenizers.require_same_tokenizer(folders["strong"], path, "strong", tokenizer.bos_id)
    models = []
    for name, folder in folders.items():
        decoder, params = import_checkpoint(folder, longest=context)
        tokenizers.require_rows(
            decoder.vocab_size, tokenizers.read_tokenizer(path), tokenizer.bos_id, name
        )
        models.append((decoder, params))
    return _model_pair(models, tokenizer, context, compute_dtype, per_device_batch_size)


def load_run_models(run_directory: str | Path, *, per_device_batch_size: int = 8) -> ModelPair:
    """Loads the reference models of a run, trained there or imported, as its score phase does.

    Args:
        run_directory: A run whose reference phase is done.
        per_device_batch_size: Contexts of tokens that one device scores in a call.

    Raises:
        UserError: if there is no such run or model, or losses are compared by the byte
            (`scoring.unit: byte`), for which each model may read tokens of its own.

    Examples:
        >>> import frame_jax
        >>> frame_jax.load_run_models("runs/mine").context
        64
    """
    from frame_jax.config.file import load
    from frame_jax.corpus.tokenizer import load_tokenizer
    from frame_jax.run.compute_dtype import with_recorded_types
    from frame_jax.run.phases import REFERENCES
    from frame_jax.scoring.score import load_reference

    directory = RunDirectory(run_directory)
    if not directory.config.exists():
        raise UserError(f"{directory.root} is no run directory: it has no config.yaml")
    config = with_recorded_types(load(directory.config), directory)
    if config.scoring.unit != "token":
        raise UserError(
            f"{directory.root} compares losses by the byte (scoring.unit): its models may read "
            "different tokens, which only the score phase can do"
        )
    return _model_pair(
        [load_reference(config, directory, name) for name in REFERENCES],
        load_tokenizer(directory),
        config.scoring.context,
        config.scoring.compute_dtype,
        per_device_batch_size,
    )


def _model_pair(
    models: Sequence[tuple[Decoder, Params]],
    tokenizer: Tokenizer,
    context: int,
    compute_dtype: ComputeDtype,
    per_device_batch_size: int,
) -> ModelPair:
    import jax

    from frame_jax.parallel.hardware import multiplies_bfloat16
    from frame_jax.scoring.scorer import Scorer

    dtype: str = compute_dtype
    if dtype == "auto":
        dtype = "bfloat16" if multiplies_bfloat16(jax.local_devices()[0]) else "float32"
    models = [(dataclasses.replace(d, compute_dtype=dtype), params) for d, params in models]
    settings = ScoringConfig(context=context, per_device_batch_size=per_device_batch_size)
    scorer = Scorer(models, settings)
    weak, strong = (decoder.parameter_count() for decoder, _ in models)
    return ModelPair((weak, strong), context, dtype, tokenizer, scorer)


def score_texts(models: ModelPair, texts: Iterable[str], *, overlap: int = 0) -> TextScores:
    """Scores whole texts under both models.

    Every text is read from its own start, behind the token that starts a document. The first call
    compiles.

    Args:
        models: The two models.
        texts: Texts, read as needed.
        overlap: Tokens of the window before that the later windows of a long text condition on;
            below the models' `context`.

    Examples:
        >>> import frame_jax
        >>> models = frame_jax.load_models("small", "large", context=64)
        >>> scores = frame_jax.score_texts(models, ["A short text.", "", "Another, longer text."])
        >>> scores.predicted_tokens > 0
        array([ True, False,  True])
        >>> scores.ppl > 1
        array([ True, False,  True])
        >>> scores.pd < 1
        array([ True, False,  True])
    """
    from frame_jax.scoring.documents import score_documents
    from frame_jax.scoring.model_tokenizers import encode_texts

    ScoringConfig(context=models.context, overlap=overlap)  # refuses an overlap that is too long
    scores = score_documents(
        models._scorer,
        encode_texts(texts, models._tokenizer),
        bos_id=models._tokenizer.bos_id,
        overlap=overlap,
    )
    weak, strong = scores.nll
    return TextScores(scores.predicted_tokens, weak, strong)
