"""A config with an old key is refused with exit 2 and a new key that resembles it named."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from frame_jax.config.file import dataclass_types
from frame_jax.config.run import RunConfig
from frame_jax.main import main
from tests.programs import REPOSITORY

OLD_KEYS = {  # are found by their likeness
    "accumulate": "gradient_accumulation_steps",
    "balance_bias_rate": "router_bias_update_rate",
    "balance_loss": "load_balance_loss_weight",
    "batch_rows": "batch_size",
    "coordinator": "coordinator_address",
    "max_step": "max_time_step",
    "min_step": "min_time_step",
    "process": "process_id",
    "processes": "num_processes",
    "router_z_loss": "router_z_loss_weight",
    "schedule": "lr_schedule",
    "schedules": "lr_schedules",
    "z_loss": "z_loss_weight",
}
MINIMAL = {"run_directory": "r", "corpus": {"sources": [{"kind": "python_library"}]}}


@pytest.mark.parametrize(
    ("changes", "new"),
    [
        ({"pretrain": {"training": {"schedule": {"peak": 0.1}}}}, "lr_schedule"),
        ({"curricula": {"a": {"preset": "frame", "schedule": {"peak": 1.0}}}}, "lr_schedule"),
    ],
)
def test_an_old_key_in_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict, new: str
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(MINIMAL | changes), "utf-8")
    assert main(["--config", str(file)]) == 2
    assert f"did you mean `{new}`?" in capsys.readouterr().err


@pytest.mark.slow
def test_every_old_key_as_an_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {f.name for cls in dataclass_types(RunConfig) for f in dataclasses.fields(cls)}
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(MINIMAL), "utf-8")
    for old, new in OLD_KEYS.items():
        assert new in names and old not in names
        assert main(["--config", str(file), f"--pretrain.training.{old}=1"]) == 2
        assert f"did you mean `{new}`?" in capsys.readouterr().err


def test_pages_and_configs_name_no_old_key() -> None:
    names = {f.name for cls in dataclass_types(RunConfig) for f in dataclasses.fields(cls)}
    old = set(OLD_KEYS) - names
    key = re.compile(rf"(`|--)([\w-]+\.)*({'|'.join(old)})\b(?!\.)")
    pages = [REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")]
    found = [
        f"{path.relative_to(REPOSITORY)}: {match[0]}"
        for path in (*pages, *(REPOSITORY / "configs").iterdir())
        for match in key.finditer(path.read_text("utf-8"))
    ]
    assert found == []
