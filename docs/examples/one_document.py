"""One document from text to gradient, by the functions that a run calls, in their order.

    python docs/examples/one_document.py [TOPIC]

The corpus is the interpreter's manual, a document a topic; TOPIC (`lambda` by default) is followed.
Both reference models and the target model are as they are initialised, so losses and quadrants mean
nothing here: what is shown is where each number comes from and what shape it has.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq

from frame_jax.config.corpus import CorpusConfig, SourceConfig, TokenizerConfig
from frame_jax.config.curriculum import CurriculumConfig
from frame_jax.config.models import ModelConfig
from frame_jax.config.quadrants import PartitionConfig, RowsConfig
from frame_jax.config.run import RunConfig
from frame_jax.config.scoring import ScoringConfig
from frame_jax.config.training import TrainingConfig
from frame_jax.corpus.parts import plan_parts
from frame_jax.corpus.tokenize import tokenize_corpus
from frame_jax.corpus.tokenizer import load_tokenizer
from frame_jax.curriculum.loader import BatchSource, make_loader
from frame_jax.curriculum.presets import expand_curriculum
from frame_jax.curriculum.selection import SelectionMap
from frame_jax.curriculum.stages import resolve_curriculum
from frame_jax.models.cross_entropy import chunk_count
from frame_jax.models.transformer import Decoder
from frame_jax.quadrants.partition import write_assignment
from frame_jax.quadrants.rows import training_conditions, write_quadrant_rows
from frame_jax.records import TokenReader, record_counts
from frame_jax.run.directory import RunDirectory, list_parts
from frame_jax.run.special_tokens import SpecialTokens
from frame_jax.scoring.documents import score_documents
from frame_jax.scoring.packing import make_batches, pack_windows, window_sums
from frame_jax.scoring.score_parts import read_index, write_scores
from frame_jax.scoring.scorer import Scorer
from frame_jax.scoring.windows import windows
from frame_jax.training.train_step import loss_fn, make_lm_batch

CONTEXT = SEQUENCE = 64  # tokens of a scoring window, and those that a training row predicts
BATCH_ROWS = 4
VOCAB = 512


def show(what: str, value: Any) -> None:
    print(f"{what:34} {value}")


def make_decoder(width: int, layers: int) -> Decoder:
    shape = ModelConfig(hidden_size=width, intermediate_size=2 * width, num_layers=layers)
    return Decoder(shape, VOCAB, compute_dtype="float32")


def follow(topic: str, root: Path) -> None:
    """Takes the document `topic` along the whole line in a run directory below `root`."""
    # corpus/sources, corpus/tokenize: text to token ids
    corpus = root / "corpus.jsonl"
    records = (json.dumps({"id": name, "text": text}) for name, text in topics.items())
    corpus.write_text("\n".join(records), "utf-8")
    source = SourceConfig("jsonl", path=str(corpus))
    config = RunConfig(
        run_directory=str(root / "run"),
        corpus=CorpusConfig([source], parts=1, held_out_fraction=0.0, reference_fraction=0.0),
        tokenizer=TokenizerConfig(vocab_size=VOCAB),
        partition=PartitionConfig(rows=RowsConfig(sequence_length=SEQUENCE, parts=1)),
    )
    directory = RunDirectory(config.run_directory)
    [[chunk]] = plan_parts(config.corpus)
    document = next(d for d in chunk.read_records() if getattr(d, "id", "") == topic)
    show("document", f"{document.id}, {len(document.text):,} characters")
    tokenize_corpus(config, directory)
    tokenizer = load_tokenizer(directory)
    [ids] = tokenizer.encode_arrays([document.text])
    show("token ids", f"{ids.dtype} {ids.shape}: {ids[:6]} ...")
    [part] = list_parts(directory.tokens, ".parquet")
    index = read_index(part, "doc_id")
    row = index["doc_id"].to_pylist().index(topic)
    stored = TokenReader(part.with_suffix(".arrayrecord")).read(range(len(index)))
    assert np.array_equal(stored[row], ids)

    # scoring: token ids to windows, packed rows, and NLL under both reference models
    pieces = list(windows(row, ids, tokenizer.bos_id, CONTEXT, overlap=0))
    show("windows", f"{len(pieces)}, of {[window.length for window in pieces]} tokens")
    models = []
    for seed, decoder in enumerate((make_decoder(16, 1), make_decoder(32, 2))):
        models.append((decoder, jax.tree.map(np.array, decoder.init(jax.random.key(seed)))))
    scorer = Scorer(models, ScoringConfig(CONTEXT, per_device_batch_size=8, loss_chunk=512))
    packed = pack_windows(pieces, scorer.row_length, pool_rows=256)
    count = scorer.rows * CONTEXT // scorer.row_length
    by_hand = np.zeros(2)
    for scoring_batch in make_batches(packed, count, scorer.row_length):
        nll = np.asarray(scorer(scoring_batch))
        show("scoring batch, NLL of its tokens", f"{scoring_batch.inputs.shape}, {nll.shape}")
        by_hand += window_sums(nll, scoring_batch).sum(axis=1)
    scores = score_documents(scorer, stored, bos_id=tokenizer.bos_id)
    assert np.allclose(by_hand, scores.nll[:, row])
    weak, strong = scores.nll[:, row] / scores.predicted_tokens[row]
    show("NLL a token, weak and strong", f"{weak:.4f}, {strong:.4f} nats")
    write_scores(directory.scores / part.name, index, [scores])

    # quadrants: NLL to PPL, PD and a quadrant, and the quadrant's documents to training rows
    write_assignment(config.partition, config.scoring, directory)
    filters = [("doc_id", "=", topic)]
    [line] = pq.read_table(directory.assignment, filters=filters).to_pylist()
    assert np.allclose([line["ppl"], line["pd"]], [np.exp(strong), 1 - np.exp(strong - weak)])
    show("PPL, PD, quadrant", f"{line['ppl']:.1f}, {line['pd']:+.4f}, {line['quadrant']}")
    names = config.partition.axes.quadrants
    write_quadrant_rows(
        config.partition.rows,
        directory,
        directory.quadrants,
        [directory.assignment],
        training_conditions(names),
        config.seed,
        config.workers,
    )
    parts = {name: list_parts(directory.quadrants / name, ".arrayrecord") for name in names}
    counts = {name: int(record_counts(files).sum()) for name, files in parts.items()}
    show("training rows", counts)
    [file] = parts[line["quadrant"]]
    rows = np.stack(TokenReader(file).read(range(counts[line["quadrant"]])))
    start = find(rows.ravel(), np.concatenate([[tokenizer.bos_id], ids]))
    own_row = start // rows.shape[1]
    show("it begins in", f"{line['quadrant']}, row {own_row}, position {start % rows.shape[1]}")

    # curriculum: which row comes when, and rows to batches
    curriculum = expand_curriculum(CurriculumConfig(preset="frame"), config.partition.axes)
    schedule = resolve_curriculum(
        curriculum, counts, batch_size=BATCH_ROWS, sequence_length=SEQUENCE
    )
    show("stages, and their last rows", {stage.name: stage.stop for stage in schedule.stages})
    selection = SelectionMap(schedule, config.seed)
    quadrant = names.index(line["quadrant"])
    [place] = selection.inverse(quadrant, np.array([own_row]), epoch=0).tolist()
    assert selection[place] == (quadrant, own_row)
    step = place // BATCH_ROWS
    show("that row comes as", f"row {place:,} of {len(selection):,}, in step {step}")
    loader = make_loader(
        BatchSource(
            parts,
            selection,
            batch_size=BATCH_ROWS,
            row_offsets=range(BATCH_ROWS),
            row_tokens=SEQUENCE + 1,
            padding_id=tokenizer.bos_id,
        ),
        start_step=step,
    )
    batch = next(loader)
    assert np.array_equal(batch[place % BATCH_ROWS], rows[own_row])
    show("batch", f"{batch.dtype} {batch.shape}")

    # models, training/train_step: batch to loss and gradient
    special_tokens = SpecialTokens(tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size)
    lm_batch = make_lm_batch(jnp.asarray(batch), special_tokens, document_attention=True)
    show("segments of its row", np.unique(lm_batch.segment_ids[place % BATCH_ROWS]))
    target = make_decoder(32, 2)
    training = TrainingConfig(batch_size=BATCH_ROWS)
    chunks = chunk_count(BATCH_ROWS, SEQUENCE, training.loss_chunk)

    def loss(params: Any) -> jax.Array:
        objective, _ = loss_fn(target, params, lm_batch, chunks, training)
        return objective / lm_batch.loss_mask.sum()

    value, gradient = jax.value_and_grad(loss)(target.init(jax.random.key(config.seed)))
    show("loss", f"{value:.4f} nats a token, ln {VOCAB} is {np.log(VOCAB):.4f}")
    for path, leaf in jax.tree.leaves_with_path(gradient):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        show(f"gradient of {name}", f"{leaf.shape}, norm {jnp.linalg.norm(leaf):.4f}")


def find(ids: np.ndarray, wanted: np.ndarray) -> int:
    """Where `wanted` begins in `ids`."""
    spans = np.lib.stride_tricks.sliding_window_view(ids, len(wanted))
    return int(np.flatnonzero((spans == wanted).all(axis=1))[0])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        follow((sys.argv[1:] or ["lambda"])[0], Path(folder))
