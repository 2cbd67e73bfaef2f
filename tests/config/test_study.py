"""Orders by learning rates, and arms by seeds."""

from pathlib import Path

import pytest
import yaml

from frame_jax.config.file import load
from frame_jax.config.run import RunConfig
from frame_jax.errors import UserError

MINIMAL = {"run_directory": "r", "corpus": {"sources": [{"kind": "python_library"}]}}
RATE = {"pretrain": {"training": {"lr_schedule": {"peak": 0.003, "warmup_fraction": 0.1}}}}


def read(folder: Path, **changes: object) -> RunConfig:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(MINIMAL | changes), "utf-8")
    return load(path)


def test_a_study_makes_an_arm_of_every_order_under_every_rate(tmp_path: Path) -> None:
    lr_schedules = {"constant": {"kind": "constant"}, "steep": {"final_fraction": 0.0}}
    config = read(
        tmp_path, **RATE, study={"orders": ["frame", "random"], "lr_schedules": lr_schedules}
    )
    assert list(config.curricula) == [
        *("frame", "random", "frame_constant", "random_constant", "frame_steep", "random_steep")
    ]
    assert {c.preset for n, c in config.curricula.items() if n.startswith("frame")} == {"frame"}
    assert config.curricula["frame"].lr_schedule is None
    # What a rate does not name is that of the run, not the default.
    constant, steep = (config.training_of_arm(f"random_{n}").lr_schedule for n in lr_schedules)
    assert (constant.kind, constant.peak, constant.warmup_fraction) == ("constant", 0.003, 0.1)
    assert (steep.kind, steep.peak, steep.final_fraction) == ("wsd", 0.003, 0.0)


def test_a_study_takes_orders_of_ones_own_and_stands_beside_other_curricula(tmp_path: Path) -> None:
    curricula = {
        "mine": {"stages": [{"weights": {"Q1": 1, "Q2": 1}}, {"weights": {"Q3": 1, "Q4": 1}}]},
        "wide": {"preset": "frame", "width": 0.5},
    }
    study = {"orders": ["mine", "random"], "lr_schedules": {"constant": {"kind": "constant"}}}
    config = read(tmp_path, curricula=curricula, study=study)
    assert set(config.curricula) == {"mine", "random", "mine_constant", "random_constant", "wide"}
    assert config.curricula["mine_constant"].stages == config.curricula["mine"].stages
    # The resolved config, which names all arms beside the study, means the same.
    import dataclasses

    (tmp_path / "again.yaml").write_text(yaml.safe_dump(dataclasses.asdict(config)), "utf-8")
    assert load(tmp_path / "again.yaml").curricula == config.curricula


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"study": {"orders": ["fram"]}}, "did you mean `frame`?"),
        ({"study": {"orders": []}}, "study.orders is empty"),
        ({"study": {"orders": ["frame", "frame"]}}, "names an order twice"),
        (
            {"study": {"orders": ["frame"], "lr_schedules": {"c": {"kindd": "constant"}}}},
            "study.lr_schedules.c",
        ),
        (
            {"study": {"orders": ["frame"], "lr_schedules": {"c": {"peak": "high"}}}},
            "study.lr_schedules.c",
        ),
        (
            {"study": {"orders": ["frame"], "lr_schedules": {"c": {"peak": -1.0}}}},
            "lr_schedule.peak must be positive",
        ),
        (
            {
                "curricula": {"frame_c": {"preset": "reverse"}, "random": {"preset": "random"}},
                "study": {"orders": ["frame"], "lr_schedules": {"c": {"kind": "constant"}}},
            },
            "'frame_c' is also one of curricula",
        ),
        ({"baseline": "rndom"}, "there is no curriculum 'rndom'; there are: frame, random"),
        ({"seeds": []}, "seeds must be at least one"),
        ({"seeds": 0}, "seeds must be at least one"),
        ({"seeds": [1, 1]}, "each of them once"),
        ({"seeds": [-1]}, "a seed must be at least 0"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, changes: dict, says: str) -> None:
    with pytest.raises(UserError, match="config ") as caught:
        read(tmp_path, **changes)
    assert says in str(caught.value)


def test_seeds_as_a_count_a_list_or_none(tmp_path: Path) -> None:
    assert read(tmp_path, seed=5).all_seeds == [5]
    assert read(tmp_path, seed=5, seeds=3).all_seeds == [5, 6, 7]
    assert read(tmp_path, seed=5, seeds=[9, 5]).all_seeds == [9, 5]


def test_a_trial_is_an_arm_under_a_seed(tmp_path: Path) -> None:
    config = read(tmp_path, seed=5, seeds=2)
    assert [(t.name, t.arm, t.seed) for t in config.trials] == [
        ("frame", "frame", 5),
        ("random", "random", 5),
        ("frame-seed6", "frame", 6),
        ("random-seed6", "random", 6),
    ]
    assert config.trial("random-seed6").seed == 6
    with pytest.raises(UserError, match="there are: frame, random, frame-seed6, random-seed6"):
        config.trial("frame-seed7")
