"""The adapter answers the harness's requests as its Hugging Face backend does on our export."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from frame_jax.errors import UserError
from frame_jax.export.checkpoint import export_trial
from tests.arm import CONTEXT, TEXT, make_arm

torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra `eval`)")
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

ITEMS = [
    {
        "question": "What starts a function",
        "choices": ["def", "a class", "the for loop"],
        "gold": 0,
    },
    {"question": "Which word is it? ", "choices": [" spaced", "unspaced"], "gold": 1},
    {"question": "哪个关键字定义函数", "choices": ["定义", "函数", "循环", "类"], "gold": 2},
    {"question": "A question that does not fit. " * 12, "choices": ["yes", "no"], "gold": 0},
    {"question": "", "choices": ["The", "A"], "gold": 0},
]
CHOICE = ("local_choice", "local_choice_shots")
TEXTS = ["a", "Hello, world!\n", TEXT[:900], TEXT[1000:1400], "四象限多阶段预训练" * 5]


def write_tasks(folder: Path) -> Path:
    """Definitions of three kinds of task over local files."""
    files = {
        "items": ITEMS,
        "texts": [{"text": text} for text in TEXTS],
        "prompts": [{"text": TEXT[i * 50 : i * 50 + 40 + i]} for i in range(5)],
    }
    for name, records in files.items():
        lines = "".join(json.dumps(record) + "\n" for record in records)  # type: ignore[attr-defined]
        (folder / f"{name}.jsonl").write_text(lines, "utf-8")

    def define(name: str, file: str, **settings: object) -> None:
        definition = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {
                "data_files": {"test": str(folder / f"{file}.jsonl")},
                "cache_dir": str(folder / "cache"),
            },
            "test_split": "test",
            **settings,
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(definition), "utf-8")

    for name, shots in zip(CHOICE, (0, 2), strict=True):
        define(
            name,
            "items",
            output_type="multiple_choice",
            num_fewshot=shots,
            fewshot_split="test",
            doc_to_text="{{question}}",
            doc_to_choice="choices",
            doc_to_target="gold",
        )
    define(
        "local_rolling",
        "texts",
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="text",
        metric_list=[{"metric": "bits_per_byte"}],
    )
    define(
        "local_generation",
        "prompts",
        output_type="generate_until",
        doc_to_text="{{text}}",
        doc_to_target="text",
        generation_kwargs={"until": ["\n\n", ". "], "max_gen_toks": 20, "do_sample": False},
        metric_list=[{"metric": "exact_match"}],
    )
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("lm_eval")
    directory, _, _ = make_arm(root / "run")
    export_trial(directory, "frame", root / "exported")
    (root / "tasks").mkdir()
    return root, directory, write_tasks(root / "tasks")


def answers(model, tasks: Path, names: list[str]) -> dict[str, list]:
    """What a model answered to every request of the tasks, in order."""
    found = lm_eval.simple_evaluate(
        model=model,
        tasks=names,
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
    )
    return {
        name: [
            response[0]
            for sample in sorted(found["samples"][name], key=lambda s: s["doc_id"])
            for response in sample["resps"]
        ]
        for name in names
    }


@pytest.fixture(scope="module")
def ours(prepared):
    from frame_jax.evaluation.lm_eval_adapter import FrameJaxModel

    return FrameJaxModel(str(prepared[1].root), per_device_batch_size=3)


@pytest.fixture(scope="module")
def mine(prepared, ours) -> dict[str, list]:
    return answers(ours, prepared[2], [*CHOICE, "local_rolling"])


def theirs(folder: Path, **settings):
    pytest.importorskip("accelerate", reason="lm-eval's Hugging Face backend needs it")
    from lm_eval.models.huggingface import HFLM

    settings = {"dtype": "float32", "device": "cpu", "batch_size": 2} | settings
    return HFLM(str(folder), **settings)


@pytest.fixture(scope="module")
def reference(prepared) -> dict[str, list]:
    root, _, tasks = prepared
    found = answers(theirs(root / "exported"), tasks, [*CHOICE])
    # For a rolling likelihood their backend puts a BOS before every window and, with a tokenizer
    # that adds one by itself, a second one that it counts as text. We write exactly one, as theirs
    # does when told not to add it.
    plain = theirs(root / "exported", add_bos_token=False)
    return found | answers(plain, tasks, ["local_rolling"])


def test_log_likelihoods_agree_request_by_request(mine, reference) -> None:
    largest = 0.0
    for name in CHOICE:
        assert len(mine[name]) == len(reference[name]) == sum(len(i["choices"]) for i in ITEMS)
        for (value, greedy), (expected, expected_greedy) in zip(
            mine[name], reference[name], strict=True
        ):
            largest = max(largest, abs(value - expected))
            assert greedy == expected_greedy
    print(f"largest difference of a log-likelihood: {largest:.2e}")
    assert largest < 1e-3


def test_rolling_log_likelihoods_agree(mine, reference) -> None:
    pairs = list(zip(mine["local_rolling"], reference["local_rolling"], strict=True))
    largest = max(abs(a - b) for a, b in pairs)
    print(f"largest difference of a rolling log-likelihood: {largest:.2e}")
    assert len(pairs) == len(TEXTS) and largest < 1e-3


def test_the_harness_agrees_only_where_it_writes_one_start(prepared, mine, reference) -> None:
    """docs/tasks.md: with the other `add_bos_token` there are two, or none."""
    root, _, tasks = prepared
    two = answers(theirs(root / "exported"), tasks, ["local_rolling"])
    none = answers(theirs(root / "exported", add_bos_token=False), tasks, ["local_choice"])
    asked = theirs(root / "exported", add_bos_token=True)
    for value, expected in zip(mine["local_rolling"], two["local_rolling"], strict=True):
        assert abs(value - expected) > 1e-3
    found = [value for value, _ in mine["local_choice"]]
    assert max(abs(a - b[0]) for a, b in zip(found, none["local_choice"], strict=True)) > 1e-3
    for a, b in zip(found, answers(asked, tasks, ["local_choice"])["local_choice"], strict=True):
        assert abs(a - b[0]) < 1e-3


def test_a_task_that_generates_is_refused_by_name(prepared, ours) -> None:
    with pytest.raises(UserError, match=r"local_generation: .*multiple choice, loglikelihood"):
        answers(ours, prepared[2], ["local_choice", "local_generation"])


def test_an_empty_continuation_is_certain(ours) -> None:
    assert ours.loglikelihood([Instance("loglikelihood", {}, ("def", ""), 0)]) == [(0.0, True)]
    assert ours.max_length == CONTEXT


def test_the_command_line_runs_tasks_by_name(prepared, tmp_path) -> None:
    _, directory, tasks = prepared
    command = [sys.executable, "-m", "frame_jax.evaluation.lm_eval_adapter", "run"]
    command += ["--model", "frame_jax", "--include_path", str(tasks), "--tasks", "local_choice"]
    command += ["--model_args", f"run_directory={directory.root},trial=frame,stage=Q3"]
    command += ["--output_path", str(tmp_path / "results.json")]
    done = subprocess.run(
        command,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "HF_DATASETS_OFFLINE": "1"},
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = tmp_path.glob("results*.json")
    results = json.loads(file.read_text())["results"]["local_choice"]
    assert 0 <= results["acc,none"] <= 1


def test_the_paper_s_tasks_are_known_to_the_harness() -> None:
    path = Path(__file__).parents[2] / "configs" / "tasks_frame_paper.yaml"
    config = yaml.safe_load(path.read_text("utf-8"))
    known = TaskManager()
    assert config["model"] == "frame_jax"
    missing = [name for name in config["tasks"] if name not in known.all_tasks]
    assert not missing
