"""TFDS builder of the Anthropic HH-RLHF preference pairs; needs no TensorFlow (array_record files,
`as_data_source`).
"""

import hashlib
import pathlib

import tensorflow_datasets as tfds
from absl import logging
from etils import epath

from infalign_jax.data.chat import ASSISTANT
from infalign_jax.data.rows import read_rows, read_text

CONFIGS = {
    "helpful_base": "helpful-base",
    "helpful_online": "helpful-online",
    "helpful_rejection_sampled": "helpful-rejection-sampled",
    "harmless_base": "harmless-base",
}
BASE_URL = "https://github.com/anthropics/hh-rlhf/raw/master"
# SHA-256 and bytes of the official files; a file in a local folder is the user's own and is never held against them.
CHECKSUMS = {
    "helpful-base/train.jsonl.gz": ("518a5bf288456fc9f3b7c980c54116fba0c52f274d3f4d344675d83e4058f6f4", 16200131),
    "helpful-base/test.jsonl.gz": ("8be3fc1a13b27901631696f2be6f184c799f1baeaf145f53ac5db24960adc37b", 875191),
    "helpful-online/train.jsonl.gz": ("0994d18b82083f5c084ce04071b683958a724df8c7215ab1d851986642d36a2a", 20127228),
    "helpful-online/test.jsonl.gz": ("39a475cc7e0df972902f8e3a0972726fce826ac65369bda8c671de4330c60a10", 1053578),
    "helpful-rejection-sampled/train.jsonl.gz": (
        "0cea2d2ab2187624ec1314e8cc6fb579f0fa987b3a33e8102b7556ed4d255f64",
        25697148,
    ),
    "helpful-rejection-sampled/test.jsonl.gz": (
        "abc35dbc56015db1dae0faa484514ccbc3eee0133bfcd557fc69250619b028bb",
        1361231,
    ),
    "harmless-base/test.jsonl.gz": ("ebfaaed21162a4de120ae85366075b34425e2a6303fac59b99555002f7016f03", 742801),
}
# The one official file whose checksum is not known is verified by the number of its rows.
ROW_COUNTS = {"harmless-base/train.jsonl.gz": 42_537}


def split_pair(chosen, rejected):
    """`(prompt, chosen response, rejected response)` of two dialogues, cut after the last '\\n\\nAssistant:' of each.

    The cut keeps every character: prompt + response is the dialogue (responses begin with their space).

    Returns:
      The triple, or the reason why there is none: 'no_assistant_turn', 'prompts_differ', 'empty_response' or
      'equal_responses'.
    """
    (prompt, mark, good), (other_prompt, other_mark, bad) = chosen.rpartition(ASSISTANT), rejected.rpartition(ASSISTANT)
    if not mark or not other_mark:
        return "no_assistant_turn"
    if prompt != other_prompt:
        return "prompts_differ"
    if not good.strip() or not bad.strip():
        return "empty_response"
    if good == bad:
        return "equal_responses"
    return prompt + ASSISTANT, good, bad


def local_file(folder, config, split):
    """The file of a split in a local folder of the official layout, `<folder>/harmless-base/train.jsonl[.gz]`."""
    names = [pathlib.Path(folder) / CONFIGS[config] / f"{split}.jsonl{end}" for end in (".gz", "")]
    for name in names:
        if name.is_file():
            return name
    raise ValueError(
        f"data file {str(names[0])!r} does not exist; the folder must be laid out as the official repository"
    )


def verify(path, name):
    """Checks a downloaded file against its published checksum, or its row count where no checksum is known; says
    which.
    """
    if name in CHECKSUMS:
        sha256, size = CHECKSUMS[name]
        data = pathlib.Path(path).read_bytes()
        found = hashlib.sha256(data).hexdigest()
        if (found, len(data)) != (sha256, size):
            raise ValueError(
                f"download {name!r} has SHA-256 {found} and {len(data)} bytes; the official one {sha256} and {size}"
            )
        logging.info("%s: SHA-256 verified", name)
        return
    rows = sum(1 for _ in read_rows(path))
    if rows != ROW_COUNTS[name]:
        raise ValueError(f"download {name!r} has {rows} rows; the official file has {ROW_COUNTS[name]}")
    logging.warning("%s: no checksum of this file is known; verified by its %d rows alone", name, rows)


class AnthropicHh(tfds.core.GeneratorBasedBuilder):
    """Pairs `prompt`, `chosen`, `rejected`; `info.metadata[split]` counts the rows read and those dropped, by reason.

    Args:
      path: folder in the official layout; '' downloads the official files and verifies them.
      config, data_dir, file_format: as for every TFDS builder; file_format must be 'array_record' without TensorFlow.
    """

    name = "anthropic_hh"
    # Said outright: TFDS would look it up with importlib_resources, which it does not install.
    code_path = epath.Path(__file__)
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Prompt and responses split at the last assistant turn."}  # noqa: RUF012
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name=name, description=f"The {folder} comparisons.") for name, folder in CONFIGS.items()
    ]

    def __init__(self, *, path="", **kwargs):
        self._path = path
        super().__init__(**kwargs)

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description="Human preferences between two assistant responses to a dialogue (MIT licence).",
            homepage="https://github.com/anthropics/hh-rlhf",
            features=tfds.features.FeaturesDict(
                {key: tfds.features.Text() for key in ("prompt", "chosen", "rejected")}
            ),
            supervised_keys=None,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager):
        files = self._local_files() if self._path else self._downloaded_files(dl_manager)
        return {split: self._generate_examples(split, file) for split, file in files.items()}

    def _local_files(self):
        return {split: local_file(self._path, self.builder_config.name, split) for split in ("train", "test")}

    def _downloaded_files(self, dl_manager):
        names = {split: f"{CONFIGS[self.builder_config.name]}/{split}.jsonl.gz" for split in ("train", "test")}
        files = {}
        for split, name in names.items():
            url = f"{BASE_URL}/{name}"
            try:
                files[split] = dl_manager.download(url)
            except Exception as error:  # the downloader raises whatever its transport raises
                raise ValueError(f"could not download {url} ({error}); give a local folder as the data path") from error
            try:
                verify(files[split], name)
            except ValueError:
                # Left in place, the bad file and TFDS's note of its checksum would fail every later run.
                pathlib.Path(files[split]).unlink()
                pathlib.Path(f"{files[split]}.INFO").unlink(missing_ok=True)
                raise
        return files

    def _generate_examples(self, split, file):
        counts = {"rows": 0}
        for index, (where, row) in enumerate(read_rows(file)):
            counts["rows"] += 1
            pair = split_pair(read_text(row, "chosen", where), read_text(row, "rejected", where))
            if isinstance(pair, str):
                counts[pair] = counts.get(pair, 0) + 1
            else:
                yield index, dict(zip(("prompt", "chosen", "rejected"), pair, strict=True))
        self.info.metadata[split] = counts
