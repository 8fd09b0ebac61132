#!/usr/bin/env bash
# Copies a run from the first host of a slice to this machine. The run must have ended.
#
# Cost: the time of the slice, and the cloud's price for outgoing data.
# Leaves behind: the run below FETCH_TO; nothing on the slice.
# If repeated: sends only the files that are new or incomplete.
#
#   TPU_NAME PROJECT ZONE   which slice
#   RUN                     e.g. runs/world
#   FETCH_TO                local folder to copy it to (fetched)
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
