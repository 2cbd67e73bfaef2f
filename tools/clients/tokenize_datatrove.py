"""Tokenises a folder as datatrove does: tokenize_datatrove.py KIND FOLDER TOKENIZER WORKERS OUT.

KIND is jsonl, parquet or arrow (streams). Run in an environment with `datatrove[processing,io]`.
The last line printed is the number of tokens written.
"""

import sys
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import IpcReader, JsonlReader, ParquetReader
from datatrove.pipeline.tokens import DocumentTokenizer

if __name__ == "__main__":
    kind, folder, tokenizer, workers, out = sys.argv[1:]
    readers = {
        "jsonl": lambda: JsonlReader(folder),
        "parquet": lambda: ParquetReader(folder),
        "arrow": lambda: IpcReader(folder, stream=True),
    }
    # Documents stay in their order, as they do here; 1,000 a batch are faster than its 10,000.
    writer = DocumentTokenizer(out, tokenizer, shuffle_documents=False, batch_size=1000)
    LocalPipelineExecutor(
        [readers[kind](), writer],
        tasks=int(workers),
        workers=int(workers),
        logging_dir=f"{out}/logs",
    ).run()
    notes = [path.read_text().split("\n") for path in Path(out).glob("*.ds.metadata")]
    print(sum(int(lines[1]) for lines in notes))
