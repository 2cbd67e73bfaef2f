"""The formats by name, one module each.

`files` makes the trainer's configuration and a note on its use from a plan; `READS` are the kinds
of data that the trainer reads.
"""

from frame_jax.export.order.formats import (
    levanter,
    maxtext,
    megatron,
    mosaicml,
    nanotron,
    olmo_core,
)

FORMATS = {
    "levanter": levanter,
    "maxtext": maxtext,
    "megatron": megatron,
    "mosaicml": mosaicml,
    "nanotron": nanotron,
    "olmo_core": olmo_core,
}
