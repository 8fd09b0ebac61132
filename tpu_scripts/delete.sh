#!/usr/bin/env bash
# Deletes a TPU slice with all that is on its own disks, whether it is used or not.
#
# Costs: nothing; ends the costs of the slice.
# Leaves behind: what is on the share. Fetch first what is on the slice alone.
# Again: says that there is nothing.
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
  say "there is no $TPU_NAME in $ZONE"
  exit 0
fi
run gcloud compute tpus queued-resources delete "$TPU_NAME" "${where[@]}" --force --quiet
