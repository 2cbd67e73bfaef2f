"""A model is continued from text to verdict, scored by itself and by a smaller sibling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml

from frame_jax import checkpoints
from frame_jax.config.models import ModelConfig
from frame_jax.corpus.tokenizer_training import BOS, EOS, train_tokenizer
from frame_jax.evaluation.results import read_result
from frame_jax.export.checkpoint import main as export
from frame_jax.main import main
from frame_jax.models.hugging_face.export import export_checkpoint
from frame_jax.models.hugging_face.weights import import_checkpoint
from frame_jax.models.transformer import Decoder, read_description
from frame_jax.report.study_results import load_study
from frame_jax.run.directory import RunDirectory, write_json
from frame_jax.run.special_tokens import SpecialTokens
from tests.integration.small_run import settings, write_config, write_corpus
from tests.programs import free_port, side_by_side

pytestmark = pytest.mark.slow
ROWS = 448  # of the embeddings, more than there are tokens
SIZES = {"weak": 16, "strong": 32}
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
TRIALS = ("frame", "random", "frame-seed1", "random-seed1")


def write_tokenizer(root: Path) -> Path:
    texts = [json.loads(line)["text"] for line in (root / "corpus.jsonl").open()]
    path = root / "tokenizer.json"
    train_tokenizer(texts, 400).save(str(path))
    return path


def write_ours(root: Path, name: str) -> None:
    """A checkpoint of random weights, as this project writes one."""
    size = SIZES[name]
    shape = ModelConfig(hidden_size=size, intermediate_size=48, num_layers=2, num_heads=2)
    decoder = Decoder(shape, ROWS)
    params = jax.tree.map(np.asarray, decoder.init(jax.random.key(size)))
    (root / name).mkdir(exist_ok=True)
    export_checkpoint(
        root / name,
        decoder,
        params,
        tokenizer=root / "tokenizer.json",
        special_tokens=SpecialTokens(0, 1, 0),
        context=64,
    )


def write_with_transformers(root: Path, name: str) -> None:
    """A checkpoint that PyTorch has trained for a moment, as transformers writes one."""
    torch, transformers = (pytest.importorskip(lib) for lib in ("torch", "transformers"))
    torch.manual_seed(0)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(root / "tokenizer.json"), bos_token=BOS, eos_token=EOS
    )
    tokenizer.chat_template = TEMPLATE
    config = transformers.Qwen3Config(
        **{"vocab_size": ROWS, "hidden_size": SIZES[name], "intermediate_size": 48, "head_dim": 8},
        **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
        **{"max_position_embeddings": 64, "tie_word_embeddings": True, "eos_token_id": 1},
    )
    model = transformers.Qwen3ForCausalLM(config)
    text = "".join(json.loads(line)["text"] for line in (root / "corpus.jsonl").open())
    ids = torch.tensor(tokenizer(text[:40_000]).input_ids)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for step in range(30):
        at = torch.arange(64) + (torch.arange(8)[:, None] + 8 * step) * 32
        batch = ids[at % len(ids)]
        model(batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.generation_config.temperature = 0.5
    model.generation_config.do_sample = True
    model.save_pretrained(root / name)
    tokenizer.save_pretrained(root / name)


def config_at(root: Path, initial: dict[str, Any], imports: bool, **changes: Any) -> Path:
    pretrain = {
        "initial": initial,
        "training": settings(root)["pretrain"]["training"]
        | {"steps": 8, "milestones": 0, "lr_schedule": {"kind": "linear", "peak": 0.01}},
    }
    if imports:
        changes["corpus"] = settings(root)["corpus"] | {"reference_fraction": 0.0}
        changes["reference"] = {name: {"checkpoint": str(root / name)} for name in SIZES}
    path = {"path": str(root / "tokenizer.json")}
    return write_config(root, tokenizer=path, pretrain=pretrain, seeds=2, **changes)


def prepared(root: Path, write: Any) -> Path:
    write_corpus(root / "corpus.jsonl")
    write_tokenizer(root)
    for name in SIZES:
        write(root, name)
    imports = write is write_with_transformers  # random weights predict no better than chance
    return config_at(root, {"checkpoint": str(root / "strong")}, imports)


def initial_weights(directory: RunDirectory, trial: str) -> dict:
    folder = directory.pretrain(trial)
    return checkpoints.load_params(folder / "checkpoints", read_description(folder), 0)


def check_study(root: Path, shown: str) -> None:
    """Every trial began with the model, whose own line is in the results and on the terminal."""
    directory, expected = RunDirectory(root / "run"), import_checkpoint(root / "strong")[1]
    for trial in TRIALS:
        jax.tree.map(np.testing.assert_array_equal, initial_weights(directory, trial), expected)
    study = load_study(directory)
    assert [c.line.arm for c in study.before] == ["frame", "random"]
    losses = [read_result(directory, trial).checkpoints[0] for trial in TRIALS]
    assert {loss.step for loss in losses} == {0}
    (before,) = [line for line in study.lines if line.line.arm == "before continuing"]
    assert before.nll_per_token == pytest.approx(losses[0].overall.nll_per_token)
    for comparison in study.before:
        final = read_result(directory, comparison.line.arm).final.overall
        first = losses[0].overall
        assert comparison.slices["all"].by_seed[0] == pytest.approx(
            final.bits_per_byte - first.bits_per_byte
        )
        assert comparison.sentence in (root / "run/report/index.html").read_text("utf-8")
    assert shown.count("before continuing") >= 3


def test_a_checkpoint_is_continued_to_a_verdict(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = prepared(tmp_path, write_ours)
    assert main(["--config", str(config), "--plan"]) == 0
    assert f"its shape is that of {tmp_path / 'strong'}" in " ".join(capfd.readouterr().out.split())
    assert main(["--config", str(config)]) == 0
    check_study(tmp_path, capfd.readouterr().out)
    assert main(["--config", str(config)]) == 0
    assert "nothing to do" in capfd.readouterr().err

    # Another run goes on from a trial of this one.
    other = {"run": str(tmp_path / "run"), "trial": "random-seed1"}
    second = config_at(tmp_path, other, False, run_directory=str(tmp_path / "second"))
    assert main(["--config", str(second), "--until", "pretrain"]) == 0
    directory = RunDirectory(tmp_path / "second")
    folder = RunDirectory(tmp_path / "run").pretrain("random-seed1")
    last = checkpoints.load_params(folder / "checkpoints", read_description(folder))
    jax.tree.map(np.testing.assert_array_equal, initial_weights(directory, "frame-seed1"), last)
    capfd.readouterr()

    # What was trained is of these weights and no others.
    kept = (tmp_path / "strong/model.safetensors").read_bytes()
    changed = bytearray(kept)
    changed[-1] ^= 1
    (tmp_path / "strong/model.safetensors").write_bytes(changed)
    config = config_at(tmp_path, {"checkpoint": str(tmp_path / "strong")}, False)
    assert main(["--config", str(config)]) == 2
    said = capfd.readouterr().err
    assert "its input `initial weights` has changed" in said and "--redo pretrain" in said
    (tmp_path / "strong/model.safetensors").write_bytes(kept)
    assert main(["--config", str(config)]) == 0


@pytest.mark.processes
def test_processes_agree_on_the_weights_that_they_start_from(tmp_path: Path) -> None:
    config, port = prepared(tmp_path, write_ours), free_port()
    together = ["-m", "frame_jax.main", "--config", str(config), "--until", "pretrain"]
    together += ["--seeds=1", "--parallel.distributed=true", "--parallel.num_processes=2"]
    together.append(f"--parallel.coordinator_address=localhost:{port}")
    ended = side_by_side(*([*together, f"--parallel.process_id={i}"] for i in range(2)))
    for code, output in ended:
        assert code == 0, output
    directory, expected = RunDirectory(tmp_path / "run"), import_checkpoint(tmp_path / "strong")[1]
    for trial in ("frame", "random"):
        jax.tree.map(np.testing.assert_array_equal, initial_weights(directory, trial), expected)
    # One process finds the run as two have left it.
    assert main(["--config", str(config), "--until", "pretrain", "--seeds=1"]) == 0
    marker = json.loads((tmp_path / "run/pretrain-frame.json").read_text())
    record = json.loads((tmp_path / "run/initial.json").read_text())
    assert marker["inputs"]["initial weights"] == record["digest"]


@pytest.mark.torch
def test_a_model_of_transformers_goes_on_and_comes_back_as_its_own_family(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    config = prepared(tmp_path, write_with_transformers)
    assert main(["--config", str(config)]) == 0
    check_study(tmp_path, capfd.readouterr().out)

    out, given = tmp_path / "out", tmp_path / "strong"
    assert export([str(tmp_path / "run"), "--out", str(out)]) == 0
    ours, theirs = (
        json.loads((folder / "config.json").read_text("utf-8")) for folder in (out, given)
    )
    assert ours == theirs and ours["model_type"] == "qwen3"
    for path in given.iterdir():
        if path.suffix != ".safetensors" and path.name != "config.json":
            assert (out / path.name).read_bytes() == path.read_bytes(), path.name
    model, aux = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(aux.values()) and model.generation_config.temperature == 0.5
    assert transformers.AutoTokenizer.from_pretrained(out).chat_template == TEMPLATE
    trained = import_checkpoint(out)[1]["embedding"]
    assert np.abs(trained - import_checkpoint(given)[1]["embedding"]).max() > 1e-3
    assert "continued from" in (out / "README.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer": None}, "this run would train a tokenizer of its own"),
        ({"merges": 10}, "A model goes on with its own: set tokenizer.path"),
        ({"layers": 3}, "pretrain.model.num_layers: 3 in the config, 2 there"),
        ({"gone": True}, "pretrain.initial.checkpoint: there is no folder"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    change: dict[str, Any], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = prepared(tmp_path, write_ours)
    values = yaml.safe_load(config.read_text())
    if "tokenizer" in change:
        values["tokenizer"] = {"vocab_size": 400}
    elif "merges" in change:
        parsed = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
        parsed["model"]["merges"] = parsed["model"]["merges"][:-10]
        write_json(tmp_path / "tokenizer.json", parsed)
    elif "layers" in change:
        values["pretrain"]["model"] = {"num_layers": 3}
    else:
        values["pretrain"]["initial"]["checkpoint"] += "-gone"
    config.write_text(yaml.safe_dump(values))
    assert main(["--config", str(config)]) == 2
    assert message in " ".join(capfd.readouterr().err.split())
    assert not (tmp_path / "run" / "tokens").exists()
