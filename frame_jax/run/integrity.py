"""Records and verifies sizes and checksums of a finished phase step's files.

RUN/checksums/<phase step>.json is written when the phase step is complete and compared at the start
of every program that will read from the phase step. Tables and JSON files are hashed: they are
about a hundredth of the tokens. Of token and row files only the size is compared, because every
record in them carries a hash that ArrayRecord checks when it is read: no corpus is read twice.
"""

import functools
from collections.abc import Container, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from frame_jax.errors import UserError, storage_error
from frame_jax.parallel import processes
from frame_jax.parallel.host import available_cores
from frame_jax.run.directory import RunDirectory, file_sha256, how_to_remake, read_json, write_json

HASHED = {".parquet", ".json"}
SIZED = {".arrayrecord"}


def record_checksums(directory: RunDirectory, phase_step: str, outputs: Sequence[str]) -> None:
    """Writes the checksums of a phase step's outputs. Process 0 only."""
    files = sorted(file for output in outputs for file in files_of(directory.root / output))
    names = [str(file.relative_to(directory.root)) for file in files]
    with ThreadPoolExecutor(available_cores()) as threads:  # hashing leaves Python to the others
        found = threads.map(file_checksum, files)
        write_json(checksums(directory, phase_step), dict(zip(names, found, strict=True)))


def checksums(directory: RunDirectory, phase_step: str) -> Path:
    return directory.root / "checksums" / f"{phase_step}.json"


def files_of(output: Path) -> list[Path]:
    """Files under an output that other phase steps read; checkpoints have digests of their own."""
    if output.is_file():
        return [output]
    return [
        file
        for file in output.rglob("*")
        if file.suffix in HASHED | SIZED and "checkpoints" not in file.parts and file.is_file()
    ]


def file_checksum(file: Path) -> list[int | str]:
    """[size in bytes] or [size, hash] of a file."""
    size = file.stat().st_size
    if file.suffix not in HASHED:
        return [size]
    return [size, file_sha256(file)[:32]]


def verify_checksums(
    directory: RunDirectory,
    phase_steps: Sequence[str],
    kinds: Container[str] = frozenset(HASHED | SIZED),
) -> None:
    """Compares the files of complete phase steps with their checksums; each process checks a share.

    Phase steps without checksums are passed over; `kinds` are suffixes of files that will be read.

    Raises:
        UserError: for the first file that is missing or damaged, with how to make it again, and
            for one that cannot be read.
    """
    for phase_step in phase_steps:
        path = checksums(directory, phase_step)
        expected = read_json(path) if path.exists() else {}
        wanted = [name for name in sorted(expected) if Path(name).suffix in kinds]
        share = processes.local_share(wanted)
        verify = functools.partial(verify_file, directory, phase_step)
        with ThreadPoolExecutor(available_cores()) as threads:
            list(threads.map(verify, share, [expected[name] for name in share]))


def verify_file(
    directory: RunDirectory, phase_step: str, name: str, expected: list[int | str]
) -> None:
    """Compares a file of a phase step with its checksum, as `verify_checksums` does."""
    file = directory.root / name
    recorded = checksums(directory, phase_step)
    what = f"is damaged: its size or checksum is not the one in {recorded}"
    try:
        if file_checksum(file) == expected:
            return
    except FileNotFoundError:
        what = "is missing"
    except OSError as error:
        raise storage_error(file, error) from error
    raise UserError(f"{file} {what}. {how_to_remake(directory.root, file, phase_step)}")
