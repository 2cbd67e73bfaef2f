"""What everything that a run computes costs: parameters, memory, FLOPs and time, for `--plan`."""

import contextlib
import functools
from dataclasses import dataclass, replace
from pathlib import Path

import jax
from rich.console import Group, RenderableType
from rich.text import Text

from frame_jax.config.run import RunConfig, Trial
from frame_jax.config.training import TrainingConfig
from frame_jax.curriculum.stages import DataSchedule
from frame_jax.errors import UserError, without_secrets
from frame_jax.files import is_remote, local_copy
from frame_jax.models.flops import (
    active_parameter_count,
    forward_flops_per_token,
    training_flops_per_token,
)
from frame_jax.models.hugging_face.weights import read_decoder
from frame_jax.models.transformer import Decoder
from frame_jax.run import phases
from frame_jax.run.directory import RunDirectory
from frame_jax.run.progress import text_table
from frame_jax.run.special_tokens import read_special_tokens, special_tokens_path
from frame_jax.training.initial import target_decoder
from frame_jax.training.optimizer import make_optimizer
from frame_jax.training.phases import padded_vocab_size
from frame_jax.training.training_job import kept_steps

TRAINED, SCORED = 4, 2  # bytes of a weight: float32 where it is trained, bfloat16 where it scores
BYTES_PER_TOKEN = 4.0  # of text that is not tokenized yet


@dataclass(frozen=True)
class Corpus:
    """Tokens of the splits, and how they are known.

    Attributes:
        source: Where the numbers are from.
        measured: Tokens of the held-out documents that evaluation measures; None where they are
            not counted yet, and all of them are taken for measured.
        read: Tokens that an epoch reads, where they are others than those of the training split.
    """

    reference: int
    train: int
    held_out: int
    source: str
    measured: int | None = None
    read: int | None = None


@dataclass(frozen=True)
class CostLine:
    """One line of the cost table: a model that a phase step trains or evaluates, the memory that it
    takes, the tokens that go through it and the floating-point operations on all of them."""

    name: str
    phase_step: str
    decoder: Decoder
    weight_bytes: int
    optimizer_bytes: int
    tokens: int
    flops: float


def training_cost(
    name: str, phase_step: str, decoder: Decoder, training: TrainingConfig, steps: int, length: int
) -> CostLine:
    """Cost of training a model for `steps` batches of rows that predict `length` tokens."""
    tokens, weights = steps * training.batch_size * length, TRAINED * decoder.parameter_count()
    state = optimizer_state_bytes(decoder, training, steps)
    flops = tokens * training_flops_per_token(decoder, length)
    return CostLine(name, phase_step, decoder, weights, state, tokens, flops)


@functools.cache
def optimizer_state_bytes(decoder: Decoder, training: TrainingConfig, steps: int) -> int:
    """Bytes of the state of a model's optimizer."""
    optimizer = make_optimizer(training, decoder, steps)
    state = jax.tree.leaves(jax.eval_shape(optimizer.init, decoder.shapes()))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in state)


def scoring_cost(
    name: str, phase_step: str, decoder: Decoder, tokens: int, length: int
) -> CostLine:
    """Cost of one pass of a model over `tokens` tokens in rows of `length`."""
    weights, flops = SCORED * decoder.parameter_count(), forward_flops_per_token(decoder, length)
    return CostLine(name, phase_step, decoder, weights, 0, tokens, tokens * flops)


def evaluation_costs(
    config: RunConfig, corpus: Corpus, trial: Trial, schedule: DataSchedule
) -> CostLine:
    """Cost of what is measured on a trial that was trained in the order of `schedule`, but tasks.

    That is every kept checkpoint and every average on the held-out documents, and the final weights
    on a sample of training rows.
    """
    training, evaluation = config.training_of_arm(trial.arm), config.evaluation
    averages, continued = len(evaluation.averages), config.pretrain.initial is not None
    decoder = planned_target(config)[0]
    held_out = corpus.held_out if corpus.measured is None else corpus.measured
    tokens = held_out * (len(kept_steps(schedule, training, continued)) + averages)
    name = (f"evaluate {trial.name}", f"evaluate-{trial.name}")
    work = scoring_cost(*name, decoder, tokens, config.scoring.context)
    if evaluation.training_rows == 0:
        return work
    used, length = schedule.epoch_rows, config.partition.rows.sequence_length
    rows = used // max(1, used // evaluation.training_rows)
    sample = scoring_cost("", "", decoder, rows * length, length)
    return replace(work, tokens=tokens + sample.tokens, flops=work.flops + sample.flops)


def vocab_rows(config: RunConfig) -> int:
    """Rows of the embedding: of the run's tokenizer, or of the one the config asks for."""
    directory = RunDirectory(config.run_directory)
    if special_tokens_path(directory).exists():
        return padded_vocab_size(read_special_tokens(directory).vocab_size)
    return padded_vocab_size(config.tokenizer.vocab_size)


def reference_names(config: RunConfig) -> list[str]:
    """Names of the models that score; none where scores were made elsewhere."""
    third = [] if config.reference.third is None else ["third"]
    return [*phases.REFERENCES, *third] if config.scoring.table is None else []


def reference_decoder(config: RunConfig, name: str) -> tuple[Decoder, str | None]:
    """A reference model's shape, and where it comes from if it is imported.

    Raises:
        UserError: if it is imported and this project cannot compute it.
    """
    like = "weak" if name == "weak" else "strong"
    assumed = Decoder(getattr(config.reference, like).model, vocab_rows(config))
    if name not in config.reference.imported:
        return assumed, None
    path, absent = find_shape(config.reference.imported[name][1])
    if absent is None:
        decoder = read_decoder(path.parent, longest=config.scoring.context)
        return decoder, f"reference.{name} is imported; its shape is from {path}"
    return assumed, (
        f"reference.{name} is imported, but {absent}; its shape is assumed to be "
        f"reference.{like}.model"
    )


@functools.cache
def find_shape(checkpoint: str) -> tuple[Path, str | None]:
    """The config.json of a checkpoint; what keeps it from being read, if anything does."""
    try:
        path = local_copy(checkpoint, lambda name: name == "config.json") / "config.json"
    except UserError as error:
        return Path(), str(error)
    return path, None if path.is_file() else f"{path} is not there"


def planned_target(config: RunConfig) -> tuple[Decoder, str | None]:
    """The target model's shape, and where it comes from if the model is continued.

    Raises:
        UserError: as `target_decoder`, but for a model that is not there yet.
    """
    initial, vocab, absent = config.pretrain.initial, vocab_rows(config), None
    if initial is not None and initial.checkpoint is not None:
        _, absent = find_shape(initial.checkpoint)
    elif initial is not None and not RunDirectory(str(initial.run)).root.is_dir():
        absent = f"{initial.run} is not there"
    if absent is not None:
        note = f"pretrain.initial: {absent}; its shape is assumed to be pretrain.model"
        return Decoder(config.pretrain.model, vocab), note
    decoder = target_decoder(config, vocab)
    if initial is None:
        return decoder, None
    return decoder, f"pretrain: its shape is that of {initial.checkpoint or initial.run}"


def replica_bytes(config: RunConfig) -> int:
    """Bytes of a device's whole copies of models, in the phase that needs most: weights, gradients
    and the optimizer's state of one that is trained, or the weights of all that score.

    A remote checkpoint is not asked: its model counts as `reference.*.model`.
    """
    vocab, scored, initial = vocab_rows(config), 0, config.pretrain.initial
    target = Decoder(config.pretrain.model, vocab)
    if initial is not None and not is_remote(initial.checkpoint or ""):
        with contextlib.suppress(UserError):  # which the checks of pretraining name
            target = planned_target(config)[0]
    trained = [(target, config.pretrain.training)]
    for name in reference_names(config):
        reference = config.reference.weak if name == "weak" else config.reference.strong
        decoder = Decoder(reference.model, vocab)
        if not is_remote(config.reference.imported.get(name, ("", ""))[1]):
            with contextlib.suppress(UserError):  # which the checks of scoring name
                decoder = reference_decoder(config, name)[0]
        scored += SCORED * decoder.parameter_count()
        if name in config.reference.trained:
            trained.append((decoder, reference.training))
    state = (
        2 * TRAINED * decoder.parameter_count() + optimizer_state_bytes(decoder, training, 1)
        for decoder, training in trained
    )
    return max(scored, *state)


def list_costs(
    config: RunConfig, corpus: Corpus, schedules: dict[str, DataSchedule]
) -> tuple[list[CostLine], list[str]]:
    """Lists the costs of everything that computes, and notes on them.

    Raises:
        UserError: for a reference model that could not be computed.
    """
    work: list[CostLine] = []
    notes: list[str] = []
    if config.scoring.table is not None:
        notes.append(
            f"scores are those of {without_secrets(config.scoring.table.path)} (scoring.table): no "
            "reference model is trained and nothing is scored"
        )
    for name in reference_names(config):
        decoder, note = reference_decoder(config, name)
        if note is None:
            training = getattr(config.reference, name).training
            length = config.reference.rows.sequence_length
            count = training.steps or -(-corpus.reference // (length + 1) // training.batch_size)
            line = (f"reference {name}", f"reference-{name}")
            work.append(training_cost(*line, decoder, training, count, length))
        else:
            notes.append(note)
        tokens, context = corpus.train + corpus.held_out, config.scoring.context
        sample = min(tokens, config.scoring.reliability * context)
        if name != "third":
            work.append(scoring_cost(f"scoring, {name}", "score", decoder, tokens, context))
        if config.reference.third is not None and name != "strong":
            line = (f"sample, {name} of the third pair", "score-third")
            work.append(scoring_cost(*line, decoder, sample, context))
        if sample and note is None:
            work.append(scoring_cost(f"sample, {name}", "score", decoder, sample, context))
            if config.reference.replicas > 1:
                line = (f"replica, {name}", f"reference-{phases.replica_name(name)}")
                work.append(training_cost(*line, decoder, training, count, length))
                line = (f"sample, {name} replica", "score-replica")
                work.append(scoring_cost(*line, decoder, sample, context))
    decoder, note = planned_target(config)
    notes += [note] if note else []
    length = config.partition.rows.sequence_length
    for name, schedule in schedules.items():
        training = config.training_of_arm(config.trial(name).arm)
        count, line = schedule.steps(training.batch_size), (f"pretrain {name}", f"pretrain-{name}")
        work.append(training_cost(*line, decoder, training, count, length))
    if schedules:
        if config.evaluation.tasks:
            notes.append("evaluate: without the tasks")
        if corpus.measured is None and config.evaluation.max_documents is not None:
            notes.append(
                "evaluate: at most; how long the documents of evaluation.max_documents are is "
                "known once the corpus is tokenized, and the whole held-out split stands for them"
            )
        work += [
            evaluation_costs(config, corpus, config.trial(name), schedule)
            for name, schedule in schedules.items()
        ]
    return work, notes


def cost_table(
    config: RunConfig,
    corpus: Corpus,
    schedules: dict[str, DataSchedule],
    left: dict[str, float],
    tokens_per_second: float | None,
) -> RenderableType:
    """Formats all costs as a table: parameters, memory, FLOPs, share and time.

    `schedules` has the order of each trial that is to be trained, `left` the share of the work that
    remains of each phase step that is to run; `tokens_per_second` is the training speed of the
    target model, and all else is taken to run at the same FLOPs a second.
    """
    work, notes = list_costs(config, corpus, schedules)
    work = [item for item in work if item.phase_step in left]
    header = ["work", "parameters", "active", "weights GiB", "optimizer GiB", "tokens", "FLOPs"]
    header += ["share", "time left"] if tokens_per_second else ["share"]
    target = planned_target(config)[0]
    flops = training_flops_per_token(target, config.partition.rows.sequence_length)
    speed = (tokens_per_second or 1) * flops
    total = sum(item.flops for item in work)
    hours = [item.flops * left[item.phase_step] / speed / 3600 for item in work]
    lines = [
        [
            item.name,
            f"{item.decoder.parameter_count():,}",
            f"{active_parameter_count(item.decoder):,}",
            f"{item.weight_bytes / 2**30:,.3f}",
            f"{item.optimizer_bytes / 2**30:,.3f}",
            f"{item.tokens:,}",
            f"{item.flops:.2e}",
            f"{100 * item.flops / max(total, 1):.1f}%",
            *([f"{time:,.2f} h"] if tokens_per_second else []),
        ]
        for item, time in zip(work, hours, strict=True)
    ]
    end = [f"{sum(hours):,.2f} h"] if tokens_per_second else []
    lines.append(["all", "", "", "", "", "", f"{total:.2e}", "", *end])
    notes.append(
        "memory: of all devices together; gradients and activations come on top. Whether a step "
        "fits, without the devices: python tools/compile_ahead.py --config FILE --topology "
        "v5p:4x4x4 (or h100:8x8, ...)"
    )
    if any(item.decoder.config.has("experts") for item in work):
        notes.append(
            "active: parameters that a token meets, of experts its own; FLOPs are of these"
        )
    if tokens_per_second:
        notes.append(
            f"time: at {tokens_per_second:,.0f} tokens a second in pretraining, all else at the "
            "FLOPs a second that this is; small models reach fewer"
        )
    return Group(text_table("cost", [header, *lines]), Text("\n".join(notes), style="dim"))
