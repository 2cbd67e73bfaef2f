"""Every kind of decoder: documents that are packed are as they are alone, layers come in order, and
loops over layers change nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frame_jax.config.models import ModelConfig
from frame_jax.errors import UserError
from frame_jax.models import block, layer_loop
from frame_jax.models.cross_entropy import token_nll
from frame_jax.models.layers import LayerContext, rotary_frequencies, rotary_tables
from frame_jax.models.transformer import Decoder, read_description, write_description
from tests.models.kinds import KINDS, shape

VOCAB, CHUNK = 64, 16
FIRST_WEIGHTS = {
    "query": 0.862527,
    "key": -0.082702,
    "value": -0.152531,
    "attention_out": 0.101678,
    "gate": 0.415198,
    "up": -0.579901,
    "down": -0.057492,
}
HYBRID = KINDS["hybrid"]


@pytest.fixture(params=KINDS)
def decoder(request: pytest.FixtureRequest) -> Decoder:
    return Decoder(KINDS[request.param], VOCAB, "float32")


def made(decoder: Decoder) -> dict:
    """Parameters away from their initial values, which hide mistakes (norms are 1, biases 0)."""
    params = jax.jit(decoder.init)(jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    random = np.random.default_rng(0)
    return jax.tree.unflatten(
        tree, [leaf + 0.1 * random.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
    )


def nll(decoder: Decoder, params: dict, rows: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """[B, T]: the loss of each token's successor."""
    index = np.broadcast_to(np.arange(rows.shape[1] - 1), segments.shape)
    starts = np.diff(segments, axis=1, prepend=-1) != 0
    positions = index - np.maximum.accumulate(np.where(starts, index, 0), axis=1)

    return np.asarray(losses(decoder, params, rows, segments, positions))


@functools.partial(jax.jit, static_argnums=0)
def losses(
    decoder: Decoder, params: dict, rows: jax.Array, segments: jax.Array, positions: jax.Array
) -> jax.Array:
    hidden, _ = decoder.forward(params, rows[:, :-1], segments, positions)
    return token_nll(hidden, decoder.unembedding(params), rows[:, 1:], 1)


@pytest.mark.slow
def test_a_packed_document_is_what_it_is_alone(decoder: Decoder) -> None:
    """At every offset of the boundary to a chunk, documents of one token included."""
    params, random = made(decoder), np.random.default_rng(1)
    length = 2 * CHUNK + 5
    # Row i: a document of i + 1 tokens, one of one token, one of two, and the rest.
    firsts = np.arange(1, CHUNK + 2)
    rows = random.integers(3, VOCAB, (len(firsts), length + 1)).astype(np.int32)
    bounds = np.stack([firsts, firsts + 1, firsts + 3], axis=1)
    segments = (np.arange(length)[None, :, None] >= bounds[:, None]).sum(2)
    packed = nll(decoder, params, np.tile(rows, (4, 1)), np.tile(segments, (4, 1)))  # as many rows
    # Alone: each document at the start of a row of its own, what follows being another document.
    # Only targets inside a document are compared.
    alone_rows, alone_segments, parts = [], [], []
    for i, row in enumerate(rows):
        for start, stop in zip([0, *bounds[i]], [*bounds[i], length], strict=True):
            alone_rows.append(np.roll(row[:-1], -start))
            alone_segments.append(np.arange(length) >= stop - start)
            parts.append((i, start, stop))
    targets = [np.append(row[1:], 0)[None] for row in alone_rows]
    whole = np.concatenate([np.stack(alone_rows), np.concatenate(targets)[:, -1:]], axis=1)
    alone = nll(decoder, params, whole, np.stack(alone_segments).astype(int))
    for line, (i, start, stop) in enumerate(parts):
        inside = slice(start, stop - 1)
        mine, theirs = packed[i, inside].sum(), alone[line, : stop - 1 - start].sum()
        assert mine == pytest.approx(theirs, rel=1e-6, abs=1e-6)


@pytest.mark.slow
def test_a_row_does_not_see_its_neighbours_or_the_future(decoder: Decoder) -> None:
    params, random = made(decoder), np.random.default_rng(2)
    rows = random.integers(3, VOCAB, (3, 41)).astype(np.int32)
    segments = np.zeros((3, 40), int)
    before = nll(decoder, params, rows, segments)
    other = rows.copy()
    other[1:] = random.integers(3, VOCAB, (2, 41))  # neighbours
    other[0, 21:] = random.integers(3, VOCAB, 20)  # the future
    after = nll(decoder, params, other, segments)
    np.testing.assert_allclose(after[0, :20], before[0, :20], rtol=1e-6)
    assert np.abs(after[0, 21:] - before[0, 21:]).min() > 0


@pytest.mark.slow
def test_layers_come_in_the_order_of_their_names() -> None:
    """A hybrid against its layers, applied one by one from the parameters of each."""
    decoder, T = Decoder(HYBRID, VOCAB, "float32"), 20
    params = made(decoder)
    tokens = jnp.asarray(np.random.default_rng(3).integers(0, VOCAB, (2, T)))
    positions = jnp.broadcast_to(jnp.arange(T), tokens.shape)
    tables = rotary_tables(positions, rotary_frequencies(HYBRID.rotary_dim, 1e4))
    context = LayerContext(jnp.zeros_like(tokens), positions, tables, jnp.ones(tokens.shape))
    apply = {
        r.spec: jax.jit(functools.partial(block.apply_layer, HYBRID, r.spec, None))
        for r in HYBRID.layer_groups
    }
    x, aux = 2.0 * params["embedding"][tokens], []
    for repeat in range(2):
        for name, index in (("group_0", 0), ("group_0", 1), ("group_1", 0)):
            group = next(group for group in HYBRID.layer_groups if group.name == name)
            stack, kind = params["layers"][name], group.spec
            one = {key: values[repeat * group.length + index] for key, values in stack.items()}
            x, statistics = apply[kind](x, one, context)
            aux.append(statistics)
    expected = block.apply_norm(HYBRID, {"n": params["final_norm"] / 2}, "n", x)
    counted = jnp.ones(tokens.shape)
    forward = jax.jit(lambda params, *inputs: decoder.forward(params, *inputs, loss_mask=counted))
    hidden, routers = forward(params, tokens, jnp.zeros_like(tokens), positions)
    np.testing.assert_allclose(hidden, expected, rtol=1e-4, atol=1e-5)
    assert routers is not None
    in_order = [statistics.counts for statistics in aux if statistics is not None]
    np.testing.assert_array_equal(routers.counts, np.stack(in_order))


@pytest.mark.slow
def test_loops_in_loops_are_the_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and derivatives of a hybrid in bfloat16, whose kept activations are bits."""
    params = jax.jit(Decoder(HYBRID, VOCAB, "bfloat16").init)(jax.random.key(0))
    tokens = jnp.asarray(np.random.default_rng(3).integers(0, VOCAB, (2, 32)))
    positions = jnp.broadcast_to(jnp.arange(32), tokens.shape)

    def gradient(remat: str) -> tuple:
        decoder = Decoder(HYBRID, VOCAB, "bfloat16", remat)

        def loss(params: dict) -> jax.Array:
            hidden, routers = decoder.forward(
                params, tokens, jnp.zeros_like(tokens), positions, loss_mask=jnp.ones(tokens.shape)
            )
            assert routers is not None
            return jnp.sum(jnp.square(hidden.astype(jnp.float32))) + jnp.sum(routers.balance)

        return jax.jit(jax.value_and_grad(loss))(params)

    ours = [gradient("none"), gradient("minimal")]
    monkeypatch.setattr(layer_loop, "_scan_saving_bits", layer_loop._plain_scan)
    plain = jax.tree.leaves(gradient("none"))
    for mine, theirs in zip(jax.tree.leaves(ours), [*plain, *plain], strict=True):
        scale = np.abs(theirs).max() + 1e-6
        np.testing.assert_allclose(mine / scale, theirs / scale, atol=0.02)


def test_compile_time_does_not_grow_with_depth() -> None:
    """The program of a pattern repeated twice is as long as that of one repeated eight times."""

    def length(repeats: int) -> int:
        config = shape(3 * repeats, layers=("mamba2+dense", "mamba2+dense", "attention+none"))
        decoder = Decoder(config, VOCAB)
        ids = jax.ShapeDtypeStruct((1, 32), jnp.int32)
        call = jax.jit(lambda p, *a: decoder.forward(p, *a)[0])
        return len(call.lower(decoder.shapes(), ids, ids, ids).as_text().splitlines())

    assert length(8) == length(2)


def test_equal_layers_are_one_loop() -> None:
    """No loop of one turn is around it; a pattern that repeats is a loop around its groups."""

    def loops(config: ModelConfig) -> int:
        decoder, ids = Decoder(config, VOCAB), jax.ShapeDtypeStruct((1, 32), jnp.int32)
        call = jax.make_jaxpr(lambda p, *a: decoder.forward(p, *a)[0])
        return str(call(decoder.shapes(), ids, ids, ids)).count(" scan[")

    assert loops(shape(4)) == 1
    assert loops(shape(3, layers=("attention+dense", "attention+dense", "attention+none"))) == 2
    assert loops(shape(4, layers=("attention+dense", "attention+none"))) == 3


def test_patterns_become_groups() -> None:
    def groups(layers: tuple, count: int) -> tuple:
        config = shape(count, layers=layers)
        return config.repeats, [(name, *spec, length) for name, spec, length in config.layer_groups]

    assert groups(("attention+dense",), 4) == (1, [("group_0", "attention", "dense", 4)])
    twice = ("mamba2+none", "mamba2+none", "attention+dense")
    expected = [("group_0", "mamba2", "none", 2), ("group_1", "attention", "dense", 1)]
    assert groups(twice, 6) == (2, expected)
    assert groups((*twice, *twice), 6) == (2, expected)  # the shortest pattern counts
    assert groups(("mamba2+none", *twice), 4) == (
        1,
        [("group_0", "mamba2", "none", 3), expected[1]],
    )
    with pytest.raises(UserError, match=r"model\.layers names 3 layers"):
        shape(4, layers=twice)


@pytest.mark.parametrize("name", KINDS)
def test_a_description_is_read_as_it_was_written(name: str, tmp_path) -> None:
    decoder = Decoder(KINDS[name], VOCAB)
    write_description(tmp_path, decoder)
    assert read_description(tmp_path) == decoder


def test_a_dense_model_is_made_as_it_always_was() -> None:
    """Names, shapes and, by their first numbers, initial weights of a seed: finished runs rely on
    them."""
    config = ModelConfig(
        hidden_size=8, intermediate_size=16, num_layers=2, num_heads=2, num_kv_heads=1
    )
    params = Decoder(config, 16).init(jax.random.key(7))
    assert list(params["layers"]) == ["group_0"]
    layers = params["layers"]["group_0"]
    found = {name: leaf.shape for name, leaf in layers.items()}
    assert found == {
        "attention_norm": (2, 8),
        "query": (2, 8, 8),
        "key": (2, 8, 4),
        "value": (2, 8, 4),
        "attention_out": (2, 8, 8),
        "mlp_norm": (2, 8),
        "gate": (2, 8, 16),
        "up": (2, 8, 16),
        "down": (2, 16, 8),
    }
    first = {name: round(float(layers[name][1, 0, 0]), 6) for name in FIRST_WEIGHTS}
    assert first == FIRST_WEIGHTS
