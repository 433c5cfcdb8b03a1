"""TFDS builder of Reddit TL;DR: human comparisons of summaries and the filtered demonstrations; needs no TensorFlow.

The folder has the official layout: `comparisons/batch*.json` and `tldr_3_filtered/{train,valid,test}.jsonl`.
"""

import pathlib

import tensorflow_datasets as tfds
from etils import epath

from infalign_jax.data.rows import read_rows, read_text

CONFIGS = {"comparisons": ("train", "valid1", "valid2"), "demonstrations": ("train", "valid", "test")}
DEMONSTRATION_FOLDER = "tldr_3_filtered"
OFFICIAL = "https://openaipublic.blob.core.windows.net/summarize-from-feedback"
_KEYS = {
    "comparisons": ("prompt", "chosen", "rejected", "subreddit"),
    "demonstrations": ("prompt", "summary", "subreddit"),
}


def format_prompt(row, where):
    """The usual prompt of a post; a summary follows it with its own leading space."""
    subreddit, title, post = (read_text(row, key, where) for key in ("subreddit", "title", "post"))
    return f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"


def source_files(folder, config):
    """The files of a config in a local folder, sorted. Raises ValueError where there are none."""
    folder = pathlib.Path(folder)
    if config == "comparisons":
        files = sorted((folder / "comparisons").glob("batch*.json"))
        if not files:
            raise ValueError(f"data folder {str(folder)!r} holds no comparisons/batch*.json; they are at {OFFICIAL}")
        return files
    files = [folder / DEMONSTRATION_FOLDER / f"{split}.jsonl" for split in CONFIGS[config]]
    for file in files:
        if not file.is_file():
            raise ValueError(f"data file {str(file)!r} does not exist; it is at {OFFICIAL}")
    return files


def read_comparison(row, where):
    """An example of the comparisons, or the reason why the row gives none ('news_article', 'empty_response', ...)."""
    info, summaries, choice = row.get("info"), row.get("summaries"), row.get("choice")
    if not isinstance(info, dict) or not isinstance(summaries, list) or len(summaries) != 2:
        raise ValueError(f"{where}: a comparison needs an object 'info' and two 'summaries'")
    if choice not in (0, 1) or isinstance(choice, bool):
        raise ValueError(f"{where}: 'choice' is {choice!r}; it must be 0 or 1")
    if info.get("post") is None and info.get("article") is not None:
        return "news_article"
    chosen, rejected = (read_text(summaries[index], "text", where) for index in (choice, 1 - choice))
    if not chosen.strip() or not rejected.strip():
        return "empty_response"
    if chosen == rejected:
        return "equal_responses"
    prompt = format_prompt(info, where)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "subreddit": info["subreddit"]}


def read_demonstration(row, where):
    """An example of the demonstrations, or the reason why the row gives none."""
    summary = read_text(row, "summary", where)
    if not summary.strip():
        return "empty_response"
    return {"prompt": format_prompt(row, where), "summary": summary, "subreddit": row["subreddit"]}


class Tldr(tfds.core.GeneratorBasedBuilder):
    """Config `comparisons` (prompt, chosen, rejected, subreddit) or `demonstrations` (prompt, summary, subreddit).

    Args:
      path: folder in the official layout. Nothing is downloaded: no checksum of these files is known to this project.
      config, data_dir, file_format: as for every TFDS builder; file_format must be 'array_record' without TensorFlow.

    `info.metadata[split]` counts the rows read and those dropped, by reason.
    """

    name = "tldr"
    # Said outright: TFDS would look it up with importlib_resources, which it does not install.
    code_path = epath.Path(__file__)
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Posts written as prompts; news articles left out."}  # noqa: RUF012
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in CONFIGS]  # noqa: RUF012

    def __init__(self, *, path, **kwargs):
        self._path = path
        super().__init__(**kwargs)

    def _info(self):
        keys = _KEYS[self.builder_config.name]
        return tfds.core.DatasetInfo(
            builder=self,
            description="Reddit posts with summaries and human comparisons of them (CC BY 4.0).",
            homepage="https://github.com/openai/summarize-from-feedback",
            features=tfds.features.FeaturesDict({key: tfds.features.Text() for key in keys}),
            supervised_keys=None,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        config = self.builder_config.name
        files = source_files(self._path, config)
        if config == "comparisons":  # each file holds rows of several splits
            present = {row.get("split") for file in files for _, row in read_rows(file)}
            return {split: self._generate_examples(split, files) for split in CONFIGS[config] if split in present}
        return {
            split: self._generate_examples(split, [file]) for split, file in zip(CONFIGS[config], files, strict=True)
        }

    def _generate_examples(self, split, files):
        counts = {"rows": 0}
        comparisons = self.builder_config.name == "comparisons"
        for file in files:
            for where, row in read_rows(file):
                if comparisons and row.get("split") != split:
                    continue
                counts["rows"] += 1
                example = read_comparison(row, where) if comparisons else read_demonstration(row, where)
                if isinstance(example, str):
                    counts[example] = counts.get(example, 0) + 1
                else:
                    yield f"{file.name}:{counts['rows']}", example
        self.info.metadata[split] = counts
