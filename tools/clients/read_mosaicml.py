"""The rows that MosaicML streaming yields for an export: OUT.npy, in order.

Run in the client's environment, in the folder of the export: read_mosaicml.py OUT.npy BATCH_ROWS.
Its data sets of pictures, which need a build of torchvision, are not imported.
"""

import sys
import types

import numpy as np

for unused in ("vision", "text", "multimodal"):
    sys.modules[f"streaming.{unused}"] = types.ModuleType(unused)
sys.path.insert(0, ".")

import order  # noqa: E402
from streaming import StreamingDataLoader  # noqa: E402
from streaming.base.partition import get_partitions  # noqa: E402

out, batch_size = sys.argv[1], int(sys.argv[2])
dataset = order.dataset(batch_size=batch_size)
batches = [batch["tokens"].numpy() for batch in StreamingDataLoader(dataset, batch_size=batch_size)]
np.save(out, np.concatenate(batches))

# On two nodes of two devices, every batch of all four holds the same consecutive rows.
ids = get_partitions("relaxed", len(dataset), 1, 2, 2, 1, batch_size // 4)
together = ids.transpose(3, 2, 0, 1, 4).reshape(-1, batch_size)[: len(dataset) // batch_size]
first = batch_size * np.arange(len(together))[:, None]
assert (np.sort(together, axis=1) == first + np.arange(batch_size)).all()
