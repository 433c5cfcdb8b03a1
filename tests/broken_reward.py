"""A user's module of rewards that fails while it is imported."""

1 / 0  # noqa: B018
