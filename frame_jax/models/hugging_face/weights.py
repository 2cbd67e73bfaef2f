"""A Hugging Face checkpoint folder in, a decoder and its parameters out; PyTorch is not needed.

Reads config.json and safetensors, whole or sharded, of the families of `models.hugging_face.config`
where they compute what `models.transformer` computes; anything else is refused by name.
"""

import contextlib
import functools
from pathlib import Path
from typing import Any

import jax
import ml_dtypes  # noqa: F401  (tells NumPy about bfloat16, which safetensors needs)
import numpy as np
import safetensors

from frame_jax.errors import UserError
from frame_jax.models.hugging_face import tensors
from frame_jax.models.hugging_face.config import family_of, read_config
from frame_jax.models.transformer import Decoder, Params
from frame_jax.run.directory import read_object

SINGLE_FILE = "model.safetensors"  # the whole model in one file
OTHER_PREFIXES = ("consolidated", "adapter_")  # of files that are not the model as it is read here
DTYPES = ("F64", "F32", "F16", "BF16")


def import_checkpoint(folder: Path, longest: int | None = None) -> tuple[Decoder, Params]:
    """The model in a checkpoint folder.

    Args:
        folder: Holds config.json and *.safetensors.
        longest: Tokens of the longest sequence the model will read. A sliding window at least that
            long is never felt and therefore accepted.

    Returns:
        The decoder (compute dtype bfloat16; replace it as needed) and its parameters, a nested dict
        of float32 NumPy arrays.

    Raises:
        UserError: if something is missing, unsupported or misshapen, naming every tensor at fault.
    """
    decoder = read_decoder(folder, longest)
    return decoder, read_weights(folder, decoder)


def read_decoder(folder: Path, longest: int | None = None) -> Decoder:
    """The model that config.json describes, as in `import_checkpoint`, without its weights."""
    path = folder / "config.json"
    if not path.is_file() and find_adapter(folder) is not None:
        raise UserError(f"{folder} has {missing_weights_message(folder, [])}")
    if not path.is_file():
        raise UserError(f"{folder} has no config.json: it is not a Hugging Face checkpoint folder")
    settings = read_object(path)
    return Decoder(read_config(settings, path, longest), settings["vocab_size"])


def layout_in(folder: Path, decoder: Decoder) -> tensors.Layout:
    """In which of its family's ways the tensors of a checkpoint are stored: the one that most of
    them fit."""
    path = folder / "config.json"
    family = family_of(read_object(path), path)
    if len(family.layouts) == 1:
        return family.layouts[0]
    names = set()
    for file in weight_files(folder):
        with open_safetensors(file) as opened:
            names |= set(opened.keys())
    return max(
        family.layouts,
        key=lambda layout: len(names & tensors.checkpoint_tensors(decoder, layout).keys()),
    )


def read_weights(folder: Path, decoder: Decoder, shardings: Any = None) -> Params:
    """The parameters of `decoder` from the safetensors in `folder`.

    As NumPy arrays, or, where a tree of shardings is given, on their devices: a process then reads
    what its devices hold of each parameter, and holds one of them at a time beside these.

    Raises:
        UserError: naming every missing, extra or misshapen tensor.
    """
    files, like = find_tensors(folder, decoder), tensors.shapes_alone(decoder)
    holding: dict[tuple[str | None, str], list[tuple[str, tensors.Tensor]]] = {}
    for name, tensor in tensors.checkpoint_tensors(decoder, layout_in(folder, decoder)).items():
        for parameter in tensor.rule.parameters if 0 not in tensor.shape else ():
            holding.setdefault((tensor.group, parameter), []).append((name, tensor))
    with contextlib.ExitStack() as stack:
        opened = {path: stack.enter_context(open_safetensors(path)) for path in set(files.values())}

        def read(keys: tuple[str, ...], *ends: tuple[int, int]) -> np.ndarray:
            """A part of the parameter at a path of the tree, from the first index to the last."""
            group, parameter = keys[1] if len(keys) > 1 else None, keys[-1]
            part = [slice(*own) for own in ends]
            found = np.empty([last - first for first, last in ends], np.float32)
            for name, tensor in holding[group, parameter]:
                layer = tuple(i - own[0] for i, own in zip(tensor.index, ends, strict=False))
                if all(0 <= i < n for i, n in zip(layer, found.shape, strict=False)):
                    stored, rest = opened[files[name]].get_slice(name), part[len(layer) :]
                    found[layer] = tensor.load(stored, parameter, tuple(rest), like)
            return found

        def placed(path: Any, leaf: jax.ShapeDtypeStruct, target: Any = None) -> Any:
            keys, shape = tuple(entry.key for entry in path), leaf.shape
            if target is None:
                return read(keys, *((0, size) for size in shape))
            once = functools.cache(read)  # what several devices hold

            def shard(index: Any) -> np.ndarray:
                return once(
                    keys, *(own.indices(n)[:2] for own, n in zip(index, shape, strict=True))
                )

            return jax.make_array_from_callback(shape, target, shard)

        targets = () if shardings is None else (shardings,)
        return jax.tree_util.tree_map_with_path(placed, decoder.shapes(), *targets)


def find_tensors(folder: Path, decoder: Decoder) -> dict[str, Path]:
    """The file of every tensor of `decoder`. Reads the files' headers, hardly their contents.

    Raises:
        UserError: naming every missing, extra or misshapen tensor.
    """
    layout = layout_in(folder, decoder)
    expected = tensors.checkpoint_tensors(decoder, layout)
    files: dict[str, Path] = {}
    problems: list[str] = []
    for path in weight_files(folder):
        with open_safetensors(path) as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                if name in files:
                    problems.append(f"twice: {name} in {files[name].name} and {path.name}")
                elif name in expected:
                    problems += tensor_errors(file.get_slice(name), name, expected[name].shape)
                files.setdefault(name, path)
    problems += [
        f"extra: {name} in {path.name}"
        for name, path in files.items()
        if name not in expected and not is_redundant_tensor(name, files, layout)
    ]
    problems += [
        f"missing: {name} {list(expected[name].shape)}" for name in expected if name not in files
    ]
    if problems:
        listing = "\n  ".join(problems)
        raise UserError(
            f"{folder} does not hold the model its config.json describes; "
            f"{len(problems)} tensors differ:\n  {listing}"
        )
    return {name: files[name] for name in expected}


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, those that `transformers` would read.

    That is `model.safetensors`, else the files of the index, whatever else lies there. Without
    either, all of them but the same weights under other names (`consolidated*`) and adapters.

    Raises:
        UserError: if there are none, or a shard named by the index is missing.
    """
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    index = folder / f"{SINGLE_FILE}.index.json"
    if index.is_file():
        names = read_object(index).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
            raise UserError(f"{index} does not say which file holds which tensor; fetch it again")
        paths = [folder / name for name in sorted(set(names.values()))]
        absent = [path.name for path in paths if not path.is_file()]
        if absent:
            raise UserError(f"{folder} lacks {', '.join(absent)}, which {index.name} names")
        return paths
    paths = sorted(folder.glob("*.safetensors"))
    models = [path for path in paths if not path.name.startswith(OTHER_PREFIXES)]
    if models:
        return models
    raise UserError(f"{folder} has {missing_weights_message(folder, paths)}")


def missing_weights_message(folder: Path, others: list[Path]) -> str:
    """What a folder has in place of the weights of a model."""
    adapter = find_adapter(folder)
    if adapter is not None:
        return (
            f"no weights but those of an adapter ({adapter}). Merge it into its model where you "
            "can run PEFT: AutoPeftModelForCausalLM.from_pretrained(FOLDER).merge_and_unload()"
            ".save_pretrained(NEW_FOLDER)"
        )
    if others:
        return (
            f"its weights under other tensors' names only ({', '.join(p.name for p in others)}): "
            f"fetch {SINGLE_FILE}, or the shards and their index, too"
        )
    pickled = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
    if pickled:
        return (
            f"pickled weights ({', '.join(pickled)}), which can run code when they are read. "
            "Convert them where you trust them: "
            "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
        )
    return "no *.safetensors"


def find_adapter(folder: Path) -> Path | None:
    """An adapter (of PEFT) that lies in a checkpoint's folder, whose weights are not read."""
    return next((path for path in sorted(folder.glob("adapter_model*"))), None)


def read_tensor(path: Path, name: str) -> np.ndarray:
    """One tensor of a safetensors file, as it is stored."""
    with open_safetensors(path) as file:
        return file.get_tensor(name)


def open_safetensors(path: Path) -> Any:
    """An open safetensors file, a context manager."""
    try:
        return safetensors.safe_open(path, framework="np")
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is damaged or incomplete ({error}); fetch it again") from error


def tensor_errors(stored: Any, name: str, shape: tuple[int, ...]) -> list[str]:
    """What is wrong with a tensor of an open file, if anything."""
    found, dtype = tuple(stored.get_shape()), stored.get_dtype()
    if found != shape:
        return [f"misshapen: {name} is {list(found)}, must be {list(shape)}"]
    if dtype not in DTYPES:
        return [f"unreadable: {name} is {dtype}, must be one of {', '.join(DTYPES)}"]
    return []


def is_redundant_tensor(name: str, files: dict[str, Path], layout: tensors.Layout) -> bool:
    """Whether an extra tensor says nothing new: buffers, or the output of a model whose output is
    tied to its embedding."""
    if name.endswith(layout.buffers):
        return True
    pair = (name, layout.outer["embedding"])
    if name != layout.outer["output"] or pair[1] not in files:
        return False
    output, embedding = (read_tensor(files[tensor], tensor) for tensor in pair)
    return bool(np.array_equal(output, embedding))
