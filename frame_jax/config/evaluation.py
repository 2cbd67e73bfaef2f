"""Settings of what is measured on trained models."""

import re
from dataclasses import dataclass, field

from frame_jax.config.base import check_bounds, number, require


@dataclass(frozen=True)
class TaskConfig:
    """Multiple-choice questions in a file of JSON lines: question, choices, answer, subject.

    A choice is rated by its log-likelihood after the prompt. Where the prompt lists the choices
    (`{choices}`), they stand there under letters, and the letters are rated instead of the choices.

    Attributes:
        name: Name of the task in results.
        path: The items (plain, .gz or .zst): `question`, `choices` (a list), `answer` (its index)
            and, optionally, `subject`.
        examples: A file of the same kind that shots are taken from.
        num_fewshot: Solved examples before each item: the first of its subject, or, where the file
            has none of it, spread evenly over the file.
        introduction: Text before everything; `{subject}` is replaced.
        prompt: Text of an item up to the answer; `{question}`, `{choices}`, `{subject}` are
            replaced.
        separator: Text between the prompt and an answer.
        max_items: Items used, spread evenly over the file; null uses all.
    """

    name: str
    path: str
    examples: str | None = None
    num_fewshot: int = number(0, least=0)
    introduction: str = ""
    prompt: str = "Question: {question}\nAnswer:"
    separator: str = " "
    max_items: int | None = number(None, least=1)

    def __post_init__(self) -> None:
        where = f"evaluation.tasks: {self.name}"
        require(
            re.fullmatch(r"[A-Za-z0-9_-]{1,200}", self.name) is not None,
            f"{where}: a name is letters, digits, dashes and underscores, 200 at most",
        )
        require(
            self.num_fewshot == 0 or self.examples is not None,
            f"{where}: shots need `examples`, a file to take them from",
        )
        require("{question}" in self.prompt, f"{where}: the prompt lacks {{question}}")
        check_bounds(self, f"{where}: ")


@dataclass(frozen=True)
class AverageConfig:
    """The mean of the last checkpoints' weights, measured beside the final weights.

    Attributes:
        last: How many checkpoints: of those that pretrain.training.tail_checkpoints kept, or, where
            it kept none, of all that were kept after the initial weights.
    """

    last: int = number(6, least=2)

    def __post_init__(self) -> None:
        check_bounds(self, "evaluation.averages: ")

    @property
    def name(self) -> str:
        """Such as `last6`: of its folder and in results."""
        return f"last{self.last}"


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured on the held-out split, and multiple-choice tasks.

    Attributes:
        max_documents: Held-out documents used, chosen by hash; null uses all.
        averages: Means of the weights of an arm's last checkpoints, measured beside its final
            weights. They need no setting of the training but that checkpoints were kept.
        training_rows: About how many of the training rows the final weights are measured on, to
            show what was forgotten; the same rows for every arm of a seed. 0 measures none.
        tasks: Multiple-choice tasks.
    """

    max_documents: int | None = number(None, least=1)
    averages: list[AverageConfig] = field(default_factory=list)
    training_rows: int = number(0, least=0)
    tasks: list[TaskConfig] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_bounds(self, "evaluation.")
        averages = [average.name for average in self.averages]
        require(
            len(set(averages)) == len(averages),
            f"evaluation.averages: the same twice in {averages}",
        )
        names = [task.name for task in self.tasks]
        require(len(set(names)) == len(names), f"evaluation.tasks: a name occurs twice in {names}")
