"""The working directory of a run: one folder a stage, a record of the config it was made by, and what is done."""

import contextlib
import datetime
import hashlib
import json
import os
import pathlib
import socket
import sys
import tempfile
import time

from etils import epath

from infalign_jax.training.distributed import agree, is_first, meet

LOCK_FILE = "run.lock"

# Sections that change only how a run is watched, stored or measured; a workdir may be taken up again with other values.
_FREE = ("log", "evaluate", "mesh", "judge")
# As these keys do. A method added to or dropped from the list leaves the others' runs valid, as does an optional stage.
_FREE_KEYS = (
    "align.methods", "align.seeds", "amortize.enabled", "prefix_scorer", "prefix_scorer.enabled", "baselines",
    "sampling.at_once", "align.at_once", "align.keep", "align.keep_best", "align.save_every", "align.show_every",
)  # fmt: skip
_REPAIR = "delete this file and start again: what is saved beside it is taken up"


def write_bytes(path, data):
    """Writes a file so that a reader sees the old one or the new one, never half of it (rename is atomic).

    Of several processes the first writes; none goes on before it has. All of them must call this, with what is the same.
    """
    if is_first():
        _replace(epath.Path(path), data)
    meet(f"write {path}")


def write_json(path, value):
    """`write_bytes` of a JSON value."""
    write_bytes(path, _as_json(value))


def _as_json(value):
    return (json.dumps(value, indent=1, default=float, allow_nan=False) + "\n").encode()


def _replace(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{path.name}.tmp"
    temporary.write_bytes(data)
    temporary.replace(path)


def read_json(path):
    """The JSON object in `path`. Raises ValueError naming the file where it is damaged."""
    try:
        value = json.loads(epath.Path(path).read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: it is not JSON ({error}); {_REPAIR}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: it holds {type(value).__name__} instead of an object; {_REPAIR}")
    return value


def fingerprint(value):
    """Twelve hex digits that change when the JSON value does."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def differences(old, new, prefix=""):
    """Dotted keys at which two nested dicts differ, each as 'key: old -> new'."""
    lines = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a!r} -> {b!r}")
    return lines


@contextlib.contextmanager
def claim(config):
    """Makes the workdir, or takes it up again, records the config in it, and keeps other runs out of it meanwhile.

    Of several processes the first one writes and holds the lock, for all; the others come in after it.

    Args:
      config: nested dict of JSON values with the key `workdir`.

    Raises:
      ValueError: the workdir was made by a config that differs in a key its results depend on (names those keys), is in
        use by another run (names the process), is a file, or cannot be written.
    """
    workdir = epath.Path(config["workdir"])
    config = json.loads(json.dumps({key: value for key, value in config.items() if key != "workdir"}))
    if not is_first():
        meet("claim the workdir")
        _check_same(workdir, config)
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_lock(workdir))
            _check_same(workdir, config)
            _replace(workdir / "config.json", _as_json(config))
        except FileExistsError as error:
            raise ValueError(f"workdir {workdir} is a file; it must be a folder") from error
        except OSError as error:
            raise ValueError(f"workdir {workdir} cannot be written: {error.strerror or error}") from error
        meet("claim the workdir")
        yield


def _check_same(workdir, config):
    path = workdir / "config.json"
    if not path.exists():
        return
    old = {key: value for key, value in read_json(path).items() if key not in _FREE}
    changed = differences(old, {key: value for key, value in config.items() if key not in _FREE})
    changed = [line for line in changed if line.partition(":")[0] not in _FREE_KEYS]
    if changed:
        raise ValueError(
            f"workdir {workdir} was made by another config ({'; '.join(changed)}); choose another --workdir"
        )


@contextlib.contextmanager
def _lock(workdir):
    """Holds `run.lock`. The kernel drops the lock with the process, however it ends, so none is ever left behind.

    Remote folders (gs://...) and file systems without locks are not locked.
    """
    if not is_local(workdir):
        yield
        return
    import fcntl

    with open(os.fspath(workdir / LOCK_FILE), "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            run = _read_lock(file)
            who = f"process {run.get('pid', '?')} on {run.get('host', '?')}"
            raise ValueError(
                f"workdir {workdir} is in use by {who}; wait until it ends, or choose another --workdir"
            ) from None
        except OSError:
            pass  # this file system has no locks
        run = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": datetime.datetime.now().isoformat(" ", "seconds"),
            "command": sys.argv[1:],
            "ended": None,
        }
        _write_lock(file, run)
        ended = "finished"
        try:
            yield
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            ended = "interrupted" if interrupted else " ".join(str(error).split()) or type(error).__name__
            raise
        finally:
            with contextlib.suppress(OSError):  # the disk may be full: that is what is being reported
                _write_lock(file, {**run, "ended": ended})


@contextlib.contextmanager
def on_disk(folder):
    """`folder` itself if it is local, else a temporary folder whose files are copied to it at the end.

    For libraries that know no buckets. Of several processes each copies what it has written.
    """
    if is_local(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="infalign-") as temporary:
        yield epath.Path(temporary)
        for root, _, names in os.walk(temporary):
            for file in (pathlib.Path(root, name) for name in sorted(names)):
                target = epath.Path(folder) / file.relative_to(temporary).as_posix()
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())


def is_local(path):
    """Whether a path is one of the operating system's, rather than a bucket's."""
    return "://" not in os.fspath(path)


def last_run(workdir):
    """The record of the last run in a workdir (pid, host, started, command, ended), and `alive`; None if there is none."""
    path = epath.Path(workdir) / LOCK_FILE
    if not is_local(path) or not path.exists():
        return None
    import fcntl

    with open(os.fspath(path)) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            alive = False
        except OSError:
            alive = True
        return {**_read_lock(file), "alive": alive}


def _read_lock(file):
    file.seek(0)
    try:
        run = json.loads(file.read())
    except (json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return run if isinstance(run, dict) else {}


def _write_lock(file, run):
    file.seek(0)
    file.truncate()
    file.write(json.dumps(run) + "\n")
    file.flush()


def done(folder):
    """The result of a finished stage (the content of its `done.json`), or None; what the first process sees, on all."""
    path = epath.Path(folder) / "done.json"
    return agree(read_json(path) if is_first() and path.exists() else None)


def has(path):
    """Whether a file is there, as the first process sees it: for what is made where it is missing."""
    return agree(is_first() and epath.Path(path).exists())


def finish(folder, result, started):
    """Marks a stage as finished, with the numbers it reports and the seconds since `started` (`time.monotonic()`)."""
    result = {**result, "stage_seconds": time.monotonic() - started}
    write_json(epath.Path(folder) / "done.json", result)
    return result
