"""lm-evaluation-harness's requests in, a trial's answers out; needs the extra `eval`.

    python -m frame_jax.evaluation.lm_eval_adapter run --model frame_jax \\
        --model_args run_directory=runs/mine,trial=frame --tasks mmlu,arc_easy,piqa

is the harness's own command line with one model more. Its definitions, prompts and metrics are
used as they are. The model runs on the devices of one process.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise ImportError("this needs lm-eval: pip install 'frame-jax[eval]'") from error

from frame_jax import checkpoints
from frame_jax.corpus.tokenizer import load_tokenizer
from frame_jax.errors import UserError, print_error
from frame_jax.evaluation.greedy import GreedyScorer, generate_greedily
from frame_jax.evaluation.likelihood import Request, continuation_sums, encode_requests
from frame_jax.models.functional import read_description
from frame_jax.run.directory import RunDirectory
from frame_jax.run.trial_record import choose_checkpoint_step, read_trial_record

GENERATED = 256  # tokens written where a task does not say


@register_model("frame_jax")
class FrameJaxModel(LM):
    """A trial of a run, as the harness sees a model.

    Args:
        run_directory: The run.
        trial: The trial.
        step: A kept checkpoint; the last by default.
        stage: The checkpoint at the end of this stage instead.
        ema: The moving average of the weights, where one was kept.
        max_length: Tokens the model reads; by default the length of its training rows.
        per_device_batch_size: Rows that each device computes at one time.
        compute_dtype: Type of matrix-product operands. `float32` gives what the harness's own
            backend gives for the exported checkpoint; `bfloat16` is faster.
        fsdp: Devices that share one copy of the parameters.
        batch_size: Ignored, as are the next two: requests are packed into rows.
        max_batch_size: Ignored.
        device: Ignored.

    Raises:
        UserError: if there is no such trial or checkpoint, or no average.
    """

    def __init__(
        self,
        run_directory: str,
        trial: str = "frame",
        step: int | None = None,
        stage: str | None = None,
        ema: bool = False,
        max_length: int | None = None,
        per_device_batch_size: int = 8,
        compute_dtype: str = "float32",
        fsdp: int = 1,
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: Any = None,
    ):
        super().__init__()
        directory = RunDirectory(run_directory)
        folder, trial_record = read_trial_record(directory, trial)
        saved = checkpoints.saved_steps(folder / "checkpoints")
        self.step = choose_checkpoint_step(trial_record, saved, step, stage)
        decoder = read_description(folder, compute_dtype=compute_dtype)
        params = checkpoints.load_params(folder / "checkpoints", decoder, self.step, ema=ema)
        self.max_length = max_length or trial_record["sequence_length"]
        self._scorer = GreedyScorer(
            decoder, params, self.max_length, per_device_batch_size=per_device_batch_size, fsdp=fsdp
        )
        self._tokenizer = load_tokenizer(directory)
        self.tokenizer_path = directory.tokenizer

    @property
    def tokenizer_name(self) -> str:
        """Tells requests that are cached for this tokenizer from those of another."""
        return str(self.tokenizer_path).replace("/", "__")

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Log-likelihood in nats of each continuation, and whether it is the greedy one."""
        pairs = [request.args for request in requests]
        answers = self._rate(encode_requests(self._tokenizer, pairs))
        for pair, answer in zip(pairs, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", pair, answer)
        return answers

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihood in nats of each whole text, in windows of `max_length` tokens."""
        texts = [request.args[0] for request in requests]
        owners: list[int] = []
        windows: list[Request] = []
        for number, ids in enumerate(self._tokenizer.encode_batch(texts)):
            for pair in get_rolling_token_windows(
                ids, self._tokenizer.bos_id, self.max_length, context_len=1
            ):
                owners.append(number)
                windows.append(Request(*make_disjoint_window(pair)))
        rated = [log_likelihood for log_likelihood, _ in self._rate(windows)]
        sums = np.bincount(owners, weights=rated, minlength=len(texts)).tolist()
        for text, total in zip(texts, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return sums

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The greedy continuation of each prompt, up to the first of its stop strings.

        Raises:
            UserError: for a task that asks for sampling.
        """
        prompts, limits, stops = [], [], []
        for request in requests:
            text, settings = request.args
            if settings.get("do_sample") or settings.get("temperature", 0) > 0:
                raise UserError("tasks that sample (do_sample, temperature) are not supported")
            until = settings.get("until") or []
            stops.append([until] if isinstance(until, str) else list(until))
            limit = min(settings.get("max_gen_toks", GENERATED), self.max_length - 1)
            ids = [self._tokenizer.bos_id, *self._tokenizer.encode_batch([text])[0]]
            prompts.append(ids[-(self.max_length - limit) :])
            limits.append(limit)

        def is_finished(number: int, written: list[int]) -> bool:
            if written[-1] == self._tokenizer.eos_id:
                return True
            text = self._tokenizer.decode(written)
            return any(stop in text for stop in stops[number])

        answers = []
        for request, written, stop_texts in zip(
            requests,
            generate_greedily(self._scorer, prompts, limits, is_finished),
            stops,
            strict=True,
        ):
            if written[-1] == self._tokenizer.eos_id:
                written = written[:-1]
            text = self._tokenizer.decode(written)
            for stop in stop_texts:
                text = text.split(stop)[0] if stop else text
            self.cache_hook.add_partial("generate_until", request.args, text)
            answers.append(text)
        return answers

    def _rate(self, requests: list[Request]) -> list[tuple[float, bool]]:
        """Log-likelihood and greediness of each; those of an empty continuation are 0 and true."""
        filled = [number for number, request in enumerate(requests) if request.continuation]
        answers = [(0.0, True)] * len(requests)
        nll, misses = np.broadcast_to(
            continuation_sums(self._scorer, [requests[i] for i in filled], len(filled)),
            (2, len(filled)),
        )
        for number, loss, missed in zip(filled, nll.tolist(), misses.tolist(), strict=True):
            answers[number] = (-loss, missed == 0)
        return answers


def main() -> int:
    """The harness's command line; returns 0, or 2 for bad input."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except UserError as error:
        print_error(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
