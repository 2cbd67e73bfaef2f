"""Runs the whole line from text to report: `python -m frame_jax.main --config CONFIG`.

Runs seven phases (tokenize, reference, score, partition, pretrain, evaluate, report), skips those
that are complete and resumes the one that was interrupted. On several hosts, run it on every host.
"""

import contextlib
import os
import sys
from typing import Any

from frame_jax.parallel import host
from frame_jax.run import preemption

if __name__ == "__main__":  # before the imports that take long
    preemption.hold()
    host.allow_open_files()
    host.prefer_huge_pages()
    preemption.install_handler()

from frame_jax.config.file import make_parser, parse
from frame_jax.config.run import RunConfig
from frame_jax.config.settings import settings_as_yaml
from frame_jax.errors import UserError, log_to_stderr
from frame_jax.run import compute_dtype, markers, phases
from frame_jax.run.directory import RunDirectory, atomic_path, remove_temporaries
from frame_jax.run.lock import hold_lock
from frame_jax.run.program_exit import report_error, run_main, run_on_all_processes
from frame_jax.run.progress import wide_console


def parser() -> Any:
    """The command line's options: the run's settings, and what to do with them."""
    options = make_parser(prog="python -m frame_jax.main", description=__doc__)
    options.add_argument("--until", choices=phases.PHASES, help="Stop after this phase.")
    options.add_argument(
        "--redo",
        help="Remove the outputs of this phase (or of one arm, such as pretrain-frame) and of all "
        "that was made from them, then run.",
    )
    options.add_argument(
        "--plan", action="store_true", help="Print what the run will do and cost; start nothing."
    )
    options.add_argument(
        "--tokens_per_second",
        type=float,
        help="Training speed of the target model, for the times that --plan prints.",
    )
    options.add_argument(
        "--corpus_tokens",
        type=float,
        help="Tokens of the corpus, such as 1e12, for a --plan before it is tokenized or there.",
    )
    return options


def write_config(config: RunConfig, directory: RunDirectory) -> None:
    """Writes `RUN/config.yaml`: every setting of the run, defaults included."""
    with atomic_path(directory.config) as temporary:
        temporary.write_text(settings_as_yaml(config), "utf-8")


def run_phases(config: RunConfig, *, until: str | None = None, redo: str | None = None) -> int:
    """Runs what is left of a run; returns the number of phase steps that ran.

    Raises:
        UserError: for anything the user can fix.
    """
    from frame_jax.corpus.inventory import expected_signature
    from frame_jax.training import initial_digest

    directory = RunDirectory(config.run_directory)
    table = phases.list_phase_steps(config)
    if redo is not None:
        names = [*phases.PHASES, *(phase_step.name for phase_step in table)]
        if redo not in names:
            raise UserError(f"--redo {redo}: choose one of {', '.join(dict.fromkeys(names))}")
    signature = expected_signature(config, directory, redo)
    given, config = config, compute_dtype.with_recorded_types(config, directory)
    weights = initial_digest.recorded_digest(config, directory)
    expected = markers.expected_markers(config, table, signature, weights)
    todo = phases.select_until(table, until)
    decided = weights != initial_digest.UNKNOWN and not any(
        compute_dtype.undecided_keys(expected[phase_step.name].settings) for phase_step in todo
    )
    if redo is None and decided and not unfinished_steps(directory, todo, expected):
        return 0

    from frame_jax.parallel import processes
    from frame_jax.run import storage

    again = [] if redo is None else markers.downstream_names(table, table, redo)

    def steps_left() -> list[phases.PhaseStep]:
        return [
            phase_step
            for phase_step in todo
            if phase_step.name in again
            or not markers.is_complete(directory, phase_step, expected[phase_step.name])
        ]

    processes.start(config.parallel)
    messages: list[str] = []
    if devices := any(phase_step.needs_devices for phase_step in steps_left()):
        from frame_jax.parallel import cpu_devices
        from frame_jax.planning.costs import replica_bytes

        # Before anything starts JAX's devices.
        messages = cpu_devices.use_cpu_devices(config, replica_bytes(config))
    preemption.take_back()
    if devices:
        config, notes = compute_dtype.decide_types(given, config)
        messages += notes
    if any(phase_step.phase == "pretrain" for phase_step in todo):
        weights = initial_digest.agreed_digest(config, weights)
    expected = markers.expected_markers(config, table, signature, weights)
    unfinished_steps(directory, [s for s in todo if s.name not in again], expected)
    phases_left = {phase_step.phase for phase_step in steps_left()}

    # What cannot work is refused before anything is written.
    run_on_all_processes(lambda: check_phases(config, directory, phases_left, again, devices))
    storage.check_storage(directory)
    with hold_lock(directory) if processes.is_first() else contextlib.nullcontext():
        processes.print_notes(messages)
        return _run_phase_steps(config, directory, table, todo, expected, redo)


def check_phases(
    config: RunConfig, directory: RunDirectory, left: set[str], again: list[str], devices: bool
) -> None:
    """Refuses what cannot work in the phases that are `left`, some of them done `again`."""
    from frame_jax.curriculum.presets import expand_curriculum

    if "tokenize" in left:
        from frame_jax.corpus.inventory import require_apart, require_splits

        require_apart(config)
        require_splits(config, left)
    if devices:
        import jax

        from frame_jax.parallel.sharding import mesh_shape

        mesh_shape(config.parallel, jax.device_count())
    for curriculum in config.curricula.values():
        expand_curriculum(curriculum, config.partition.axes)
    if config.tracker is not None:
        from frame_jax.training.metrics import import_function

        import_function(config.tracker)
    if "partition" in left and "tokenize" not in left:
        from frame_jax.quadrants.mixture import check_mixture

        check_mixture(config, directory)
    if "score" in left:
        from frame_jax.scoring.checks import check_references

        check_references(config, directory, tokenizer_anew="tokenize" in again)
    if "pretrain" in left:
        from frame_jax.training.initial import check_initial

        check_initial(config, directory, tokenizer_anew="tokenize" in again)
    if "evaluate" in left:
        from frame_jax.evaluation.items import check_tasks

        check_tasks(config.evaluation.tasks)


def unfinished_steps(
    directory: RunDirectory, todo: list[phases.PhaseStep], expected: dict[str, markers.Marker]
) -> list[phases.PhaseStep]:
    """The steps of `todo` that are left; refuses outputs made under other settings."""
    for phase_step in todo:
        markers.check_current(directory, phase_step, expected[phase_step.name])
    return [s for s in todo if not markers.is_complete(directory, s, expected[s.name])]


def _run_phase_steps(
    config: RunConfig,
    directory: RunDirectory,
    table: list[phases.PhaseStep],
    todo: list[phases.PhaseStep],
    expected: dict[str, markers.Marker],
    redo: str | None,
) -> int:
    from frame_jax.parallel import processes
    from frame_jax.quadrants.mixture import check_mixture
    from frame_jax.run import bucket, integrity

    first = processes.is_first()
    if first:
        if redo is not None:
            removed = markers.remove_outputs(directory, table, redo)
            print(f"removed: {', '.join(removed)}", file=sys.stderr)
        # Exports write manifests there beside a run, and clear up by themselves.
        remove_temporaries(directory.root, apart=directory.manifests)
        write_config(config, directory)
    processes.barrier("the run directory is ready")
    steps_left = unfinished_steps(directory, todo, expected)
    if first:
        bucket.record_buckets(directory, steps_left, config.checkpoint_root)
    run_on_all_processes(
        lambda: integrity.verify_checksums(directory, phases.source_names(table, steps_left))
    )
    processes.barrier("the work is known")
    for phase_step in steps_left:
        if first:
            print(f"{phase_step.name} begins", file=sys.stderr, flush=True)
        markers.run_phase_step(config, directory, phase_step, expected[phase_step.name])
        if phase_step.phase == "tokenize":  # before models are trained for it
            run_on_all_processes(lambda: check_mixture(config, directory))
    return len(steps_left)


def print_outcome(config: RunConfig, ran: int, until: str | None) -> None:
    """Prints the table of held-out losses and the path of the report."""
    directory = RunDirectory(config.run_directory)
    if ran == 0:
        print(f"{directory.root}: nothing to do, every phase is complete", file=sys.stderr)
    if until in (None, "report"):
        from frame_jax.report.study_results import load_study, terminal_table

        wide_console().print(terminal_table(load_study(directory)))
        print(f"report: {directory.report / 'index.html'}")


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, 2 for bad input, 75 stopped by SIGTERM, 130 by Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    log_to_stderr()
    try:
        config, options = parse(arguments, parser())
        if options["plan"]:
            os.environ["JAX_PLATFORMS"] = "cpu"  # a plan must not take an accelerator
            from frame_jax.planning.plan import print_plan

            print_plan(
                config,
                tokens_per_second=options["tokens_per_second"],
                corpus_tokens=options["corpus_tokens"],
                until=options["until"],
            )
            return 0
        ran = run_phases(config, until=options["until"], redo=options["redo"])
        print_outcome(config, ran, options["until"])
    except preemption.Preempted as state:
        return preemption.stopped(state)
    except Exception as error:
        return report_error(error)
    return 0


if __name__ == "__main__":
    run_main(main)
