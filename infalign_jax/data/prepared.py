"""Prepared TFDS datasets without TensorFlow: where they are cached, what they dropped, how they are read back."""

import contextlib
import hashlib
import io
import pathlib

from absl import logging

DEFAULT_CACHE = "~/tensorflow_datasets"


def prepare(builder_class, *, path, config, cache_dir, files):
    """The builder with its data prepared, at the first call; pairs it dropped are counted aloud at every call.

    Args:
      builder_class: a TFDS builder that takes `path` and counts in `info.metadata[split]` its 'rows' and those dropped.
      path, config: passed to it.
      cache_dir: where prepared data is kept, '' for ~/tensorflow_datasets.
      files: the source files; the cache folder is named after their content, so a changed file is prepared anew. None
        for official downloads, which do not change.
    """
    import tensorflow_datasets as tfds

    folder = f"{builder_class.name}_{_fingerprint(files) if files else 'official'}"
    data_dir = pathlib.Path(cache_dir or DEFAULT_CACHE).expanduser() / folder
    builder = builder_class(path=str(path), config=config, data_dir=str(data_dir), file_format="array_record")
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):  # it announces a download of unknown size, even of local files
        builder.download_and_prepare()
    for split, counts in builder.info.metadata.items():
        dropped = {reason: count for reason, count in counts.items() if reason != "rows"}
        if dropped:
            reasons = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in sorted(dropped.items()))
            name, total = f"{builder_class.name}/{config} {split}", sum(dropped.values())
            logging.warning("%s: %d of %d rows dropped (%s)", name, total, counts["rows"], reasons)
    return builder


def read_split(builder, split, keys):
    """The examples of a split in the builder's fixed order, each a tuple of strings under `keys`."""
    source = builder.as_data_source(split=split)
    rows = (source[index] for index in range(len(source)))
    return [tuple(row[key].decode() for key in keys) for row in rows]


def _fingerprint(files):
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(pathlib.Path(file).read_bytes()).digest())
    return digest.hexdigest()[:16]
