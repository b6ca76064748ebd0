#!/usr/bin/env bash
# sweep.sh SPEC RESULTS: begins the search of SPEC in the folder RESULTS, which no other search may use, or goes on with
# the one that is there. So a job that is started again, by Slurm, by Kubernetes or by hand, loses nothing.
# SIGTERM, which comes some time before the end of a job's hours, saves; the exit code is then 130.
set -euo pipefail
spec=$1
results=$2

mkdir -p "$results"
begun=$(find "$results" -mindepth 2 -maxdepth 2 -name sweep.json | head -n 1)
if [[ -n $begun ]]; then
  ddetr resume "$(dirname "$begun")" &
else
  ddetr train -e "$spec" --yes results_dir="$results" &
fi
driver=$!
trap 'kill -TERM "$driver"' TERM INT
code=0
wait "$driver" || code=$?
# A signal ends the first wait; the second one is for the driver, which is saving.
if kill -0 "$driver" 2>/dev/null; then
  code=0
  wait "$driver" || code=$?
fi
exit "$code"
