"""Scores do not depend on how many devices make them, nor on how many share the parameters."""

import jax
import numpy as np

from frame_jax.config.parallel import ParallelConfig
from frame_jax.config.scoring import ScoringConfig
from frame_jax.models.transformer import Decoder
from frame_jax.parallel.sharding import make_mesh
from frame_jax.scoring.documents import score_documents
from frame_jax.scoring.scorer import Scorer, shard_params
from tests.models.kinds import KINDS
from tests.scoring.scoring_helpers import BFLOAT16_TOLERANCE, BOS, VOCAB, make_documents, make_model

CONTEXT = 256  # rows of 512 tokens: the attention that real runs use
TOLERANCES = 2e-6, BFLOAT16_TOLERANCE  # of a document's NLL sum, relative, for each model


def score(fsdp: int = 1) -> np.ndarray:
    """[2, documents]: NLL sums under a float32 and a bfloat16 model."""
    models = [make_model(1, "float32"), make_model(2, "bfloat16", hidden_size=48)]
    scorer = Scorer(
        models, ScoringConfig(CONTEXT, per_device_batch_size=2, loss_chunk=300, fsdp=fsdp)
    )
    lengths = np.random.default_rng(0).lognormal(4, 1.2, 150).astype(int)
    return score_documents(scorer, make_documents(lengths=lengths), bos_id=BOS, overlap=8).nll


def test_eight_devices_score_what_one_scores_however_they_share_the_models(use_devices) -> None:
    one = score()
    assert np.isfinite(one).all()
    use_devices(8)
    for fsdp in (1, 2, 4, 8):
        eight = score(fsdp)
        differences = np.max(np.abs(eight - one) / np.maximum(one, 1), axis=1)
        print(f"data {8 // fsdp} x fsdp {fsdp}: largest relative differences {differences}")
        for ours, theirs, tolerance in zip(eight, one, TOLERANCES, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=tolerance)


def test_models_of_other_kinds_are_gathered_layer_by_layer(use_devices) -> None:
    """A mixture of experts, and a hybrid in bfloat16 whose layers lie in runs."""

    def score(fsdp: int) -> np.ndarray:
        models = []
        for name, dtype in (("sigmoid", "float32"), ("hybrid", "bfloat16")):
            decoder = Decoder(KINDS[name], VOCAB, dtype)
            models.append((decoder, jax.tree.map(np.asarray, decoder.init(jax.random.key(0)))))
        scorer = Scorer(
            models, ScoringConfig(64, per_device_batch_size=2, loss_chunk=300, fsdp=fsdp)
        )
        lengths = np.random.default_rng(0).lognormal(3, 1.2, 60).astype(int)
        return score_documents(scorer, make_documents(lengths=lengths), bos_id=BOS, overlap=8).nll

    one = score(1)
    use_devices(4)
    for ours, theirs, tolerance in zip(score(2), one, TOLERANCES, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=tolerance)


def test_fsdp_leaves_each_device_its_share_of_the_matrices(use_devices) -> None:
    use_devices(8)
    decoder, params = make_model(1)
    placed, _ = shard_params(decoder, params, make_mesh(ParallelConfig(data=2, fsdp=4, tensor=1)))

    def bytes_on_a_device(tree) -> int:
        return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))

    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert bytes_on_a_device(placed) < 0.26 * whole + 1000  # norms are on every device


def test_matrices_alone_are_rounded() -> None:
    """Routers, convolutions and norms compute in float32, in scoring as in training."""
    decoder = Decoder(KINDS["hybrid"], 64, "bfloat16")
    mesh = make_mesh(ParallelConfig(data=1, fsdp=1), jax.devices()[:1])
    placed, _ = shard_params(decoder, decoder.init(jax.random.key(0)), mesh)
    axes = jax.tree.leaves(decoder.axes(), is_leaf=lambda node: isinstance(node, tuple))
    seen = set()
    for names, leaf in zip(axes, jax.tree.leaves(placed), strict=True):
        exact = {"router", "conv", "norm"} & set(names)
        seen |= exact
        assert (leaf.dtype == np.float32) == bool(exact), names
    assert seen == {"router", "conv", "norm"}
