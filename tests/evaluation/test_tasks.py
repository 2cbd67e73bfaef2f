"""Task scores of real checkpoints against a float64 decoder that reads one choice at a time."""

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from frame_jax.config.evaluation import EvaluationConfig, TaskConfig
from frame_jax.corpus.tokenizer import load_tokenizer
from frame_jax.errors import UserError
from frame_jax.evaluation import tasks
from frame_jax.evaluation.items import blind_accuracy, make_prompts, parse_item, read_items
from frame_jax.evaluation.likelihood import encode_requests
from frame_jax.evaluation.results import scores_folder
from frame_jax.parallel import processes
from frame_jax.run.trial_record import load_trial_record
from tests.arm import CONTEXT, STEPS, make_arm, make_config
from tests.scoring.numpy_decoder import log_probabilities

QUESTIONS = (
    ("What does {question} mean?", ["a { brace", "nothing", "a set", "x"], "python"),
    ("Which keyword ends a loop early", ["break", "pass"], "python"),
    ("哪个关键字定义函数", ["定义", "函数定义", "循环"], "zh"),
    (
        "What makes a class iterable",
        ["the method __iter__", "a list", "it is by default"],
        "python",
    ),
    ("Long " * 40 + "question", ["yes", "no"], "zh"),
    ("Is a tuple mutable", ["no", "yes, always"], ""),
)


def write_items(path: Path, questions=QUESTIONS, offset=0) -> str:
    lines = [
        json.dumps({"question": q, "choices": c, "answer": (i + offset) % len(c), "subject": s})
        for i, (q, c, s) in enumerate(questions)
    ]
    data = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


@pytest.fixture(scope="module")
def arm(tmp_path_factory):
    root = tmp_path_factory.mktemp("tasks")
    write_items(root / "items.jsonl")
    examples = [
        (f"Example {i}", ["right", "wrong"], s) for i, s in enumerate(["python"] * 3 + ["zh"])
    ]
    write_items(root / "examples.jsonl.gz", examples)
    return root, *make_arm(root / "run")


def cloze(root: Path, **settings) -> TaskConfig:
    return TaskConfig("cloze", str(root / "items.jsonl"), **settings)


def letters(root: Path) -> TaskConfig:
    return TaskConfig(
        "letters",
        str(root / "items.jsonl"),
        introduction="About {subject}. ",
        prompt="{question}\n{choices}\nThe answer is ",
        separator="",
    )


def run(arm, task_list):
    _, directory, _, _ = arm
    config = make_config(directory, evaluation=EvaluationConfig(tasks=task_list))
    record = load_trial_record(directory.pretrain("frame"))
    return tasks.score_tasks(config, directory, "frame", record)


def alone(decoder, params, bos_id, before, rated):
    """NLL of the tokens `rated` after `before`, in float64, from at most CONTEXT inputs."""
    ids = [bos_id, *before, *rated][-(CONTEXT + 1) :]
    log_p = log_probabilities(decoder.config, params, ids[:-1])
    first = len(ids) - 1 - len(rated)
    return -sum(log_p[first + i, token] for i, token in enumerate(rated))


def expected(arm, task, step):
    """The NLL of every choice, who is right, and how many prompts are cut, the slow way."""
    root, directory, decoder, params = arm
    tokenizer = load_tokenizer(directory)
    items = read_items(root / "items.jsonl")
    table, right, norm, cut = [], [], [], 0
    for item, prompt in zip(items, make_prompts(task, items), strict=True):
        listed = "{choices}" in task.prompt
        choices = [chr(65 + i) for i in range(len(item.choices))] if listed else item.choices
        nll, length = [], 0
        for choice in choices:
            stem = prompt.rstrip(" ")
            before = tokenizer.encode_batch([stem])[0]
            whole = tokenizer.encode_batch([prompt + task.separator + choice])[0]
            rated = whole[len(before) :]
            length = max(length, len(before) + len(rated))
            nll.append(alone(decoder, params[step], tokenizer.bos_id, before, rated))
        table.append(nll)
        cut += length > CONTEXT
        right.append(nll.index(min(nll)) == item.answer)
        share = [n / len(c.encode("utf-8")) for n, c in zip(nll, choices, strict=True)]
        norm.append(share.index(min(share)) == item.answer)
    return table, right, norm, cut


@pytest.mark.parametrize("make", [cloze, letters])
def test_scores_are_those_of_every_choice_alone(arm, make) -> None:
    root, directory, _, _ = arm
    task = make(root)
    results = run(arm, [task])
    assert [(r.step, r.stages) for r in results] == [(6, ("Q1",))]
    for result in results:
        table, right, norm, cut = expected(arm, task, result.step)
        parts = scores_folder(directory, "frame", str(result.step)) / "tasks"
        (stored,) = parts.glob(f"{task.name}-*/part-*.parquet")
        for row, nll in zip(pq.read_table(stored).to_pylist(), table, strict=True):
            np.testing.assert_allclose(row["nll"], nll, rtol=2e-5)
        n = len(QUESTIONS)
        for key, values in (("accuracy", right), ("accuracy_norm", norm)):
            p = sum(values) / n
            assert getattr(result, key) == pytest.approx(p)
            assert getattr(result, f"{key}_stderr") == pytest.approx(
                math.sqrt(p * (1 - p) / (n - 1))
            )
        bits = [nll[i % len(nll)] / math.log(2) for i, nll in enumerate(table)]  # the right ones
        size = [1 if task.name == "letters" else len(c[i % len(c)].encode())
                for i, (_, c, _) in enumerate(QUESTIONS)]  # fmt: skip
        assert result.answer_bits_per_byte == pytest.approx(sum(bits) / sum(size), rel=2e-5)
        assert result.items == n and 0 < cut < n and result.truncated == cut
        assert result.chance == pytest.approx((1 / 4 + 1 / 2 + 1 / 3 + 1 / 3 + 1 / 2 + 1 / 2) / n)


def test_the_question_s_own_braces_stay_and_shots_come_from_its_subject(arm) -> None:
    root = arm[0]
    task = cloze(root, examples=str(root / "examples.jsonl.gz"), num_fewshot=1)
    items = read_items(root / "items.jsonl")
    made = list(make_prompts(task, items))
    first = "Question: Example 0\nAnswer: right\n\n"
    assert made[0] == first + "Question: What does {question} mean?\nAnswer:"
    assert made[2].startswith("Question: Example 3\nAnswer: wrong\n\nQuestion: 哪个")
    assert made[5].startswith(first)  # a subject without examples takes them from all
    with pytest.raises(UserError, match="has 1 examples of subject zh, but num_fewshot is 2"):
        list(make_prompts(cloze(root, examples=task.examples, num_fewshot=2), items))


def test_prompt_and_continuation_are_cut_where_the_prompt_s_tokens_end(arm) -> None:
    tokenizer = load_tokenizer(arm[1])
    pairs = [("The value", " of"), ("The value ", "of"), ("", "The"), ("a\n", "\nb"), ("x", "")]
    pairs[4] = ("def", "ault")
    requests = encode_requests(tokenizer, pairs)
    assert requests[0] == requests[1]
    assert list(requests[2].prompt) == [tokenizer.bos_id]
    for (prompt, continuation), request in zip(pairs, requests, strict=True):
        assert len(request.continuation) > 0 and request.prompt[0] == tokenizer.bos_id
        assert tokenizer.decode(request.continuation).strip() in continuation
        if tokenizer.encode_batch([prompt])[0] == list(request.prompt[1:]):
            whole = tokenizer.decode([*request.prompt[1:], *request.continuation])
            assert whole == prompt + continuation


def test_processes_share_parts_and_only_missing_ones_are_scored(arm, monkeypatch) -> None:
    root, directory, _, _ = arm
    monkeypatch.setattr(tasks, "ITEMS_PER_PART", 2)
    task_list = [cloze(root, max_items=5)]
    whole = run(arm, task_list)
    folder = scores_folder(directory, "frame", str(STEPS[-1])) / "tasks"
    (name,) = {p.parent.name for p in folder.rglob("part-*-of-00003.parquet")}
    before = {p: pq.read_table(p) for p in (folder / name).iterdir()}
    assert len(before) == 3 and sum(t.num_rows for t in before.values()) == 5
    for path in before:
        path.unlink()
    monkeypatch.setattr(processes, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "barrier", lambda name: None)
    monkeypatch.setattr(tasks, "task_score", lambda *a: None)
    written = []
    for index in (1, 0):
        monkeypatch.setattr(processes, "process_index", lambda index=index: index)
        run(arm, task_list)
        written.append({path: pq.read_table(path) for path in (folder / name).iterdir()})
        for path in written[-1]:
            path.unlink()
    assert [len(tables) for tables in written] == [1, 2]
    assert written[0] | written[1] == before
    monkeypatch.undo()
    monkeypatch.setattr(tasks, "ITEMS_PER_PART", 2)
    for path, table in before.items():
        pq.write_table(table, path)
    monkeypatch.setattr(tasks, "score_items", lambda *a: pytest.fail("all parts are there"))
    assert run(arm, task_list) == whole


def test_another_definition_is_scored_again(arm) -> None:
    root = arm[0]
    first = tasks.task_fingerprint(cloze(root))
    assert tasks.task_fingerprint(cloze(root, max_items=3)) != first
    other = root / "other"
    other.mkdir()
    write_items(other / "items.jsonl", offset=1)
    assert tasks.task_fingerprint(TaskConfig("cloze", str(root / "items.jsonl"))) == first
    (root / "items.jsonl").rename(other / "kept")
    (other / "items.jsonl").rename(root / "items.jsonl")
    assert tasks.task_fingerprint(cloze(root)) != first
    (other / "kept").rename(root / "items.jsonl")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ('{"question": "q", "choices": ["a", "b"]}', "the keys question, choices and answer"),
        ('{"question": "q", "choices": ["a"], "answer": 0}', "2 to 26 texts"),
        ('{"question": "q", "choices": ["a", ""], "answer": 0}', "not empty"),
        ('{"question": "q", "choices": ["a", "b"], "answer": 2}', "index from 0 to 1"),
        ('{"question": "q", "choices": ["a", "b"], "answer": true}', "index from 0 to 1"),
    ],
)
def test_a_line_that_is_no_item_is_named(tmp_path, line, message) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text('{"question": "q", "choices": ["a", "b"], "answer": 1}\n' + line + "\n")
    with pytest.raises(UserError, match=message):
        read_items(path)


def test_a_blind_rule_takes_one_place_or_the_longest_choice() -> None:
    def items(*questions: tuple[list[str], int]):
        lines = [{"question": "?", "choices": c, "answer": a} for c, a in questions]
        return [parse_item(json.dumps(line).encode(), "here") for line in lines]

    one_place = items((["a", "bb"], 0), (["a", "bb"], 0), (["a", "bb"], 0), (["aa", "b"], 1))
    assert blind_accuracy(one_place) == 0.75
    longest = items((["aaa", "b"], 0), (["a", "bb"], 1), (["a", "b", "cc"], 2), (["a", "bb"], 0))
    assert blind_accuracy(longest) == 0.75
