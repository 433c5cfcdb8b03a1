#!/bin/bash
# peers.sh FOLDER: makes FOLDER/tunix and FOLDER/trl, the environments that the peers are measured in.
set -eu
folder=${1:?usage: peers.sh FOLDER}
python=${PYTHON:-python3.11}
make_environment() { # NAME REQUIREMENT...
  local place="$folder/$1"
  shift
  "$python" -m venv "$place"
  "$place/bin/python" -m pip install --quiet --upgrade pip
  "$place/bin/python" -m pip install --quiet "$@"
}
make_environment tunix google-tunix==0.1.7 jax==0.10.2 jaxlib==0.10.2 flax==0.12.8 optax==0.2.8 qwix==0.1.8
# The index of CPU builds of PyTorch can be named in TORCH_INDEX; by default the one of PyPI is taken, which works as well.
make_environment trl ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch==2.13.0 trl==1.16.0 transformers==5.23.0 \
  accelerate==1.15.0 datasets==5.2.0
echo "python -m benchmarks rollout --tunix $folder/tunix/bin/python --trl $folder/trl/bin/python"
