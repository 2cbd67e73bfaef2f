"""Totals over the documents scored so far, shown by the progress bar, and checks on them."""

import math
import time
from dataclasses import dataclass

import numpy as np

from frame_jax.errors import UserError, print_warning
from frame_jax.parallel import processes
from frame_jax.run import progress
from frame_jax.run.phases import REFERENCES
from frame_jax.scoring.documents import BatchScores

CHECK_TOKENS = 100_000  # after which models are compared


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
    compares them with the uniform distribution, and with each other.
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
            self.check_models()

    def check_models(self) -> None:
        """Refuses, once and before anything is written, a model worse than a uniform guess; warns
        of a weak model that is better than the strong one.

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
        if tuple(self.vocab_sizes) == REFERENCES and means[0] < means[1] and processes.is_first():
            gap = f"by {means[1] - means[0]:.3f} nats a token over {self._tokens:,} tokens"
            print_warning(weak_is_better_warning(gap))
