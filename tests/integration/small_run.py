"""A whole run in seconds: a config and a corpus of short real documents."""

import json
from pathlib import Path
from pydoc_data.topics import topics
from sysconfig import get_path

import yaml

DOCUMENTS, CHARACTERS = 300, 700  # of each domain


def write_corpus(path: Path) -> Path:
    """Pieces of the interpreter's own manual (prose) and of its standard library (code)."""
    modules = ("argparse", "ast", "difflib", "doctest")
    prose = "\n".join(topics[name] for name in sorted(topics))
    code = "\n".join(Path(get_path("stdlib"), f"{m}.py").read_text("utf-8") for m in modules)
    with path.open("w", encoding="utf-8") as file:
        for domain, language, text in (("prose", "en", prose), ("code", "code", code)):
            for index in range(DOCUMENTS):
                record = {
                    "id": f"{domain}-{index}",
                    "text": text[index * CHARACTERS : (index + 1) * CHARACTERS],
                    "domain": domain,
                    "language": language,
                    "source": f"{domain}-source",
                }
                file.write(json.dumps(record) + "\n")
    return path


def settings(root: Path) -> dict:
    model = {"hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "num_kv_heads": 1}
    rows = {"sequence_length": 64, "parts": 2}
    training = {"batch_size": 16, "milestones": 2, "lr_schedule": {"peak": 0.01}}
    reference = training | {"milestones": 0}
    return {
        "run_directory": str(root / "run"),
        "corpus": {
            "sources": [{"kind": "jsonl", "path": str(root / "corpus.jsonl")}],
            "parts": 3,
            "held_out_fraction": 0.1,
            "reference_fraction": 0.3,
        },
        "tokenizer": {"vocab_size": 512},
        "reference": {
            "rows": rows,
            "weak": {"model": {**model, "num_layers": 1}, "training": reference},
            "strong": {"model": {**model, "num_layers": 2}, "training": reference | {"steps": 60}},
        },
        "scoring": {"context": 64, "per_device_batch_size": 8},
        "partition": {"rows": rows},
        "pretrain": {"model": {**model, "num_layers": 1}, "training": training},
    }


def write_config(root: Path, **changes: object) -> Path:
    """`root/run.yaml` for a corpus at `root/corpus.jsonl`, with top-level keys replaced."""
    path = root / "run.yaml"
    path.write_text(yaml.safe_dump(settings(root) | changes), "utf-8")
    return path
