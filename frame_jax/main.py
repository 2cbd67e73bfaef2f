"""Text in, a report on curricula out: `python -m frame_jax.main --config CONFIG`.

Runs seven phases (tokenize, reference, score, partition, pretrain, evaluate, report), skips those
that are complete and resumes the one that was interrupted. On several hosts, run it on every host.
"""

from __future__ import annotations

import os
import resource
import sys
from typing import Any

from frame_jax.config.file import make_parser, parse
from frame_jax.config.run import RunConfig
from frame_jax.errors import UserError
from frame_jax.run import compute_dtype, markers, phases
from frame_jax.run.directory import (
    RunDirectory,
    atomic_path,
    read_json,
    remove_temporaries,
)
from frame_jax.run.ending import refusal, run_to_end, together
from frame_jax.run.lock import exclusive
from frame_jax.run.preemption import STOPPED, Preempted

PIPED_WIDTH = 132  # of the last table where there is no terminal


def parser() -> Any:
    """Options of the command line: the run's settings, and what to do with them."""
    options = make_parser(prog="python -m frame_jax.main", description=__doc__)
    options.add_argument(
        "--until", choices=phases.PHASES, default=None, help="Stop after this phase."
    )
    options.add_argument(
        "--redo",
        default=None,
        help="Remove the outputs of this phase (or of one arm, such as pretrain-frame) and of all "
        "that was made from them, then run.",
    )
    options.add_argument(
        "--plan", action="store_true", help="Print what the run will do and cost; start nothing."
    )
    options.add_argument(
        "--tokens_per_second",
        type=float,
        default=None,
        help="Training speed of the target model, for the times that --plan prints.",
    )
    options.add_argument(
        "--corpus_tokens",
        type=float,
        default=None,
        help="Tokens of the corpus, such as 1e12, for a --plan before it is tokenized or there.",
    )
    return options


def write_config(config: RunConfig, directory: RunDirectory) -> None:
    """`RUN/config.yaml`: every setting of the run, defaults included."""
    import dataclasses

    import yaml

    with atomic_path(directory.config) as temporary:
        text = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)
        temporary.write_text(text, "utf-8")


def run(config: RunConfig, *, until: str | None = None, redo: str | None = None) -> int:
    """Runs what is left of a run; returns the number of units that ran.

    Raises:
        UserError: for anything the user can mend.
    """
    from frame_jax.corpus.inventory import known_signature

    directory = RunDirectory(config.run_directory)
    table = phases.units(config)
    if redo is not None:
        known = [*phases.PHASES, *(unit.name for unit in table)]
        if redo not in known:
            raise UserError(f"--redo {redo}: choose one of {', '.join(dict.fromkeys(known))}")
    signature = known_signature(config, directory, redo)
    given, config = config, compute_dtype.recorded(config, directory)
    expected = markers.expectations(config, table, signature)
    todo = phases.selected(table, until)
    decided = not any(compute_dtype.left_open(expected[unit.name].settings) for unit in todo)
    if redo is None and decided and is_finished(directory, todo, expected):
        return 0

    from frame_jax.curriculum.presets import expand
    from frame_jax.evaluation.items import check_tasks
    from frame_jax.parallel import processes
    from frame_jax.parallel.sharding import mesh_shape
    from frame_jax.run import preemption, storage
    from frame_jax.scoring.checks import check_references
    from frame_jax.training import trackers

    processes.start(config.parallel)
    preemption.install()
    said: list[str] = []
    if until != "tokenize":  # which computes nothing
        config, said = compute_dtype.decided(given, config)
        expected = markers.expectations(config, table, signature)
    if redo is None:
        is_finished(directory, todo, expected)
    again = [] if redo is None else markers.downstream(table, table, redo)
    left = {
        u.phase
        for u in todo
        if u.name in again or not markers.is_complete(directory, u, expected[u.name])
    }

    def check() -> None:
        mesh_shape(config.parallel, processes.devices())
        for curriculum in config.curricula.values():
            expand(curriculum, config.partition.axes)
        if config.tracker is not None:
            trackers.find(config.tracker)
        if "score" in left:
            check_references(config, directory, tokenizer_anew="tokenize" in again)
        if "evaluate" in left:
            check_tasks(config.evaluation.tasks)

    together(check)  # what cannot work is refused before anything is written
    storage.check(directory)
    if processes.is_first():
        with exclusive(directory):
            for line in said:
                print(line, file=sys.stderr)
            return _run_units(config, directory, table, todo, expected, redo)
    return _run_units(config, directory, table, todo, expected, redo)


def is_finished(
    directory: RunDirectory, todo: list[phases.Unit], expected: dict[str, markers.Expected]
) -> bool:
    """Whether all of `todo` is complete; refuses what was made under other settings."""
    for unit in todo:
        markers.check_current(directory, unit, expected[unit.name])
    return all(markers.is_complete(directory, unit, expected[unit.name]) for unit in todo)


def _run_units(
    config: RunConfig,
    directory: RunDirectory,
    table: list[phases.Unit],
    todo: list[phases.Unit],
    expected: dict[str, markers.Expected],
    redo: str | None,
) -> int:
    from frame_jax.parallel import processes
    from frame_jax.run import bucket, integrity

    first = processes.is_first()
    if first:
        if redo is not None:
            removed = markers.redo(directory, table, redo)
            print(f"removed: {', '.join(removed)}", file=sys.stderr)
        # Exports write manifests there beside a run, and clear up by themselves.
        remove_temporaries(directory.root, apart=directory.manifests)
        write_config(config, directory)
    processes.barrier("the run directory is ready")
    for unit in todo:
        markers.check_current(directory, unit, expected[unit.name])
    left = [u for u in todo if not markers.is_complete(directory, u, expected[u.name])]
    if first:
        bucket.settle(directory, left, config.checkpoint_root)
    together(lambda: integrity.verify(directory, phases.sources(table, left)))
    processes.barrier("the work is known")
    for unit in left:
        if first:
            print(f"{unit.name} begins", file=sys.stderr, flush=True)
        markers.run_unit(config, directory, unit, expected[unit.name])
    return len(left)


def finish(config: RunConfig, ran: int, until: str | None) -> None:
    """Prints what the run has come to: the table of held-out losses and where the report is."""
    directory = RunDirectory(config.run_directory)
    if ran == 0:
        print(f"{directory.root}: nothing to do, every phase is complete", file=sys.stderr)
    if until in (None, "report"):
        from rich.console import Console

        from frame_jax.report.terminal import terminal_table

        width = None if sys.stdout.isatty() else PIPED_WIDTH
        Console(width=width).print(terminal_table(study_of(config, directory)))
        print(f"report: {directory.report / 'index.html'}")


def study_of(config: RunConfig, directory: RunDirectory) -> dict[str, Any]:
    """What the report says of the arms; read again where an earlier release made the report."""
    path = directory.report / "verdict.json"
    if path.exists():
        return read_json(path)
    from frame_jax.report.study import read_study

    return read_study(config, directory)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, 2 for bad input, 75 when SIGTERM stopped it (start it again)."""
    arguments = sys.argv[1:] if arguments is None else arguments
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
        ran = run(config, until=options["until"], redo=options["redo"])
        finish(config, ran, options["until"])
    except Preempted as stop:
        print(f"stopped by SIGTERM: {stop}; run the same command to go on", file=sys.stderr)
        return STOPPED
    except Exception as error:
        return refusal(error)
    return 0


def prefer_huge_pages() -> None:
    """Restarts this program, once, with glibc asking for huge pages.

    XLA on the CPU maps its working memory afresh at every step, and touching it a small page at a
    time was a third of a training step. glibc reads the setting only when a program starts.
    """
    name, value = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
    if sys.platform == "linux" and name not in os.environ:
        os.environ[name] = value
        os.execv(sys.executable, sys.orig_argv)


def allow_open_files() -> None:
    """Raises this process's limit of open files as far as it may: it opens a file for each part."""
    limit, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
    if sys.platform == "linux" and limit < highest:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest, highest))


if __name__ == "__main__":
    allow_open_files()
    prefer_huge_pages()
    run_to_end(main)
