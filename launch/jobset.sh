#!/usr/bin/env bash
# Runs infalign on TPU slices of a GKE cluster, as a JobSet (launch/jobset.yaml). kubectl must point at the cluster.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: launch/jobset.sh COMMAND --name NAME [flags] [-- INFALIGN ARGUMENTS ...]

commands
  create   starts `infalign ARGUMENTS` on every host; on spot nodes and after failures it goes on by itself
             --image IMAGE          built from launch/Dockerfile and pushed where the cluster can read it
             --accelerator NAME     GKE's name: tpu-v5-lite-podslice, tpu-v5p-slice, tpu-v6e-slice, tpu7x
             --topology AxB[xC]     chips of a slice
             --chips-per-host N     4 by default
             --slices N             slices joined by the data centre network, 1 by default
             --restarts N           how often all hosts are started again after a failure or preemption, 100 by default
             --grace SECONDS        from the notice of a preemption to the end, 120 by default
             --spot                 on spot nodes
             --libtpu FLAGS         LIBTPU_INIT_ARGS, for example "$(python -m infalign_jax.scale.libtpu_flags v5e)"
  render   prints the manifest that create would send
  logs     follows the first host
  delete   ends the run

flags
  --name NAME   of the JobSet
  --dry-run     print the commands, and for create the manifest, instead of running them

example
  launch/jobset.sh create --name hh --image IMAGE --accelerator tpu-v5-lite-podslice --topology 8x8 --slices 2 \
    -- run --config configs/hh_harmless_tiny.py --workdir gs://BUCKET/hh --config.mesh.data=2 --config.mesh.fsdp=-1
EOF
}

fail() {
  echo "jobset.sh: $1; see launch/jobset.sh --help" >&2
  exit 2
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
name='' image='' accelerator='' topology='' chips_per_host=4 slices=1 restarts=100 grace=120 spot='' libtpu='' dry_run=''
case ${1:-} in
  create | render | logs | delete) command=$1; shift ;;
  -h | --help) usage; exit 0 ;;
  *) fail "the command is '${1:-}'; legal are create, render, logs, delete" ;;
esac
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --spot) spot=1; shift ;;
    --dry-run) dry_run=1; shift ;;
    --name | --image | --accelerator | --topology | --chips-per-host | --slices | --restarts | --grace | --libtpu)
      [ $# -ge 2 ] || fail "$1 has no value"
      flag=${1#--}
      printf -v "${flag//-/_}" '%s' "$2"
      shift 2
      ;;
    --) shift; break ;;
    *) fail "there is no flag '$1'" ;;
  esac
done
[[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || fail "--name is '$name'; it must be lower-case letters, digits and dashes"

execute() {
  if [ -n "$dry_run" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

render() { # render ARGUMENTS: the manifest
  local flag number chips=1 hosts arguments='' word text spot_lines=''
  for flag in image accelerator topology; do
    [ -n "${!flag}" ] || fail "--$flag is missing"
  done
  [ $# -gt 0 ] || fail 'the arguments of infalign are missing; they come after --'
  [[ $topology =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] || fail "--topology is '$topology'; it must be like 4x4 or 4x4x8"
  for number in chips_per_host slices restarts grace; do
    [[ ${!number} =~ ^[0-9]+$ ]] || fail "--${number//_/-} is '${!number}'; it must be a whole number"
  done
  for number in ${topology//x/ }; do
    chips=$((chips * number))
  done
  hosts=$((chips / chips_per_host))
  [ $((hosts * chips_per_host)) -eq "$chips" ] && [ "$hosts" -ge 1 ] ||
    fail "a $topology slice has $chips chips, which hosts of $chips_per_host do not divide"
  for word in "$@"; do # JSON strings, which YAML reads as they are
    word=${word//\\/\\\\}
    arguments+="${arguments:+, }\"${word//\"/\\\"}\""
  done
  if [ -n "$spot" ]; then
    spot_lines='                cloud.google.com/gke-spot: "true"'
  fi
  text=$(<"$root/jobset.yaml")
  text=${text//@NAME@/$name}
  text=${text//@RESTARTS@/$restarts}
  text=${text//@SLICES@/$slices}
  text=${text//@HOSTS@/$hosts}
  text=${text//@GRACE@/$grace}
  text=${text//@ACCELERATOR@/$accelerator}
  text=${text//@TOPOLOGY@/$topology}
  text=${text//@SPOT@$'\n'/${spot_lines:+$spot_lines$'\n'}}
  text=${text//@IMAGE@/$image}
  text=${text//@CHIPS@/$chips_per_host}
  text=${text//@LIBTPU@/"$libtpu"}
  printf '%s\n' "${text//@ARGUMENTS@/"[$arguments]"}"
}

case $command in
  render) render "$@" ;;
  create)
    manifest=$(render "$@")
    if [ -n "$dry_run" ]; then
      printf '%s\n' "$manifest"
    fi
    execute kubectl apply -f - <<<"$manifest"
    ;;
  logs) execute kubectl logs --follow "job/$name-slice-0" ;;
  delete) execute kubectl delete jobset "$name" ;;
esac
