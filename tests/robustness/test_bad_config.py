"""Every mistake in a config ends in one message, exit code 2 and no run directory."""

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from frame_jax.config.file import make_parser, parse
from frame_jax.config.run import RunConfig
from frame_jax.errors import UserError
from frame_jax.main import main
from tests.integration.small_run import settings, write_corpus

MISTAKES: dict[str, tuple[str, Any, str]] = {
    "typo": ("pretrain.training.batch_row", 8, "did you mean `batch_size`"),
    "typo at the top": ("curriculums", {"a": 1}, "did you mean `curricula`"),
    "word for a number": ("pretrain.training.batch_size", "many", "batch_size"),
    "number for a list": ("corpus.sources", 3, "sources"),
    "fraction for a count": ("corpus.parts", 2.5, "parts"),
    "null for a number": ("seed", None, "seed"),
    "mesh": ("parallel", {"data": 3}, "does not make the 1 devices"),
    "mesh of nothing": ("parallel", {"fsdp": 0}, "must be positive"),
    "negative duration": ("pretrain.training.checkpoint_seconds", -1, "checkpoint_seconds"),
    "negative steps": ("pretrain.training.steps", -3, "training.steps"),
    "no patience": ("pretrain.training.max_bad_steps", 0, "max_bad_steps"),
    "infinite rate": ("pretrain.training.lr_schedule.peak", float("inf"), "peak"),
    "rate not a number": ("pretrain.training.lr_schedule.peak", float("nan"), "peak"),
    "empty stage": ("curricula", {"a": {"stages": [{"weights": {}}]}}, "positive weight"),
    "stage of zeros": ("curricula", {"a": {"stages": [{"weights": {"Q1": 0}}]}}, "positive weight"),
    "unknown quadrant": ("curricula", {"a": {"stages": [{"weights": {"Q7": 1}}]}}, "Q7"),
    "unknown preset": ("curricula", {"a": {"preset": "best"}}, "preset"),
    "no order": ("curricula", {"a": {}}, "preset"),
    "path as a name": ("curricula", {"../a": {"preset": "frame"}}, "lower-case"),
    "two lengths": (
        "curricula",
        {"a": {"stages": [{"weights": {"Q1": 1}, "steps": 3, "fraction": 0.5}]}},
        "one of fraction, tokens, steps",
    ),
    "no source": ("corpus.sources", [], "at least one source"),
    "unknown kind": ("corpus.sources", [{"kind": "csv", "path": "x"}], "kind"),
    "missing files": ("corpus.sources", [{"kind": "jsonl", "path": "/nowhere/*.jsonl"}], "nowhere"),
    "nothing to train on": ("corpus.held_out_fraction", 0.9, "leave nothing to train on"),
    "heads": ("pretrain.model.num_kv_heads", 3, "num_kv_heads"),
    "odd head": ("pretrain.model.head_dim", 7, "even"),
    "tiny vocabulary": ("tokenizer.vocab_size", 10, "260"),
    "overlap beyond context": ("scoring.overlap", 64, "overlap"),
    "not a number": (
        "pretrain.training.z_loss_weight",
        float("nan"),
        "pretrain.training.z_loss_weight must be a",
    ),
    "no end": ("pretrain.training.checkpoint_seconds", float("inf"), "must be a finite number"),
    "null for a list": ("corpus.sources", None, "corpus.sources"),
    "null for the orders": ("curricula", None, "curricula needs a value"),
    "NUL in a path": ("run_directory", "a\0b", "without NUL"),
    "surrogate in a path": ("tokenizer.path", "\ud800", "Unicode"),
    "no run directory": ("run_directory", "", "name of a folder"),
    "negative seed": ("seed", -1, "seed must be at least 0"),
    "endless seed": ("seed", 10**30, "seed must be at least 0"),
    "no head": ("pretrain.model.head_dim", 0, "head_dim must be positive"),
    "no rotation": ("pretrain.model.rope_theta", 0.0, "rope_theta must be positive"),
    "process out of range": (
        "parallel",
        {"num_processes": 2, "process_id": 2},
        "below parallel.num_processes",
    ),
    "nothing held out": ("evaluation.max_documents", 0, "max_documents must be at least 1"),
    "trace backwards": ("profile", "5:3", "does not come before"),
    "run directory in a file": ("run_directory", __file__ + "/run", "run_directory"),
}

FILES = {
    "not YAML": b"a: [1\n",
    "binary": b"\x00\xff\xfe",
    "not UTF-8": "run_directory: caf\xe9\n".encode("latin-1"),
    "a list": b"- 1\n- 2\n",
    "empty": b"",
    "pickle": b"\x80\x04\x95\x10",
    "Python object": b"run_directory: !!python/object/apply:os.system ['touch pwned']\n",
    "endless": b"&a [*a]\n",
    "a key twice": b"seed: 1\nseed: 2\n",
}


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one message with which `main` refuses `arguments`."""
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and shown.count("error: ") == 1
    assert "Traceback" not in shown
    print(shown)
    return shown


def changed(tree: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """`tree` with the value at a dotted key replaced."""
    first, _, rest = key.partition(".")
    return tree | {first: changed(tree.get(first, {}), rest, value) if rest else value}


@pytest.mark.parametrize(("key", "value", "part"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_a_setting(key: str, value: Any, part: str, tmp_path: Path, capsys) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(changed(settings(tmp_path), key, value)))
    assert part in refused(["--config", str(path)], capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_a_file_that_is_no_config(content: bytes, tmp_path: Path, capsys) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    refused(["--config", str(path)], capsys)
    assert list(tmp_path.iterdir()) == [path]


def test_a_config_that_is_not_there(tmp_path: Path, capsys) -> None:
    assert "missing.yaml" in refused(["--config", str(tmp_path / "missing.yaml")], capsys)
    refused(["--config", str(tmp_path)], capsys)


def places(tree: Any, path: tuple = ()) -> list[tuple]:
    """The path of every key and item in a tree of dicts and lists."""
    if not isinstance(tree, dict | list):
        return []
    found = []
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        found += [(*path, key), *places(value, (*path, key))]
    return found


TREE = settings(Path("/nowhere")) | {
    "seed": 3,
    "parallel": {"data": 1, "fsdp": -1, "num_processes": 2, "process_id": 0},
    "curricula": {
        "a": {"preset": "frame"},
        "b": {"stages": [{"weights": {"Q3": 1.0}, "steps": 5}]},
    },
    "evaluation": {
        "max_documents": 5,
        "tasks": [{"name": "t", "path": "t.jsonl", "num_fewshot": 0}],
    },
    "profile": "1:2",
}
PARSER = make_parser()
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.dates()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.slow
@hypothesis_settings(
    max_examples=100 if "CI" in os.environ else 40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(place=st.sampled_from(places(TREE)), how=st.sampled_from(["value", "typo"]), value=VALUES)
@example(place=("seed",), how="value", value=float("nan"))
@example(place=("corpus",), how="value", value=None)
@example(place=("curricula",), how="value", value={"a": None})
@example(place=("curricula", "b", "stages"), how="value", value=[None])
@example(place=("curricula", "b", "stages", 0, "weights"), how="value", value={"": 1})
def test_any_value_anywhere_is_accepted_or_refused_in_words(
    place: tuple, how: str, value: Any, tmp_path: Path
) -> None:
    tree = copy.deepcopy(TREE)
    parent: Any = tree
    for key in place[:-1]:
        parent = parent[key]
    if how == "typo" and isinstance(parent, dict):
        parent[f"{place[-1]}x"] = parent.pop(place[-1])
    else:
        parent[place[-1]] = value
    path = tmp_path / "run.yaml"
    path.write_bytes(yaml.safe_dump(tree, encoding="utf-8", allow_unicode=False))
    try:
        config = parse(["--config", str(path)], PARSER)[0]
    except UserError as error:
        assert str(path) in str(error) and len(str(error).splitlines()) < 10
    else:
        assert isinstance(config, RunConfig)
