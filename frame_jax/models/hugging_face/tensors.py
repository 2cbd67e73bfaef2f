"""Maps a checkpoint's tensors to our parameters: one table, read in both directions.

A tensor is one or more parameters of a layer, concatenated along an axis, each seen through a NumPy
view: transposed, split into heads. Views can be read and written, so that the rule which makes a
tensor takes it apart, too.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from frame_jax.config.models import ModelConfig
from frame_jax.models.transformer import Decoder, Params

# A parameter of one layer as it is stored; shares the parameter's memory.
View = Callable[[ModelConfig, np.ndarray], np.ndarray]
Part = tuple[slice, ...]  # of an array: a slice of each axis
ALL = slice(None)


def as_is(c: ModelConfig, values: np.ndarray) -> np.ndarray:
    """Unchanged: the tables over the vocabulary."""
    return values


def transposed(c: ModelConfig, values: np.ndarray) -> np.ndarray:
    """[..., in, out] here, [..., out, in] there; vectors are the same."""
    return values.swapaxes(-1, -2) if values.ndim > 1 else values


def by_head(c: ModelConfig, values: np.ndarray) -> np.ndarray:
    """[in, H * head_dim] here, [H, head_dim, in] there; a bias without `in`."""
    rows = transposed(c, values)  # which may be some of `in`
    return rows.reshape(c.num_heads, -1, *rows.shape[1:])


def conv_kernel_view(c: ModelConfig, values: np.ndarray) -> np.ndarray:
    """[W, C], the token itself first, here; [C, 1, W], the oldest token first, there."""
    return values[::-1].T[:, None]


class Rule(NamedTuple):
    """How one tensor of a layer is made.

    Attributes:
        tensor: Its name after the layer's prefix; with `{expert}` for one tensor an expert.
        parameters: The parameters it holds, in order. A layer without the first has no such tensor.
        view: How each of them is stored.
        axis: The axis of the views along which they are concatenated.
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
    """The names of a family's tensors, in one of the ways in which it stores them.

    Attributes:
        outer: Tensors outside of layers: parameter -> tensor.
        prefix: What layers' tensors begin with, `{layer}` counting from 0.
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
        group: The group of layers that the parameters belong to; None outside of layers.
        index: The layer (and the expert) among the parameters that are stacked there.
    """

    config: ModelConfig
    rule: Rule
    group: str | None
    index: tuple[int, ...]
    shape: tuple[int, ...]

    def stored(self, params: Params) -> np.ndarray:
        """The tensor of the checkpoint: contiguous float32."""
        views = parameter_views(self.config, self.rule, params, self.group, self.index)
        values = np.concatenate(views, self.rule.axis).reshape(self.shape)
        return np.ascontiguousarray(values, np.float32)

    def load(self, stored: Any, parameter: str, part: Part, params: Params) -> np.ndarray:
        """Reads a part of one of its parameters: slices of one layer's.

        `stored` is the tensor in an open file, of which slices can be taken, `params` are arrays of
        all parameters' shapes.
        """
        views = parameter_views(self.config, self.rule, params, self.group, self.index)
        axis, merged = self.rule.axis, self.rule.merged
        number = self.rule.parameters.index(parameter)
        read, box = part_to_read(self.rule.view, part, views[number].ndim)
        before = sum(view.shape[axis] for view in views[:number])
        first, last, _ = box[axis].indices(views[number].shape[axis])
        box = (*box[:axis], slice(before + first, before + last), *box[axis + 1 :])
        if merged == 1:
            values = stored[box]
        else:  # axes that are one in the file are taken apart here
            values = stored[(ALL, *box[merged:])]
            split = joined_shape(views, axis)[:merged]
            values = values.reshape(*split, *values.shape[1:])[box[:merged]]
        group = params if self.group is None else params["layers"][self.group]
        found = np.empty(group[parameter][self.index][read].shape, np.float32)
        self.rule.view(self.config, found)[...] = values
        return found[tuple(ALL if r == own else own for r, own in zip(read, part, strict=True))]


def parameter_views(
    c: ModelConfig, rule: Rule, params: Params, group: str | None, index: tuple[int, ...]
) -> list[np.ndarray]:
    """The parameters of a tensor as they are stored, one by one."""
    stacked = params if group is None else params["layers"][group]
    return [rule.view(c, stacked[name][index]) for name in rule.parameters]


def part_to_read(view: View, part: Part, axes: int) -> tuple[Part, Part]:
    """What is read to have a part of a parameter, and where that is in the view, of so many axes.

    It is the part itself, or, where a view cuts or turns an axis, all along that axis.
    """
    if view is as_is or (view is transposed and len(part) == 1):
        return part, part
    if view is transposed:
        return part, (*part[:-2], part[-1], part[-2])
    if view is by_head:
        return (*part[:-1], ALL), (ALL, ALL, *part[:-1])
    return (ALL,) * len(part), (ALL,) * axes


def joined_shape(views: list[np.ndarray], axis: int) -> tuple[int, ...]:
    """The shape of the arrays concatenated along `axis`."""
    shape = list(views[0].shape)
    shape[axis] = sum(view.shape[axis] for view in views)
    return tuple(shape)


def layer_locations(c: ModelConfig) -> Iterator[tuple[str, int]]:
    """Where each layer's parameters are, from the first layer on: its group, its index there."""
    for repeat in range(c.repeats):
        for group in c.layer_groups:
            for layer in range(group.length):
                yield group.name, repeat * group.length + layer


def shapes_alone(decoder: Decoder) -> Params:
    """Arrays of the parameters' shapes without their memory."""
    return jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), decoder.shapes())


def checkpoint_tensors(decoder: Decoder, layout: Layout) -> dict[str, Tensor]:
    """Every tensor of a model by its name in a checkpoint."""
    c, params = decoder.config, shapes_alone(decoder)
    shapes: dict[tuple[Rule, str | None], tuple[int, ...]] = {}  # equal in all layers of a group
    tensors = {}

    def add(name: str, rule: Rule, group: str | None, index: tuple[int, ...]) -> None:
        if (rule, group) not in shapes:
            views = parameter_views(c, rule, params, group, index)
            shape = joined_shape(views, rule.axis)
            shapes[rule, group] = (math.prod(shape[: rule.merged]), *shape[rule.merged :])
        tensors[name] = Tensor(c, rule, group, index, shapes[rule, group])

    for parameter in params:
        if parameter != "layers":
            name = layout.outer[parameter]
            add(name, Rule(name, (parameter,), as_is), None, ())
    for layer, (group, index) in enumerate(layer_locations(c)):
        for rule in layout.rules:
            name = layout.prefix.format(layer=layer) + rule.tensor
            if rule.parameters[0] not in params["layers"][group]:
                continue
            if "{expert}" not in name:
                add(name, rule, group, (index,))
                continue
            for expert in range(c.experts.num_experts):
                add(name.format(expert=expert), rule, group, (index, expert))
    size = sum(math.prod(tensor.shape) for tensor in tensors.values())
    assert size == decoder.parameter_count(), "a parameter has no tensor, or two"
    return tensors
