"""Every command of the README and of docs/ is run, beside what a reader would have put there.

A command is run as it stands, in a folder where `configs`, `tools` and `docs` are the repository's,
after the replacements its entry in COMMANDS names: small settings added, capitals filled in. A
command without an entry fails the test, and so does an entry whose command is gone. Python runs
inside this process, which spares it the imports; the rest runs in a shell.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import runpy
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from frame_jax.config.curriculum import CurriculumConfig
from frame_jax.config.file import load
from frame_jax.curriculum.presets import expand_curriculum
from frame_jax.curriculum.stages import resolve_curriculum
from tests.integration.small_run import settings, write_corpus
from tests.programs import REPOSITORY, free_port

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
PYTHON = re.compile(r"(?:\.venv/bin/)?python (?=-m |tools/|docs/examples/)")


@dataclasses.dataclass(frozen=True)
class Entry:
    """How a command is run, and what shows that it did its work.

    Attributes:
        replace: Texts of the command and what stands for them here.
        extra: What is added at its end.
        leaves: A glob of what it leaves behind; empty for nothing.
        shows: Text that it prints.
        needs: Modules it needs; the command is skipped where one is not installed.
        program: Runs as a program of its own.
    """

    replace: tuple[tuple[str, str], ...] = ()
    extra: str = ""
    leaves: str = ""
    shows: str = ""
    needs: tuple[str, ...] = ()
    program: bool = False


MAIN = ".venv/bin/python -m frame_jax.main --config my_run.yaml"
ORDER = ".venv/bin/python -m frame_jax.export_order runs/mine --trial frame"
COMPILE = "tools/compile_ahead.py --config configs/frame_3b.yaml --topology v5p:4x4x4"
LAYERS = "--pretrain.model.num_layers 2"  # of a program that takes a minute to compile
COMPILED = Entry(extra=LAYERS, shows="GiB a device: fits", needs=("libtpu",), program=True)

COMMANDS = {
    # README.md
    "make quickstart": Entry(
        (("make", "make -n -C ."),), shows="frame_jax.main --config configs/quickstart.yaml"
    ),
    "make test": Entry((("make", "make -n -C ."),), shows="pytest"),
    "make check": Entry((("make", "make -n -C ."),), shows="mypy frame_jax"),
    "make docs": Entry((("make", "make -n -C ."),), shows="mkdocs build"),
    MAIN: Entry(leaves="runs/mine/report/index.html", shows="Held-out loss after pretraining"),
    f"{MAIN} --plan --tokens_per_second 50000": Entry(shows="learning rate"),
    ".venv/bin/python -m frame_jax.inspect runs/mine --quadrant Q2 --domain prose -n 5": Entry(
        shows="Q2"
    ),
    ".venv/bin/python -m frame_jax.main --config configs/score_only.yaml --until partition "
    '--corpus.sources \'[{"kind": "jsonl", "path": "corpus/*.jsonl.zst"}]\' '
    "--tokenizer.path small/tokenizer.json "
    "--reference.weak.checkpoint small --reference.strong.checkpoint large": Entry(
        extra="--scoring.context 64 --scoring.overlap 8 --partition.rows.sequence_length 64",
        leaves="runs/scores/quadrants/assignment.parquet",
    ),
    ".venv/bin/python -m frame_jax.export runs/mine --trial frame --out my_model": Entry(
        leaves="my_model/model.safetensors", shows="my_model"
    ),
    ".venv/bin/python -m frame_jax.export_order runs/mine --trial frame --to levanter "
    "--out for_levanter --shards jsonl": Entry(leaves="for_levanter/data/Q1/*.jsonl*"),
    "python -m frame_jax.main --config configs/frame_3b.yaml --parallel.distributed true "
    "--run_directory SHARED_FOLDER/frame-3b": Entry(
        (("configs/frame_3b.yaml", "small.yaml"), ("SHARED_FOLDER", "shared")),
        extra="--until tokenize --parallel.coordinator_address localhost:PORT "
        "--parallel.num_processes 1 --parallel.process_id 0",
        leaves="shared/frame-3b/tokens/part-*.parquet",
        program=True,
    ),
    f"python {COMPILE}": COMPILED,
    # Forty kills take many minutes; tests/robustness has shorter ones.
    ".venv/bin/python tools/crash_test.py --kills 40": Entry(
        (("--kills 40", "--help"),), shows="--kills"
    ),
    ".venv/bin/python -m frame_jax.main --config configs/study_cpu.yaml": Entry(
        extra="--plan", shows="pretrain frame_wide-seed2"
    ),
    ".venv/bin/python -m frame_jax.main --config configs/study_sizes.yaml": Entry(
        extra="--plan", shows="pretrain pd_descending-seed2"
    ),
    ".venv/bin/python -m frame_jax.compare docs/evidence/sizes.json --out runs/sizes": Entry(
        (("runs/sizes", "runs/ours"),), leaves="runs/ours/effect-by-score.png", shows="bigram"
    ),
    ".venv/bin/python tools/document_effects.py runs/study_sizes frame": Entry(
        (("runs/study_sizes", "runs/mine"),), shows="without it"
    ),
    ".venv/bin/python tools/reference_pairs.py runs/tiny_20 runs/tiny_80 runs/small_20 "
    "runs/middle_20": Entry(
        (("runs/tiny_20 runs/tiny_80 runs/small_20 runs/middle_20", "--help"),), shows="weak"
    ),
    ".venv/bin/python -m frame_jax.main --config configs/study_continue.yaml": Entry(
        extra="--plan", shows="pretrain reverse-seed2"
    ),
    **{
        f".venv/bin/python -m frame_jax.main --config configs/study_decoders.yaml{options}": Entry(
            extra="--plan", shows="pretrain frame-seed2"
        )
        for options in (
            "",
            " --run_directory runs/study_decoders/experts "
            """--pretrain.model.layers '["attention+experts"]'""",
            " --run_directory runs/study_decoders/mamba2 "
            """--pretrain.model.layers '["mamba2+none"]' --pretrain.model.num_layers 8""",
        )
    },
    **{
        f"cp -r runs/study_decoders/dense runs/study_decoders/{kind}": Entry(
            (("runs/study_decoders/dense", "runs/mine"), ("runs/study_decoders/", "copied_")),
            leaves=f"copied_{kind}/config.yaml",
        )
        for kind in ("experts", "mamba2")
    },
    # docs/performance.md: minutes, and PyTorch.
    ".venv/bin/python tools/benchmark_tokenize.py --peers_python .venv/peers/bin/python": Entry(
        extra="--help", shows="--megabytes"
    ),
    ".venv/bin/python tools/benchmark_train.py": Entry(extra="--help", shows="quickstart"),
    ".venv/bin/python tools/benchmark_train.py --dtypes float32": Entry(
        (("--dtypes float32", "--help"),), shows="--dtypes"
    ),
    ".venv/bin/python tools/benchmark_scoring.py --dtype float32": Entry(
        (("--dtype float32", "--help"),), shows="--dtype", needs=("torch", "transformers")
    ),
    # docs/decoders.md: minutes, and PyTorch.
    ".venv/bin/python tools/benchmark_train.py --shapes experts mamba2": Entry(
        (("--shapes experts mamba2", "--help"),), shows="--peers"
    ),
    # docs/exports.md; tests/tools checks what it does without a package index.
    ".venv/bin/python tools/check_exports.py runs/mine --trial frame --environments clients": Entry(
        (("runs/mine --trial frame --environments clients", "--help"),), shows="--trial"
    ),
    # docs/metrics.md
    "tensorboard --logdir runs/quickstart": Entry(
        (("--logdir runs/quickstart", "--inspect --logdir runs/mine"),),
        shows="pretrain.Q3/loss",
        needs=("tensorboard",),
    ),
    # docs/order.md
    f"{ORDER} --to manifest": Entry(leaves="runs/mine/manifest/frame/manifest.json"),
    "python -m frame_jax.export_order SHARED_FOLDER/frame-3b --trial frame --to manifest "
    "--distributed": Entry(
        (("SHARED_FOLDER/frame-3b", "runs/mine"),),
        extra="--out shared_manifest --coordinator_address localhost:PORT --num_processes 1 "
        "--process_id 0",
        leaves="shared_manifest/manifest.json",
        program=True,
    ),
    ".venv/bin/python -m frame_jax.verify_order runs/mine": Entry(
        shows="random: verified: steps 0 to 7 of 8 compared"
    ),
    f"{ORDER} --to parquet --out by_document": Entry(leaves="by_document/order.parquet"),
    ".venv/bin/python tools/benchmark_manifest.py --rows 10000000": Entry(
        (("10000000", "2000"),), shows='"peak_rss_gb"', program=True
    ),
    # docs/pod.md
    ".venv/bin/python -m frame_jax.main --config configs/frame_3b.yaml --plan "
    "--corpus_tokens 1e12": Entry(shows="as given by --corpus_tokens"),
    f".venv/bin/python {COMPILE}": COMPILED,
    f".venv/bin/python {COMPILE.replace('v5p:4x4x4', 'h100:8x8')}": dataclasses.replace(
        COMPILED, needs=("jax_cuda13_plugin",)
    ),
    # Minutes; tests/tools has the checks.
    ".venv/bin/python tools/compile_table.py --results runs/compiled.jsonl "
    "--docs docs/pod.md": Entry(extra="--help", shows="--results"),
    ".venv/bin/python tools/check_device.py": Entry(extra="--help", shows="--only"),
    "kubectl apply -f docs/launch/gke_tpu.yaml": Entry(shows="learning rate"),
    "sbatch docs/launch/slurm_gpu.sh": Entry(leaves="slurm_gpu/frame-3b/tokens/part-*.parquet"),
    # docs/report.md
    f"{MAIN} --redo report": Entry(shows="report: runs/mine/report/index.html"),
    ".venv/bin/python -m frame_jax.compare runs/small runs/large --out runs/sizes": Entry(
        (("runs/small runs/large", "runs/mine"),), leaves="runs/sizes/index.html", shows="frame"
    ),
    ".venv/bin/python -m frame_jax.compare runs/sizes/compare.json runs/larger "
    "--out runs/more_sizes": Entry(
        (("runs/sizes/compare.json runs/larger", "runs/mine"),),
        leaves="runs/more_sizes/compare.json",
        shows="page: runs/more_sizes",
    ),
    # docs/mixtures.md
    f"{MAIN} --plan": Entry(shows="learning rate"),
    ".venv/bin/python tools/benchmark_partition.py --documents 3000000 --mixture": Entry(
        (("--documents 3000000 --mixture", "--help"),), shows="--mixture"
    ),
    # docs/scoring.md
    ".venv/bin/python -m frame_jax.export_scores runs/mine --out scores.parquet": Entry(
        leaves="scores.parquet", shows="scores: scores.parquet"
    ),
    # docs/importing.md
    f"{MAIN} --until tokenize": Entry(shows="nothing to do"),
    ".venv/bin/python docs/examples/simple_scores.py my_run.yaml simple.parquet": Entry(
        leaves="simple.parquet"
    ),
    # docs/workers.md
    "sbatch docs/launch/slurm_cpu.sh": Entry(leaves="slurm_cpu/frame-3b/tokens/part-*.parquet"),
    "kubectl apply -f docs/launch/kuberay_job.yaml": Entry(shows="tokenize"),
    "python -m frame_jax.main --config configs/frame_3b.yaml --until tokenize "
    "--workers.engine ray --workers.ray_address auto "
    "--run_directory SHARED_FOLDER/frame-3b": Entry(
        (("configs/frame_3b.yaml", "small.yaml"), ("SHARED_FOLDER", "by_ray"), ("auto", "local")),
        leaves="by_ray/frame-3b/tokens/part-*.parquet",
        needs=("ray",),
        program=True,
    ),
    # docs/architecture.md
    ".venv/bin/python docs/examples/one_document.py": Entry(shows="gradient of embedding"),
    # docs/scale.md
    ".venv/bin/python tools/benchmark_scale.py": Entry(
        extra="--only start step select --scale 0.01 --turns 1", shows='"name": "select"'
    ),
    ".venv/bin/python tools/benchmark_partition.py --documents 1000000 10000000 100000000": Entry(
        (("--documents 1000000 10000000 100000000", "--help"),), shows="--documents"
    ),
    # docs/tasks.md
    f"{MAIN} --redo evaluate": Entry(shows="Held-out loss after pretraining"),
    ".venv/bin/python -m frame_jax.evaluation.lm_eval_adapter run "
    "--config configs/tasks_frame_paper.yaml "
    "--model_args run_directory=runs/mine,trial=frame": Entry(
        extra="--tasks local_choice --include_path tasks",
        leaves="runs/lm_eval/**/results*.json",
        needs=("lm_eval",),
        program=True,
    ),
}

# What a cluster has, made to do here what it would do there.
KUBECTL = """
import subprocess, sys, yaml
(path,) = sys.argv[3:]
spec = yaml.safe_load(open(path))["spec"]
if "entrypoint" in spec:
    command, cluster = spec["entrypoint"].split(), spec["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    nodes = [group["template"]["spec"] for group in (cluster["headGroupSpec"], workers)]
    first, second = [node["containers"][0] for node in nodes]
    for key in ("image", "workingDir", "volumeMounts"):  # what nodes share
        assert first[key] == second[key]
    assert nodes[0]["volumes"] == nodes[1]["volumes"]
else:
    spec = spec["replicatedJobs"][0]["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert spec["parallelism"] * container["resources"]["limits"]["google.com/tpu"] == 4 * 4 * 4
    command = container["command"]
sys.exit(subprocess.call([*command, "--plan"]))
"""
SRUN = """
import os, subprocess, sys
arguments = [{"configs/frame_3b.yaml": "small.yaml"}.get(a, a) for a in sys.argv[1:]]
arguments = [a.replace("SHARED_FOLDER", os.environ["SCRIPT"]) for a in arguments]
slurm = {"SLURM_JOB_ID": PORT, "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "1",
         "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "1"}
sys.exit(subprocess.call([*arguments, "--until", "tokenize"], env={**os.environ, **slurm}))
"""
SBATCH = """
import os, pathlib, subprocess, sys
script = {"SCRIPT": pathlib.Path(sys.argv[1]).stem}
sys.exit(subprocess.call(["bash", sys.argv[1]], env={**os.environ, **script}))
"""


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text("utf-8"), re.M | re.S)


def documented() -> list[str]:
    """Every command, on one line, in the order of the pages."""
    lines = (
        line
        for page in PAGES
        for block in blocks(page, "sh")
        for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines()
    )
    return list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))


def test_every_command_is_known_and_none_hides_in_the_text() -> None:
    assert sorted(documented()) == sorted(COMMANDS)
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
        inline = re.findall(r"`([^`]+)`", text)
        commands = [
            code for code in inline if re.search(r"\b(python -m|python tools/|make) ", code)
        ]
        assert set(commands) <= set(COMMANDS), page


def test_every_link_leads_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_curriculum_of_the_docs_has_a_schedule(tmp_path: Path) -> None:
    """And an arm's learning rate takes from the others what docs/curricula.md says it takes."""
    rows = dict.fromkeys(("Q1", "Q2", "Q3", "Q4"), 1000)
    for block in blocks(REPOSITORY / "docs" / "curricula.md", "yaml"):
        path = tmp_path / "run.yaml"
        path.write_text(
            f"run_directory: x\ncorpus: {{sources: [{{kind: text, path: x}}]}}\n{block}"
        )
        config = load(path)
        for curriculum in config.curricula.values():
            expanded = expand_curriculum(curriculum, config.partition.axes)
            schedule = resolve_curriculum(expanded, rows, batch_size=8, sequence_length=64)
            assert schedule.rows == 4000
    rate = config.pretrain.training.lr_schedule
    assert config.training_of_arm("frame").lr_schedule == rate
    own = config.training_of_arm("frame_constant").lr_schedule
    assert own == dataclasses.replace(rate, kind="constant") != rate


def test_the_docs_spell_out_frame(tmp_path: Path) -> None:
    _, block, *_ = blocks(REPOSITORY / "docs" / "curricula.md", "yaml")
    path = tmp_path / "run.yaml"
    path.write_text(f"run_directory: x\ncorpus: {{sources: [{{kind: text, path: x}}]}}\n{block}")
    config = load(path)
    axes = config.partition.axes
    preset = expand_curriculum(CurriculumConfig(preset="frame"), axes)
    assert expand_curriculum(config.curricula["mine"], axes) == preset


def test_every_example_of_scores_made_elsewhere_is_a_config(tmp_path: Path) -> None:
    for block in blocks(REPOSITORY / "docs" / "importing.md", "yaml"):
        path = tmp_path / "run.yaml"
        given = {"run_directory": "x", "corpus": {"sources": [{"kind": "text", "path": "x"}]}}
        path.write_text(yaml.safe_dump(given | yaml.safe_load(block)))
        config = load(path)
        assert config.scoring.table is not None
        for curriculum in config.curricula.values():
            expanded = expand_curriculum(curriculum, config.partition.axes)
            rows = dict.fromkeys(config.partition.axes.quadrants, 1000)
            schedule = resolve_curriculum(expanded, rows, batch_size=8, sequence_length=64)
            assert schedule.rows == 1000 * len(rows)


def test_the_example_of_a_continued_model_is_a_config(tmp_path: Path) -> None:
    (block,) = blocks(REPOSITORY / "docs" / "continuing.md", "yaml")
    (tmp_path / "run.yaml").write_text(block)
    config = load(tmp_path / "run.yaml")
    initial = config.pretrain.initial
    assert initial is not None and initial.checkpoint == config.reference.strong.checkpoint


def test_every_mixture_of_the_docs_is_a_config(tmp_path: Path) -> None:
    for block in blocks(REPOSITORY / "docs" / "mixtures.md", "yaml"):
        path = tmp_path / "run.yaml"
        given = {"run_directory": "x", "corpus": {"sources": [{"kind": "text", "path": "x"}]}}
        path.write_text(yaml.safe_dump(given) + block)
        mixture = load(path).partition.mixture
        assert mixture is not None and mixture.tokens in (None, 20_000_000_000)


def slurm_job() -> str:
    """A job whose coordinator, by JAX's rule, listens on a free port."""
    with socket.socket() as free:
        for number in range(4096):
            try:
                free.bind(("localhost", 61440 + number))
                return str(number)
            except OSError:
                continue
    raise RuntimeError("no port is free")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A reader's folder: the repository's files, a corpus, a run of their own, two checkpoints."""
    root = tmp_path_factory.mktemp("reader")
    for name in ("configs", "tools", "docs", "Makefile", "pyproject.toml", "constraints.txt"):
        (root / name).symlink_to(REPOSITORY / name)
    write_corpus(root / "corpus.jsonl")
    small = settings(root)
    (given,) = [b for b in blocks(PAGES[0], "yaml") if b.startswith("# my_run.yaml")]
    mine = yaml.safe_load(given.replace("/data/*.jsonl.zst", "corpus.jsonl"))
    for model in (small["reference"]["weak"], small["reference"]["strong"], small["pretrain"]):
        model["training"] |= {"steps": 8, "milestones": 1}
    for key in ("reference", "scoring", "partition", "pretrain", "tokenizer"):
        mine[key] = small[key]
    mine["corpus"] = small["corpus"] | mine["corpus"]
    (tasks,) = blocks(REPOSITORY / "docs" / "tasks.md", "yaml")
    (root / "my_run.yaml").write_text(yaml.safe_dump(mine | yaml.safe_load(tasks)), "utf-8")
    (root / "small.yaml").write_text(yaml.safe_dump(small), "utf-8")
    write_tasks(root)
    write_programs(root)
    (root / "corpus").mkdir()
    compress(root / "corpus.jsonl", root / "corpus" / "all.jsonl.zst")
    with pytest.MonkeyPatch.context() as patch:
        enter(root, patch)
        assert run_python(shlex.split(MAIN)[1:]) == 0
        for name, arm in (("small", "random"), ("large", "frame")):
            command = f"-m frame_jax.export runs/mine --trial {arm} --out {name}"
            assert run_python(command.split()) == 0
    (root / "data").mkdir()  # of configs/frame_3b.yaml
    shutil.copy(root / "runs/mine/quadrants/assignment.parquet", root / "data/part.parquet")
    yield root


def enter(root: Path, patch: pytest.MonkeyPatch) -> None:
    """To the reader's folder, in an environment in which no program starts itself again."""
    patch.chdir(root)
    patch.setenv("GLIBC_TUNABLES", os.environ.get("GLIBC_TUNABLES", ""))


def compress(path: Path, out: Path) -> None:
    with pa.output_stream(str(out), compression="zstd") as file:
        file.write(path.read_bytes())


def write_tasks(root: Path) -> None:
    """The files that docs/tasks.md names, and a task of the harness."""
    items = [
        json.dumps({"question": f"{i} and {i}", "choices": [str(2 * i), "no"], "answer": 0})
        for i in range(6)
    ]
    for name in ("mmlu.jsonl", "mmlu_dev.jsonl"):
        (root / name).write_text("\n".join(items * 2), "utf-8")
    compress(root / "mmlu.jsonl", root / "piqa.jsonl.zst")
    (root / "tasks").mkdir()
    task = {
        "task": "local_choice",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(root / "mmlu.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "question",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
    }
    (root / "tasks" / "local_choice.yaml").write_text(yaml.safe_dump(task), "utf-8")


def write_programs(root: Path) -> None:
    """`python` as the commands name it, and the programs of a cluster."""
    (root / "bin").mkdir()
    (root / ".venv/bin").mkdir(parents=True)
    for path in (root / "bin/python", root / ".venv/bin/python"):
        path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
        path.chmod(0o755)
    for name, source in (("kubectl", KUBECTL), ("srun", SRUN), ("sbatch", SBATCH)):
        path = root / "bin" / name
        path.write_text(f"#!{sys.executable}\n{source.replace('PORT', repr(slurm_job()))}")
        path.chmod(0o755)


def environment(root: Path) -> dict[str, str]:
    search = f"{root / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}
    return {**os.environ, **offline, "PATH": search, "PYTHONPATH": str(REPOSITORY)}


def run_python(arguments: list[str]) -> int:
    """`python ARGUMENTS` inside this process; returns the exit code."""
    module = arguments[1] if arguments[0] == "-m" else None
    before, sys.argv = sys.argv, arguments[1:] if module else arguments
    try:
        if module:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        sys.argv = before
    return 0


@pytest.mark.slow
@pytest.mark.parametrize("command", documented())
def test_a_documented_command_works(
    command: str, place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = COMMANDS[command]
    for module in entry.needs:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    enter(place, monkeypatch)
    if entry.leaves and not entry.leaves.startswith("runs/mine"):
        assert not list(place.glob(entry.leaves))
    capfd.readouterr()
    line = command
    for old, new in entry.replace:
        assert old in line
        line = line.replace(old, new)
    line = f"{line} {entry.extra}".replace("PORT", str(free_port())).strip()
    if PYTHON.match(line) and not entry.program:
        code = run_python(shlex.split(line)[1:])
        shown = "".join(capfd.readouterr())
    else:
        done = subprocess.run(
            ["bash", "-c", line], env=environment(place), capture_output=True, text=True
        )
        code, shown = done.returncode, done.stdout + done.stderr
    assert code == 0, shown[-3000:]
    assert entry.shows in shown, shown[-3000:]
    assert not entry.leaves or list(place.glob(entry.leaves)), shown[-3000:]
