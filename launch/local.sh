#!/usr/bin/env bash
# Runs a recipe on this machine, and goes on where it stopped if it is run again.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: launch/local.sh [--dry-run] CONFIG WORKDIR [--config.key=value ...]

  CONFIG     recipe, for example configs/quickstart.py
  WORKDIR    folder of the run
  --dry-run  print the command instead of running it
EOF
}

dry_run=
case ${1:-} in
  -h | --help) usage; exit 0 ;;
  --dry-run) dry_run=1; shift ;;
esac
if [ $# -lt 2 ]; then
  usage >&2
  exit 2
fi
config=$1 workdir=$2
shift 2
command=(infalign run "--config=$config" "--workdir=$workdir" "$@")
if [ -n "$dry_run" ]; then
  printf '%q ' "${command[@]}"
  echo
else
  exec "${command[@]}"
fi
