"""Several processes as one program: how they find each other, wait for each other, and end together."""

import json
import os
import socket
import sys
import traceback

import numpy as np

from infalign_jax import errors

VARIABLE = "INFALIGN_DISTRIBUTED"
HEARTBEAT = "INFALIGN_HEARTBEAT_SECONDS"
# Words that a lost peer leaves in the runtime's errors, whichever transport noticed it first.
_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Broken pipe",
    "Socket closed",
    "Timed out waiting",
    "coordination service",
    "Gloo ",
    "Barrier ",
)
_name = None  # what to call this process in errors, once it has joined


def start():
    """Joins the other processes of a run, as the environment says; must come before any other use of JAX.

    INFALIGN_DISTRIBUTED is unset (one process), `auto` (JAX asks the TPU VM, GKE or Slurm who takes part) or
    `HOST:PORT,N,I`: this is process I of N, and process 0 listens at HOST:PORT. INFALIGN_HEARTBEAT_SECONDS is how long a
    process may be silent before the others give it up (100 by default).

    Raises:
      ValueError: a variable that says something else; names it.
    """
    text, seconds = os.environ.get(VARIABLE, ""), os.environ.get(HEARTBEAT, "100")
    if not text:
        return
    if not seconds.isdecimal() or int(seconds) < 1:
        raise ValueError(f"{HEARTBEAT} is {seconds!r}; it must be a whole number of seconds, at least 1")
    where = {} if text == "auto" else _parse(text)
    import jax

    global _name
    _name = f"process {where['process_id']}" if where else f"process on {socket.gethostname()}"
    jax.distributed.initialize(**where, heartbeat_timeout_seconds=int(seconds))


def _parse(text):
    address, *numbers = text.split(",")
    host, _, port = address.rpartition(":")
    good = host and port.isdecimal() and len(numbers) == 2 and all(n.isdecimal() for n in numbers)
    if not good or not int(numbers[1]) < int(numbers[0]):
        raise ValueError(f"{VARIABLE} is {text!r}; it must be 'auto' or 'HOST:PORT,N,I' with I from 0 to N - 1")
    return {"coordinator_address": address, "num_processes": int(numbers[0]), "process_id": int(numbers[1])}


def joined():
    """Whether `start` has joined this process to others."""
    return _name is not None


def many():
    """Whether this run has several processes."""
    import jax

    return jax.process_count() > 1


def is_first():
    """Whether this is the process that writes the run's files and speaks for it."""
    import jax

    return jax.process_index() == 0


def meet(where):
    """Waits until every process has come here: what the first one wrote before it can be read after it."""
    if many():
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(f"infalign {where}")


def agree(value):
    """The first process's JSON value, on all: for what they must decide alike though each might see something else."""
    if not many():
        return value
    from jax.experimental import multihost_utils

    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(data.size)))
    padded = np.zeros(1 << size.bit_length(), np.uint8)  # few shapes, for each is compiled
    if is_first():
        padded[:size] = data
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))[:size]))


def everyone(good):
    """Whether `good` holds on every process."""
    if not many():
        return good
    from jax.experimental import multihost_utils

    return bool(np.all(multihost_utils.process_allgather(np.bool_(good))))


def lost_peer(error):
    """The sentence for an error that another process's end has caused here, or None."""
    text = " ".join(str(error).split())
    if not isinstance(error, RuntimeError) or not any(words in text for words in _LOST):
        return None
    return (
        f"another process of this run has ended or cannot be reached ({text[:160]}); start all of them again with the same "
        "command: they go on from the last checkpoint"
    )


def end(error):
    """Says what went wrong and ends this process at once, without the farewell that would wait for the others.

    They find it gone at their next collective, or when its heartbeat fails, and end too. It ends even if it cannot say why:
    the disk that is full may be that of its log.
    """
    try:
        line = lost_peer(error) or errors.sentence(error)
        if line is None:
            traceback.print_exception(error)
            line = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        print(f"infalign: {_name}: {line}", file=sys.stderr, flush=True)
        sys.stdout.flush()
    finally:
        os._exit(130 if isinstance(error, KeyboardInterrupt) else 2)
