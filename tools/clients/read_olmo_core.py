"""The instances that OLMo-core's data loader yields for an export: OUT.npy, in order.

Run in the client's environment, in the folder of the export: read_olmo_core.py OUT.npy.
"""

import sys
import tempfile

import numpy as np

sys.path.insert(0, ".")

import order

with tempfile.TemporaryDirectory() as work:
    loader = order.data_loader(work)
    loader.reshuffle(1)
    np.save(sys.argv[1], np.concatenate([batch["input_ids"].numpy() for batch in loader]))
    # A loader that goes on from a checkpoint in the middle yields the second half.
    half = loader.total_batches // 2
    again = order.data_loader(work)
    loader.batches_processed, loader.tokens_processed = half, half * loader.global_batch_size
    again.load_state_dict(loader.state_dict())
    again.reshuffle(1)
    resumed = np.concatenate([batch["input_ids"].numpy() for batch in again])
    assert (resumed == np.load(sys.argv[1])[-len(resumed) :]).all() and len(resumed)
