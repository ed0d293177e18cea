"""One of the several processes that `tokenizing` runs: tasks come in and shards go out as lines of JSON."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

from etd_ds.contract import errors
from etd_ds.data import encode, shards, sources, tokenize


def serve(folder: Path, tokenizer: Path) -> None:
    """Answer each [index, source, piece] on stdin with a `Shard` or {"error": message}, until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's end of the pipe says when to go
    encoder = encode.Encoder(tokenize.open_file(tokenizer))
    for line in sys.stdin:
        index, source, piece = json.loads(line)
        try:
            shard = shards.write(folder, index, source, sources.Piece(**piece), encoder)
        except errors.CorpusError as error:
            answer = json.dumps({"error": str(error)})
        except OSError as error:
            answer = json.dumps({"error": f"corpus: writing {folder} failed: {error.strerror or error}"})
        else:
            answer = shard.model_dump_json()
        print(answer, flush=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), Path(sys.argv[2]))
