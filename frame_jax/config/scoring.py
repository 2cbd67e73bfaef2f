"""Settings of scoring: windows, batches, types."""

from dataclasses import dataclass
from typing import Literal

from frame_jax.config.base import check_bounds, number, require, runtime


@dataclass(frozen=True)
class TableConfig:
    """Scores made elsewhere: a Parquet table with a line for each document.

    Attributes:
        path: A file, folder or pattern, on this machine or a URL.
        ppl: The column that takes the place of PPL.
        pd: The column that takes the place of PD; null where the table has one number a document,
            such as a rank, which needs partition.axes.pd: 1.
        doc_id: The column with the documents' ids, as RUN/tokens/part-*.parquet has them.
    """

    path: str
    ppl: str
    pd: str | None = None
    doc_id: str = "doc_id"

    def __post_init__(self) -> None:
        for key in ("path", "ppl", "doc_id"):
            require(getattr(self, key) != "", f"scoring.table.{key} must not be empty")
        for one, other in (("ppl", "pd"), ("ppl", "doc_id"), ("pd", "doc_id")):
            name = getattr(self, one)
            require(
                name != getattr(self, other),
                f"scoring.table.{one} and scoring.table.{other} name one column, {name!r}: name "
                "another in one of them",
            )


@dataclass(frozen=True)
class ScoringConfig:
    """How every document is scored under both reference models.

    Attributes:
        context: Tokens a scoring window predicts at most; also the length of a packed row.
        overlap: Tokens of the window before that a later window conditions on without counting.
        per_device_batch_size: Contexts of packed tokens in one call, by device or whole CPU.
        fsdp: Devices of a process that share one copy of the models' parameters; 1 keeps a copy on
            each, which is faster where both models fit.
        ppl_model: The reference model whose perplexity is the PPL axis.
        compute_dtype: Type of matrix-product operands, in evaluation too; `auto` as in training.
        loss_chunk: Tokens whose logits exist at one time, per device.
        unit: What a loss is a mean over: `token`, as in the paper, which needs one tokenizer for
            both models, or `byte` of the text, under which an imported model may have its own.
        reliability: Documents that are scored again, under the reference models at half of their
            training, to find how far scores are a property of the text; 0 skips this.
        table: Scores made elsewhere, in place of both reference models.
    """

    context: int = number(1024, least=2)
    overlap: int = 0
    per_device_batch_size: int = runtime(8, least=1)
    fsdp: int = runtime(1, least=1)
    ppl_model: Literal["strong", "weak"] = "strong"
    compute_dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    loss_chunk: int = runtime(512, least=1)
    unit: Literal["token", "byte"] = "token"
    reliability: int = runtime(2000, least=0)  # a phase step of its own depends on it
    table: TableConfig | None = None

    def __post_init__(self) -> None:
        check_bounds(self, "scoring.")
        require(
            0 <= self.overlap < self.context,
            f"scoring.overlap must be at least 0 and below scoring.context ({self.context}), "
            f"not {self.overlap}",
        )
        require(
            self.table is None or self.unit == "token",
            "scoring.unit is of no use beside scoring.table: leave one of them out",
        )
