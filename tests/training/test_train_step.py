"""The loss and its view of a row, against plain NumPy in float64."""

import dataclasses
import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from frame_jax.config.models import ModelConfig
from frame_jax.config.parallel import ParallelConfig
from frame_jax.config.training import TrainingConfig
from frame_jax.models.cross_entropy import chunk_count, cross_entropy, token_nll
from frame_jax.models.transformer import Decoder
from frame_jax.parallel.sharding import batch_sharding, make_mesh, param_shardings
from frame_jax.run.special_tokens import SpecialTokens
from frame_jax.training.train_step import (
    TrainState,
    loss_fn,
    make_lm_batch,
    make_train_step,
)
from tests.models.kinds import KINDS
from tests.optimized import compile_optimized

BOS, EOS = 1, 2
SPECIAL_TOKENS = SpecialTokens(BOS, EOS, 128)


def test_view_derives_documents_and_weights_from_tokens() -> None:
    row = np.array([[7, 8, EOS, BOS, 5, 6, EOS, BOS, BOS, BOS]])
    seen = make_lm_batch(jnp.asarray(row), SPECIAL_TOKENS, document_attention=True)
    assert seen.segment_ids.tolist() == [[0, 0, 0, 1, 1, 1, 1, 2, 3]]
    assert seen.positions.tolist() == [[0, 1, 2, 0, 1, 2, 3, 0, 0]]
    # Not predicted: BOS after EOS, and the padding.
    assert seen.loss_mask.tolist() == [[1, 1, 0, 1, 1, 1, 0, 0, 0]]
    whole = make_lm_batch(jnp.asarray(row), SPECIAL_TOKENS, document_attention=False)
    assert whole.positions.tolist() == [list(range(9))] and not whole.segment_ids.any()


def test_the_end_is_predicted_where_one_token_serves_as_bos_and_eos() -> None:
    row = jnp.array([[BOS, 7, 8, BOS, 9, BOS, BOS]])
    seen = make_lm_batch(row, SpecialTokens(BOS, BOS, 128), document_attention=True)
    assert seen.loss_mask.tolist() == [[1, 1, 1, 1, 1, 0]]


@pytest.mark.parametrize("chunks", [1, 2, 8])
def test_cross_entropy_and_its_derivatives(chunks: int) -> None:
    random = np.random.default_rng(0)
    hidden, table = random.normal(size=(2, 8, 16)), random.normal(size=(50, 16))
    targets, weights = random.integers(0, 50, (2, 8)), random.integers(0, 2, (2, 8)).astype(float)

    logits = hidden @ table.T
    probabilities = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    nll = -np.log(np.take_along_axis(probabilities, targets[..., None], -1)[..., 0])
    by_logit = (probabilities - np.eye(50)[targets]) * weights[..., None]

    arrays = [jnp.asarray(x, jnp.float32) for x in (hidden, table)]
    ids, w = jnp.asarray(targets, jnp.int32), jnp.asarray(weights, jnp.float32)
    np.testing.assert_allclose(token_nll(*arrays, ids, chunks), nll, rtol=1e-5, atol=1e-5)
    total, grads = jax.value_and_grad(
        lambda h, t: 3 * cross_entropy(h, t, ids, w, chunks)[0], argnums=(0, 1)
    )(*arrays)
    np.testing.assert_allclose(total, 3 * (nll * weights).sum(), rtol=1e-5)
    np.testing.assert_allclose(grads[0], 3 * by_logit @ table, rtol=1e-4, atol=1e-4)
    by_table = np.einsum("btv,btd->vd", by_logit, hidden)
    np.testing.assert_allclose(grads[1], 3 * by_table, rtol=1e-4, atol=1e-4)


def test_chunks_divide_the_sequence_and_respect_the_bound() -> None:
    for rows, length, bound in [(8, 512, 1024), (3, 100, 7), (1, 7, 3), (16, 256, 10**9)]:
        chunks = chunk_count(rows, length, bound)
        assert length % chunks == 0
        assert rows * length / chunks <= bound or chunks == length


@pytest.mark.slow
def test_a_document_does_not_see_its_neighbours() -> None:
    model = ModelConfig(
        hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2, num_kv_heads=1
    )
    decoder = Decoder(model, 64, "float32")
    params = jax.jit(decoder.init)(jax.random.key(0))
    random = np.random.default_rng(0)
    first, second = random.integers(3, 64, 9), random.integers(3, 64, 12)

    @jax.jit
    def nll(row: jax.Array) -> jax.Array:
        return loss_fn(
            decoder, params, make_lm_batch(row, SPECIAL_TOKENS, True), 1, TrainingConfig()
        )[1].nll

    def loss(*documents: np.ndarray) -> float:
        row = np.concatenate([[BOS, *document, EOS] for document in documents])[None]
        return float(nll(jnp.asarray(row, jnp.int32)))

    assert loss(first, second) == pytest.approx(loss(first) + loss(second), rel=1e-5)


@pytest.mark.slow
def test_z_loss_adds_the_squared_log_of_the_denominator() -> None:
    random = np.random.default_rng(0)
    hidden, table = (jnp.asarray(random.normal(size=s), jnp.float32) for s in ((2, 8, 4), (50, 4)))
    targets, weights = jnp.asarray(random.integers(0, 50, (2, 8))), jnp.ones((2, 8))

    def plain(hidden: jax.Array, table: jax.Array) -> jax.Array:
        logits = jnp.einsum("btd,vd->btv", hidden, table)
        log_total = jax.nn.logsumexp(logits, axis=-1)
        nll = log_total - jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
        return jnp.sum(nll + 0.01 * log_total**2)

    def ours(hidden: jax.Array, table: jax.Array) -> jax.Array:
        return cross_entropy(hidden, table, targets, weights, 2, 0.01)[0]

    expected = jax.value_and_grad(plain, (0, 1))(hidden, table)
    actual = jax.value_and_grad(ours, (0, 1))(hidden, table)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), actual, expected
    )


# Every mixer and feed-forward, and both ways to choose experts.
MODELS = {
    "dense": KINDS["dense"],
    "experts": KINDS["experts"],
    "mamba2": KINDS["mamba2"],
    "hybrid": dataclasses.replace(KINDS["hybrid"], experts=KINDS["sigmoid"].experts),
}


def stepped(
    rows: np.ndarray,
    parallel: ParallelConfig | None = None,
    model: ModelConfig = MODELS["dense"],
    **settings: int,
) -> tuple:
    """The loss and the parameters after one plain gradient step, which carries the gradient."""
    mesh = make_mesh(parallel or ParallelConfig(fsdp=1), jax.devices()[: 8 if parallel else 1])
    decoder, optimizer = Decoder(model, 64, "float32"), optax.sgd(1.0)
    training = TrainingConfig(batch_size=16, compute_dtype="float32", loss_chunk=8, **settings)
    step = make_train_step(
        decoder, optimizer, SPECIAL_TOKENS, training, mesh, lambda step: jnp.float32(1)
    )
    params = jax.jit(decoder.init)(jax.random.key(0))
    placed = jax.device_put(params, param_shardings(decoder.axes(), decoder.shapes(), mesh))
    state = TrainState(jnp.int32(0), placed, optimizer.init(placed))
    state, metrics = jax.jit(step)(state, jax.device_put(rows, batch_sharding(mesh)))
    return float(metrics["loss"]), jax.tree.map(np.asarray, state.params)


def ragged_rows() -> np.ndarray:
    """16 rows whose numbers of counted targets differ: the later ones are mostly padding."""
    rows = np.random.default_rng(0).integers(3, 64, (16, 17)).astype(np.int32)
    for index, row in enumerate(rows):
        row[17 - index :] = BOS
    return rows


def assert_same(ours: tuple, theirs: tuple) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), ours[1], theirs[1]
    )


@pytest.mark.slow
def test_the_objective_adds_each_loss_by_its_weight() -> None:
    decoder = Decoder(MODELS["experts"], 64, "float32")
    batch = make_lm_batch(jnp.asarray(ragged_rows()[:4]), SPECIAL_TOKENS, True)
    training = TrainingConfig(
        z_loss_weight=0.3, load_balance_loss_weight=0.5, router_z_loss_weight=0.7
    )

    @jax.jit
    def sums_and_squares(params: dict) -> tuple:
        hidden, _ = decoder.forward(params, batch.inputs, batch.segment_ids, batch.positions)
        log_total = jax.nn.logsumexp(hidden @ decoder.unembedding(params).T, axis=-1)
        squares = jnp.sum(batch.loss_mask * jnp.square(log_total))
        return loss_fn(decoder, params, batch, 1, training), squares

    params = jax.jit(decoder.init)(jax.random.key(0))
    (objective, sums), squares = sums_and_squares(params)
    assert min(squares, sums.routers.balance.min(), sums.routers.z.min()) > 0
    expected = sums.nll + 0.3 * squares
    expected += 0.5 * sums.routers.balance.mean() + 0.7 * sums.routers.z.mean()
    assert float(objective) == pytest.approx(float(expected), rel=1e-5)


@functools.cache
def whole(name: str) -> tuple:
    """The step of one device, in one piece."""
    return stepped(ragged_rows(), model=MODELS[name])


def test_eight_devices_over_slices_make_the_gradients_of_one(
    use_devices: Callable[[int], None],
) -> None:
    use_devices(8)
    parallel = ParallelConfig(slice=2, fsdp=2, tensor=2)
    assert_same(stepped(ragged_rows(), parallel, gradient_accumulation_steps=2), whole("dense"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dense", "experts", "hybrid"])
def test_accumulated_gradients_are_those_of_the_whole_batch(name: str) -> None:
    assert_same(
        stepped(ragged_rows(), model=MODELS[name], gradient_accumulation_steps=4), whole(name)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["experts", "hybrid"])
def test_padding_changes_nothing_of_the_routers_losses(name: str) -> None:
    """Means are the same over some rows, over these twice, and over these and rows of padding."""
    rows, model = ragged_rows()[:8], MODELS[name]
    padded = np.concatenate([rows, np.full_like(rows, BOS)])
    assert_same(stepped(padded, model=model), stepped(np.concatenate([rows, rows]), model=model))


@pytest.mark.parametrize("name", ["experts", "mamba2", "hybrid"])
@pytest.mark.parametrize(
    "parallel",
    [ParallelConfig(data=2, fsdp=2, tensor=2), ParallelConfig(fsdp=2, expert=2, tensor=2)],
    ids=["data-fsdp-tensor", "fsdp-expert-tensor"],
)
def test_any_mesh_makes_the_gradients_of_one_device(
    use_devices: Callable[[int], None], name: str, parallel: ParallelConfig
) -> None:
    use_devices(8)
    assert_same(stepped(ragged_rows(), parallel, MODELS[name]), whole(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dense", "mamba2", "experts"])
@pytest.mark.parametrize("steps", [1, 2])
def test_replicas_make_the_gradients_of_one_device(
    use_devices: Callable[[int], None], name: str, steps: int
) -> None:
    use_devices(8)
    parallel = ParallelConfig(data=8, fsdp=1)
    found = stepped(ragged_rows(), parallel, MODELS[name], gradient_accumulation_steps=steps)
    assert_same(found, whole(name))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hybrid", "sigmoid"])
def test_the_balancing_bias_moves_against_the_load_and_by_nothing_else(kind: str) -> None:
    model = MODELS["hybrid"] if kind == "hybrid" else KINDS["sigmoid"]
    decoder = Decoder(model, 64, "float32")
    params = jax.jit(decoder.init)(jax.random.key(0))
    _, after = whole("hybrid") if kind == "hybrid" else stepped(ragged_rows(), model=model)
    group = "group_1" if kind == "hybrid" else "group_0"
    layers = [p["layers"][group] for p in (params, after)]
    before, moved = (p["router_bias"].reshape(2, -1) for p in layers)
    assert np.abs(moved - before).max() == pytest.approx(0.001, rel=1e-3)
    batch = make_lm_batch(jnp.asarray(ragged_rows()), SPECIAL_TOKENS, True)
    sums = jax.jit(lambda p: loss_fn(decoder, p, batch, 1, TrainingConfig())[1])(params)
    counts = np.asarray(sums.routers.counts)  # [2 layers, E]
    expected = 0.001 * np.sign(counts.mean(1, keepdims=True) - counts)
    np.testing.assert_allclose(moved - before, expected, atol=1e-7)


def test_replicas_on_a_cpu_wait_for_each_other_in_one_order(
    use_devices: Callable[[int], None],
) -> None:
    """One sum of all gradients, behind the number of tokens that their loss is a mean over."""
    use_devices(2)
    mesh = make_mesh(ParallelConfig())
    assert dict(mesh.shape)["data"] == 2
    decoder, optimizer = Decoder(MODELS["dense"], 64, "float32"), optax.adamw(1e-3)
    step = make_train_step(
        decoder, optimizer, SPECIAL_TOKENS, TrainingConfig(), mesh, lambda step: jnp.float32(1)
    )
    params = jax.jit(decoder.init)(jax.random.key(0))
    state = TrainState(jnp.int32(0), params, optimizer.init(params))
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shardings = (replicated, batch_sharding(mesh))
    compiled = jax.jit(step, in_shardings=shardings).lower(state, ragged_rows()).compile()
    shapes = re.findall(r"= (\S+) all-reduce\(", compiled.as_text())
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert sorted(shapes) == sorted([f"f32[{size + 1}]{{0}}", "f32[]"])


def test_the_logits_of_a_batch_never_exist() -> None:
    B, T, D, V = 4, 512, 8, 4096

    def temporary_bytes(chunks: int) -> int:
        shapes = ((B, T, D), jnp.bfloat16), ((V, D), jnp.float32), ((B, T), jnp.int32)
        arguments = [jax.ShapeDtypeStruct(*shape) for shape in (*shapes, ((B, T), jnp.float32))]
        gradient = jax.grad(lambda *a: cross_entropy(*a, chunks)[0], argnums=(0, 1))
        memory = compile_optimized(jax.jit(gradient).lower(*arguments)).memory_analysis()
        return memory.temp_size_in_bytes

    logits = B * T * V * 4
    assert temporary_bytes(1) > logits  # the measure sees them
    assert temporary_bytes(16) < logits / 4


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["minimal", "full"])
def test_remat_changes_nothing(remat: str) -> None:
    model = ModelConfig(
        hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2, num_kv_heads=1
    )
    rows = jnp.asarray(np.random.default_rng(0).integers(3, 64, (2, 17)), jnp.int32)
    batch = make_lm_batch(rows, SPECIAL_TOKENS, True)
    params = jax.jit(Decoder(model, 64, "float32").init)(jax.random.key(0))

    def gradient(remat: str) -> dict:
        decoder = Decoder(model, 64, "float32", remat)
        counted = batch.loss_mask.sum()  # a step's objective is the mean
        return jax.jit(
            jax.grad(lambda p: loss_fn(decoder, p, batch, 2, TrainingConfig())[0] / counted)
        )(params)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        gradient("none"),
        gradient(remat),
    )
