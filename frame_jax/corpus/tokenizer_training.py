"""Prepares the run's tokenizer: trained on a sample of the corpus, or given as a file."""

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from frame_jax.config.corpus import TokenizerConfig
from frame_jax.config.run import RunConfig
from frame_jax.corpus.documents import Document
from frame_jax.corpus.parts import sample_documents
from frame_jax.corpus.tokenizer import Tokenizer, make_tokenizer
from frame_jax.errors import UserError, print_note
from frame_jax.files import is_checkpoint, local_copy
from frame_jax.run.directory import RunDirectory, atomic_path, read_object, write_dataclass
from frame_jax.run.special_tokens import (
    BOS,
    EOS,
    ChosenTokens,
    SpecialTokens,
    choose_special_tokens,
    special_tokens_path,
)

# Merges never cross these borders. Alternatives, in order: a word with the character before it
# (mostly a space); up to three digits; a run of symbols with the space before it; line ends with
# the blanks before them; blanks up to the one that belongs to the next word; other blanks.
WORDS = "|".join(
    (
        r"[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{M}\p{N}]+",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
MAX_TOKEN_CHARACTERS = 64  # longer ones are rules of dashes and lines of blanks
# Training takes time by the square of a word's length: longer ones (genomes, base64, lines of
# blanks) are cut for it, and for it alone.
WORD_CHARACTERS = 256
SHORT_WORDS = (
    WORDS.replace("]+", f"]{{1,{WORD_CHARACTERS}}}")
    .replace(r"\s+", rf"\s{{1,{WORD_CHARACTERS}}}")
    .replace(r"\s*", rf"\s{{0,{WORD_CHARACTERS}}}")
)
LONG_WORD = re.compile(r"[^\W\d_]{257}|\s{257}|[^\w\s]{257}")

# Training reads a long text in pieces of about this many characters: for one of 50 MB in one piece
# the library takes 5 GB to find its words. Pieces end where a line does.
SAMPLE_TEXT_CHARACTERS = 1 << 16
LINE_START = re.compile(r"(?<=\n)(?=\S)")

CHECKED_BYTES = 4_000_000
DROPOUT = "its file asks for dropout of merges, by which a text gets other ids each time: left out"


def prepare_tokenizer(config: RunConfig, directory: RunDirectory) -> None:
    """Writes tokenizer.json and special_tokens.json, unless they are there.

    Raises:
        UserError: for a given tokenizer that cannot be used, or a corpus without a document.
    """
    if special_tokens_path(directory).exists():
        return
    messages: list[str] = []
    if config.tokenizer.path is None:
        size = config.tokenizer.sample_bytes
        print_note(f"tokenizer: training one on up to {size:,} bytes of the corpus")
        texts = sample_texts(sample_documents(config.corpus, size), size)
        backend = train_tokenizer(note_long_words(texts, messages), config.tokenizer.vocab_size)
        chosen = ChosenTokens(BOS, EOS, "of the trained tokenizer", "of the trained tokenizer")
    else:
        backend, chosen = load_given_tokenizer(config.tokenizer)
    vocabulary = backend.get_vocab(with_added_tokens=True)
    bos_id, eos_id = vocabulary[chosen.bos], vocabulary[chosen.eos]
    if getattr(backend.model, "dropout", None):
        messages.append(DROPOUT)
    tokenizer = make_tokenizer(backend, bos_id, eos_id)
    if config.tokenizer.path is not None and not tokenizer.lossless:
        limit = min(CHECKED_BYTES, config.tokenizer.sample_bytes)
        require_lossless(tokenizer, sample_documents(config.corpus, limit), config.tokenizer.path)
    with atomic_path(directory.tokenizer) as path:
        backend.save(str(path))
    notes = *tokenizer_messages(config, tokenizer, chosen), *messages
    found = SpecialTokens(bos_id, eos_id, tokenizer.vocab_size, notes)
    write_dataclass(special_tokens_path(directory), found)


def sample_texts(documents: Iterable[Document], most_bytes: int) -> Iterator[str]:
    """Yields pieces of the documents' texts, about `most_bytes` of UTF-8 in all."""
    for document in documents:
        for piece in split_text(document.text, SAMPLE_TEXT_CHARACTERS):
            yield piece
            most_bytes -= len(piece.encode("utf-8"))
            if most_bytes <= 0:
                return


def note_long_words(texts: Iterable[str], messages: list[str]) -> Iterator[str]:
    """Yields the texts; adds a message once one has a word too long to train on."""
    for text in texts:
        if not messages and LONG_WORD.search(text):
            messages.append(
                f"it was trained on words of up to {WORD_CHARACTERS} letters: longer cut"
            )
        yield text


def split_text(text: str, characters: int) -> Iterator[str]:
    """Splits `text` into pieces of at least `characters` characters; the last may be shorter.

    A piece ends where the next line starts, or after twice as many characters where none does.
    """
    start = 0
    while len(text) - start > 2 * characters:
        found = LINE_START.search(text, start + characters, start + 2 * characters)
        end = found.start() if found else start + 2 * characters
        yield text[start:end]
        start = end
    yield text[start:]


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    """Trains a byte-level BPE of at most `vocab_size` ids, two of them `<|bos|>` and `<|eos|>`.

    Every text is encoded without loss: all 256 bytes are tokens, and nothing normalises. A small
    sample gives fewer merges than asked for.
    """
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = cutting(SHORT_WORDS)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=MAX_TOKEN_CHARACTERS,
        show_progress=sys.stderr.isatty(),
    )
    tokenizer.encode_special_tokens = True
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.pre_tokenizer = cutting(WORDS)
    return tokenizer


def cutting(words: str) -> pre_tokenizers.PreTokenizer:
    """Cuts texts at a pattern's matches, and spells their bytes."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def load_given_tokenizer(config: TokenizerConfig) -> tuple[tokenizers.Tokenizer, ChosenTokens]:
    """Loads the tokenizer in `config.path`, and its BOS and EOS tokens.

    Raises:
        UserError: for a file that is no tokenizer, or one that has neither token.
    """
    assert config.path is not None
    path = local_copy(config.path)
    if not path.is_file():
        raise UserError(f"tokenizer.path: there is no file {config.path!r}: correct the path")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more precise
        raise UserError(
            f"tokenizer.path: {config.path} is not a tokenizer.json of the `tokenizers` library "
            f"({error})"
        ) from error
    chosen = choose_special_tokens(backend.get_vocab(with_added_tokens=True), config)
    # Special tokens are never found in text, whatever the file says of them.
    names = sorted({chosen.bos, chosen.eos})
    backend.add_special_tokens([AddedToken(name, special=True) for name in names])
    return backend, chosen


def require_lossless(tokenizer: Tokenizer, documents: Iterable[Document], name: str) -> None:
    """Refuses a tokenizer that changes a text of a sample, or finds special tokens in one.

    A text that passes here may have relatives later in the corpus that would not: they are rejected
    one by one when they are tokenized.

    Raises:
        UserError: naming the document and the first difference.
    """
    for document in documents:
        texts = [document.text]
        [loss] = tokenizer.losses(texts, tokenizer.encode_arrays(texts))
        if loss is not None:
            raise UserError(
                f"tokenizer.path: {name} is not lossless: of document {document.id!r} "
                f"({document.file} line {document.line}) {loss}: "
                f"{tokenizer.remedy(document.text)}, or leave tokenizer.path out to train one"
            )


def tokenizer_messages(
    config: RunConfig, tokenizer: Tokenizer, chosen: ChosenTokens
) -> Iterator[str]:
    """Says which BOS and EOS were chosen and why, which files name another, and what a text loses.

    Raises:
        UserError: for a damaged file beside the tokenizer or a checkpoint.
    """
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    yield (
        f"documents start with {chosen.bos!r} (id {bos}), {chosen.bos_reason}, and end with "
        f"{chosen.eos!r} (id {eos}), {chosen.eos_reason}"
    )
    if config.tokenizer.path is not None:
        for folder in dict.fromkeys(folders_that_name_bos(config)):
            yield from other_bos_messages(tokenizer, chosen, folder)
    if tokenizer.strips_blank:
        yield (
            "a document that begins with exactly one blank loses it: this tokenizer gives it the "
            "ids of the same text without"
        )


def other_bos_messages(tokenizer: Tokenizer, chosen: ChosenTokens, folder: Path) -> Iterator[str]:
    """Says which files of a model's or tokenizer's folder name another BOS, by an id or as a token,
    than the chosen one.

    Raises:
        UserError: for a damaged file.
    """
    files = (("tokenizer_config.json", "bos_token", str), ("config.json", "bos_token_id", int))
    for name, key, kind in files:
        path = folder / name
        named = read_object(path).get(key) if path.is_file() else None
        if isinstance(named, dict):  # an added token with its rules
            named = named.get("content")
        if not isinstance(named, kind):
            continue
        token = named if isinstance(named, str) else tokenizer.backend.id_to_token(named)
        token_id = None if token is None else tokenizer.backend.token_to_id(token)
        if token_id is None:
            yield f"{path} names a start of text that the tokenizer does not have: {named!r}"
        elif token != chosen.bos:
            yield (
                f"{path} names another start of text, {token!r} (id {token_id}): a "
                "model is best scored with what it was trained on; tokenizer.bos_token: "
                f"{token!r} takes it"
            )


def folders_that_name_bos(config: RunConfig) -> Iterator[Path]:
    """Folders of the given tokenizer and of the checkpoints that read by it."""
    yield local_copy(str(config.tokenizer.path)).parent  # of a remote one, this file alone
    given = [config.pretrain.initial.checkpoint] if config.pretrain.initial else []
    if config.scoring.unit == "token":  # by the byte, a model reads with its own tokenizer
        given += [checkpoint for _, checkpoint in config.reference.imported.values()]
    yield from (local_copy(path, is_checkpoint) for path in given if path is not None)
