"""`python -m infalign_jax` is the command `infalign`."""

from infalign_jax.main import cli

cli()
