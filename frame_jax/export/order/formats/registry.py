"""The formats by name, one module each.

`files` makes the trainer's configuration and a note on its use from an order; `DATA_FORMATS` are
the kinds of data that the trainer reads.
"""

from frame_jax.export.order.formats import (
    levanter,
    maxtext,
    megatron,
    mosaicml,
    nanotron,
    olmo_core,
)

MODULES = (levanter, maxtext, megatron, mosaicml, nanotron, olmo_core)
FORMATS = {module.__name__.rpartition(".")[2]: module for module in MODULES}
