"""The sequences that Levanter's mixture yields for an export: OUT.npy, in order.

Run in the client's environment, in the folder of the export: read_levanter.py OUT.npy. The whole of
levanter.yaml is decoded into the config of `levanter.main.train_lm`.
"""

import asyncio
import sys
from pathlib import Path

import draccus
import haliax
import jax
import numpy as np
import yaml
from levanter.main.train_lm import TrainLmConfig

config = draccus.decode(TrainLmConfig, yaml.safe_load(Path("levanter.yaml").read_text("utf-8")))
trainer = config.trainer
position = haliax.Axis("position", config.train_seq_len)
data = config.data.train_set(position, trainer.batch_schedule, key=jax.random.PRNGKey(0))
rows = trainer.train_batch_size * trainer.num_train_steps
examples = asyncio.run(data.get_batch(range(rows)))
np.save(sys.argv[1], np.stack([np.asarray(example.tokens.array) for example in examples]))
