"""One tree of frozen dataclasses for a whole run; `frame_jax.config_file` reads it.

Fields made with `runtime(...)` change how fast or where a run happens, never what it produces; they
are left out of the fingerprints by which a phase knows whether its outputs are still current.
Values here are this project's defaults, not the paper's.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from frame_jax.errors import UserError


def runtime(default: Any = dataclasses.MISSING, default_factory: Any = dataclasses.MISSING) -> Any:
    """A dataclass field that does not belong to any fingerprint."""
    return field(default=default, default_factory=default_factory, metadata={"runtime": True})


def require(condition: bool, message: str) -> None:
    """Raises UserError with `message` unless `condition` holds."""
    if not condition:
        raise UserError(message)


# --------------------------------------------------------------------------------------- corpus


@dataclass(frozen=True)
class SourceConfig:
    """Where documents come from.

    Attributes:
        kind: The reader: `python_library` (text that every Python installation carries), `jsonl`
            (plain, .gz or .zst), `parquet`, `text` (a folder, one document a file) or `tfds`.
        path: A file, a folder or a glob pattern (`jsonl`, `parquet`, `text`); the data directory of
            a prepared dataset (`tfds`).
        name: The source's name in reports; defaults to the kind or the file's stem. For `tfds` the
            dataset's name, such as `my_dataset:1.0.0`.
        split: The split to read (`tfds`).
        text_field: Field or column that holds the text.
        id_field: Field that holds a unique document id; where it is null or absent from a record
            the id is made of the file's name and the record's index.
        source_field: Field that names the source of a record, where records carry one.
        domain_field: Field that holds the domain.
        language_field: Field that holds the language.
        domain: The domain of records that carry none.
        language: The language of records that carry none.
        max_bytes: Stop after about this many bytes of text (`python_library`); null reads all.
    """

    kind: Literal["python_library", "jsonl", "parquet", "text", "tfds"]
    path: str | None = None
    name: str | None = None
    split: str = "train"
    text_field: str = "text"
    id_field: str | None = "id"
    source_field: str | None = "source"
    domain_field: str | None = "domain"
    language_field: str | None = "language"
    domain: str = "text"
    language: str = "en"
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.kind in ("jsonl", "parquet", "text"):
            require(
                self.path is not None, f"corpus.sources: a source of kind {self.kind} needs `path`"
            )
        if self.kind == "tfds":
            require(
                self.name is not None, "corpus.sources: kind tfds needs `name` (the dataset's name)"
            )
        require(
            self.max_bytes is None or self.max_bytes > 0,
            "corpus.sources: max_bytes must be positive",
        )


@dataclass(frozen=True)
class CorpusConfig:
    """Documents in.

    Attributes:
        sources: Where documents come from, in order.
        parts: Output files of tokenisation, the unit of parallel work. At least the number of
            processes.
        held_out_fraction: Share of documents kept for evaluation, chosen by a hash of the id.
        reference_fraction: Share that trains the two reference models, chosen by the same hash.
        max_rejected_fraction: Stop when more than this share of records cannot be used.
    """

    sources: list[SourceConfig]
    parts: int = 8
    held_out_fraction: float = 0.05
    reference_fraction: float = 0.2
    max_rejected_fraction: float = 0.001

    def __post_init__(self) -> None:
        require(len(self.sources) > 0, "corpus.sources is empty: name at least one source")
        require(self.parts >= 1, f"corpus.parts must be at least 1, not {self.parts}")
        for key in ("held_out_fraction", "reference_fraction", "max_rejected_fraction"):
            value = getattr(self, key)
            require(0 <= value <= 1, f"corpus.{key} must lie between 0 and 1, not {value}")
        require(
            self.held_out_fraction + self.reference_fraction < 1,
            "corpus.held_out_fraction + corpus.reference_fraction leave nothing to train on: "
            "their sum must be below 1",
        )


@dataclass(frozen=True)
class TokenizerConfig:
    """Text to token ids.

    Attributes:
        path: A `tokenizer.json` to use; null trains a byte-level BPE on a sample of the corpus.
        vocab_size: Vocabulary of a trained tokenizer, special tokens included.
        sample_bytes: Bytes of text that a trained tokenizer sees.
        bos_token: The token that starts a document; null finds it by its usual names.
        eos_token: The token that ends a document; null finds it by its usual names.
    """

    path: str | None = None
    vocab_size: int = 32768
    sample_bytes: int = 64_000_000
    bos_token: str | None = None
    eos_token: str | None = None

    def __post_init__(self) -> None:
        require(
            self.vocab_size >= 260,
            f"tokenizer.vocab_size must be at least 260 (256 bytes and the special tokens), "
            f"not {self.vocab_size}",
        )
        require(self.sample_bytes > 0, "tokenizer.sample_bytes must be positive")


# --------------------------------------------------------------------------------------- models


@dataclass(frozen=True)
class RopeScalingConfig:
    """Stretched rotary frequencies, as in Llama 3.1: slow ones are divided by `factor`.

    Attributes:
        factor: Divisor of the slow frequencies.
        low_freq_factor: Frequencies with fewer turns than this in `original_context` are divided.
        high_freq_factor: Frequencies with more turns are kept; between the two they are blended.
        original_context: Tokens of context before the stretch.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int

    def __post_init__(self) -> None:
        require(
            self.factor > 0
            and 0 < self.low_freq_factor < self.high_freq_factor
            and self.original_context >= 1,
            "model.rope_scaling: factor and original_context must be positive, and low_freq_factor "
            "below high_freq_factor",
        )


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a dense decoder. The vocabulary comes from the tokenizer.

    Attributes:
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the SwiGLU feed-forward layer.
        num_layers: Decoder layers.
        num_heads: Query heads.
        num_kv_heads: Key and value heads (grouped-query attention); divides `num_heads`.
        head_dim: Width of a head; null means hidden_size / num_heads. Even (rotary pairs).
        rope_theta: Base of the rotary frequencies.
        rope_scaling: Stretch of the rotary frequencies; null leaves them.
        norm_eps: Added to the mean square inside RMSNorm.
        qkv_bias: Whether queries, keys and values have a bias (Qwen2).
        qk_norm: Whether each head's queries and keys are normed before rotation (Qwen3).
        tie_embeddings: Whether the output projection is the transposed embedding.
    """

    hidden_size: int = 256
    intermediate_size: int = 704
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int | None = None
    rope_theta: float = 10_000.0
    rope_scaling: RopeScalingConfig | None = None
    norm_eps: float = 1e-5
    qkv_bias: bool = False
    qk_norm: bool = False
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        for key in ("hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads"):
            require(
                getattr(self, key) >= 1, f"model.{key} must be at least 1, not {getattr(self, key)}"
            )
        require(
            self.num_heads % self.num_kv_heads == 0,
            f"model.num_heads ({self.num_heads}) must be a multiple of model.num_kv_heads "
            f"({self.num_kv_heads})",
        )
        if self.head_dim is None:
            require(
                self.hidden_size % self.num_heads == 0,
                f"model.hidden_size ({self.hidden_size}) must be a multiple of model.num_heads "
                f"({self.num_heads}) unless model.head_dim is given",
            )
        require(
            self.head_width >= 2 and self.head_width % 2 == 0,
            f"model.head_dim must be positive and even, not {self.head_width} (rotary positions)",
        )
        for key in ("rope_theta", "norm_eps"):
            value = getattr(self, key)
            require(value > 0, f"model.{key} must be positive, not {value}")

    @property
    def head_width(self) -> int:
        """Width of a head."""
        return self.hidden_size // self.num_heads if self.head_dim is None else self.head_dim


# ------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate, a pure function of the global step.

    Attributes:
        kind: `constant`, `cosine` or `wsd` (warmup, stable, decay). All begin with a linear warmup.
        peak: The highest learning rate.
        warmup_fraction: Share of the steps spent warming up.
        decay_fraction: Share of the steps over which `wsd` decays.
        decay_end: Where that decay ends, as a share of the steps.
        final_fraction: Learning rate after the decay as a share of the peak (`cosine`, `wsd`).
        restart_at_stages: Go through the schedule in every stage instead of once, shares being
            shares of the stage; with `constant`, a new warm-up at each stage start.
    """

    kind: Literal["constant", "cosine", "wsd"] = "wsd"
    peak: float = 1e-3
    warmup_fraction: float = 0.02
    decay_fraction: float = 0.1
    decay_end: float = 1.0
    final_fraction: float = 0.1
    restart_at_stages: bool = False

    def __post_init__(self) -> None:
        require(
            0 < self.peak < float("inf"),
            f"schedule.peak must be positive and finite, not {self.peak}",
        )
        for key in ("warmup_fraction", "decay_fraction", "decay_end", "final_fraction"):
            value = getattr(self, key)
            require(0 <= value <= 1, f"schedule.{key} must lie between 0 and 1, not {value}")
        require(
            self.kind != "wsd" or self.warmup_fraction + self.decay_fraction <= self.decay_end,
            "schedule: warmup_fraction + decay_fraction must not exceed decay_end",
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
        clip_norm: Gradients with a larger global norm are scaled down to it.
        first_moment_dtype: Type in which the first moment is kept; `bfloat16` saves two bytes a
            parameter. The second moment stays float32: its small steps would be rounded away.
        average_decay: Keep an exponential moving average of the weights with this decay in the
            optimizer's state; null keeps none.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    first_moment_dtype: Literal["float32", "bfloat16"] = "float32"
    average_decay: float | None = None

    def __post_init__(self) -> None:
        for key in ("b1", "b2"):
            value = getattr(self, key)
            require(0 <= value < 1, f"optimizer.{key} must lie in [0, 1), not {value}")
        for key in ("clip_norm", "eps"):
            value = getattr(self, key)
            require(value > 0, f"optimizer.{key} must be positive, not {value}")
        require(self.weight_decay >= 0, "optimizer.weight_decay must not be negative")
        require(
            self.average_decay is None or 0 <= self.average_decay < 1,
            f"optimizer.average_decay must lie in [0, 1), not {self.average_decay}",
        )


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained.

    Attributes:
        batch_rows: Rows in one global batch (one optimizer step).
        steps: Optimizer steps; null goes through the rows once.
        schedule: The learning rate.
        optimizer: The update rule.
        document_attention: Keep attention inside documents.
        compute_dtype: Type of matrix-product operands; weights and accumulation stay float32.
        remat: What the backward pass recomputes: `none`, `minimal` (all but matrix products) or
            `full`.
        loss_chunk: Tokens whose logits exist at one time, per device.
        accumulate: Pieces of the batch whose gradients are made one after the other, to fit in
            memory; the sum is that of the whole batch.
        z_loss: Weight of the squared log of the softmax denominator in the objective; the reported
            loss leaves it out. 1e-4 is usual where training is unstable.
        milestones: Checkpoints kept for evaluation, evenly spaced, beside the initial weights and
            one a stage end; 0, the default of reference models, keeps the stage ends alone.
        checkpoint_seconds: Seconds between rolling checkpoints.
        max_bad_steps: Training stops after this many steps in a row whose loss or gradient is not a
            number; no such step is applied.
        log_every: Steps between points on TensorBoard and the tracker; `metrics.jsonl` has every
            step.
    """

    batch_rows: int = 32
    steps: int | None = None
    schedule: ScheduleConfig = ScheduleConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    document_attention: bool = True
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    remat: Literal["none", "minimal", "full"] = runtime("none")
    loss_chunk: int = runtime(2048)
    accumulate: int = runtime(1)
    z_loss: float = 0.0
    milestones: int = 8
    checkpoint_seconds: float = runtime(600.0)
    max_bad_steps: int = runtime(10)
    log_every: int = runtime(10)

    def __post_init__(self) -> None:
        for key in (
            "batch_rows",
            "loss_chunk",
            "accumulate",
            "max_bad_steps",
            "log_every",
        ):
            value = getattr(self, key)
            require(value >= 1, f"training.{key} must be at least 1, not {value}")
        require(
            self.milestones >= 0,
            f"training.milestones must not be negative, not {self.milestones}",
        )
        require(
            self.steps is None or self.steps >= 1,
            f"training.steps must be at least 1, not {self.steps}",
        )
        require(self.checkpoint_seconds > 0, "training.checkpoint_seconds must be positive")
        require(self.z_loss >= 0, f"training.z_loss must not be negative, not {self.z_loss}")


@dataclass(frozen=True)
class RowsConfig:
    """How documents become training rows.

    Attributes:
        sequence_length: Tokens a row predicts; a row stores one more.
        packing: `concat` joins documents and cuts the stream into rows; `best_fit` cuts only
            documents longer than a row, fits the pieces into rows and fills up with padding.
        parts: Output files for each quadrant, the unit of parallel work.
    """

    sequence_length: int = 1024
    packing: Literal["concat", "best_fit"] = "concat"
    parts: int = 4

    def __post_init__(self) -> None:
        require(self.sequence_length >= 2, "rows.sequence_length must be at least 2")
        require(self.parts >= 1, "rows.parts must be at least 1")


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
    """

    weak: ReferenceModelConfig = ReferenceModelConfig(
        model=ModelConfig(
            hidden_size=128, intermediate_size=352, num_layers=2, num_heads=2, num_kv_heads=1
        )
    )
    strong: ReferenceModelConfig = ReferenceModelConfig()
    rows: RowsConfig = RowsConfig()


# ------------------------------------------------------------------------- scoring and partition


@dataclass(frozen=True)
class ScoringConfig:
    """Every document under both reference models.

    Attributes:
        context: Tokens a scoring window predicts at most; also the length of a packed row.
        overlap: Tokens of the window before that a later window conditions on without counting.
        rows_per_device: Contexts of packed tokens each device scores in one call.
        fsdp: Devices of a process that share one copy of the models' parameters; 1 keeps a copy on
            each, which is faster where both models fit.
        ppl_model: The reference model whose perplexity is the PPL axis.
        compute_dtype: Type of matrix-product operands.
        loss_chunk: Tokens whose logits exist at one time, per device.
    """

    context: int = 1024
    overlap: int = 0
    rows_per_device: int = runtime(8)
    fsdp: int = runtime(1)
    ppl_model: Literal["strong", "weak"] = "strong"
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    loss_chunk: int = runtime(512)

    def __post_init__(self) -> None:
        require(self.context >= 2, f"scoring.context must be at least 2, not {self.context}")
        require(
            0 <= self.overlap < self.context,
            f"scoring.overlap must be at least 0 and below scoring.context ({self.context}), "
            f"not {self.overlap}",
        )
        require(self.rows_per_device >= 1, "scoring.rows_per_device must be at least 1")
        require(self.fsdp >= 1, "scoring.fsdp must be at least 1")
        require(self.loss_chunk >= 1, "scoring.loss_chunk must be at least 1")


@dataclass(frozen=True)
class AxesConfig:
    """Bins on each axis; the paper uses two by two.

    Attributes:
        ppl: Bins of perplexity.
        pd: Bins of perplexity difference.
    """

    ppl: int = 2
    pd: int = 2

    def __post_init__(self) -> None:
        require(self.ppl >= 1 and self.pd >= 1, "partition.axes: ppl and pd must be at least 1")

    def cell(self, ppl_bin: int, pd_bin: int) -> str:
        """The name of a cell, from its bins counted from 0 at the lowest values.

        >>> AxesConfig().cell(1, 0), AxesConfig(ppl=3).cell(2, 0)
        ('Q3', 'P3D1')
        """
        if self.ppl == self.pd == 2:
            return f"Q{2 * ppl_bin + pd_bin + 1}"
        return f"P{ppl_bin + 1}D{pd_bin + 1}"

    @property
    def cells(self) -> tuple[str, ...]:
        """All names, PPL rising outside, PD rising inside."""
        return tuple(self.cell(p, d) for p in range(self.ppl) for d in range(self.pd))


@dataclass(frozen=True)
class PartitionConfig:
    """Documents to quadrants, quadrants to rows.

    Attributes:
        mode: `nested` (PPL first, then PD inside each PPL bin: equal cells) or `independent` (two
            marginal cuts).
        group_by: Thresholds are found inside each combination of these; empty means one global
            set of thresholds.
        axes: Bins on each axis.
        min_group_tokens: Groups with fewer training tokens share the thresholds of their language.
        rows: Training rows of each quadrant.
    """

    mode: Literal["nested", "independent"] = "nested"
    group_by: list[Literal["domain", "language", "source"]] = field(
        default_factory=lambda: ["domain", "language"]
    )
    axes: AxesConfig = AxesConfig()
    min_group_tokens: int = 0
    rows: RowsConfig = RowsConfig()

    def __post_init__(self) -> None:
        require(self.min_group_tokens >= 0, "partition.min_group_tokens must not be negative")
        require(
            len(set(self.group_by)) == len(self.group_by), "partition.group_by repeats a column"
        )


# ----------------------------------------------------------------------------------- curriculum


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
    fraction: float | None = None
    tokens: int | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        where = f"stage {self.name or '+'.join(self.weights)}"
        require(
            all(0 <= weight < float("inf") for weight in self.weights.values()),
            f"{where}: weights must be finite and not negative, not {self.weights}",
        )
        require(sum(self.weights.values()) > 0, f"{where}: give a positive weight to some quadrant")
        lengths = {k: getattr(self, k) for k in ("fraction", "tokens", "steps")}
        given = {key: value for key, value in lengths.items() if value is not None}
        require(
            len(given) <= 1,
            f"{where}: give its length in one of fraction, tokens, steps, not in {list(given)}",
        )
        for key, value in given.items():
            require(value > 0, f"{where}: {key} must be positive, not {value}")
        require((self.fraction or 0) <= 1, f"{where}: fraction must not exceed 1")


@dataclass(frozen=True)
class CurriculumConfig:
    """An order of the training rows; give either a preset or stages.

    Attributes:
        preset: `frame`, `random`, `ppl_descending`, `ppl_ascending`, `pd_ascending`,
            `pd_descending`, `q3_q1_q4_q2`, `reverse`, `pdpc` or `folded`.
        stages: The stages, in order, where no preset fits.
        transition: How a stage hands over to the next: `sigmoid` or `hard`; null takes the
            preset's, or `sigmoid` for stages.
        width: Share of an epoch over which a sigmoid transition goes from 12% to 88%; null takes
            the preset's, or 0.05 for stages.
        folds: Pass through the stages this many times, with an equal share of every quadrant each;
            null takes the preset's, or 1 for stages.
        epochs: Times the whole order is repeated, each with other shuffles.
        schedule: The arm's own learning rate, whole (what it leaves out takes the defaults); null
            takes pretrain.training.schedule.
    """

    preset: (
        Literal[
            "frame",
            "random",
            "ppl_descending",
            "ppl_ascending",
            "pd_ascending",
            "pd_descending",
            "q3_q1_q4_q2",
            "reverse",
            "pdpc",
            "folded",
        ]
        | None
    ) = None
    stages: list[StageConfig] = field(default_factory=list)
    transition: Literal["sigmoid", "hard"] | None = None
    width: float | None = None
    folds: int | None = None
    epochs: int = 1
    schedule: ScheduleConfig | None = None

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
        require(self.folds is None or self.folds >= 1, "curriculum folds must be at least 1")
        require(self.epochs >= 1, f"curriculum epochs must be at least 1, not {self.epochs}")
        blank = sum(
            stage.fraction is None and stage.tokens is None and stage.steps is None
            for stage in self.stages
        )
        require(
            blank <= 1 or blank == len(self.stages),
            "curriculum stages: give a length to every stage, to all but one, or to none",
        )


@dataclass(frozen=True)
class PretrainConfig:
    """The target model; every curriculum trains one from the same initial weights.

    Attributes:
        model: Its shape.
        training: How it is trained.
    """

    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()


# --------------------------------------------------------------------------------- the whole run


@dataclass(frozen=True)
class TaskConfig:
    """Multiple-choice questions in a file of JSON lines: question, choices, answer, subject.

    A choice is rated by its log-likelihood after the prompt. Where the prompt lists the choices
    (`{choices}`), they stand there under letters, and the letters are rated instead of the choices.

    Attributes:
        name: Name of the task in results.
        path: The items (plain, .gz or .zst): `question`, `choices` (a list), `answer` (its index)
            and, optionally, `subject`.
        examples: A file of the same kind that shots are taken from.
        shots: Solved examples before each item: the first of its subject, or, where the file has
            none of it, spread evenly over the file.
        introduction: Text before everything; `{subject}` is replaced.
        prompt: Text of an item up to the answer; `{question}`, `{choices}`, `{subject}` are
            replaced.
        separator: Text between the prompt and an answer.
        max_items: Items used, spread evenly over the file; null uses all.
    """

    name: str
    path: str
    examples: str | None = None
    shots: int = 0
    introduction: str = ""
    prompt: str = "Question: {question}\nAnswer:"
    separator: str = " "
    max_items: int | None = None

    def __post_init__(self) -> None:
        where = f"evaluation.tasks: {self.name}"
        require(
            re.fullmatch(r"[A-Za-z0-9_-]+", self.name) is not None,
            f"{where}: a name is letters, digits, dashes and underscores",
        )
        require(self.shots >= 0, f"{where}: shots must not be negative")
        require(
            self.shots == 0 or self.examples is not None,
            f"{where}: shots need `examples`, a file to take them from",
        )
        require("{question}" in self.prompt, f"{where}: the prompt lacks {{question}}")
        require(
            self.max_items is None or self.max_items >= 1, f"{where}: max_items must be at least 1"
        )


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured on the held-out split, and multiple-choice tasks.

    Attributes:
        max_documents: Held-out documents used, chosen by hash; null uses all.
        average: Measure the moving average of the weights instead of the weights; needs
            pretrain.training.optimizer.average_decay.
        tasks: Multiple-choice tasks.
        tasks_at: Checkpoints that do the tasks: the `last`, or all `stage_ends`.
    """

    max_documents: int | None = None
    average: bool = False
    tasks: list[TaskConfig] = field(default_factory=list)
    tasks_at: Literal["last", "stage_ends"] = "last"

    def __post_init__(self) -> None:
        require(
            self.max_documents is None or self.max_documents >= 1,
            f"evaluation.max_documents must be at least 1, not {self.max_documents}",
        )
        names = [task.name for task in self.tasks]
        require(len(set(names)) == len(names), f"evaluation.tasks: a name occurs twice in {names}")


@dataclass(frozen=True)
class ParallelConfig:
    """The device mesh and the processes. -1 takes the devices that are left.

    Attributes:
        slice: Pod slices, joined by the slower network; a replica of the model on each.
        data: Replicas of the model; the batch is split over them.
        fsdp: Shards of every parameter; the batch is split over them too.
        tensor: Shards of heads and feed-forward columns.
        distributed: Start `jax.distributed` (several hosts); coordinator, count and index come from
            the cluster's environment, or from the fields below.
        coordinator: Address `host:port` of process 0, where the environment does not say.
        processes: Number of processes, likewise.
        process: Index of this process, likewise.
    """

    slice: int = 1
    data: int = 1
    fsdp: int = -1
    tensor: int = 1
    distributed: bool = False
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None

    def __post_init__(self) -> None:
        sizes = (self.slice, self.data, self.fsdp, self.tensor)
        require(
            all(size == -1 or size >= 1 for size in sizes) and sizes.count(-1) <= 1,
            "parallel: slice, data, fsdp, tensor must be positive, at most one of them -1, "
            f"not {sizes}",
        )
        require(
            self.processes is None or self.processes >= 1,
            f"parallel.processes must be at least 1, not {self.processes}",
        )
        require(
            self.process is None or 0 <= self.process < (self.processes or float("inf")),
            f"parallel.process must be at least 0 and below parallel.processes, not {self.process}",
        )


@dataclass(frozen=True)
class RunConfig:
    """A whole run: one corpus, two reference models, one partition, any number of curricula.

    Attributes:
        run_directory: Where everything is written.
        corpus: Documents in.
        seed: Seed of splits, initial weights and shuffles.
        tokenizer: Text to tokens.
        reference: The weak and the strong reference model.
        scoring: NLL of every document under both.
        partition: Quadrants and their rows.
        pretrain: The target model.
        curricula: Orders to compare, by name.
        evaluation: Held-out measurements.
        parallel: Devices and processes.
        profile: Steps `START:STOP` of every training run to trace into its `profile` folder.
        tracker: `module:function` that opens a tracker of training runs beside TensorBoard, see
            docs/metrics.md.
    """

    run_directory: str
    corpus: CorpusConfig
    seed: int = 0
    tokenizer: TokenizerConfig = TokenizerConfig()
    reference: ReferenceConfig = ReferenceConfig()
    scoring: ScoringConfig = ScoringConfig()
    partition: PartitionConfig = PartitionConfig()
    pretrain: PretrainConfig = PretrainConfig()
    curricula: dict[str, CurriculumConfig] = field(
        default_factory=lambda: {
            "frame": CurriculumConfig(preset="frame"),
            "random": CurriculumConfig(preset="random"),
        }
    )
    evaluation: EvaluationConfig = EvaluationConfig()
    parallel: ParallelConfig = runtime(ParallelConfig())
    profile: str | None = runtime(None)
    tracker: str | None = runtime(None)

    def __post_init__(self) -> None:
        require(self.run_directory != "", "run_directory needs the name of a folder")
        require(
            0 <= self.seed < 1 << 32,
            f"seed must be at least 0 and below 4294967296, not {self.seed}",
        )
        require(
            self.profile is None or re.fullmatch(r"\d+:\d+", self.profile) is not None,
            f"profile must be two steps such as 20:23, not {self.profile!r}",
        )
        if self.profile is not None:
            first, stop = map(int, self.profile.split(":"))
            require(first < stop, f"profile: step {first} does not come before {stop}")
        require(
            not self.evaluation.average
            or self.pretrain.training.optimizer.average_decay is not None,
            "evaluation.average needs pretrain.training.optimizer.average_decay, such as 0.999",
        )
        require(
            self.tracker is None or re.fullmatch(r"[\w.]+:\w+", self.tracker) is not None,
            f"tracker must be module:function, not {self.tracker!r}",
        )
        for name in self.curricula:
            require(
                re.fullmatch(r"[a-z0-9_]+", name) is not None,
                f"curricula: the name {name!r} must be lower-case letters, digits and underscores",
            )
        cells = self.partition.axes.cells
        for name, curriculum in self.curricula.items():
            for stage in curriculum.stages:
                unknown = sorted(stage.weights.keys() - set(cells))
                require(
                    not unknown,
                    f"curricula.{name}: there is no quadrant {', '.join(unknown)}; the quadrants "
                    f"are {', '.join(cells)}",
                )

    def arm_training(self, name: str) -> TrainingConfig:
        """How the target model is trained under the curriculum `name`."""
        training = self.pretrain.training
        return dataclasses.replace(
            training, schedule=self.curricula[name].schedule or training.schedule
        )
