"""A continued model takes the steps that transformers and PyTorch take: the same losses."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frame_jax.config.training import (
    InitialConfig,
    LRScheduleConfig,
    OptimizerConfig,
    TrainingConfig,
)
from frame_jax.models.hugging_face.weights import read_decoder
from frame_jax.parallel.sharding import make_mesh
from frame_jax.training.train_step import make_lm_batch
from frame_jax.training.trainer import global_batches, train
from frame_jax.training.training_job import TrainingJob
from tests.training.rows import EOS, LENGTH, VOCAB, make_job, write_rows
from tests.training.test_trainer import metrics

torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = pytest.mark.torch

PEAK, WARMUP, STEPS = 0.01, 4, 22
TRAINING = TrainingConfig(
    batch_size=4,  # 88 rows
    lr_schedule=LRScheduleConfig(
        kind="linear", peak=PEAK, warmup_fraction=WARMUP / STEPS, final_fraction=0.0
    ),
    optimizer=OptimizerConfig(weight_decay=0.3, max_grad_norm=0.5),
    document_attention=False,
    compute_dtype="float32",
    load_balance_loss_weight=0.0,
    router_z_loss_weight=0.0,
    milestones=0,
)
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": LENGTH,
    "pad_token_id": None,  # transformers would not train its row of the embedding
    "eos_token_id": EOS,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"num_key_value_heads": 2, "head_dim": 8}),
    "gpt_neox": ("GPTNeoX", {}),
    "olmoe": ("Olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "mamba2": (
        "Mamba2",
        {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 2, "chunk_size": 16},
    ),
}


def torch_losses(model: Any, job: TrainingJob) -> list[float]:
    """The mean loss of each step, by AdamW with clipping, on the job's batches."""
    decayed, spared = [], []
    for name, tensor in model.named_parameters():
        apart = ("embed", "lm_head", "conv1d")
        is_matrix = tensor.ndim >= 2 and not any(word in name for word in apart)
        (decayed if is_matrix else spared).append(tensor)
    o = job.training.optimizer
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": o.weight_decay}, {"params": spared}],
        **{"lr": PEAK, "betas": (o.b1, o.b2), "eps": o.eps, "weight_decay": 0.0},
    )
    # The first update of a warm-up has its first share here, and nothing there.
    (rate,) = {*transformers.get_linear_schedule_with_warmup(optimizer, WARMUP, STEPS).lr_lambdas}
    losses = []
    for step, (rows, _) in enumerate(global_batches(job, make_mesh(job.parallel), 0), 1):
        batch = make_lm_batch(rows, job.special_tokens, document_attention=False)
        inputs, targets = (torch.tensor(np.array(x), dtype=torch.long) for x in batch[:2])
        mask = torch.tensor(np.array(batch.loss_mask)).flatten()
        logits = model(inputs, use_cache=False).logits.flatten(0, 1)
        each = torch.nn.functional.cross_entropy(logits, targets.flatten(), reduction="none")
        loss = (each * mask).sum() / mask.sum()
        optimizer.zero_grad()
        for group in optimizer.param_groups:
            group["lr"] = PEAK * rate(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), o.max_grad_norm)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_continued_model_has_the_losses_of_pytorch(name: str, tmp_path: Path) -> None:
    family, settings = FAMILIES[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SHAPE | settings)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    model.save_pretrained(tmp_path / "model")
    write_rows(tmp_path)
    decoder = dataclasses.replace(read_decoder(tmp_path / "model", LENGTH), compute_dtype="float32")
    job = dataclasses.replace(
        make_job(tmp_path, training=TRAINING),
        decoder=decoder,
        initial=InitialConfig(checkpoint=str(tmp_path / "model")),
    )
    assert job.steps == STEPS
    train(job)
    ours = np.array([record["loss"] for record in metrics(job)])
    theirs = np.array(torch_losses(model.train(), job))
    print(f"{name}: {theirs[0]:.4f} to {theirs[-1]:.4f}, apart {np.abs(ours - theirs).max():.1e}")
    assert theirs[-1] < theirs[0] - 0.3  # they do learn
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
