"""Small tokenizers of the kinds that checkpoints come with, trained on the spot."""

from collections.abc import Callable
from pydoc_data.topics import topics

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

ENGLISH = "\n".join(topics[name] for name in sorted(topics)[:12])
CHINESE = "数据的顺序会影响模型的损失。然后,我们训练四个阶段!困惑度与困惑度差。" * 3
CORPUS = [ENGLISH, CHINESE, "0123456789 " * 50, "    \n\n\n\t\t" * 40, "xx" * 64, "=" * 128]

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Thousands from the right, as some newer files group digits.
FROM_RIGHT = r"\d{1,3}(?=(\d{3})*\b)| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def byte_level(pattern: str | None, *, prefix: bool = False) -> Tokenizer:
    """Byte-level BPE; a pattern of None takes GPT-2's own."""
    tokenizer = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=pattern is None)
    tokenizer.pre_tokenizer = (
        level
        if pattern is None
        else pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(pattern), behavior="isolated"), level]
        )
    )
    tokenizer.decoder = decoders.ByteLevel()
    trained(tokenizer, pre_tokenizers.ByteLevel.alphabet())
    return tokenizer


def metaspace(scheme: str, *, split: bool) -> Tokenizer:
    """SentencePiece's BPE as newer Llama and Mistral files spell it: bytes where a character is
    unknown, one leading blank stripped in decoding."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    tokenizer.decoder = sentencepiece_decoder()
    trained(tokenizer, [])
    return tokenizer


def prepended() -> Tokenizer:
    """SentencePiece's BPE as older Llama files spell it: a normalizer, and no cutting at all."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    trained(tokenizer, [])
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.pre_tokenizer = None
    tokenizer.decoder = sentencepiece_decoder()
    return tokenizer


def unigram() -> Tokenizer:
    """SentencePiece's Unigram, over the whole text."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    tokenizer.decoder = sentencepiece_decoder()
    trainer = trainers.UnigramTrainer(
        vocab_size=700,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def sentencepiece_decoder() -> decoders.Decoder:
    return decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )


def trained(tokenizer: Tokenizer, alphabet: list[str]) -> None:
    size = 700
    fallback = [] if alphabet else [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<unk>", "<s>", "</s>", *fallback],
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "gpt2": lambda: byte_level(None),
    "gpt2 with a blank in front": lambda: byte_level(None, prefix=True),
    "llama3": lambda: byte_level(LLAMA3),
    "o200k": lambda: byte_level(O200K),
    "digits from the right": lambda: byte_level(FROM_RIGHT),
    "no cutting": lambda: byte_level(r"(?!)"),
    "metaspace first": lambda: metaspace("first", split=False),
    "metaspace always": lambda: metaspace("always", split=True),
    "prepended": prepended,
    "unigram": unigram,
}
