"""Corpora that the benchmarks build: documents of about 3 kB made of words with natural frequencies."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_POOL_CHARS = 64_000_000


def build(folder, megabytes, *, files, doc_chars=3000, group_rows=1000, seed=0):
    """Write Parquet files (zstd) holding `megabytes` of text in all.

    Documents are random cuts of a pool of 64 MB of words, so that repeats are too far apart for the codec to find.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    weights = 1 / np.arange(1, 27)
    words = np.array(
        ["".join(rng.choice(letters, length, p=weights / weights.sum())) for length in rng.integers(2, 10, 50_000)]
    )
    ranks = np.minimum(rng.zipf(1.2, _POOL_CHARS // 6), len(words)) - 1
    pool = " ".join(words[ranks])
    per_file = megabytes * 1_000_000 // doc_chars // files
    for number in range(files):
        lengths = rng.integers(doc_chars // 2, doc_chars * 3 // 2, per_file)
        starts = rng.integers(0, len(pool) - 2 * doc_chars, per_file)
        texts = [pool[start : start + length] for start, length in zip(starts, lengths, strict=True)]
        table = pa.table({"text": texts, "id": np.arange(per_file) + number * per_file})
        pq.write_table(table, folder / f"file-{number:05d}.parquet", compression="zstd", row_group_size=group_rows)
    return folder
