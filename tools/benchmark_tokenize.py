"""Tokenises the same files here, with datatrove and with datasets; prints one JSON line a case.

    python tools/benchmark_tokenize.py --peers_python PEERS/bin/python [--megabytes 24] [--turns 2]

PEERS is an environment with the peers (without it ours runs alone):

    python -m venv PEERS && PEERS/bin/pip install 'datatrove[processing,io]' datasets tokenizers

A case is a text (English, Chinese, code), a kind of file (JSON lines, Parquet, Arrow) and a number
of workers. Each contender reads the same four files with the same tokenizer and writes token ids to
an empty folder in its own way, one thread a worker, in turns of which the least counts. Two
commands are timed: one on the files, and one on their first documents alone, which is the start.

  ratio                 seconds of the faster peer over ours, start included
  ratio_without_start   the same of what is left when each contender's start is taken off
  cpu_seconds           processor time of all processes of a command
  worker_megabytes      the most memory that a process beside the first one held at a time, or the
                        first one where it is alone
  files_open            the most files that one of them held open

Text comes from a folder of `en-*`, `zh-*` and `code-*` JSON lines, from patterns given by
--english, --chinese and --code, or else from installed packages, which have no Chinese.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import glob
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from processor import processor
from tokenizers import Tokenizer

from frame_jax.config.corpus import CorpusConfig, SourceConfig
from frame_jax.corpus.documents import Document
from frame_jax.corpus.parts import sample_documents
from frame_jax.corpus.tokenizer_training import sample_texts, train_tokenizer
from frame_jax.run.directory import RunDirectory, read_json

REPOSITORY = Path(__file__).parents[1]
CLIENTS = Path(__file__).with_name("clients").resolve()
TRAINED_BYTES = 24_000_000  # of all texts
FILES = 4  # of a case, so that workers can share them
TEXTS = {"english": "en", "chinese": "zh", "code": "code"}
INSTALLED = {"english": "prose", "code": "code"}  # domains of what comes with Python
KINDS = ("jsonl", "parquet", "arrow")
PEERS = ("datatrove", "datasets")
SUBREAPER = 36  # of Linux' prctl: orphans of a command become our children, whose time is counted
Line = dict[str, Any]


class Spent(NamedTuple):
    """What a command took."""

    seconds: float
    cpu_seconds: float
    worker_megabytes: float
    files_open: int
    tokens: int


def read_texts(text: str, options: argparse.Namespace) -> Iterator[Document]:
    """Yields documents of a kind of text, about the megabytes that are asked for."""
    left = int(options.megabytes * 1e6)
    pattern = getattr(options, text) or str(options.corpus / f"{TEXTS[text]}-*.jsonl*")
    if glob.glob(pattern):
        source = SourceConfig("jsonl", pattern, language_field=None)
        documents = sample_documents(CorpusConfig([source]), left)
    elif text in INSTALLED:
        installed = sample_documents(CorpusConfig([SourceConfig("python_library")]), 1 << 40)
        documents = (d for d in installed if d.domain == INSTALLED[text])
    else:
        return
    for document in documents:
        yield document
        left -= len(document.text.encode())
        if left <= 0:
            return


def write_files(documents: list[Document], kind: str, folder: Path) -> Path:
    """Writes the documents, dealt out, to files of a kind in `folder`."""
    folder.mkdir(parents=True)
    for number in range(FILES):
        rows = [{"id": d.id, "text": d.text, "domain": d.domain} for d in documents[number::FILES]]
        path, table = folder / f"{number}.{kind}", pa.Table.from_pylist(rows)
        if kind == "parquet":
            pq.write_table(table, path, compression="zstd")
        elif kind == "arrow":
            with pa.ipc.new_stream(path, table.schema) as writer:
                writer.write_table(table, max_chunksize=1000)
        else:
            with path.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return folder


def command(
    name: str, kind: str, folder: Path, tokenizer: Path, workers: int, python: str, out: Path
) -> list[str]:
    """What tokenises a folder to `out`, an empty folder."""
    if name != "ours":
        script = CLIENTS / f"tokenize_{name}.py"
        return [python, *map(str, (script, kind, folder, tokenizer, workers, out))]
    config = {
        "run_directory": str(out / "run"),
        "corpus": {"sources": [{"kind": kind, "path": str(folder)}], "parts": FILES},
        "tokenizer": {"path": str(tokenizer)},
        "workers": {"count": workers},
    }
    (out / "config.yaml").write_text(json.dumps(config))
    main = [sys.executable, "-m", "frame_jax.main", "--until", "tokenize"]
    return [*main, "--config", str(out / "config.yaml")]


def measure(name: str, make_command: Callable[[Path], list[str]]) -> Spent:
    """Runs a contender's command once, in a folder of its own that is removed.

    Raises:
        RuntimeError: where it fails.
    """
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        with (out / "log").open("w") as log:
            process = subprocess.Popen(
                make_command(out),
                cwd=REPOSITORY,
                env=os.environ | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
            seen: dict[int, tuple[float, int]] = {}
            watcher = threading.Thread(target=watch, args=(process, seen))
            watcher.start()
            said, _ = process.communicate()
        seconds = time.perf_counter() - started
        watcher.join()
        for _ in iter(wait_for_orphan, False):
            pass
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if process.returncode:
            raise RuntimeError(f"{name} failed:\n{(out / 'log').read_text()[-2000:]}")
        if name == "ours":
            counts = read_json(RunDirectory(out / "run").marker("tokenize"))["summary"]["tokens"]
            tokens = sum(counts.values())
        else:
            tokens = int(said.split()[-1])
        cpu = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
        alone = seen.pop(process.pid, (0.0, 0))
        megabytes, files = zip(*(seen.values() or [alone]), strict=True)
        return Spent(seconds, cpu, max(megabytes), max(files), tokens)


def wait_for_orphan() -> bool:
    """Waits for a process that a command has left, which ends by itself; False if there is none."""
    try:
        os.waitpid(-1, 0)
    except ChildProcessError:
        return False
    return True


def watch(process: subprocess.Popen[str], seen: dict[int, tuple[float, int]]) -> None:
    """Keeps the most megabytes of memory and files open of each process of a session, until its
    first one ends."""
    while process.poll() is None:
        for pid in session(process.pid):
            try:
                status = Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2]
                files = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208
            except OSError:  # it has ended
                continue
            if status:  # else it is ending
                files = max(files, seen.get(pid, (0.0, 0))[1])
                seen[pid] = int(status.split()[0]) / 1000, files
        time.sleep(0.1)


def session(leader: int) -> Iterator[int]:
    """The processes of a session."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == leader:
                yield int(folder.name)


def compare(
    text: str,
    kind: str,
    folders: tuple[Path, Path],
    tokenizer: Path,
    workers: int,
    options: argparse.Namespace,
) -> Line:
    """A case: all contenders in turns on the files, and on their first documents alone."""
    names = ["ours", *(PEERS if options.peers_python else ())]
    least: dict[str, list[Spent]] = {}
    for _ in range(options.turns):
        for name in names:

            def make(folder: Path, out: Path, name: str = name) -> list[str]:
                python = str(options.peers_python and options.peers_python.absolute())
                return command(name, kind, folder, tokenizer, workers, python, out)

            found = [measure(name, functools.partial(make, folder)) for folder in folders]
            least[name] = [min(pair) for pair in zip(found, least.get(name, found), strict=True)]
    counts = {name: least[name][0].tokens for name in names}
    if len(set(counts.values())) > 1:
        raise RuntimeError(f"{text} {kind}: the contenders write other tokens: {counts}")
    line: Line = {"text": text, "kind": kind, "workers": workers}
    if len(names) > 1:
        total = {name: least[name][0].seconds for name in names}
        work = {name: total[name] - least[name][1].seconds for name in names}
        line["ratio"] = min(total[name] for name in PEERS) / total["ours"]
        line["ratio_without_start"] = min(work[name] for name in PEERS) / work["ours"]
    for name, (whole, start) in least.items():
        begun = {"start_seconds": start.seconds, "start_cpu_seconds": start.cpu_seconds}
        line[name] = whole._asdict() | begun
    return line


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers_python", type=Path, help="the Python that has the peers")
    parser.add_argument("--corpus", type=Path, default=Path("../shared/corpus"))
    for text in TEXTS:
        parser.add_argument(f"--{text}", help="pattern of JSON lines that hold such text")
    parser.add_argument("--texts", nargs="+", choices=TEXTS, default=list(TEXTS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--megabytes", type=float, default=24, help="text of a case")
    parser.add_argument("--workers", type=int, nargs="+", default=[2])
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json; default trains one")
    parser.add_argument("--vocab_size", type=int, default=32768, help="of one that is trained")
    return parser


def main() -> None:
    options = parser().parse_args()
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        texts = {text: list(read_texts(text, options)) for text in options.texts}
        tokenizer = options.tokenizer or root / "tokenizer.json"
        if options.tokenizer is None:
            documents = itertools.chain(*itertools.zip_longest(*texts.values()))
            sample = sample_texts((d for d in documents if d), TRAINED_BYTES)
            train_tokenizer(sample, options.vocab_size).save(str(tokenizer))
        vocabulary = Tokenizer.from_file(str(tokenizer)).get_vocab_size()
        for text, kind in itertools.product(options.texts, options.kinds):
            if not texts[text]:
                print(f"{text}: no such text here: name some by --{text}", file=sys.stderr)
                continue
            whole = write_files(texts[text], kind, root / text / kind)
            first = write_files(texts[text][:FILES], kind, root / text / f"{kind}-start")
            for workers in options.workers:
                line = compare(text, kind, (whole, first), tokenizer.resolve(), workers, options)
                size = sum(len(d.text.encode()) for d in texts[text]) / 1e6
                line |= {"megabytes": size, "vocabulary": vocabulary, "processor": processor()}
                print(json.dumps(rounded(line)), flush=True)


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
