"""The scoring function: the NLL of every token of packed rows under all models, in one mapped call.

Rows are split over the devices of this process; processes never wait for each other here. The
parameters are replicated, or, for models larger than a device, sharded over `fsdp` devices and
gathered layer by layer while the call runs.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from frame_jax.config.parallel import ParallelConfig
from frame_jax.config.scoring import ScoringConfig
from frame_jax.errors import UserError
from frame_jax.models.cross_entropy import chunk_count, likeliest_tokens, token_nll
from frame_jax.models.layers import from_bits
from frame_jax.models.transformer import Decoder, Params
from frame_jax.parallel import sharding

ROW_TOKENS = 2048


class Scorer:
    """Models on the devices of this process, ready to score batches of packed rows.

    Attributes:
        context: Tokens that a window holds at most.
        rows: A batch holds so many contexts of tokens.
        row_length: Tokens in a packed row: as many contexts as ROW_TOKENS and `rows` allow, because
            longer rows are filled better.
        models: The decoders, in the order of the results.
        values: How many there are of a token.
    """

    def __init__(
        self,
        models: Sequence[tuple[Decoder, Params]],
        scoring: ScoringConfig,
        misses: bool = False,
    ):
        """Places the parameters of models that share a vocabulary; compiles at the first call.

        With `misses` there are two values of a token under each model, see `score_rows`.

        Raises:
            UserError: if `fsdp` does not divide the number of devices.
        """
        devices, context, fsdp = jax.local_devices(), scoring.context, scoring.fsdp
        if len(devices) % fsdp:
            raise UserError(
                f"scoring.fsdp is {fsdp}, but a process has {len(devices)} devices: "
                "choose a divisor of that"
            )
        rows = scoring.per_device_batch_size
        if devices[0].platform == "cpu":  # where devices are cores, which share one device's rows
            rows = max(1, rows // len(devices))
        self.models = tuple(decoder for decoder, _ in models)
        self.values = len(models) * (2 if misses else 1)
        self.context, self.rows = context, rows * len(devices)
        self.row_length = context * contexts_in_row(rows, context)
        self._mesh = sharding.make_mesh(ParallelConfig(data=-1, fsdp=fsdp, tensor=1), devices)
        self._batch_sharding = sharding.batch_sharding(self._mesh)
        self.replace_params(*(params for _, params in models))
        rows_spec = self._batch_sharding.spec
        score = functools.partial(score_rows, loss_chunk=scoring.loss_chunk, misses=misses)
        self._score = jax.jit(
            jax.shard_map(
                functools.partial(score, self.models, self._specs),
                mesh=self._mesh,
                in_specs=(self._specs, *[rows_spec] * 4),
                out_specs=PartitionSpec(None, *rows_spec),
                check_vma=False,  # the mesh's third axis, `tensor`, has one device here
            )
        )

    def __call__(self, batch: Any) -> jax.Array:
        """Starts scoring a batch: [values, *shape of its arrays] float32, NLL in nats, ready later.

        The batch has the arrays of a `packing.Batch`. Compiles for each shape.
        """
        arrays = (batch.inputs, batch.targets, batch.segment_ids, batch.positions)
        return self._score(self._params, *jax.device_put(arrays, self._batch_sharding))

    def replace_params(self, *params: Params) -> None:
        """Replaces the parameters by others of the same models; nothing is compiled again."""
        self._params: tuple[Params, ...] = ()  # frees them before others come
        sharded = [
            shard_params(decoder, own, self._mesh)
            for decoder, own in zip(self.models, params, strict=True)
        ]
        self._params = tuple(params for params, _ in sharded)
        self._specs = tuple(specs for _, specs in sharded)


def contexts_in_row(rows: int, context: int) -> int:
    """How many contexts are joined to one row, of `rows` contexts on a device."""
    joined = (n for n in range(1, rows + 1) if rows % n == 0 and n * context <= ROW_TOKENS)
    return max(joined, default=1)


def kept_dtype(decoder: Decoder, axes: tuple[str, ...]) -> jnp.dtype:
    """The type in which a parameter with these logical axes is kept: matrices in the compute dtype.

    Routers and convolutions compute in float32 and stay it.
    """
    single = {"norm", "conv", "router"} & set(axes)
    is_matrix = len(axes) - axes.count("layer") >= 2 and not single
    return jnp.dtype(decoder.compute_dtype if is_matrix else jnp.float32)


def shard_params(decoder: Decoder, params: Params, mesh: Mesh) -> tuple[Params, Any]:
    """Puts parameters on a mesh, each in its `kept_dtype`; returns their specs, too.

    Rounding the matrices once gives what rounding them at every use gives, in half the memory. On a
    CPU the stacked ones are kept as their bits: XLA takes a layer out of a bfloat16 stack by way of
    float32, and the loop over layers would convert every matrix twice more.
    """
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    axes, shapes = decoder.axes(), decoder.shapes()
    shardings = sharding.param_shardings(axes, shapes, mesh)

    def put(leaf: Any, names: tuple[str, ...], target: NamedSharding) -> jax.Array:
        dtype = kept_dtype(decoder, names)
        values = np.asarray(leaf).astype(dtype)
        if on_cpu and dtype == jnp.bfloat16 and "layer" in names:
            values = values.view(np.uint16)
        return jax.device_put(values, target)

    sharded = jax.tree.map(put, params, axes, shardings)
    return sharded, jax.tree.map(lambda target: target.spec, shardings)


def all_gather_params(params: Params, specs: Any) -> Params:
    """Gathers whole parameters from the shards on the devices of the `fsdp` axis."""

    def whole(leaf: jax.Array, spec: PartitionSpec) -> jax.Array:
        leaf = from_bits(leaf)
        split = [axis for axis, names in enumerate(spec) if "fsdp" in (names or ())]
        if not split or jax.lax.axis_size("fsdp") == 1:
            return leaf
        return jax.lax.all_gather(leaf, "fsdp", axis=split[0], tiled=True)

    return jax.tree.map(whole, params, specs)


def hidden_states(
    decoder: Decoder,
    shards: Params,
    specs: Any,
    inputs: jax.Array,
    segment_ids: jax.Array,
    positions: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Runs a model on this device's rows, gathering its layers' parameters one layer at a time:
    [rows, length, D] in the compute dtype, and the output projection, [V, D] float32."""
    outer = {name: spec for name, spec in specs.items() if name != "layers"}
    whole = all_gather_params({name: shards[name] for name in outer}, outer)
    params = {**whole, "layers": shards["layers"]}

    def gather_layer(group: str, params: Params) -> Params:
        # Without the first axis, over which the layers are scanned.
        return all_gather_params(
            params,
            {name: PartitionSpec(*spec[1:]) for name, spec in specs["layers"][group].items()},
        )

    hidden, _ = decoder.forward(params, inputs, segment_ids, positions, gather=gather_layer)
    return hidden, decoder.unembedding(params)


def score_rows(
    models: tuple[Decoder, ...],
    specs: tuple[Any, ...],
    params: tuple[Params, ...],
    inputs: jax.Array,
    targets: jax.Array,
    segment_ids: jax.Array,
    positions: jax.Array,
    *,
    loss_chunk: int,
    misses: bool = False,
) -> jax.Array:
    """What one device computes: the NLL of its rows under every model, [values, rows, length]
    float32; with `misses` followed by 1 where another token is likelier than the target, else 0.

    `specs` and `params` are the partition specs of each model's parameters and this device's shards
    of them; the arrays that follow are [rows, length] int32. Logits of `loss_chunk` tokens exist at
    one time.
    """
    chunks = chunk_count(inputs.shape[0], inputs.shape[1], loss_chunk)
    values = []
    for decoder, shards, spec in zip(models, params, specs, strict=True):
        # Left alone, a TPU rounds float32 operands to bfloat16, a GPU to TF32.
        precision = "highest" if decoder.compute_dtype == "float32" else None
        with jax.default_matmul_precision(precision):
            computed = hidden_states(decoder, shards, spec, inputs, segment_ids, positions)
            values.append(token_nll(*computed, targets, chunks))
            if misses:
                likeliest = likeliest_tokens(*computed, chunks)
                values.append((likeliest != targets).astype(jnp.float32))
    return jnp.stack(values)
