"""Small corpora on disk and the settings that read them."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from frame_jax.config.corpus import CorpusConfig, SourceConfig, TokenizerConfig
from frame_jax.config.run import RunConfig

SENTENCE = "the loss of a model falls as data order changes 数据 的 顺序 def return x = 1"
WORDS = SENTENCE.split()


@pytest.fixture
def records() -> list[dict[str, Any]]:
    """120 documents of English, Chinese and code words, with ids that are not in order."""
    return [
        {
            "id": f"doc-{i * 7919 % 1000:03d}-{i}",
            "text": " ".join(WORDS[(i * k + k) % len(WORDS)] for k in range(5 + i % 17)) + f"\n{i}",
            "domain": ("code", "prose")[i % 2],
            "language": ("en", "zh")[i % 3 == 0],
        }
        for i in range(120)
    ]


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, lines: Iterable[Any]) -> Path:
        """Dicts are written as JSON, bytes as they are."""
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            b"\n".join(x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines) + b"\n"
        )
        return path

    return write


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., RunConfig]:
    def make(
        *sources: SourceConfig,
        run: str = "run",
        tokenizer: TokenizerConfig | None = None,
        seed: int = 0,
        **corpus: Any,
    ) -> RunConfig:
        return RunConfig(
            run_directory=str(tmp_path / run),
            corpus=CorpusConfig(sources=list(sources), **corpus),
            tokenizer=tokenizer or TokenizerConfig(vocab_size=300),
            seed=seed,
        )

    return make
