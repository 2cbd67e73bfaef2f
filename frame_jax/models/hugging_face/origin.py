"""What the export of a continued model takes from the checkpoint that it was continued from.

That is config.json, the tokenizer's files, generation settings and chat template. Training copies
them, so that the checkpoint may go.
"""

import shutil
from pathlib import Path

from frame_jax.models.hugging_face.config import family_of
from frame_jax.models.hugging_face.tensors import Layout
from frame_jax.models.hugging_face.weights import layout_in, read_object
from frame_jax.models.transformer import Decoder
from frame_jax.run.directory import new_folder, read_json, write_json

FOLDER = "origin"  # in that of a trial
LAYOUT = "layout.json"  # in which of its family's ways its tensors are stored
FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "tokenizer.model", "spiece.model"),
    *("generation_config.json", "chat_template.jinja", "chat_template.json"),
)


def keep_origin(source: Path, trial: Path, decoder: Decoder) -> None:
    """Copies into the folder of a trial what its export needs, unless that is there.

    `source` is a checkpoint folder, or the folder of a trial, which may have been continued itself.
    """
    if (trial / FOLDER).is_dir():
        return
    if (source / FOLDER).is_dir():
        with new_folder(trial / FOLDER) as folder:
            shutil.copytree(source / FOLDER, folder, dirs_exist_ok=True)
    elif (source / "config.json").is_file():
        path = source / "config.json"
        layouts = family_of(read_object(path), path).layouts
        with new_folder(trial / FOLDER) as folder:
            write_json(folder / LAYOUT, layouts.index(layout_in(source, decoder)))
            for name in ("config.json", *FILES):
                if (source / name).is_file():
                    shutil.copyfile(source / name, folder / name)


def kept_origin(trial: Path) -> Path | None:
    """Where `keep_origin` has put the files; None for a model that was trained from scratch."""
    return trial / FOLDER if (trial / FOLDER).is_dir() else None


def write_origin(origin: Path, folder: Path) -> Layout:
    """Writes the kept files into the folder of a checkpoint in float32; returns its layout."""
    path = origin / "config.json"
    config = read_object(path)
    for key in {"torch_dtype", "dtype"} & config.keys() or {"torch_dtype"}:
        config[key] = "float32"
    write_json(folder / "config.json", config)
    for name in FILES:
        if (origin / name).is_file():
            shutil.copyfile(origin / name, folder / name)
    return family_of(config, path).layouts[read_json(origin / LAYOUT)]
