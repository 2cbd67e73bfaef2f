"""The sentences of the report that do not depend on a run: what `notes.toml` beside this holds."""

import tomllib
from pathlib import Path

SENTENCES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))


def __getattr__(name: str) -> str:
    """A sentence by its name, as `notes.LOSS`."""
    if name not in SENTENCES:
        raise AttributeError(f"notes.toml has no sentence {name!r}")
    return SENTENCES[name]
