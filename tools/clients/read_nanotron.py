"""What nanotron's tokenizer makes of an export: OUT.npy, documents and tokens of each quadrant.

Run in the client's environment, in the folder of the export: read_nanotron.py OUT.npy. The release
on PyPI cannot read tokenized folders, so that only what is written for it can be checked: int64
[quadrants, 2], sorted by name.
"""

import runpy
import sys
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

runpy.run_path("tokenize_documents.py", run_name="__main__")
vocabulary = Tokenizer.from_file("tokenizer/tokenizer.json").get_vocab_size()
width = np.uint16 if vocabulary <= 1 << 16 else np.uint32
counts = []
for folder in sorted(path for path in Path("data").iterdir() if path.is_dir()):
    tokens = sum(len(np.fromfile(path, width)) for path in folder.glob("*.ds"))
    ends = sum(len(np.fromfile(path, np.uint64)) for path in folder.glob("*.ds.index"))
    counts.append((ends, tokens))
np.save(sys.argv[1], np.array(counts, np.int64))
