"""Settings of the test session: compiling is most of what small tests cost, so XLA is told not to optimise."""

import os

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()

# Files that take longest, first, so that the workers end together.
_FIRST = ("test_pipeline", "test_models", "test_recipes", "test_sampling", "test_optimal", "test_main", "test_generate")


def pytest_collection_modifyitems(items):
    rank = {name: place for place, name in enumerate(_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))
