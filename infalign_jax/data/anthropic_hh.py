"""The `anthropic_hh` source: HH-RLHF pairs, prepared once by the TFDS builder and read back from its cache."""

import hashlib
import pathlib

from absl import logging

from infalign_jax.data.dataset import Preference, require_count
from infalign_jax.data.split import assemble, require_fraction

DEFAULT_CACHE = "~/tensorflow_datasets"


def load(*, path, seed, subset, cache_dir, train_prompts, test_prompts, judge_fraction):
    """HH-RLHF as a `Dataset`.

    Args:
      path: folder in the official layout (`harmless-base/train.jsonl.gz`, ...), or '' to download the official files.
      seed: fixes which prompts go to the judge's share.
      subset: helpful_base | helpful_online | helpful_rejection_sampled | harmless_base.
      cache_dir: where the prepared data is kept, '' for ~/tensorflow_datasets. A changed local file is prepared anew.
      train_prompts, test_prompts: how many prompts to keep for aligning and evaluating, 0 for all; pairs are all kept.
      judge_fraction: share of the training prompts whose pairs are set aside for an independent judge, in [0, 1].

    Returns:
      `Dataset`: pairs of both splits, chosen training responses as demonstrations, distinct prompts. Pairs whose
      prompts differ, with an empty response (nothing to imitate or to compare), or with equal responses are dropped
      and counted aloud.

    Raises:
      ValueError: unknown config, missing or malformed file, failed download or checksum.
    """
    from infalign_jax.data import hh_builder  # TFDS takes a second to import

    if subset not in hh_builder.CONFIGS:
        raise ValueError(f"anthropic_hh subset is {subset!r}; it is one of {', '.join(hh_builder.CONFIGS)}")
    limits = {
        "train_prompts": require_count("train_prompts", train_prompts),
        "test_prompts": require_count("test_prompts", test_prompts),
    }
    judge_fraction = require_fraction("judge_fraction", judge_fraction)
    builder = prepare(path, subset, cache_dir)
    train, test = _read(builder, "train"), _read(builder, "test")
    return assemble(train, test, judge_fraction=judge_fraction, seed=seed, **limits)


def prepare(path, config, cache_dir):
    """The prepared builder, built at the first call; the cache folder is named after the content of the source
    files.
    """
    import tensorflow_datasets as tfds

    from infalign_jax.data import hh_builder

    data_dir = pathlib.Path(cache_dir or DEFAULT_CACHE).expanduser() / _fingerprint(path, config)
    builder = hh_builder.AnthropicHh(path=str(path), config=config, data_dir=str(data_dir), file_format="array_record")
    tfds.disable_progress_bar()
    builder.download_and_prepare()
    for split, counts in builder.info.metadata.items():
        dropped = {reason: count for reason, count in counts.items() if reason != "rows"}
        if dropped:
            reasons = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in sorted(dropped.items()))
            logging.warning(
                "anthropic_hh/%s %s: %d of %d pairs dropped (%s)",
                config,
                split,
                sum(dropped.values()),
                counts["rows"],
                reasons,
            )
    return builder


def _fingerprint(path, config):
    if not path:
        return "anthropic_hh_official"
    from infalign_jax.data import hh_builder

    digest = hashlib.sha256()
    for split in ("train", "test"):
        digest.update(hashlib.sha256(hh_builder.local_file(path, config, split).read_bytes()).digest())
    return f"anthropic_hh_{digest.hexdigest()[:16]}"


def _read(builder, split):
    source = builder.as_data_source(split=split)
    rows = (source[index] for index in range(len(source)))
    return [Preference(*(row[key].decode() for key in ("prompt", "chosen", "rejected"))) for row in rows]
