"""Decides from the differences between two arms whether one is better: the statistics of a study.

Two kinds of chance are kept apart. Another seed gives other initial weights and shuffles: seen in
the differences of the seeds, which are paired, since a seed's arms share weights and rows. Other
held-out documents give another mean: seen in the spread over documents. A verdict needs both to be
out of the way. [ours]
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
from scipy import optimize, special, stats

from frame_jax.report.study_results import BETTER, NONE, UNTESTED, WORSE, Verdict

CONFIDENCE = 0.95
DOCUMENT_ERRORS = 1.96  # standard errors over documents: the two-sided 95% point of the normal
POWER = 0.8

RULE = (
    "An arm is better (worse) if its mean difference lies below (above) zero by more than the "
    f"half-width of the {CONFIDENCE:.0%} t interval over seeds, and by more than "
    f"{DOCUMENT_ERRORS} standard errors over held-out documents. Otherwise this study could see no "
    "difference. Under one seed nothing is tested. Each comparison stands alone: of many between "
    "equals, one in twenty leaves its interval by chance."
)


def decide_verdict(by_seed: Sequence[float], document_error: float) -> Verdict:
    """Decides by `RULE` whether an arm is better or worse than another.

    `by_seed` has their difference under each seed, `document_error` is the standard error of its
    mean over documents.
    """
    values = np.asarray(by_seed, np.float64)
    mean, count = float(values.mean()), len(values)
    seeds = tuple(values.tolist())
    if count < 2:
        return Verdict(mean, None, None, document_error, None, seeds, UNTESTED)
    error = float(values.std(ddof=1)) / math.sqrt(count)
    half, detectable = half_width(error, count), detectable_difference(error, document_error, count)
    clear = abs(mean) > half and abs(mean) > DOCUMENT_ERRORS * document_error
    word = (BETTER if mean < 0 else WORSE) if clear else NONE
    return Verdict(mean, mean - half, mean + half, document_error, detectable, seeds, word)


@functools.cache
def half_width(seed_error: float, seeds: int) -> float:
    """Half of the 95% t interval of a mean over `seeds` seeds with this standard error."""
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, seeds - 1)) * seed_error


def detectable_difference(seed_error: float, document_error: float, seeds: int) -> float:
    """The true difference that `RULE` would call better or worse in four studies of five. [ours]

    Where `study_power` is `POWER`, with the study's own guesses at both errors taken for the
    truth: standard errors of the mean over `seeds` (at least two) and over documents. A mean that
    `RULE` calls no difference is never larger.
    """
    widest = float(np.sqrt(squared_spreads(seeds)[-1]))
    high = max(half_width(seed_error, seeds) * widest, DOCUMENT_ERRORS * document_error)
    high += math.hypot(seed_error, document_error)
    errors = (seed_error, document_error, seeds)
    missing = lambda effect: study_power(effect, *errors) - POWER  # noqa: E731
    return optimize.brentq(missing, 0, high) if high > 0 else 0.0


def study_power(effect: float, seed_error: float, document_error: float, seeds: int) -> float:
    """The share of studies that see a true difference of `effect` above zero, by `RULE`. [ours]

    A study's mean is normal around the difference, by seeds and documents, which are independent of
    each other. It must pass the higher of two bars: that of documents, which stands, and the half
    of its interval, which moves with the spread that its few seeds happen to have.
    """
    both = math.hypot(seed_error, document_error)
    if both == 0:
        return float(effect > 0)
    halves = half_width(seed_error, seeds) * np.sqrt(squared_spreads(seeds))
    bars = np.maximum(halves, DOCUMENT_ERRORS * document_error)
    return float(special.ndtr((effect - bars) / both).mean())


@functools.cache
def squared_spreads(seeds: int) -> np.ndarray:
    """Variances that samples of `seeds` have, over the true one: 512 equally likely, rising."""
    quantiles = (np.arange(512) + 0.5) / 512
    return stats.chi2.ppf(quantiles, seeds - 1) / (seeds - 1)


def verdict_sentence(verdict: Verdict, arm: str, against: str, unit: str) -> str:
    """Puts a verdict into words.

    >>> verdict = decide_verdict([0.02, 0.021, 0.022], 0.001)
    >>> verdict_sentence(verdict, "frame", "random", "bits per byte")
    'frame is worse than random: +0.0210 bits per byte (95% interval over 3 seeds +0.0185 to \
+0.0235; ±0.0010 over documents).'
    """
    if verdict.low is None or verdict.high is None:
        return (
            f"{arm} against {against} is not tested, because one seed proves nothing: "
            f"{verdict.mean:+.4f} {unit} (±{verdict.document_error:.4f} over documents)."
        )
    seeds = len(verdict.by_seed)
    found = (
        f"{verdict.mean:+.4f} {unit} (95% interval over {seeds} seeds {verdict.low:+.4f} to "
        f"{verdict.high:+.4f}; ±{verdict.document_error:.4f} over documents)"
    )
    if verdict.verdict == NONE:
        return (
            f"Between {arm} and {against} there is no difference that this study could see: "
            f"{found}; it would have seen {verdict.detectable:.4f} four times in five."
        )
    return f"{arm} is {verdict.verdict} than {against}: {found}."
