#!/usr/bin/env bash
# Copies a run from a slice to this machine, by way of its first host.
#
# Costs: the time of the slice, and what the cloud takes for data that leave it.
# Leaves behind: the run below FETCH_TO; on the slice nothing.
# Again: goes on; files that are here already are not sent. Fetch a run that has ended.
#
#   TPU_NAME PROJECT ZONE   which slice
#   RUN                     e.g. runs/world
#   FETCH_TO                the folder here that gets it (fetched)
set -euo pipefail
. "$(dirname "$0")/lib.sh"
only_dry_run "$@"
: "${TPU_NAME:?set TPU_NAME, e.g. smf-v5e-16}"
: "${PROJECT:?set PROJECT, e.g. my-project}"
: "${ZONE:?set ZONE, e.g. us-west4-a}"
: "${RUN:?set RUN, e.g. runs/world}"
: "${FETCH_TO:=fetched}"
[[ $RUN != /* && $RUN != *\'* ]] || refuse "RUN=$RUN must be below smf_jax, e.g. runs/world"

copy_run smf_jax "$RUN" "$FETCH_TO" gcloud compute tpus tpu-vm ssh "$TPU_NAME" \
  --project "$PROJECT" --zone "$ZONE" --worker 0 --command
