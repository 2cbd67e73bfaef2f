"""What a checkpoint's tensors are to our parameters: one table, read in both directions.

A tensor is one or more parameters of a layer, one after the other along an axis, each seen through
a view: transposed, cut into heads. A NumPy view can be read and written, so that a table which says
how a tensor is made says how it is taken apart.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from frame_jax.config.models import ModelConfig
from frame_jax.models.functional import Decoder
from frame_jax.models.transformer import Params

# A parameter of one layer as it is stored; shares the parameter's memory.
View = Callable[[ModelConfig, np.ndarray], np.ndarray]


def as_is(c: ModelConfig, values: np.ndarray) -> np.ndarray:
    """As it is here: the tables over the vocabulary."""
    return values


def transposed(c: ModelConfig, values: np.ndarray) -> np.ndarray:
    """[..., in, out] here, [..., out, in] there; vectors are the same."""
    return values.swapaxes(-1, -2) if values.ndim > 1 else values


def by_head(c: ModelConfig, values: np.ndarray) -> np.ndarray:
    """[in, H * head_dim] here, [H, head_dim, in] there; a bias without `in`."""
    rows = transposed(c, values)
    return rows.reshape(c.num_heads, -1, *rows.shape[1:])


def conv_kernel_view(c: ModelConfig, values: np.ndarray) -> np.ndarray:
    """[W, C], the token itself first, here; [C, 1, W], the oldest token first, there."""
    return values[::-1].T[:, None]


class Rule(NamedTuple):
    """How one tensor of a layer is made.

    Attributes:
        tensor: Its name after the layer's prefix; with `{expert}` for one tensor an expert.
        parameters: What it holds, in order. Where a layer has none of it, there is no tensor.
        view: How each of them is stored.
        axis: Of the views, along which they follow each other.
        merged: Leading axes of the views that are one axis of the tensor.
    """

    tensor: str
    parameters: tuple[str, ...]
    view: View = transposed
    axis: int = 0
    merged: int = 1


def single_rules(parameters: Mapping[str, str]) -> tuple[Rule, ...]:
    """Rules for tensors that hold one parameter each: tensor -> parameter."""
    return tuple(Rule(tensor, (parameter,)) for tensor, parameter in parameters.items())


class Layout(NamedTuple):
    """All names of a family's tensors, where they are stored in one of its ways.

    Attributes:
        outer: Tensors outside of layers: parameter -> tensor.
        prefix: What layers' tensors begin with, `{layer}` counting from 0.
        rules: The layers' tensors.
        buffers: Ends of the names of tensors that hold nothing learned.
    """

    outer: Mapping[str, str]
    prefix: str
    rules: tuple[Rule, ...]
    buffers: tuple[str, ...] = (".rotary_emb.inv_freq",)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a checkpoint.

    Attributes:
        config: Of the model.
        rule: How it is made.
        subtree_keys: Where its parameters are: keys of nested dicts.
        index: The layer (and the expert) among what is stacked there.
        shape: Its shape in the checkpoint.
    """

    config: ModelConfig
    rule: Rule
    subtree_keys: tuple[str, ...]
    index: tuple[int, ...]
    shape: tuple[int, ...]

    def views(self, params: Params) -> list[np.ndarray]:
        """Its parameters as they are stored, one by one."""
        return views(self.config, self.rule, subtree(params, self.subtree_keys), self.index)

    def stored(self, params: Params) -> np.ndarray:
        """What the checkpoint holds: contiguous float32."""
        values = np.concatenate(self.views(params), self.rule.axis).reshape(self.shape)
        return np.ascontiguousarray(values, np.float32)

    def load(self, values: np.ndarray, params: Params) -> None:
        """Copies what a checkpoint holds to its place."""
        views, axis = self.views(params), self.rule.axis
        ends = np.cumsum([view.shape[axis] for view in views])[:-1]
        parts = np.split(values.reshape(joined_shape(views, axis)), ends, axis)
        for view, part in zip(views, parts, strict=True):
            view[...] = part


def views(c: ModelConfig, rule: Rule, stacked: Params, index: tuple[int, ...]) -> list[np.ndarray]:
    """The parameters of a tensor as they are stored, one by one."""
    return [rule.view(c, stacked[name][index]) for name in rule.parameters]


def joined_shape(views: list[np.ndarray], axis: int) -> tuple[int, ...]:
    """The shape of arrays one after the other."""
    shape = list(views[0].shape)
    shape[axis] = sum(view.shape[axis] for view in views)
    return tuple(shape)


def subtree(params: Params, stack: tuple[str, ...]) -> Any:
    """What is under these keys, one in the other."""
    for key in stack:
        params = params[key]
    return params


def layer_locations(c: ModelConfig) -> Iterator[tuple[tuple[str, ...], tuple[int, ...]]]:
    """Where each layer's parameters are, from the first layer on: keys, and leading indices."""
    for repeat in range(c.repeats):
        for group in c.layer_groups:
            for layer in range(group.length):
                if group.name:
                    yield ("layers", group.name), (repeat, layer)
                else:
                    yield ("layers",), (layer,)


def checkpoint_tensors(decoder: Decoder, layout: Layout) -> dict[str, Tensor]:
    """Every tensor of a model by its name in a checkpoint."""
    c = decoder.config
    # As large as the parameters, without their memory: a view tells its shape.
    params = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), decoder.shapes())

    @functools.cache
    def shape(rule: Rule, stack: tuple[str, ...], axes: int) -> tuple[int, ...]:
        form = joined_shape(views(c, rule, subtree(params, stack), (0,) * axes), rule.axis)
        return (math.prod(form[: rule.merged]), *form[rule.merged :])

    def tensor(rule: Rule, stack: tuple[str, ...] = (), index: tuple[int, ...] = ()) -> Tensor:
        return Tensor(c, rule, stack, index, shape(rule, stack, len(index)))

    outer = [name for name in params if name != "layers"]
    tensors = {
        layout.outer[name]: tensor(Rule(layout.outer[name], (name,), as_is)) for name in outer
    }
    for layer, (stack, index) in enumerate(layer_locations(c)):
        for rule in layout.rules:
            name = layout.prefix.format(layer=layer) + rule.tensor
            if rule.parameters[0] not in subtree(params, stack):
                continue
            if "{expert}" not in name:
                tensors[name] = tensor(rule, stack, index)
                continue
            for expert in range(c.experts.num_experts):
                tensors[name.format(expert=expert)] = tensor(rule, stack, (*index, expert))
    size = sum(math.prod(tensor.shape) for tensor in tensors.values())
    assert size == decoder.parameter_count(), "a parameter has no tensor, or two"
    return tensors
