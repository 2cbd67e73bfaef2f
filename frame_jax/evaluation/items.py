"""Reads multiple-choice questions and makes the prompts and the answers to rate after them."""

import json
import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from frame_jax.config.evaluation import TaskConfig
from frame_jax.config.paths import user_path
from frame_jax.corpus.documents import RecordError, decode_utf8
from frame_jax.corpus.sources.compressed import BYTE_ORDER_MARK, HEAD_BYTES, other_format
from frame_jax.corpus.sources.inputs import Input, open_decompressed
from frame_jax.errors import UserError

SURROGATE = re.compile("[\ud800-\udfff]")


class Item(NamedTuple):
    """A multiple-choice question of at least two choices, the index of its answer, and what it
    belongs to, empty where the file does not say."""

    question: str
    choices: tuple[str, ...]
    answer: int
    subject: str


def read_items(path: Path) -> list[Item]:
    """Reads the items of a file of JSON lines, plain or compressed, in order.

    The first bytes decide what it is, not its name.

    Raises:
        UserError: for a file that cannot be read or has no items, and for a line that is none.
    """
    if not path.is_file():
        raise UserError(f"evaluation.tasks: there is no file {path}")
    with open_decompressed(Input(str(path), path.name, 0, "")) as stream:
        content = stream.read().removeprefix(BYTE_ORDER_MARK)
    if (other := other_format(content[:HEAD_BYTES])) is not None:
        raise UserError(f"{path}: is {other[0]}, not JSON lines: {other[1]}")
    lines = content.split(b"\n")
    items = [
        parse_item(line, f"{path}, line {n}") for n, line in enumerate(lines, 1) if line.strip()
    ]
    if not items:
        raise UserError(f"{path}: has no items")
    return items


def parse_item(line: bytes, where: str) -> Item:
    """Parses a line of a file of items; `where` begins the messages.

    Raises:
        UserError: if it is no item.
    """
    try:
        value: Any = json.loads(decode_utf8(line))
    except RecordError as error:
        raise UserError(f"{where}: {error}") from error
    except (ValueError, RecursionError) as error:  # lists nested too deep
        raise UserError(f"{where}: not JSON ({error})") from error
    if not isinstance(value, dict) or not {"question", "choices", "answer"} <= value.keys():
        raise UserError(f"{where}: an item has the keys question, choices and answer")
    choices, answer = value["choices"], value["answer"]
    if not isinstance(choices, list) or not 2 <= len(choices) <= len(string.ascii_uppercase):
        raise UserError(f"{where}: choices must be a list of 2 to 26 texts")
    if not all(isinstance(text, str) and text for text in (value["question"], *choices)):
        raise UserError(f"{where}: question and choices must be texts that are not empty")
    if SURROGATE.search("".join((value["question"], *choices, str(value.get("subject"))))):
        raise UserError(f"{where}: half a character (a lone surrogate) is no text")
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise UserError(f"{where}: answer must be an index from 0 to {len(choices) - 1}")
    return Item(value["question"], tuple(choices), answer, str(value.get("subject") or ""))


def blind_accuracy(items: list[Item]) -> float:
    """The best accuracy of a rule that reads no question. [ours]

    Rules are: always the same index, or always the longest choice in characters, the first of
    several.
    """
    answer_counts = Counter(item.answer for item in items)
    longest = sum(
        max(range(len(item.choices)), key=lambda i: len(item.choices[i])) == item.answer
        for item in items
    )
    return max(longest, *answer_counts.values()) / len(items)


def spread_items(items: list[Item], count: int | None) -> list[Item]:
    """Takes at most `count` items, evenly spread; None takes all."""
    if count is None or count >= len(items):
        return items
    return [items[i * len(items) // count] for i in range(count)]


def make_prompts(task: TaskConfig, items: list[Item]) -> Iterator[str]:
    """Yields the text before the answer of each item: introduction, solved examples, prompt.

    Raises:
        UserError: if there are fewer examples than `num_fewshot`.
    """
    examples = read_items(user_path(task.examples)) if task.examples and task.num_fewshot else []
    by_subject: dict[str, list[Item]] = {}
    for example in examples:
        by_subject.setdefault(example.subject, []).append(example)
    for item in items:
        shown = [fill_template(task.introduction, item)] if task.introduction else []
        for example in fewshot_items(task, by_subject.get(item.subject), examples, item):
            shown.append(
                f"{fill_template(task.prompt, example)}{task.separator}"
                f"{answers_to_rate(task, example)[example.answer]}\n\n"
            )
        yield "".join(shown) + fill_template(task.prompt, item)


def check_tasks(tasks: Sequence[TaskConfig]) -> None:
    """Checks that every task can be done, before anything is trained for it.

    Raises:
        UserError: for a file that is missing or holds something else than items, and where there
            are fewer examples than `num_fewshot`.
    """
    for task in tasks:
        for _ in make_prompts(task, spread_items(read_items(user_path(task.path)), task.max_items)):
            pass


def fewshot_items(
    task: TaskConfig, of_subject: list[Item] | None, examples: list[Item], item: Item
) -> list[Item]:
    """The solved examples before an item, never the item itself."""
    pool = [e for e in of_subject or examples if e.question != item.question]
    if len(pool) < task.num_fewshot:
        raise UserError(
            f"evaluation.tasks: {task.name}: {task.examples} has {len(pool)} examples"
            f"{f' of subject {item.subject}' if of_subject else ''}, but num_fewshot is "
            f"{task.num_fewshot}"
        )
    return pool[: task.num_fewshot] if of_subject else spread_items(pool, task.num_fewshot)


def answers_to_rate(task: TaskConfig, item: Item) -> tuple[str, ...]:
    """The texts to rate: the choices, or their letters where the prompt lists the choices."""
    if "{choices}" in task.prompt:
        return tuple(string.ascii_uppercase[: len(item.choices)])
    return item.choices


def fill_template(template: str, item: Item) -> str:
    """Fills a template with the item's texts, whose own braces stay as they are."""
    listed = zip(string.ascii_uppercase, item.choices, strict=False)
    texts = {
        "question": item.question,
        "choices": "\n".join(f"{letter}. {choice}" for letter, choice in listed),
        "subject": item.subject.replace("_", " "),
    }
    return re.sub(r"\{(question|choices|subject)\}", lambda found: texts[found[1]], template)
