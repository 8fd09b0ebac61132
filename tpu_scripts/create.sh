#!/usr/bin/env bash
# Requests a TPU slice as a queued resource, and waits until it is ACTIVE.
#
# Cost: chips x price per hour, from ACTIVE until delete.sh; waiting is free.
# Leaves behind: a queued resource and a node, both named TPU_NAME.
# If repeated: waits again, or reports that the slice exists. Ctrl-C stops the waiting,
#   not the request.
#
#   TPU_NAME PROJECT ZONE   which slice
#   TPU_TYPE                v5litepod-16: v5e, 16 chips on 4 hosts; v5litepod-8: one host
#   TPU_SPOT                yes: cheaper, but may be preempted at any time
#   TPU_RUNTIME             image (default: the one for TPU_TYPE)
#   PRICE_PER_CHIP_HOUR     your price; only printed
#   POLL_SECONDS            between two status requests (30)
set -euo pipefail
. "$(dirname "$0")/lib.sh"
only_dry_run "$@"
: "${TPU_NAME:?set TPU_NAME, e.g. smf-v5e-16}"
: "${PROJECT:?set PROJECT, e.g. my-project}"
: "${ZONE:?set ZONE, e.g. us-west4-a}"
: "${TPU_TYPE:?set TPU_TYPE, e.g. v5litepod-16}"
: "${TPU_SPOT:=no}" "${POLL_SECONDS:=30}"
[[ $TPU_SPOT == yes || $TPU_SPOT == no ]] || refuse "TPU_SPOT=$TPU_SPOT must be yes or no"

# The number in a type counts chips for v5e and v6e, and cores (two per chip) otherwise.
number=${TPU_TYPE##*-}
[[ $number =~ ^[0-9]+$ ]] || refuse "TPU_TYPE=$TPU_TYPE must end in a number, e.g. v5litepod-16"
case $TPU_TYPE in
  v5litepod-*) chips=$number runtime=v2-alpha-tpuv5-lite ;;
  v6e-*) chips=$number runtime=v2-alpha-tpuv6e ;;
  v5p-*) chips=$((number / 2)) runtime=v2-alpha-tpuv5 ;;
  v4-* | v3-* | v2-*) chips=$((number / 2)) runtime=tpu-ubuntu2204-base ;;
  *) chips=unknown runtime= ;;
esac
: "${TPU_RUNTIME:=$runtime}"
: "${TPU_RUNTIME:?set TPU_RUNTIME, the image for TPU_TYPE=$TPU_TYPE, e.g. v2-alpha-tpuv6e}"
say_cost "$chips"

where=(--project "$PROJECT" --zone "$ZONE")
list=(gcloud compute tpus queued-resources list "${where[@]}"
  --filter "name~/queuedResources/$TPU_NAME\$"
  --format "value(state.state,tpu.nodeSpec[0].node.acceleratorType)")
listed=$(run "${list[@]}")
read -r state type <<<"$listed"

if [[ ! $state ]]; then
  spot=()
  [[ $TPU_SPOT == no ]] || spot=(--spot)
  run gcloud compute tpus queued-resources create "$TPU_NAME" "${where[@]}" \
    --node-id "$TPU_NAME" --accelerator-type "$TPU_TYPE" \
    --runtime-version "$TPU_RUNTIME" "${spot[@]}"
elif [[ $type && $type != "$TPU_TYPE" ]]; then
  refuse "$TPU_NAME exists with type $type, not TPU_TYPE=$TPU_TYPE; change either"
else
  say "$TPU_NAME exists already"
fi
[[ $DRY_RUN == no ]] || exit 0

while true; do
  # A new request may not be listed yet.
  state=$("${list[@]}" | cut -f 1)
  case $state in
    ACTIVE)
      say "$TPU_NAME is ACTIVE; next: setup.sh"
      exit 0
      ;;
    FAILED | SUSPENDING | SUSPENDED | DELETING)
      say "$TPU_NAME is $state:"
      run gcloud compute tpus queued-resources describe "$TPU_NAME" "${where[@]}" \
        --format "yaml(state)" >&2
      say "nothing was deleted; run delete.sh, then create.sh, to request it again"
      exit 1
      ;;
  esac
  say "${state:-not listed yet}, after $SECONDS s"
  sleep "$POLL_SECONDS"
done
