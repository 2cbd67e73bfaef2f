from pathlib import Path

import pytest
import yaml

from frame_jax.config.file import load, parse
from frame_jax.config.run import RunConfig
from frame_jax.config.settings import flatten_settings, setting_at
from frame_jax.errors import UserError

FOLDER = Path(__file__).parents[2] / "configs"
CONFIGS = sorted(set(FOLDER.glob("*.yaml")) - set(FOLDER.glob("tasks_*.yaml")))  # not of a run
MINIMAL = {"run_directory": "r", "corpus": {"sources": [{"kind": "python_library"}]}}


def write(path: Path, changes: dict) -> Path:
    file = path / "run.yaml"
    file.write_text(yaml.safe_dump(MINIMAL | changes), "utf-8")
    return file


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_are_valid(path: Path) -> None:
    assert isinstance(load(path), RunConfig)


def test_command_line_overrides_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, {"seed": 3, "scoring": {"context": 64}})
    config = load(file, "--scoring.context=128", "--pretrain.training.lr_schedule.kind", "cosine")
    assert (config.seed, config.scoring.context) == (3, 128)
    assert config.pretrain.training.lr_schedule.kind == "cosine"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sede": 1}, "did you mean `seed`?"),
        ({"scoring": {"contxt": 64}}, "did you mean `context`?"),
        ({"pretrain": {"training": {"lr_schedule": {"kindd": "wsd"}}}}, "did you mean `kind`?"),
        ({"curricula": {"a": {"presett": "frame"}}}, "did you mean `preset`?"),
        ({"corpus": {"sources": [{"kind": "jsonl", "pth": "x"}]}}, "did you mean `path`?"),
        ({"seed": "one"}, "seed"),
        ({"scoring": {"context": 1.5}}, "scoring.context"),
        ({"pretrain": {"training": {"lr_schedule": {"kind": "cubic"}}}}, "cubic"),
        ({"corpus": {"sources": []}}, "corpus.sources is empty"),
        ({"corpus": {"sources": [{"kind": "jsonl"}]}}, "needs `path`"),
        ({"scoring": {"context": 8, "overlap": 8}}, "scoring.overlap"),
        ({"pretrain": {"model": {"num_heads": 3}}}, "multiple of model.num_kv_heads"),
        ({"pretrain": {"training": {"batch_size": -1}}}, "training.batch_size"),
        ({"curricula": {"../up": {"preset": "frame"}}}, "lower-case"),
        ({"parallel": {"data": 0}}, "parallel"),
        ({"corpus": {**MINIMAL["corpus"], "reference_fraction": 1.0}}, "below 1"),
    ],
)
def test_each_mistake_gets_one_line_that_names_it(tmp_path: Path, changes: dict, says: str) -> None:
    file = write(tmp_path, changes)
    with pytest.raises(UserError) as caught:
        load(file)
    message = str(caught.value)
    assert says in message and str(file) in message and "\n" not in message


def test_a_file_that_is_no_yaml_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: [1,", "utf-8")
    for name in ("a.yaml", "b.yaml"):
        with pytest.raises(UserError, match=name):
            load(tmp_path / name)
    with pytest.raises(UserError, match="run_directory"):
        parse([])


def test_a_models_head_width_follows_from_its_own_settings(tmp_path: Path) -> None:
    model = {"hidden_size": 96, "num_heads": 2, "num_kv_heads": 1}
    config = load(write(tmp_path, {"pretrain": {"model": model}}))
    assert config.pretrain.model.resolved_head_dim == 48
    assert (
        load(
            write(tmp_path, {"pretrain": {"model": {**model, "head_dim": 8}}})
        ).pretrain.model.resolved_head_dim
        == 8
    )


def test_runtime_settings_are_outside_the_fingerprint(tmp_path: Path) -> None:
    file = write(tmp_path, {})
    one = flatten_settings(load(file).pretrain, "pretrain")
    other = flatten_settings(load(file, "--pretrain.training.remat=full").pretrain, "pretrain")
    changed = flatten_settings(load(file, "--pretrain.training.batch_size=64").pretrain, "pretrain")
    assert one == other != changed
    assert one["pretrain.training.lr_schedule.kind"] == "wsd"


def test_lookup_goes_through_dataclasses_and_dicts(tmp_path: Path) -> None:
    config = load(write(tmp_path, {"curricula": {"arm": {"preset": "random"}}}))
    assert setting_at(config, "curricula.arm").preset == "random"
    assert setting_at(config, "partition.rows") == config.partition.rows
