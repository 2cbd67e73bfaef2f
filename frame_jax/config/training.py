"""Settings of training: learning rate, update rule, steps, and the models that are trained."""

import re
from dataclasses import dataclass
from typing import Literal

from frame_jax.config.base import check_bounds, later, number, require, runtime
from frame_jax.config.models import ModelConfig
from frame_jax.config.quadrants import RowsConfig


@dataclass(frozen=True)
class LRScheduleConfig:
    """The learning rate, a pure function of the global step.

    Attributes:
        kind: After a linear warmup, `constant`; `cosine` or `linear`, which fall to the end of the
            steps; `wsd` (warmup, stable, decay); or `inverse_sqrt`, the peak times the root of the
            warmup's steps over the steps made.
        peak: The highest learning rate.
        initial: Where the warmup starts, as a share of the peak: above 0 where a model is continued
            that was left at such a rate.
        warmup_fraction: Share of the steps spent warming up.
        decay_fraction: Share of the steps over which `wsd` decays.
        decay_end: Where that decay ends, as a share of the steps.
        final_fraction: Learning rate after the decay as a share of the peak (`cosine`, `linear`,
            `wsd`); below it `inverse_sqrt` does not fall.
        restart_at_stages: Go through the schedule in every stage instead of once, shares being
            shares of the stage; with `constant`, a new warm-up at each stage start.
    """

    kind: Literal["constant", "cosine", "linear", "inverse_sqrt", "wsd"] = "wsd"
    peak: float = number(1e-3, above=0, below=float("inf"))
    initial: float = later(0.0, least=0, most=1)
    warmup_fraction: float = number(0.02, least=0, most=1)
    decay_fraction: float = number(0.1, least=0, most=1)
    decay_end: float = number(1.0, least=0, most=1)
    final_fraction: float = number(0.1, least=0, most=1)
    restart_at_stages: bool = False

    def __post_init__(self) -> None:
        check_bounds(self, "lr_schedule.")
        require(
            self.kind != "wsd" or self.warmup_fraction + self.decay_fraction <= self.decay_end,
            "lr_schedule: warmup_fraction + decay_fraction must not exceed decay_end",
        )


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW or Muon, decoupled weight decay, clipping by the global norm.

    Attributes:
        kind: `adamw`, or `muon` for the matrices of the layers and AdamW for all else.
        b1: Decay of the first moment.
        b2: Decay of the second moment; for Muon's matrices, of the momentum.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled decay; norms and embeddings are spared.
        max_grad_norm: Gradients with a larger global norm are scaled down to it.
        first_moment_dtype: Type in which the first moment is kept; `bfloat16` saves two bytes a
            parameter. The second moment stays float32: its small steps would be rounded away.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    b1: float = number(0.9, least=0, below=1)
    b2: float = number(0.95, least=0, below=1)
    eps: float = number(1e-8, above=0)
    weight_decay: float = number(0.1, least=0)
    max_grad_norm: float = number(1.0, above=0)
    first_moment_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        check_bounds(self, "optimizer.")


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained.

    Attributes:
        batch_size: Rows in one global batch (one optimizer step).
        steps: Optimizer steps; null goes through the rows once.
        lr_schedule: The learning rate.
        optimizer: The update rule.
        document_attention: Keep attention inside documents.
        compute_dtype: Type of matrix-product operands; weights and accumulation stay float32.
            `auto` is bfloat16 where the device multiplies it (TPU, NVIDIA GPU since Ampere, CPU
            with AVX512-BF16 or AMX) and float32 elsewhere; what has begun in one type goes on in
            it, on any machine.
        remat: What the backward pass recomputes: `none`, `minimal` (all but matrix products) or
            `full`.
        loss_chunk: Tokens whose logits exist at one time, per device.
        gradient_accumulation_steps: Pieces of the batch whose gradients are made one after the
            other, to fit in memory; the sum is that of the whole batch.
        z_loss_weight: Weight of the squared log of the softmax denominator in the objective; the
            reported loss leaves it out. 1e-4 is usual where training is unstable.
        load_balance_loss_weight: Weight of the experts' balance loss, a mean over their layers, in
            the objective; the reported loss leaves it out. 0.01 is usual.
        router_z_loss_weight: Weight of the squared log of the router's softmax denominator,
            likewise. 0.001 is usual.
        router_bias_update_rate: What `model.experts.router_bias` moves by in a step, up for experts
            below the even load, down for those above. 0.001 is usual.
        milestones: Checkpoints kept for evaluation, evenly spaced, beside the initial weights and
            one a stage end; 0, the default of reference models, keeps the stage ends alone.
        tail_checkpoints: Further checkpoints kept for averages of weights (`evaluation.averages`),
            evenly spaced over the end of the run; they are not evaluated one by one.
        tail_fraction: Share of the steps that this end is.
        checkpoint_seconds: Seconds between rolling checkpoints.
        max_bad_steps: Training stops after this many steps in a row whose loss or gradient is not a
            number; no such step is applied.
        log_every: Steps between points on TensorBoard and the tracker; `metrics.jsonl` has every
            step.
    """

    batch_size: int = number(32, least=1)
    steps: int | None = number(None, least=1)
    lr_schedule: LRScheduleConfig = LRScheduleConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    document_attention: bool = True
    compute_dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    remat: Literal["none", "minimal", "full"] = runtime("none")
    loss_chunk: int = runtime(2048, least=1)
    gradient_accumulation_steps: int = runtime(1, least=1)
    z_loss_weight: float = number(0.0, least=0)
    load_balance_loss_weight: float = number(0.01, least=0)
    router_z_loss_weight: float = number(0.001, least=0)
    router_bias_update_rate: float = number(0.001, least=0)
    milestones: int = number(8, least=0)
    tail_checkpoints: int = number(0, least=0)
    tail_fraction: float = number(0.1, above=0, most=1)
    checkpoint_seconds: float = runtime(600.0, above=0)
    max_bad_steps: int = runtime(10, least=1)
    log_every: int = runtime(10, least=1)

    def __post_init__(self) -> None:
        check_bounds(self, "training.")


@dataclass(frozen=True)
class ReferenceModelConfig:
    """One reference model, trained on the reference split or imported.

    Attributes:
        model: Its shape.
        training: How it is trained.
        checkpoint: A local Hugging Face checkpoint folder (config.json, safetensors,
            tokenizer.json) to use as it is; null trains the model here.
    """

    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig(milestones=0)
    checkpoint: str | None = None


@dataclass(frozen=True)
class ReferenceConfig:
    """The two reference models whose losses make PPL and PD.

    Attributes:
        weak: The small one.
        strong: The larger one, trained on the same rows.
        rows: Training rows of the reference split.
        replicas: 2 trains each reference model once more under the next seed, for
            `scoring.reliability` alone.
        third: A checkpoint, as `reference.strong.checkpoint`, that takes the strong one's place for
            `scoring.reliability` alone.
    """

    weak: ReferenceModelConfig = ReferenceModelConfig(
        model=ModelConfig(
            hidden_size=128, intermediate_size=352, num_layers=2, num_heads=2, num_kv_heads=1
        )
    )
    strong: ReferenceModelConfig = ReferenceModelConfig()
    rows: RowsConfig = RowsConfig()
    replicas: int = runtime(1, least=1, most=2)
    third: str | None = runtime(None)

    def __post_init__(self) -> None:
        check_bounds(self, "reference.")

    @property
    def imported(self) -> dict[str, tuple[str, str]]:
        """For each model not trained here: the setting that names its checkpoint, and that."""
        found = {
            "weak": ("reference.weak.checkpoint", self.weak.checkpoint),
            "strong": ("reference.strong.checkpoint", self.strong.checkpoint),
            "third": ("reference.third", self.third),
        }
        return {name: (key, path) for name, (key, path) in found.items() if path is not None}

    @property
    def trained(self) -> list[str]:
        """Names of the reference models that are trained here."""
        return [name for name in ("weak", "strong") if name not in self.imported]


@dataclass(frozen=True)
class InitialConfig:
    """The model that the target model starts from, in place of random weights.

    Attributes:
        checkpoint: A Hugging Face checkpoint folder or its URL, as in `reference.*.checkpoint`.
        run: A run directory of this program, in place of a checkpoint.
        trial: Its trial, such as `frame-seed1`; null where it has one alone.
        step: One of the trial's kept checkpoints; null takes the last.
        weights: The mean of the last kept weights in place of a step's, such as `last6`, see
            `evaluation.averages`.
    """

    checkpoint: str | None = None
    run: str | None = None
    trial: str | None = None
    step: int | None = number(None, least=0)
    weights: str | None = None

    def __post_init__(self) -> None:
        check_bounds(self, "pretrain.initial.")
        require(
            (self.checkpoint is None) != (self.run is None),
            "pretrain.initial needs either checkpoint or run",
        )
        require(
            self.run is not None or (self.trial, self.step, self.weights) == (None, None, None),
            "pretrain.initial: trial, step and weights go with run",
        )
        require(
            self.step is None or self.weights is None,
            "pretrain.initial: step and weights are two choices: keep one",
        )
        require(
            self.weights is None or re.fullmatch(r"last\d+", self.weights) is not None,
            f"pretrain.initial.weights must be such as last6, not {self.weights!r}",
        )


@dataclass(frozen=True)
class PretrainConfig:
    """The target model; every curriculum trains one from the same initial weights.

    Attributes:
        model: Its shape; of a model that is continued only what should be checked.
        training: How it is trained.
        initial: The model that it starts from; null starts from random weights.
    """

    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    initial: InitialConfig | None = later(None)
