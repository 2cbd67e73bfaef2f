"""Every config at its targets in; the table of `docs/pod.md` out.

    python tools/compile_table.py --results runs/compiled.jsonl --docs docs/pod.md

Runs `tools/compile_ahead.py` on each program of `PROGRAMS`, two at a time, each in a process of its
own: a compiler that dies takes one row along. What a program came to is one line of the results
file, and is not compiled again; after a change, start with a new file. Without `--docs` the table
is printed. The exit code is 1 if a program could not be compiled; one that does not fit is a row.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
START, END = "<!-- tools/compile_table.py writes this table -->", "<!-- end of the table -->"
HEADER = (
    "config", "step", "topology", "settings", "fits", "GiB a device", "seconds a step", "MFU",
    "GiB received", "TB of memory",
)  # fmt: skip
AT_A_TIME = 2
LONGEST = 3600  # seconds for a program
REMAT, ACCUMULATION = "pretrain.training.remat", "pretrain.training.gradient_accumulation_steps"
LOSS_CHUNK = "pretrain.training.loss_chunk"
SLIM = {REMAT: "minimal", ACCUMULATION: 4}


@dataclass(frozen=True)
class Program:
    """One row of the table.

    Attributes:
        config: Name of a file in `configs/`.
        topology: As `compile_ahead.py` takes it.
        step: `train` or `score`.
        settings: What differs from the file, by dotted key.
        estimate: Whether seconds are asked for on TPUs, which takes several more compiles.
    """

    config: str
    topology: str
    step: str = "train"
    settings: dict[str, Any] = field(default_factory=dict)
    estimate: bool = False

    def command(self) -> list[str]:
        """What compiles it."""
        overrides = [x for key, value in self.settings.items() for x in (f"--{key}", str(value))]
        return [
            sys.executable,
            str(ROOT / "tools" / "compile_ahead.py"),
            *("--config", str(ROOT / "configs" / f"{self.config}.yaml")),
            *("--topology", self.topology, "--step", self.step, "--json"),
            *([] if self.estimate else ["--no_estimate"]),
            *overrides,
        ]

    def cells(self) -> list[str]:
        """The row's first cells, which say what it is."""
        settings = [f"`{key.split('.')[-1]}: {value}`" for key, value in self.settings.items()]
        return [self.config, self.step, self.topology, ", ".join(settings)]


# The targets that the configs name, then other machines; those that take longest first.
PROGRAMS = [
    Program("frame_hybrid", "v5p:4x4x4", estimate=True),
    Program("frame_moe", "v5p:4x4x4", estimate=True),
    Program("frame_3b", "v5p:4x4x4", estimate=True),
    Program("frame_1b", "v5p:4x4x4", estimate=True),
    Program("frame_hybrid", "v6e:8x8"),
    Program("frame_moe", "v6e:8x8", settings={REMAT: "minimal"}),
    Program("frame_3b", "v6e:16x16"),
    Program("frame_3b", "v5e:16x16", settings={REMAT: "minimal", LOSS_CHUNK: 1024}),
    Program("frame_3b", "tpu7x:4x4x4"),
    Program("frame_1b", "v5e:4x4", settings={REMAT: "minimal", ACCUMULATION: 8}),
    Program("study_pod", "v5p:4x4x4"),
    Program("frame_1b", "h100:8", settings=SLIM),
    Program("frame_1b", "a100:8", settings=SLIM),
    Program("frame_3b", "h100:8x8"),
    Program("frame_3b", "h100:8x8", settings={REMAT: "minimal"}),
    Program("frame_3b", "a100:8x8"),
    Program("frame_3b", "b200:8x8"),
    Program("frame_moe", "h100:8x8"),
    Program("frame_moe", "h200:8x8"),
    Program("frame_moe", "b200:8x8"),
    Program("frame_hybrid", "h100:8x8"),
    Program("frame_hybrid", "h200:8x8"),
    Program("frame_hybrid", "b200:8x8"),
    Program("study_gpu", "h100:1"),
    Program("continue_gpu", "h100:1"),
    Program("frame_1b", "v5p:4x4x4", step="score"),
    Program("frame_1b", "h100:8", step="score"),
    Program("frame_3b", "v5p:4x4x4", step="score"),
    Program("frame_3b", "h100:8x8", step="score"),
    Program("frame_moe", "v5p:4x4x4", step="score"),
    Program("frame_moe", "h100:8x8", step="score"),
    Program("frame_hybrid", "v5p:4x4x4", step="score"),
    Program("frame_hybrid", "h100:8x8", step="score"),
    Program("study_pod", "v5p:4x4x4", step="score"),
    Program("study_gpu", "h100:1", step="score"),
    Program("continue_gpu", "h100:1", step="score"),
]


def compile_one(program: Program) -> dict[str, Any]:
    """What `compile_ahead.py` says of a program, or the last line of its complaint as `error`."""
    start = time.monotonic()
    try:
        done = subprocess.run(program.command(), capture_output=True, text=True, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        return {"error": f"took longer than {LONGEST} seconds"}
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"error": lines[-1] if lines else f"ended with exit code {done.returncode}"}
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer | {"compile_seconds": round(time.monotonic() - start, 1)}


def read_results(path: Path) -> list[tuple[Program, dict[str, Any]]]:
    """The programs of a results file and what they came to; none where there is no file."""
    lines = path.read_text().splitlines() if path.exists() else []
    found = (json.loads(line) for line in lines)
    return [(Program(**line["program"]), line["answer"]) for line in found]


def compile_missing(programs: list[Program], path: Path) -> bool:
    """Compiles what the results file lacks and adds it there; whether all went well."""
    done, went_well = [program for program, _ in read_results(path)], True
    path.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(AT_A_TIME) as pool, path.open("a") as file:
        missing = [program for program in programs if program not in done]
        running = {pool.submit(compile_one, program): program for program in missing}
        for number, future in enumerate(as_completed(running), 1):
            program, answer = running[future], future.result()
            said = answer.get("error", f"{answer.get('compile_seconds')} s")
            print(f"{number}/{len(missing)} {' '.join(program.cells())}: {said}", file=sys.stderr)
            if "error" in answer:
                went_well = False
                continue
            file.write(json.dumps({"program": asdict(program), "answer": answer}) + "\n")
            file.flush()
    return went_well


def row(program: Program, answer: dict[str, Any] | None) -> list[str]:
    """The cells of a row; without an answer it is not compiled yet."""
    if answer is None:
        return [*program.cells(), "not compiled yet", "", "", "", "", ""]
    used, moved = answer["hbm_gib_per_device"], answer.get("collectives", {}).values()
    fits = f"yes, {answer['spare_fraction']:.0%} to spare" if answer["fits"] else "no"
    seconds = mfu = ""
    if "estimated_step_seconds" in answer:
        seconds = f"{answer['estimated_step_seconds']:.3g}"
        mfu = f"{answer['estimated_mfu']:.0%}"
    elif "lower_bound_step_seconds" in answer:
        seconds = f"at least {answer['lower_bound_step_seconds']:.3g}"
        mfu = f"at most {answer['upper_bound_mfu']:.0%}"
    memory = answer.get("memory_bytes_per_step_per_device")
    return [
        *program.cells(),
        fits,
        f"{'?' if used is None else f'{used:.1f}'} of {answer['hbm_gib_available']:.1f}",
        seconds,
        mfu,
        f"{sum(x['gib_received_per_device'] for x in moved):.1f}"
        if "collectives" in answer
        else "",
        f"{memory / 1e12:.2f}" if memory else "",
    ]


def markdown(programs: list[Program], results: list[tuple[Program, dict[str, Any]]]) -> str:
    """The table of the programs, and with which versions they were compiled."""

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    def answer_of(program: Program) -> dict[str, Any] | None:
        return next((answer for found, answer in reversed(results) if found == program), None)

    answers = [answer_of(program) for program in programs]
    rows = [line(row(*pair)) for pair in zip(programs, answers, strict=True)]
    sets = [answer["versions"] for answer in answers if answer and "versions" in answer]
    packages: dict[str, set[str]] = {}
    for name, version in (pair for found in sets for pair in found.items()):
        packages.setdefault(name, set()).add(version)
    said = ", ".join(f"{name} {' and '.join(sorted(x))}" for name, x in packages.items())
    end = ["", f"Compiled with {said}."] if said else []
    return "\n".join([line(HEADER), "|" + "---|" * len(HEADER), *rows, *end])


def with_table(page: str, table: str) -> str:
    """A page with the table between its two marks."""
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    if not after:
        raise SystemExit(f"error: the page has no lines {START} and {END}")
    return f"{before}{START}\n\n{table}\n\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, required=True, help="file of JSON lines")
    parser.add_argument("--docs", type=Path, help="a page to write the table into")
    arguments = parser.parse_args()
    went_well = compile_missing(PROGRAMS, arguments.results)
    table = markdown(PROGRAMS, read_results(arguments.results))
    if arguments.docs:
        arguments.docs.write_text(with_table(arguments.docs.read_text(), table))
    else:
        print(table)
    sys.exit(not went_well)


if __name__ == "__main__":
    main()
