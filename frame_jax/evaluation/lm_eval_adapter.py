"""lm-evaluation-harness's requests in, a trial's answers out; needs the extra `eval`.

    python -m frame_jax.evaluation.lm_eval_adapter run --model frame_jax \\
        --model_args run_directory=runs/mine,trial=frame --tasks mmlu,arc_easy,piqa

is the harness's own command line with one model more. Its definitions, prompts and metrics are
used as they are. The model runs on the devices of one process.
"""

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
from frame_jax.config.scoring import ScoringConfig
from frame_jax.corpus.tokenizer import load_tokenizer
from frame_jax.errors import UserError
from frame_jax.evaluation.likelihood import Request, continuation_sums, encode_requests
from frame_jax.models.transformer import read_description
from frame_jax.run.directory import RunDirectory
from frame_jax.run.program_exit import report_error, run_main
from frame_jax.run.trial_record import choose_checkpoint_step, read_trial_record
from frame_jax.scoring.scorer import Scorer


@register_model("frame_jax")
class FrameJaxModel(LM):
    """A trial of a run, as the harness sees a model.

    Args:
        step: A kept checkpoint; the last by default.
        stage: The checkpoint at the end of this stage instead.
        max_length: Tokens the model reads; by default the length of its training rows.
        per_device_batch_size: Rows that each device computes at one time.
        compute_dtype: Type of matrix-product operands. `float32` gives what the harness's own
            backend gives for the exported checkpoint; `bfloat16` is faster.
        fsdp: Devices that share one copy of the parameters.
        batch_size: Ignored, as are the next two: requests are packed into rows.

    Raises:
        UserError: if there is no such trial or checkpoint.
    """

    def __init__(
        self,
        run_directory: str,
        trial: str = "frame",
        step: int | None = None,
        stage: str | None = None,
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
        self.step = choose_checkpoint_step(trial_record, step, stage)
        checkpoints.require_saved(folder / "checkpoints", [self.step])
        decoder = read_description(folder, compute_dtype=compute_dtype)
        params = checkpoints.load_params(folder / "checkpoints", decoder, self.step)
        self.max_length = max_length or trial_record.sequence_length
        scoring = ScoringConfig(
            self.max_length, per_device_batch_size=per_device_batch_size, loss_chunk=2048, fsdp=fsdp
        )
        self._scorer = Scorer([(decoder, params)], scoring, misses=True)
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
        """Refuses tasks in which a model writes text.

        Raises:
            UserError: naming them.
        """
        names = ", ".join(sorted({str(request.task_name) for request in requests}))
        raise UserError(
            f"{names}: the model would write text, and only log-likelihoods are computed here "
            "(multiple choice, loglikelihood, loglikelihood_rolling); leave such tasks out, or "
            "export the trial with frame_jax.export and give them to the harness's --model hf"
        )

    def _rate(self, requests: list[Request]) -> list[tuple[float, bool]]:
        """Log-likelihood and greediness of each; those of an empty continuation are 0 and true."""
        filled = [number for number, request in enumerate(requests) if request.continuation]
        answers = [(0.0, True)] * len(requests)
        nll, misses = continuation_sums(self._scorer, (requests[i] for i in filled))
        for number, loss, missed in zip(filled, nll.tolist(), misses.tolist(), strict=True):
            answers[number] = (-loss, missed == 0)
        return answers


def main() -> int:
    """The harness's command line; returns 0, or 2 for bad input."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except Exception as error:
        return report_error(error)
    return 0


if __name__ == "__main__":
    run_main(main)
