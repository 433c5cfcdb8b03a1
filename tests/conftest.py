"""Settings of the test session: compiling is most of what small tests cost, so XLA is told not to optimise."""

import os

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()
