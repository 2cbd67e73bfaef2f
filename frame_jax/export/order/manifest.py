"""Writes a manifest: every row of an order with its documents and digest, in training order.

FOLDER/part-*.parquet hold a line for each row of the run; `manifest.md` says what is in it. How a
part is made is in `manifest_lines`. The work is shared out over processes, every piece of it
appears whole or not at all, and a run of the same command makes what is missing.
"""

import functools
from pathlib import Path
from typing import Any

from frame_jax.config.run import RunConfig
from frame_jax.curriculum import digest
from frame_jax.errors import UserError
from frame_jax.export.order import manifest_lines
from frame_jax.export.order.manifest_lines import describe_rows, write_part
from frame_jax.export.order.trial_order import TrialOrder, list_row_files
from frame_jax.parallel import processes
from frame_jax.quadrants.rows import shuffle_training_documents
from frame_jax.run.directory import (
    RunDirectory,
    part_name,
    read_json,
    remove,
    remove_temporaries,
    require_writable,
    write_json,
)
from frame_jax.run.map_parts import map_parts, missing
from frame_jax.run.markers import read_fingerprint
from frame_jax.run.program_exit import run_on_all_processes
from frame_jax.run.storage import prepare_on_all_processes

LINE_BYTES = 100  # of a line, about
HEADER_FILE = "order.json"  # is there from the first moment on, and says of which order


def manifest_header(
    config: RunConfig, directory: RunDirectory, trial_order: TrialOrder
) -> dict[str, Any]:
    """What tells one manifest from that of another order or of other rows."""
    schedule, batch = trial_order.schedule, config.pretrain.training.batch_size
    rows_of_quadrants = directory.marker("partition").exists()
    return {
        "trial": trial_order.trial,
        "seed": trial_order.selection.seed,
        "shuffle": trial_order.selection.shuffle,
        "schedule": schedule.fingerprint,
        "rows": schedule.rows,
        "steps": schedule.steps(batch),
        "batch_size": batch,
        "sequence_length": trial_order.sequence_length,
        "part_rows": manifest_lines.PART_ROWS,
        "partition": read_fingerprint(directory, "partition") if rows_of_quadrants else None,
    }


def write_manifest(
    config: RunConfig, directory: RunDirectory, trial_order: TrialOrder, folder: Path
) -> None:
    """Writes FOLDER/part-*.parquet with a sidecar file each, and FOLDER/manifest.json at the end.

    Called on every process.

    Raises:
        UserError: if `folder` holds something else, some process sees another folder or another
            run, or the rows are not those of the assignment.
    """
    expected = manifest_header(config, directory, trial_order)
    prepare_on_all_processes(
        folder,
        lambda: make_folder(folder, expected),
        "--out",
        "All processes that write a manifest need one and the same folder, on a file system that "
        "all hosts share: name it with --out",
    )
    if processes.is_first():
        write_json(folder / HEADER_FILE, expected)
        remove_temporaries(folder)
        notes = Path(__file__).with_suffix(".md").read_text("utf-8")
        (folder / "NOTES.md").write_text(notes.format(curriculum=trial_order.trial), "utf-8")
    processes.barrier("the manifest is begun")
    run_on_all_processes(
        lambda: require_same_order(directory, read_json(folder / HEADER_FILE), expected)
    )
    count = -(-trial_order.schedule.rows // manifest_lines.PART_ROWS)
    paths = [folder / part_name(index, count, ".parquet") for index in range(count)]
    scratch, left = folder / ".rows", missing(path.with_suffix(".json") for path in paths)
    if left:
        row_files = list_row_files(directory, trial_order.schedule)
        described = [scratch / f"{each.quadrant_name}-{each.part:05d}.arrow" for each in row_files]
        if undescribed := missing(described):
            shuffled = shuffle_training_documents(config, directory, scratch, doc_ids=True)
            map_parts(
                functools.partial(
                    describe_rows,
                    config=config.partition.rows,
                    trial_order=trial_order,
                    assignment=directory.assignment,
                    shuffled=shuffled,
                ),
                {described[i].stem: (row_files[i], described[i]) for i in undescribed},
                config.workers,
                name="rows",
                unit="rows",
                work_bytes=LINE_BYTES * trial_order.schedule.rows,
            )
        map_parts(
            functools.partial(
                write_part,
                trial_order=trial_order,
                batch_size=expected["batch_size"],
                described=described,
            ),
            {paths[i].stem: (i, paths[i]) for i in left},
            config.workers,
            name="manifest",
            work_bytes=LINE_BYTES * trial_order.schedule.rows,
        )
    if processes.is_first():
        remove(scratch)
        parts = [{"file": p.name, **read_json(p.with_suffix(".json"))} for p in paths]
        whole = sum(digest.parse_digest(part["digest"]) for part in parts) % digest.MODULUS
        write_json(
            folder / "manifest.json",
            {**expected, "digest": digest.format_digest(whole), "parts": parts},
        )
    processes.barrier("the manifest is written")


def make_folder(folder: Path, expected: dict[str, Any]) -> None:
    """Makes the folder of a manifest, or continues one that an earlier start began.

    Raises:
        UserError: if it holds anything that is not the beginning of this manifest.
    """
    if (folder / HEADER_FILE).exists():
        taken = read_json(folder / HEADER_FILE) != expected
    else:
        taken = folder.exists() and any(not p.name.startswith(".tmp-") for p in folder.iterdir())
    if taken:
        raise UserError(
            f"{folder} is there already, and is no manifest of this order: choose another --out, "
            "or remove it"
        )
    require_writable(folder, "--out")


def require_same_order(
    directory: RunDirectory, begun: dict[str, Any], expected: dict[str, Any]
) -> None:
    """Refuses a process whose run has another order than that of process 0.

    Raises:
        UserError: naming its run directory.
    """
    if begun != expected:
        keys = [key for key in begun if begun[key] != expected.get(key)]
        raise UserError(
            f"{directory.root.absolute()} is not the run that process 0 writes a manifest of: "
            f"they differ in {', '.join(keys)}. Give every process one and the same run directory"
        )
