"""Documents in, token parts out: sources, tokenizer, hash splits, tokenisation."""
