"""Totals over the documents scored so far, shown by the progress bar, and checks on them."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from frame_jax.errors import UserError
from frame_jax.run import progress
from frame_jax.scoring.documents import BatchScores, Scores

CHECK_TOKENS = 100_000  # tokens after which a model is compared with the uniform distribution
MIN_DOCUMENTS = 8  # documents of a sample that says something
SURE_STANDARD_ERRORS = 3  # standard errors


def sample_warnings(sample: Scores) -> Iterator[str]:
    """Yields a warning where, in a small sample of the corpus under the weak and the strong model,
    the weak one predicts better by three standard errors."""
    if np.count_nonzero(sample.predicted_tokens) < MIN_DOCUMENTS:
        return
    weak, strong = sample.nll
    gap, error = mean_and_error(weak - strong, sample.predicted_tokens)
    if gap + SURE_STANDARD_ERRORS * error < 0:
        tokens = int(sample.predicted_tokens.sum())
        yield weak_is_better_warning(f"a sample of {tokens:,} tokens gives {gap:+.3f} nats a token")


def mean_and_error(sums: np.ndarray, tokens: np.ndarray) -> tuple[float, float]:
    """Mean NLL a token and its standard error over documents (ratio estimator)."""
    mean = sums.sum() / tokens.sum()
    residuals = np.square(sums - mean * tokens).sum()
    documents = np.count_nonzero(tokens)
    error = math.sqrt(residuals * documents / (documents - 1)) / tokens.sum()
    return float(mean), float(error)


def weak_is_better_warning(evidence: str) -> str:
    """Warns that the weak model predicts this corpus better than the strong one."""
    return (
        f"the weak reference model predicts better than the strong one: {evidence}. Quadrants of "
        "such a PD are the wrong way round: are reference.weak and reference.strong exchanged?"
    )


@dataclass
class RunningTotals:
    """Totals over the batches of this process, shown by the progress bar.

    Of both models together tokens advance it; of one that reads its own tokens, documents. `check`
    compares them with the uniform distribution.
    """

    update: progress.Update
    vocab_sizes: dict[str, int]  # by name of the models
    check: bool = True

    def __post_init__(self) -> None:
        self._documents, self._tokens = 0, 0
        self._nll = np.zeros(len(self.vocab_sizes))
        self._checked, self._started = not self.check, time.monotonic()

    def add_batch(self, batch: BatchScores) -> None:
        """Adds a batch to the totals."""
        self._documents += batch.documents
        self._tokens += batch.tokens
        self._nll += batch.nll
        means = self._nll / max(self._tokens, 1)
        if len(self.vocab_sizes) > 1:
            rate = self._documents / max(time.monotonic() - self._started, 1e-9)
            with np.errstate(all="ignore"):  # a broken model's are shown until it is refused
                ppl, pd = np.exp(means[1]), 1 - np.exp(means[1] - means[0])
            speed = f"{self._documents:,} documents, {rate:,.1f} documents/s"
            self.update(batch.tokens, f"{speed}, PPL {ppl:,.1f}, PD {pd:+.3f}")
        else:
            [name] = self.vocab_sizes
            self.update(batch.documents, f"{name} {means[0]:.3f} nats a token")
        if self._tokens >= CHECK_TOKENS:
            self.require_better_than_chance()

    def require_better_than_chance(self) -> None:
        """Refuses, once and before anything is written, a model worse than a uniform guess.

        Raises:
            UserError: if the mean NLL exceeds that of the uniform distribution, or is NaN.
        """
        if self._checked or self._tokens == 0:
            return
        self._checked = True
        means = self._nll / self._tokens
        for (name, vocab_size), mean in zip(self.vocab_sizes.items(), means, strict=True):
            if not mean <= math.log(vocab_size):
                raise UserError(
                    f"the {name} reference model predicts worse than chance: {mean:.3f} nats a "
                    f"token over {self._tokens:,} tokens, where a uniform guess among "
                    f"{vocab_size:,} tokens costs {math.log(vocab_size):.3f}. Train it longer, or "
                    f"check that reference.{name} and the tokenizer belong together"
                )
