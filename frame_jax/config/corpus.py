"""Settings of documents and tokens: sources, splits, tokenizer."""

from dataclasses import dataclass
from typing import Literal

from frame_jax.config.base import check_bounds, number, require


@dataclass(frozen=True)
class SourceConfig:
    """Where documents come from.

    Attributes:
        kind: The reader: `python_library` (text that every Python installation carries), `jsonl`
            (packed or not), `parquet`, `arrow` (such as a folder saved by `datasets`), `text` (a
            folder, one document a file) or `tfds`.
        path: A file, a folder or a glob pattern (`jsonl`, `parquet`, `arrow`, `text`), here or at
            `s3://`, `gs://`, `hf://` or `https://`; the data directory of a prepared dataset
            (`tfds`).
        name: The source's name in reports; defaults to the kind or the file's stem. For `tfds` the
            dataset's name, such as `my_dataset:1.0.0`.
        split: The split to read (`tfds`).
        text_field: Field or column that holds the text. This and the other fields may be dotted
            paths, such as `meta.set.name`, into objects, structs and JSON texts.
        id_field: Field that holds a unique document id; where it is null or absent from a record
            the id is made of `name`, the file's name and the record's index.
        source_field: Field that names the source of a record, where records carry one.
        domain_field: Field that holds the domain.
        language_field: Field that holds the language.
        domain: The domain of records that carry none.
        language: The language of records that carry none.
        max_bytes: Stop after about this many bytes of text (`python_library`); null reads all.
    """

    kind: Literal["python_library", "jsonl", "parquet", "arrow", "text", "tfds"]
    path: str | None = None
    name: str | None = None
    split: str = "train"
    text_field: str = "text"
    id_field: str | None = "id"
    source_field: str | None = "source"
    domain_field: str | None = "domain"
    language_field: str | None = "language"
    domain: str = "text"
    language: str = "en"
    max_bytes: int | None = number(None, above=0)

    def __post_init__(self) -> None:
        require(
            self.path is not None or self.kind in ("python_library", "tfds"),
            f"corpus.sources: a source of kind {self.kind} needs `path`",
        )
        require(
            self.name is not None or self.kind != "tfds",
            "corpus.sources: kind tfds needs `name` (the dataset's name)",
        )
        check_bounds(self, "corpus.sources: ")


@dataclass(frozen=True)
class CorpusConfig:
    """Documents in.

    Attributes:
        sources: Where documents come from, in order.
        parts: Output files of tokenisation, the unit of parallel work. At least the number of
            processes times their workers.
        held_out_fraction: Share of documents kept for evaluation, chosen by a hash of the id.
        reference_fraction: Share that trains the two reference models, chosen by the same hash.
        max_rejected_fraction: Stop when more than this share of records cannot be used.
    """

    sources: list[SourceConfig]
    parts: int = number(8, least=1)
    held_out_fraction: float = number(0.05, least=0, most=1)
    reference_fraction: float = number(0.2, least=0, most=1)
    max_rejected_fraction: float = number(0.001, least=0, most=1)

    def __post_init__(self) -> None:
        require(len(self.sources) > 0, "corpus.sources is empty: name at least one source")
        check_bounds(self, "corpus.")
        require(
            self.held_out_fraction + self.reference_fraction < 1,
            "corpus.held_out_fraction + corpus.reference_fraction leave nothing to train on: "
            "their sum must be below 1",
        )


@dataclass(frozen=True)
class TokenizerConfig:
    """Text to token ids.

    Attributes:
        path: A `tokenizer.json` to use; null trains a byte-level BPE on a sample of the corpus.
        vocab_size: Vocabulary of a trained tokenizer, special tokens included.
        sample_bytes: Bytes of text that a trained tokenizer sees.
        bos_token: The token that starts a document; null finds it by its usual names.
        eos_token: The token that ends a document; null finds it by its usual names.
    """

    path: str | None = None
    vocab_size: int = 32768
    sample_bytes: int = number(64_000_000, above=0)
    bos_token: str | None = None
    eos_token: str | None = None

    def __post_init__(self) -> None:
        require(
            self.vocab_size >= 260,
            f"tokenizer.vocab_size must be at least 260 (256 bytes and the special tokens), "
            f"not {self.vocab_size}",
        )
        check_bounds(self, "tokenizer.")
