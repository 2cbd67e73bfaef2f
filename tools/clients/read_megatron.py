"""The samples that Megatron's blends yield for an export: OUT.npy, phase after phase.

Run in the client's environment, in the folder of the export: read_megatron.py OUT.npy BATCH_ROWS
LENGTH. The package has no tools/preprocess_data.py: what that writes is written here with the
package's own builder, a document as the tokenizer gives it without special tokens, and EOS.
"""

import json
import shlex
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
from megatron.core.datasets.utils import get_blend_from_list
from tokenizers import Tokenizer

out, batch_size, length = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
tokenizer = Tokenizer.from_file("tokenizer/tokenizer.json")
names = json.loads(Path("tokenizer/tokenizer_config.json").read_text("utf-8"))
eos = tokenizer.token_to_id(names["eos_token"])
asked = SimpleNamespace(
    eod=eos, pad=eos, vocab_size=tokenizer.get_vocab_size(), unique_identifiers={"eod": eos}
)
launches = [line for line in Path("train.sh").read_text("utf-8").splitlines() if "torchrun" in line]
options = [shlex.split(line, comments=True) for line in launches]


def value(words: list[str], name: str) -> str:
    """What a launch gives for an option; empty without it."""
    return words[words.index(name) + 1] if name in words else ""


blends = [value(words, "--data-args-path") for words in options]
transitions = value(options[0], "--phase-transition-iterations").split(",")
steps = int(value(options[0], "--train-samples")) // batch_size
edges = [0, *(int(step) for step in transitions if step), steps]
assert len(edges) == len(blends) + 1

store = torch.distributed.HashStore()
torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
named = {name: Path(name).read_text("utf-8").split() for name in blends}
for prefix in sorted({word for words in named.values() for word in words[1::2]}):
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.int32)
    folder = Path(prefix.removesuffix("_text_document"))
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.open(encoding="utf-8"):
            ids = tokenizer.encode(json.loads(line)["text"], add_special_tokens=False).ids
            builder.add_document(torch.tensor([*ids, eos]), [len(ids) + 1])
    builder.finalize(f"{prefix}.idx")

found = []
with tempfile.TemporaryDirectory() as cache:
    for blend, first, stop in zip(blends, edges[:-1], edges[1:], strict=True):
        config = GPTDatasetConfig(
            random_seed=1234,
            sequence_length=length,
            blend=get_blend_from_list(named[blend]),
            split="100,0,0",
            path_to_cache=cache,
            tokenizer=asked,
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
        )
        sizes = [(stop - first) * batch_size, 0, 0]
        data, *_ = BlendedMegatronDatasetBuilder(GPTDataset, sizes, lambda: True, config).build()
        found += [data[index]["tokens"].numpy() for index in range(sizes[0])]
np.save(out, np.stack(found))
