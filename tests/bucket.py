"""A bucket in memory behind gs://, for tests: what the libraries' own path support (etils.epath over fsspec) talks to."""

import fsspec
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem


class Bucket(MemoryFileSystem):
    """Objects and folders in a dict of its own; as in a bucket nothing can be appended."""

    protocol = ("gs", "gcs")
    store = {}  # noqa: RUF012 (shared by all instances, as in the class it comes from)
    pseudo_dirs = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        for prefix in ("gs://", "gcs://"):
            path = path.removeprefix(prefix)
        return "/" + path.strip("/") if path.strip("/") else ""

    def _open(self, path, mode="rb", **kwargs):
        assert "a" not in mode, f"{path}: objects in a bucket cannot be appended to"
        return super()._open(path, mode, **{k: v for k, v in kwargs.items() if k != "finalize_on_close"})


def install(monkeypatch):
    """Puts an empty bucket behind gs:// until the test ends; returns it."""
    monkeypatch.setattr(Bucket, "store", {})
    monkeypatch.setattr(Bucket, "pseudo_dirs", [""])
    bucket = Bucket()
    known = backend.fsspec_backend
    monkeypatch.setattr(
        known, "_get_filesystem", lambda name: bucket if name in ("gs", "gcs") else fsspec.filesystem(name)
    )
    return bucket
