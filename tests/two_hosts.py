"""Run as a program, once a host: `two_hosts.py PORT SOURCE TARGET NUMBER`; prints the weight files this host has written."""

import json
import sys
from pathlib import Path

port, source, target, number = sys.argv[1:]

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=int(number))

from safetensors import numpy

from infalign_jax.models import hf, hf_save, transformer
from infalign_jax.models.sharding import logical_axes
from infalign_jax.training import mesh as meshes

config = hf.load(source)[0]
shapes = jax.eval_shape(lambda key: transformer.init(config, key), jax.random.key(0))
mesh = meshes.make_mesh({"data": 1, "fsdp": 4, "tensor": 1})
_, variables = hf.load(source, shardings=meshes.param_shardings(mesh, shapes, logical_axes(shapes)))
assert not variables["params"]["embed"]["embedding"].is_fully_addressable

written, write = [], numpy.save_file
numpy.save_file = lambda tensors, path, **more: written.append(Path(path).name) or write(tensors, path, **more)
hf_save.save(target, config, variables, source, shard_bytes=2000)
print(json.dumps(written))
