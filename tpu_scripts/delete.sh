#!/usr/bin/env bash
# Deletes a TPU slice and everything on its own disks, even while it is in use.
#
# Cost: none; ends the cost of the slice.
# Leaves behind: the files on the share. Fetch the others first.
# If repeated: reports that the slice does not exist.
#
#   TPU_NAME PROJECT ZONE   which slice
set -euo pipefail
. "$(dirname "$0")/lib.sh"
only_dry_run "$@"
: "${TPU_NAME:?set TPU_NAME, e.g. smf-v5e-16}"
: "${PROJECT:?set PROJECT, e.g. my-project}"
: "${ZONE:?set ZONE, e.g. us-west4-a}"

where=(--project "$PROJECT" --zone "$ZONE")
state=$(run gcloud compute tpus queued-resources list "${where[@]}" \
  --filter "name~/queuedResources/$TPU_NAME\$" --format "value(state.state)")
if [[ $DRY_RUN == no && ! $state ]]; then
  say "$TPU_NAME does not exist in $ZONE"
  exit 0
fi
run gcloud compute tpus queued-resources delete "$TPU_NAME" "${where[@]}" --force --quiet
