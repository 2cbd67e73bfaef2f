"""The sequences that MaxText's Grain pipeline yields for an export: OUT.npy, stage after stage.

Run in the client's environment, in the folder of the export: read_maxtext.py OUT.npy BATCH_ROWS.
Settings are those of its base.yml and of train.sh. Each stage's pipeline is built anew, with other
weights, and goes on from the state that the stage before left, as a checkpoint holds it. Padding is
-1 here.
"""

import json
import shlex
import sys
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import yaml
from maxtext.input_pipeline import grain_data_processing as pipeline

out, batch_size = sys.argv[1], int(sys.argv[2])
base = yaml.safe_load((files("maxtext") / "configs" / "base.yml").read_text("utf-8"))
lines = Path("train.sh").read_text("utf-8").splitlines()
launches = [
    dict(word.split("=", 1) for word in shlex.split(line, comments=True) if "=" in word)
    for line in lines
    if "maxtext" in line
]

found, state, done = [], None, 0
for launch in launches:
    unknown = launch.keys() - base.keys()
    assert not unknown, f"base.yml has no {unknown}"
    given = {key: yaml.safe_load(value) for key, value in launch.items()}
    settings = SimpleNamespace(**base | given, global_batch_size_to_load=batch_size)
    settings.expansion_factor_real_data = -1
    settings.grain_worker_count = 0
    documents = pipeline.get_datasets(
        settings.grain_train_files,
        settings.grain_file_type,
        shuffle=settings.enable_data_shuffling,
        shuffle_seed=settings.data_shuffle_seed,
        shuffle_buffer_size=settings.grain_shuffle_buffer_size,
        num_epoch=settings.num_epoch,
        dataloading_host_index=0,
        dataloading_host_count=1,
        grain_worker_count=settings.grain_worker_count,
        grain_num_threads=settings.grain_num_threads,
        grain_prefetch_buffer_size=settings.grain_prefetch_buffer_size,
        grain_data_source_max_workers=settings.grain_data_source_max_workers,
        mixture_config_path=settings.grain_train_mixture_config_path,
    )
    batches = iter(
        pipeline.pretrain_preprocessing_pipeline(
            documents,
            settings,
            settings.train_data_columns,
            settings.tokenize_train_data,
            settings.grain_worker_count,
            settings.grain_per_worker_buffer_size,
        )
    )
    if state is not None:
        batches.set_state(json.loads(state))
    for _ in range(done, settings.steps):
        batch = next(batches)
        found.append(np.where(batch["inputs_segmentation"] > 0, batch["inputs"], -1))
    state, done = json.dumps(batches.get_state()), settings.steps
np.save(out, np.concatenate(found))
