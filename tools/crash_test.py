"""Kills a small run over and over; one JSON line out: kills, phases hit, restarts, mismatches.

    python tools/crash_test.py --kills 40 --seed 0
    python tools/crash_test.py --signals --every_ms 50 --cold

A small pipeline (all phases, two arms) runs once undisturbed. Then it runs again in a fresh
directory while SIGKILL reaches it at chosen moments: at a random time of every phase, while a part
has its temporary name, while a checkpoint is being written, and one step before, at and after the
end of a stage. After every kill the same command starts again. What each killed run ends with is
compared with the undisturbed one: checkpoints bit by bit, metrics step by step without timings,
tokens, scores, partition and training rows byte by byte. Exit code 1 if anything differs.

With `--signals`, SIGTERM takes the place of SIGKILL and comes after every so many milliseconds of
every unit, the first of them counted from the program's first line of code: every attempt must end
with 0 or 75, without a traceback and without anything under `damaged/`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from sysconfig import get_path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
DOCUMENTS, CHARACTERS = 150, 700  # of each domain
TIMINGS = ("seconds", "tokens_per_second", "mfu", "goodput", "data_seconds")
SAME_BYTES = (
    "tokenizer/*.json",
    "tokens/part-*",
    "tokens/rejected.jsonl",
    "scores/*.parquet",
    "reference/rows/**/part-*",
    "quadrants/*.json",
    "quadrants/assignment.parquet",
    "quadrants/**/part-*",
    "pretrain/*/curriculum.json",
    "evaluation/*.json",
)
FOLDERS = {
    "tokenize": "tokens",
    "reference-rows": "reference/rows",
    "score": "scores",
    "partition": "quadrants",
    "evaluate-frame": "evaluation/frame",
    "evaluate-random": "evaluation/random",
}
TRAINED = ("reference/weak", "reference/strong", "pretrain/frame", "pretrain/random")
ATTEMPT_SECONDS = 900  # an attempt that takes longer is hanging
POLL_SECONDS = 0.0002
SIGNAL_MASKS = ("SigBlk", "SigCgt")  # signals that are blocked, and that are caught


def write_corpus(path: Path) -> None:
    """Pieces of the interpreter's own manual (prose) and of its standard library (code)."""
    prose = "\n".join(topics[name] for name in sorted(topics))
    modules = ("argparse", "ast", "inspect", "tarfile", "typing")
    code = "\n".join(Path(get_path("stdlib"), f"{m}.py").read_text("utf-8") for m in modules)
    with path.open("w", encoding="utf-8") as file:
        for domain, text in (("prose", prose), ("code", code)):
            for index in range(DOCUMENTS):
                piece = text[index * CHARACTERS : (index + 1) * CHARACTERS]
                file.write(json.dumps({"id": f"{domain}-{index}", "text": piece, "domain": domain}))
                file.write("\n")


def write_config(path: Path, run: Path, corpus: Path) -> Path:
    """A run of seconds; rolling checkpoints come several times a second."""
    model = {"hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "num_kv_heads": 1}
    rows = {"sequence_length": 64, "parts": 2}
    training = {"batch_size": 8, "milestones": 3, "checkpoint_seconds": 0.3}
    trained = {"model": {**model, "num_layers": 1}, "training": training}
    settings = {
        "run_directory": str(run),
        "corpus": {
            "sources": [{"kind": "jsonl", "path": str(corpus)}],
            "parts": 3,
            "held_out_fraction": 0.1,
            "reference_fraction": 0.3,
        },
        "tokenizer": {"vocab_size": 384},
        "reference": {
            "rows": rows,
            "weak": trained,
            "strong": {**trained, "model": {**model, "num_layers": 2}},
        },
        "scoring": {"context": 64, "per_device_batch_size": 8},
        "partition": {
            "rows": rows,
            "mixture": {"by": "domain", "repeats": {"prose": 1.5, "code": 0.7}},
        },
        "pretrain": trained,
    }
    path.write_text(json.dumps(settings), "utf-8")  # JSON is YAML
    return path


@dataclass(frozen=True)
class Moment:
    """When to kill.

    Attributes:
        unit: The piece of work during which it happens, e.g. `pretrain-frame`.
        kind: `time`, `part`, `checkpoint` or `step`.
        value: Seconds after the unit has begun, or the step whose record has been written.
        boundary: The last step of a stage, where the kill is meant for its end.
    """

    unit: str
    kind: str
    value: float = 0.0
    boundary: int | None = None


def moments(run: Path, rng: random.Random, round_number: int) -> list[Moment]:
    """The kills of one round, in the order in which a run comes to them.

    A unit that was killed has less left to do, so a round kills it in one way or two.
    """
    found = []
    for unit, seconds in unit_seconds(run).items():
        by_time = Moment(unit, "time", rng.uniform(0, seconds / 2))  # compiled code is kept
        if unit == "report":
            found.append(by_time)
        elif unit == "pretrain-frame":
            stages = json.loads((run / "pretrain/frame/curriculum.json").read_text())["stages"]
            lasts = [stage["last_step"] - 1 for stage in stages[:-1]]
            # A step's record is written while the next one runs.
            found += [
                Moment(unit, "step", last - 1 + (i + round_number) % 3, last)
                for i, last in enumerate(lasts)
            ]
        elif unit in FOLDERS:
            found.append(by_time if round_number % 2 else Moment(unit, "part"))
        else:
            found += [by_time, Moment(unit, "checkpoint")]
    return found


def unit_seconds(run: Path) -> dict[str, float]:
    """Units of a finished run in order, with the seconds that each took."""
    order = ("tokenize", "reference", "score", "partition", "pretrain", "evaluate", "report")
    markers = {path.stem: json.loads(path.read_text()) for path in run.glob("*.json")}
    names = sorted(markers, key=lambda n: (order.index(n.split("-")[0]), "strong" in n, n))
    return {name: markers[name]["seconds"] for name in names}


class Attempt:
    """One start of the pipeline, in its own process."""

    def __init__(self, config: Path, log: Path, cache: Path):
        self._log = log
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        }
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "frame_jax.main", "--config", str(config)],
                cwd=REPOSITORY,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._ends = time.monotonic() + ATTEMPT_SECONDS

    def unit(self) -> str:
        """The unit at work, from the program's own words; empty before the first."""
        words = [w for w in self._log.read_text("utf-8", "replace").split("\n") if " begins" in w]
        return words[-1].split(" begins")[0].strip() if words else ""

    def running(self) -> Iterator[None]:
        """Yields often until the program ends."""
        while self._process.poll() is None:
            if time.monotonic() > self._ends:
                self.kill()
                raise SystemExit(f"hangs in {self.unit() or 'its start'}: {self._log.read_text()}")
            yield
            time.sleep(POLL_SECONDS)

    def takes_signals(self) -> bool:
        """Whether SIGTERM would come to the program's own code, rather than end it."""
        status = Path(f"/proc/{self._process.pid}/status").read_text("utf-8")
        masks = [line.split()[1] for line in status.splitlines() if line[:6] in SIGNAL_MASKS]
        return any(int(mask, 16) >> (signal.SIGTERM - 1) & 1 for mask in masks)

    def terminate(self) -> None:
        self._process.terminate()
        for _ in self.running():
            pass

    def complaint(self) -> str:
        """What is wrong with how the program ended; empty for nothing."""
        code, log = self._process.returncode, self._log.read_text("utf-8", "replace")
        return "" if code in (0, 75) and "Traceback" not in log else f"exit code {code}:\n{log}"

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def finish(self) -> None:
        """Waits for the program to end well."""
        for _ in self.running():
            pass
        self.check()

    def check(self) -> None:
        if self._process.returncode != 0:
            raise SystemExit(
                f"exit code {self._process.returncode} after a kill:\n{self._log.read_text()}"
            )


def kill_at(attempt: Attempt, moment: Moment, run: Path, order: list[str]) -> str | None:
    """Kills at `moment`, or when the next unit begins if it does not come.

    Returns:
        The unit that was killed, with how; None if the program ended before.
    """
    begun = None
    for _ in attempt.running():
        unit = attempt.unit()
        if unit != moment.unit:
            if unit and order.index(unit) > order.index(moment.unit):
                attempt.kill()
                return f"{unit} begin"
            continue
        begun = begun or time.monotonic()
        if has_come(moment, run, time.monotonic() - begun):
            attempt.kill()
            return f"{unit} {what_was_hit(moment, run)}"
    attempt.check()
    return None


def has_come(moment: Moment, run: Path, seconds: float) -> bool:
    if moment.kind == "time":
        return seconds >= moment.value
    if moment.kind == "part":
        names = folder_of(moment.unit, run).rglob(".tmp-*")
        return any(p.suffix in (".parquet", ".arrayrecord") for p in names)
    folder = folder_of(moment.unit, run)
    if moment.kind == "checkpoint":
        return any(folder.glob("checkpoints/*orbax-checkpoint-tmp*"))
    return last_step(folder / "metrics.jsonl") >= moment.value


def what_was_hit(moment: Moment, run: Path) -> str:
    """What a kill has met, from what it left: it may come later than it was meant to."""
    left = [path.name for path in folder_of(moment.unit, run).rglob("*")]
    if moment.kind == "checkpoint":
        return "checkpoint" if any("orbax-checkpoint-tmp" in n for n in left) else "checkpoint-late"
    if moment.kind == "part":
        return "part" if any(n.startswith(".tmp-") for n in left) else "part-late"
    if moment.boundary is None:
        return moment.kind
    after = last_step(folder_of(moment.unit, run) / "metrics.jsonl") - moment.boundary
    return f"boundary{after:+d}" if abs(after) <= 1 else "boundary-missed"


def folder_of(unit: str, run: Path) -> Path:
    return run / FOLDERS.get(unit, unit.replace("-", "/", 1))


def last_step(metrics: Path) -> int:
    """The newest step in a metrics file; -1 if there is none."""
    lines = metrics.read_text("utf-8").split("\n")[:-1] if metrics.exists() else []
    return json.loads(lines[-1])["step"] if lines else -1


def mismatches(expected: Path, found: Path) -> list[str]:
    """What differs between a finished run and the undisturbed one."""
    different = [str(path.relative_to(found)) for path in found.rglob(".tmp-*")]
    for pattern in SAME_BYTES:
        for root, other in ((expected, found), (found, expected)):
            for path in filter(Path.is_file, root.glob(pattern)):
                twin = other / path.relative_to(root)
                if not twin.is_file() or path.read_bytes() != twin.read_bytes():
                    different.append(str(path.relative_to(root)))
    for name in TRAINED:
        if records(expected / name) != records(found / name):
            different.append(f"{name}/metrics.jsonl")
        different += [
            f"{name} step {step}" for step in weights_differ(expected / name, found / name)
        ]
    if not (found / "report/index.html").is_file():
        different.append("report/index.html")
    return sorted(set(different))


def records(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    return [{k: v for k, v in json.loads(x).items() if k not in TIMINGS} for x in lines]


def weights_differ(expected: Path, found: Path) -> list[int]:
    """Kept steps whose weights are not bit-identical."""
    import numpy as np
    from jax import tree

    from frame_jax.checkpoints import load_params
    from frame_jax.models.transformer import read_description

    decoder = read_description(expected)
    different = []
    for step in json.loads((expected / "curriculum.json").read_text())["kept_steps"]:
        left, right = (load_params(f / "checkpoints", decoder, step) for f in (expected, found))
        if not all(tree.leaves(tree.map(np.array_equal, left, right))):
            different.append(step)
    return different


def run_rounds(kills: int, rng: random.Random, root: Path) -> dict[str, Any]:
    """Undisturbed, then killed as often as asked for, in as many runs as that takes."""
    write_corpus(root / "corpus.jsonl")
    expected, cache, log = root / "undisturbed", root / "compiled", root / "log.txt"

    def start(run: Path) -> Attempt:
        return Attempt(write_config(root / "run.yaml", run, root / "corpus.jsonl"), log, cache)

    start(expected).finish()
    order = list(unit_seconds(expected))
    hits: list[str] = []
    different: list[str] = []
    restarts = rounds = 0
    while len(hits) < kills:
        run, rounds = root / f"killed-{rounds}", rounds + 1
        plan = moments(expected, rng, rounds)
        left = kills - len(hits)
        if left < len(plan):
            plan = [plan[i] for i in sorted(rng.sample(range(len(plan)), left))]
        for moment in plan:
            restarts += 1
            hit = kill_at(start(run), moment, run, order)
            if hit is None:
                break
            hits.append(hit)
            print(f"{len(hits)} of {kills}: killed in {hit}", file=sys.stderr, flush=True)
        restarts += 1
        start(run).finish()
        different += [f"round {rounds}: {name}" for name in mismatches(expected, run)]
        shutil.rmtree(run) if not different else None
    return {
        "kills": len(hits),
        "phases_hit": sorted({hit.split()[0] for hit in hits}),
        "moments": {
            kind: sum(h.split()[1] == kind for h in hits)
            for kind in sorted({h.split()[1] for h in hits})
        },
        "runs": rounds,
        "restarts": restarts - rounds,
        "mismatches": len(different),
        "different": different,
    }


def stop_after(attempt: Attempt, seconds: float, *, from_start: bool) -> str:
    """SIGTERM so many seconds after the first unit has begun, or after the program has started.

    Returns:
        The unit in which it came; empty if the program ended before.
    """
    begun = None
    for _ in attempt.running():
        if begun is None and (attempt.takes_signals() if from_start else attempt.unit()):
            begun = time.monotonic()
        if begun is not None and time.monotonic() - begun >= seconds:
            unit = attempt.unit() or "start"
            attempt.terminate()
            return unit
    return ""


def run_stops(every: float, cold: bool, root: Path) -> dict[str, Any]:
    """Undisturbed, then stopped every so many seconds of every unit, until it comes to its end."""
    write_corpus(root / "corpus.jsonl")
    expected, cache, run = root / "undisturbed", root / "compiled", root / "stopped"

    def start(run: Path, log: str) -> Attempt:
        if cold:
            shutil.rmtree(cache, ignore_errors=True)
        config = write_config(root / "run.yaml", run, root / "corpus.jsonl")
        return Attempt(config, root / log, cache)

    start(expected, "log.txt").finish()
    hits: list[str] = []
    wrong: list[str] = []
    before, number = -1, 0  # units that are complete, and signals since there were so many
    while True:
        complete = [p for p in run.glob("[!.]*.json") if json.loads(p.read_text())["complete"]]
        before, number = len(complete), number + 1 if before == len(complete) else 0
        attempt = start(run, f"log-{len(hits)}.txt")
        hit = stop_after(attempt, number * every, from_start=not complete)
        if complaint := attempt.complaint():
            wrong.append(f"{len(hits)}, in {hit} after {number * every:.3f} s: {complaint}")
        wrong += [f"{len(hits)}, in {hit}: {path}" for path in run.rglob("damaged")]
        if not hit or wrong:
            break
        hits.append(hit)
        print(f"{len(hits)}: stopped in {hit}", file=sys.stderr, flush=True)
    different = [] if wrong else mismatches(expected, run)
    return {
        "signals": len(hits),
        "moments": {unit: hits.count(unit) for unit in dict.fromkeys(hits)},
        "wrong": wrong,
        "mismatches": len(different),
        "different": different,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=None, help="Folder to work in and to keep.")
    parser.add_argument("--signals", action="store_true", help="SIGTERM, all through a run.")
    parser.add_argument("--every_ms", type=float, default=50, help="Between those signals.")
    parser.add_argument("--cold", action="store_true", help="Compile anew after each of them.")
    options = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    with tempfile.TemporaryDirectory() as scratch:
        root = options.keep or Path(scratch)
        root.mkdir(parents=True, exist_ok=True)
        if options.signals:
            result = run_stops(options.every_ms / 1000, options.cold, root)
        else:
            result = run_rounds(options.kills, random.Random(options.seed), root)
    print(json.dumps(result))
    return int(result["mismatches"] > 0 or bool(result.get("wrong")))


if __name__ == "__main__":
    sys.exit(main())
