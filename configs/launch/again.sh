#!/usr/bin/env bash
# Runs a command, and again as long as it ends with 42: "saved, start me again".
#
#   configs/launch/again.sh python -m experiments.train_drafter --config=... --workdir=...
set -uo pipefail

child=""
# A signal to this shell is meant for the command, which saves first.
trap '[[ -n $child ]] && kill -TERM "$child" 2>/dev/null' TERM INT

while true; do
  "$@" &
  child=$!
  wait "$child"
  status=$?
  while kill -0 "$child" 2>/dev/null; do # a signal ended the wait, and not the command
    wait "$child"
    status=$?
  done
  [[ $status -eq 42 ]] || exit "$status"
  echo "saved; starting again" >&2
  sleep "${SPECJAX_PAUSE:-5}"
done
