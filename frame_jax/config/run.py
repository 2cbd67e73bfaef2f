"""One tree of frozen dataclasses for a whole run; `frame_jax.config.file` reads it.

Fields made with `runtime(...)` change how fast or where a run happens, never what it produces; they
are left out of the fingerprints by which a phase knows whether its outputs are still current.
Values here and in the files beside this one are this project's defaults, not the paper's.
"""

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any

from frame_jax.config.base import require, runtime
from frame_jax.config.corpus import CorpusConfig, TokenizerConfig
from frame_jax.config.curriculum import CurriculumConfig
from frame_jax.config.evaluation import EvaluationConfig
from frame_jax.config.parallel import ParallelConfig
from frame_jax.config.quadrants import PartitionConfig
from frame_jax.config.scoring import ScoringConfig
from frame_jax.config.training import PretrainConfig, ReferenceConfig, TrainingConfig
from frame_jax.config.workers import WorkersConfig

BASELINE = "random"  # the curriculum that the others are compared with, unless a run says otherwise


@dataclass(frozen=True)
class Trial:
    """One arm under one seed, trained and evaluated by itself.

    Attributes:
        name: Of its folders and results: the arm's, with `-seedN` for another seed than the run's.
        arm: The curriculum.
        seed: Seed of its initial weights and shuffles.
    """

    name: str
    arm: str
    seed: int


@dataclass(frozen=True)
class StudyConfig:
    """Orders crossed with learning rates: shorthand for many `curricula`.

    Every order becomes an arm under pretrain.training.lr_schedule by its own name, and one more
    under each of `lr_schedules`, called ORDER_SCHEDULE.

    Attributes:
        orders: Presets, or names of `curricula`.
        lr_schedules: Name to what it changes in pretrain.training.lr_schedule, such as
            `constant: {kind: constant}`.
    """

    orders: list[str]
    lr_schedules: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(len(self.orders) > 0, "study.orders is empty: name at least one order")
        require(len(set(self.orders)) == len(self.orders), "study.orders names an order twice")


def default_curricula() -> dict[str, CurriculumConfig]:
    """The curricula of a run whose config names none."""
    return {"frame": CurriculumConfig(preset="frame"), "random": CurriculumConfig(preset="random")}


@dataclass(frozen=True)
class RunConfig:
    """A whole run: one corpus, two reference models, one partition, any number of curricula.

    Attributes:
        run_directory: Where everything is written.
        corpus: Documents in.
        seed: Seed of splits, rows, reference models and, unless `seeds` says otherwise, arms.
        tokenizer: Text to tokens.
        reference: The weak and the strong reference model.
        scoring: NLL of every document under both.
        partition: Quadrants and their rows.
        pretrain: The target model.
        curricula: Orders to compare, by name.
        study: Orders crossed with learning rates, as further curricula.
        seeds: Every arm is trained once for each: a list, or how many (`seed` and the numbers
            after it); null trains each once, under `seed`. A seed decides initial weights and
            shuffles, the same for all arms, so that arms are compared pair by pair. Corpus,
            references, scores and partition are shared; adding a seed later trains what is new.
        baseline: The curriculum that the others are compared with.
        evaluation: Held-out measurements.
        parallel: Devices and processes.
        workers: What works on the parts of a corpus.
        profile: Steps `START:STOP` of every training run to trace into its `profile` folder.
        tracker: `module:function` that opens a tracker of training runs beside TensorBoard, see
            docs/metrics.md.
        checkpoint_root: A bucket, such as `s3://bucket/run` or `gs://bucket/run`, that keeps the
            checkpoints of training; only the newest stay in the run directory, see docs/storage.md.
            Null keeps all of them in the run directory.
    """

    run_directory: str
    corpus: CorpusConfig
    seed: int = 0
    tokenizer: TokenizerConfig = TokenizerConfig()
    reference: ReferenceConfig = ReferenceConfig()
    scoring: ScoringConfig = ScoringConfig()
    partition: PartitionConfig = PartitionConfig()
    pretrain: PretrainConfig = PretrainConfig()
    curricula: dict[str, CurriculumConfig] = field(default_factory=default_curricula)
    study: StudyConfig | None = None
    seeds: int | list[int] | None = None
    baseline: str = BASELINE
    evaluation: EvaluationConfig = EvaluationConfig()
    parallel: ParallelConfig = runtime(ParallelConfig())
    workers: WorkersConfig = runtime(WorkersConfig())
    profile: str | None = runtime(None)
    tracker: str | None = runtime(None)
    checkpoint_root: str | None = runtime(None)

    def __post_init__(self) -> None:
        require(self.run_directory != "", "run_directory needs the name of a folder")
        for seed in (self.seed, *self.all_seeds):
            require(
                0 <= seed < 1 << 32, f"a seed must be at least 0 and below 4294967296, not {seed}"
            )
        require(
            0 < len(set(self.all_seeds)) == len(self.all_seeds),
            f"seeds must be at least one, each of them once, not {self.seeds}",
        )
        require(
            self.profile is None or re.fullmatch(r"\d+:\d+", self.profile) is not None,
            f"profile must be two steps such as 20:23, not {self.profile!r}",
        )
        if self.profile is not None:
            first, stop = map(int, self.profile.split(":"))
            require(first < stop, f"profile: step {first} does not come before {stop}")
        require(
            self.scoring.table is None
            or self.scoring.table.pd is not None
            or self.partition.axes.pd == 1,
            "scoring.table names one column: name another in scoring.table.pd, or cut along one "
            "axis (partition.axes: {ppl: 4, pd: 1})",
        )
        require(
            (self.reference.replicas, self.reference.third) == (1, None)
            or (self.scoring.reliability > 0 and self.scoring.table is None),
            "reference.replicas and reference.third are for scoring.reliability alone, which is 0: "
            "set it to 2000; or of no use beside scoring.table: leave them out",
        )
        require(
            self.tracker is None or re.fullmatch(r"[\w.]+:\w+", self.tracker) is not None,
            f"tracker must be module:function, not {self.tracker!r}",
        )
        require(
            self.checkpoint_root is None
            or re.fullmatch(r"(gs|s3)://[^/]+(/.*)?", self.checkpoint_root) is not None,
            f"checkpoint_root must be gs://BUCKET/... or s3://BUCKET/..., not "
            f"{self.checkpoint_root!r}; for a folder, leave it out: checkpoints are in the run "
            "directory",
        )
        for name in self.curricula:
            require(
                re.fullmatch(r"[a-z0-9_]{1,200}", name) is not None,
                f"curricula: the name {name!r} must be lower-case letters, digits and underscores, "
                "200 at most",
            )
        quadrants = self.partition.axes.quadrants
        for name, curriculum in self.curricula.items():
            for stage in curriculum.stages:
                unknown = sorted(stage.weights.keys() - set(quadrants))
                require(
                    not unknown,
                    f"curricula.{name}: there is no quadrant {', '.join(unknown)}; the quadrants "
                    f"are {', '.join(quadrants)}",
                )

    @property
    def all_seeds(self) -> list[int]:
        """The seeds under which every arm is trained."""
        if self.seeds is None:
            return [self.seed]
        if isinstance(self.seeds, int):
            return [self.seed + number for number in range(self.seeds)]
        return self.seeds

    @property
    def trials(self) -> list[Trial]:
        """Every arm under every seed; a seed's arms stand together, in the order of `curricula`."""
        return [
            Trial(arm if seed == self.seed else f"{arm}-seed{seed}", arm, seed)
            for seed in self.all_seeds
            for arm in self.curricula
        ]

    def trial(self, name: str) -> Trial:
        """Looks up the trial called `name`.

        Raises:
            UserError: naming those there are.
        """
        trials = {trial.name: trial for trial in self.trials}
        require(name in trials, f"there is no curriculum {name!r}; there are: {', '.join(trials)}")
        return trials[name]

    def training_of_arm(self, name: str) -> TrainingConfig:
        """How the target model is trained under the curriculum `name`."""
        training = self.pretrain.training
        return dataclasses.replace(
            training, lr_schedule=self.curricula[name].lr_schedule or training.lr_schedule
        )
