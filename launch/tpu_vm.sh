#!/usr/bin/env bash
# A TPU slice of Google Cloud from request to results, by queued resources and SSH to all its hosts.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: launch/tpu_vm.sh COMMAND --name NAME --zone ZONE [flags] [-- ...]

commands, in the order of a run
  create    asks for the slice and waits until it is there
              --type TYPE          accelerator type, such as v5litepod-64, v5p-128, v6e-64
              --runtime VERSION    software of the hosts; by default the one that suits TYPE
              --slices N           slices joined by the data centre network, 1 by default
              --spot               cheaper, may be taken away at any time; without it: on demand
  install   copies this checkout to every host and installs it there with Python 3.12
  run       starts `infalign ARGUMENTS` on every host and leaves it running:
              launch/tpu_vm.sh run ... -- run --config configs/quickstart.py --workdir gs://BUCKET/RUN
            The same command goes on with an interrupted run.
              --libtpu FLAGS       LIBTPU_INIT_ARGS; by default those that infalign recommends for TYPE, if it is given
  logs      follows the log of one host
              --worker N           which host, 0 by default
  stop      tells every host to save and stop, as a preemption does
  fetch     copies results here: launch/tpu_vm.sh fetch ... -- gs://BUCKET/RUN FOLDER
  delete    gives the slice back, and deletes the request

flags
  --name NAME         of the request and its slice
  --zone ZONE         such as us-east5-b
  --project PROJECT   the one gcloud is set to by default
  --dry-run           print the commands instead of running them
EOF
}

fail() {
  echo "tpu_vm.sh: $1; see launch/tpu_vm.sh --help" >&2
  exit 2
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
name='' zone='' project='' type='' runtime='' slices=1 spot='' worker=0 libtpu='' dry_run=''
case ${1:-} in
  create | install | run | logs | stop | fetch | delete) command=$1; shift ;;
  -h | --help) usage; exit 0 ;;
  *) fail "the command is '${1:-}'; legal are create, install, run, logs, stop, fetch, delete" ;;
esac
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --spot) spot=1; shift ;;
    --dry-run) dry_run=1; shift ;;
    --name | --zone | --project | --type | --runtime | --slices | --worker | --libtpu)
      [ $# -ge 2 ] || fail "$1 has no value"
      printf -v "${1#--}" '%s' "$2"
      shift 2
      ;;
    --) shift; break ;;
    *) fail "there is no flag '$1'" ;;
  esac
done
[ -n "$name" ] || fail '--name is missing'
[ -n "$zone" ] || fail '--zone is missing'
[[ $slices =~ ^[1-9][0-9]*$ ]] || fail "--slices is '$slices'; it must be at least 1"
where=("--zone=$zone" ${project:+"--project=$project"})

execute() {
  if [ -n "$dry_run" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# A request of several slices names them NAME-0, NAME-1, ...
nodes=("$name")
if [ "$slices" -gt 1 ]; then
  nodes=()
  for ((slice = 0; slice < slices; slice++)); do
    nodes+=("$name-$slice")
  done
fi

on_all() { # on_all COMMAND: on every host of every slice, at once: JAX waits until all have come
  local node pid status=0
  local -a pids=()
  for node in "${nodes[@]}"; do
    if [ -n "$dry_run" ]; then
      execute gcloud compute tpus tpu-vm ssh "$node" "${where[@]}" --worker=all "--command=$1"
    else
      gcloud compute tpus tpu-vm ssh "$node" "${where[@]}" --worker=all "--command=$1" &
      pids+=($!)
    fi
  done
  for pid in "${pids[@]}"; do
    wait "$pid" || status=$?
  done
  return "$status"
}

# The images of TPU hosts that need no framework of their own.
runtime_of() {
  case $1 in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    v4-*) echo tpu-ubuntu2204-base ;;
    *) fail "--type is '$1', whose --runtime is not known here; give one" ;;
  esac
}

create() {
  [ -n "$type" ] || fail '--type is missing'
  [ -n "$runtime" ] || runtime=$(runtime_of "$type")
  local -a what=("--node-id=$name") how=()
  if [ "$slices" -gt 1 ]; then
    what=("--node-count=$slices" "--node-prefix=$name")
  fi
  if [ -n "$spot" ]; then
    how=(--spot)
  fi
  execute gcloud compute tpus queued-resources create "$name" "${where[@]}" "${what[@]}" \
    "--accelerator-type=$type" "--runtime-version=$runtime" "${how[@]}"
  local -a ask=(gcloud compute tpus queued-resources describe "$name" "${where[@]}" '--format=value(state.state)')
  if [ -n "$dry_run" ]; then
    execute "${ask[@]}"
    return
  fi
  local state=''
  while state=$("${ask[@]}"); [ "$state" != ACTIVE ]; do
    echo "$(date +%H:%M:%S) $name is $state" >&2
    case $state in
      FAILED | SUSPENDED) fail "the request ended as $state; delete it and ask again" ;;
    esac
    sleep 30
  done
  echo "$name is there" >&2
}

install() {
  local archive=${TMPDIR:-/tmp}/infalign-$name.tar.gz node
  execute tar --exclude=.git --exclude=runs -czf "$archive" -C "$root" .
  for node in "${nodes[@]}"; do
    execute gcloud compute tpus tpu-vm scp "$archive" "$node:infalign.tar.gz" "${where[@]}" --worker=all
  done
  # uv brings a newer Python than these hosts have.
  on_all 'rm -rf infalign && mkdir infalign && tar -xzf infalign.tar.gz -C infalign && python3 -m pip install -q --user uv && python3 -m uv venv -q --clear --python 3.12 infalign-venv && python3 -m uv pip install -q --python infalign-venv -e "infalign[tpu,gcs]"'
}

recommended() { # recommended TYPE: prints what sets LIBTPU_INIT_ARGS on a host
  case $1 in
    v5litepod-*) generation=v5e ;;
    *) generation=${1%%-*} ;;
  esac
  echo "\$(infalign-venv/bin/python -m infalign_jax.scale.libtpu_flags $generation)"
}

run() {
  [ $# -gt 0 ] || fail 'the arguments of infalign are missing; they come after --'
  local words set_flags=''
  printf -v words '%q ' "$@"
  if [ -n "$libtpu" ]; then
    printf -v set_flags 'export LIBTPU_INIT_ARGS=%q; ' "$libtpu"
  elif [ -n "$type" ]; then
    set_flags="export LIBTPU_INIT_ARGS=\"$(recommended "$type")\"; "
  fi
  on_all "${set_flags}export INFALIGN_DISTRIBUTED=auto; cd infalign && { nohup ../infalign-venv/bin/infalign ${words}> ../infalign.log 2>&1 < /dev/null & echo \$! > ../infalign.pid; }"
  [ -n "$dry_run" ] || echo "follow it with: launch/tpu_vm.sh logs --name $name --zone $zone" >&2
}

fetch() {
  [ $# -eq 2 ] || fail 'fetch takes the workdir and a folder here, after --'
  case $1 in
    gs://*) execute mkdir -p "$2" && execute gcloud storage rsync --recursive "$1" "$2" ;;
    *) execute gcloud compute tpus tpu-vm scp --recurse "${nodes[0]}:$1" "$2" "${where[@]}" --worker=0 ;;
  esac
}

case $command in
  create) create ;;
  install) install ;;
  run) run "$@" ;;
  logs) execute gcloud compute tpus tpu-vm ssh "${nodes[0]}" "${where[@]}" "--worker=$worker" '--command=tail -n +1 -F infalign.log' ;;
  stop) on_all "kill -TERM \"\$(cat infalign.pid)\"" ;;
  fetch) fetch "$@" ;;
  delete) execute gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet ;;
esac
