#!/usr/bin/env bash
# Runs one command as several processes of this machine, each with some CPU devices: a pod in small. Needs bash 5.1.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: launch/local_processes.sh [--processes N] [--devices M] [--port PORT] [--grace SECONDS] [--dry-run] -- COMMAND ...

  Starts COMMAND N times on this machine. JAX joins the N processes (gloo over TCP) into one run of N x M CPU devices.
  SIGTERM and Ctrl-C reach all of them as SIGTERM: infalign saves and ends. The exit status is the first that is not 0.

  --processes N      processes, 2 by default
  --devices M        CPU devices of each, 4 by default
  --port PORT        where process 0 listens, on 127.0.0.1; a free one by default
  --grace SECONDS    how long the others have to end by themselves when one has failed, 150 by default
  --dry-run          print the commands instead of running them

example
  launch/local_processes.sh --processes 2 --devices 4 -- \
    infalign run --config configs/quickstart.py --workdir runs/two --config.mesh.fsdp=2
EOF
}

processes=2 devices=4 port='' grace=150 dry_run=''
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --dry-run) dry_run=1; shift ;;
    --processes | --devices | --port | --grace)
      if ! [[ ${2:-} =~ ^[1-9][0-9]*$ ]]; then
        echo "local_processes.sh: $1 is '${2:-}'; it must be a whole number of at least 1" >&2
        exit 2
      fi
      printf -v "${1#--}" '%s' "$2"
      shift 2
      ;;
    --) shift; break ;;
    *) echo "local_processes.sh: there is no flag '$1'; the command comes after --" >&2; exit 2 ;;
  esac
done
if [ $# -eq 0 ]; then
  usage >&2
  exit 2
fi

free_port() {
  local candidate
  while candidate=$((20000 + RANDOM % 12000)); do
    # Nobody answers there: nobody listens.
    if ! (exec 3<>"/dev/tcp/127.0.0.1/$candidate") 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
}
if [ -z "$port" ] && [ -z "$dry_run" ]; then
  port=$(free_port)
fi

environment() { # environment NUMBER: what makes a command process NUMBER
  printf '%s\n' "INFALIGN_DISTRIBUTED=127.0.0.1:${port:-PORT},$processes,$1" JAX_PLATFORMS=cpu \
    "JAX_NUM_CPU_DEVICES=$devices" JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo
}

pids=()
for ((number = 0; number < processes; number++)); do
  mapfile -t variables < <(environment "$number")
  command=(env "${variables[@]}" "$@")
  if [ -n "$dry_run" ]; then
    printf '%q ' "${command[@]}"
    echo
  else
    "${command[@]}" &
    pids+=($!)
  fi
done
if [ -n "$dry_run" ]; then
  exit 0
fi

signal_all() { # signal_all SIGNAL: to those that still run
  local pid
  for pid in "${pids[@]}"; do
    kill "-$1" "$pid" 2>/dev/null || true
  done
}
trap 'signal_all TERM' TERM INT # what bash starts in the background ignores SIGINT

status=0 alarm=''
while [ ${#pids[@]} -gt 0 ]; do
  ended='' code=0
  wait -n -p ended "${pids[@]}" ${alarm:+"$alarm"} || code=$?
  if [ -z "${ended:-}" ]; then
    continue # a signal woke us, and nothing has ended
  fi
  if [ "$ended" = "$alarm" ]; then
    echo "local_processes.sh: the others did not end within $grace seconds; killing them" >&2
    signal_all KILL
    alarm=''
    continue
  fi
  remaining=()
  for pid in "${pids[@]}"; do
    if [ "$pid" != "$ended" ]; then
      remaining+=("$pid")
    fi
  done
  pids=("${remaining[@]}")
  if [ "$code" -ne 0 ] && [ "$status" -eq 0 ]; then
    status=$code
    echo "local_processes.sh: process $ended ended with status $code; waiting for the others" >&2
    sleep "$grace" &
    alarm=$!
  fi
done
if [ -n "$alarm" ]; then
  kill "$alarm"
fi
exit "$status"
