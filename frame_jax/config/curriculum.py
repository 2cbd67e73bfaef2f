"""Settings of an order of the training rows."""

from dataclasses import dataclass, field
from typing import Literal

from frame_jax.config.base import check_bounds, number, require
from frame_jax.config.training import LRScheduleConfig

Preset = Literal[
    "frame",
    "random",
    "random_again",
    "ppl_descending",
    "ppl_ascending",
    "pd_ascending",
    "pd_descending",
    "q3_q1_q4_q2",
    "reverse",
    "pdpc",
    "folded",
    "sawtooth",
    "there_and_back",
]


@dataclass(frozen=True)
class StageConfig:
    """One stage of a curriculum.

    Where no stage of a curriculum gives a length, each is as long as its share of its quadrants'
    rows. Otherwise at most one stage leaves it out, and takes the rest.

    Attributes:
        weights: Quadrant to relative sampling rate, e.g. `{Q3: 1}`; absent quadrants weigh 0.
        name: Shown in logs and figures; null joins the quadrants' names.
        fraction: Length as a share of an epoch's rows.
        tokens: Length in tokens instead.
        steps: Length in optimizer steps instead.
    """

    weights: dict[str, float]
    name: str | None = None
    fraction: float | None = number(None, above=0, most=1)
    tokens: int | None = number(None, above=0)
    steps: int | None = number(None, above=0)

    def __post_init__(self) -> None:
        where = f"stage {self.name or '+'.join(self.weights)}"
        require(
            all(0 <= weight < float("inf") for weight in self.weights.values()),
            f"{where}: weights must be finite and not negative, not {self.weights}",
        )
        require(sum(self.weights.values()) > 0, f"{where}: give a positive weight to some quadrant")
        given = [k for k in ("fraction", "tokens", "steps") if getattr(self, k) is not None]
        require(
            len(given) <= 1,
            f"{where}: give its length in one of fraction, tokens, steps, not in {given}",
        )
        check_bounds(self, f"{where}: ")


@dataclass(frozen=True)
class CurriculumConfig:
    """An order of the training rows; give either a preset or stages.

    Attributes:
        preset: One of the orders of docs/curricula.md, which says what each is.
        stages: The stages, in order, where no preset fits.
        transition: How a stage hands over to the next: `sigmoid` or `hard`; null takes the
            preset's, or `sigmoid` for stages.
        width: Share of an epoch over which a sigmoid transition goes from 12% to 88%; null takes
            the preset's, or 0.05 for stages.
        folds: Pass through the stages this many times, with an equal share of every quadrant each;
            null takes the preset's, or 1 for stages.
        epochs: Times the whole order is repeated, each with other shuffles.
        lr_schedule: The arm's own learning rate, whole (what it leaves out takes the defaults);
            null takes pretrain.training.lr_schedule.
        shuffle: Another number draws the rows of each quadrant in another order and changes nothing
            else; 0 takes the preset's.
    """

    preset: Preset | None = None
    stages: list[StageConfig] = field(default_factory=list)
    transition: Literal["sigmoid", "hard"] | None = None
    width: float | None = None
    folds: int | None = number(None, least=1)
    epochs: int = number(1, least=1)
    lr_schedule: LRScheduleConfig | None = None
    shuffle: int = number(0, least=0)

    def __post_init__(self) -> None:
        require(
            (self.preset is None) != (len(self.stages) == 0),
            "a curriculum needs either `preset` or `stages`, and not both",
        )
        require(
            self.width is None or 0 < self.width <= 1,
            f"curriculum width must lie between 0 and 1, not {self.width}; for a sharp change use "
            "transition: hard",
        )
        require(
            self.transition != "hard" or self.width is None,
            "curriculum: a hard transition has no width; remove one of the two",
        )
        check_bounds(self, "curriculum ")
        blank = sum(
            stage.fraction is None and stage.tokens is None and stage.steps is None
            for stage in self.stages
        )
        require(
            blank <= 1 or blank == len(self.stages),
            "curriculum stages: give a length to every stage, to all but one, or to none",
        )
