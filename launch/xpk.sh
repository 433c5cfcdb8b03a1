#!/usr/bin/env bash
# Builds the container, and runs it with xpk on a GKE cluster that xpk has made.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: launch/xpk.sh COMMAND [flags] [-- INFALIGN ARGUMENTS ...]

commands
  build    builds launch/Dockerfile as IMAGE and pushes it
             --image IMAGE
  create   starts `infalign ARGUMENTS` on every host
             --image IMAGE  --cluster CLUSTER  --name NAME
             --type TYPE          accelerator type, such as v5litepod-64, v5p-128, v6e-64
             --slices N           slices joined by the data centre network, 1 by default
             --restarts N         how often all hosts are started again after a failure or preemption, 100 by default
             --grace SECONDS      from the notice of a preemption to the end, 120 by default
             --spot               spot capacity, where the cluster provisions nodes itself
             --libtpu FLAGS       LIBTPU_INIT_ARGS, for example "$(python -m infalign_jax.scale.libtpu_flags v5e)"
  list     the runs on a cluster
             --cluster CLUSTER
  delete   ends a run
             --cluster CLUSTER  --name NAME

flags
  --zone ZONE, --project PROJECT   of the cluster; by default those gcloud is set to
  --dry-run                        print the commands instead of running them
EOF
}

fail() {
  echo "xpk.sh: $1; see launch/xpk.sh --help" >&2
  exit 2
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
image='' cluster='' name='' type='' slices=1 restarts=100 grace=120 spot='' libtpu='' zone='' project='' dry_run=''
case ${1:-} in
  build | create | list | delete) command=$1; shift ;;
  -h | --help) usage; exit 0 ;;
  *) fail "the command is '${1:-}'; legal are build, create, list, delete" ;;
esac
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --spot) spot=1; shift ;;
    --dry-run) dry_run=1; shift ;;
    --image | --cluster | --name | --type | --slices | --restarts | --grace | --libtpu | --zone | --project)
      [ $# -ge 2 ] || fail "$1 has no value"
      printf -v "${1#--}" '%s' "$2"
      shift 2
      ;;
    --) shift; break ;;
    *) fail "there is no flag '$1'" ;;
  esac
done

execute() {
  if [ -n "$dry_run" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

need() { # need FLAG ...: those flags must be given
  local flag
  for flag in "$@"; do
    [ -n "${!flag}" ] || fail "--$flag is missing"
  done
}

where=(${zone:+"--zone=$zone"} ${project:+"--project=$project"})
case $command in
  build)
    need image
    execute docker build -f "$root/launch/Dockerfile" -t "$image" "$root"
    execute docker push "$image"
    ;;
  create)
    need image cluster name type
    [ $# -gt 0 ] || fail 'the arguments of infalign are missing; they come after --'
    printf -v words '%q ' infalign "$@"
    execute xpk workload create "--cluster=$cluster" "--workload=$name" "${where[@]}" "--tpu-type=$type" \
      "--num-slices=$slices" "--docker-image=$image" "--max-restarts=$restarts" --restart-on-user-code-failure \
      "--termination-grace-period-seconds=$grace" ${spot:+--spot} --env=INFALIGN_DISTRIBUTED=auto \
      --env=INFALIGN_PREEMPTED_STATUS=75 \
      ${libtpu:+"--env=LIBTPU_INIT_ARGS=$libtpu"} "--command=exec ${words% }"
    ;;
  list) need cluster; execute xpk workload list "--cluster=$cluster" "${where[@]}" ;;
  delete) need cluster name; execute xpk workload delete "--cluster=$cluster" "--workload=$name" "${where[@]}" ;;
esac
