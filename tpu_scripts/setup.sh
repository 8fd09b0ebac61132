#!/usr/bin/env bash
# Copies the current commit of this checkout to every host of a slice, and installs it.
#
# Cost: the time of the slice.
# Leaves behind: ~/smf_jax with .venv on every host; the share mounted at /mnt/smf, with
#   folders runs (linked from ~/smf_jax/runs) and data.
# If repeated: updates the code. Refused while a command is running.
#
#   TPU_NAME PROJECT ZONE   which slice
#   SMF_SHARE               NFS folder for runs and data, e.g. 10.0.0.2:/smf. Required for
#                           several hosts, and to resume after the preemption of a slice
set -euo pipefail
. "$(dirname "$0")/lib.sh"
only_dry_run "$@"
: "${TPU_NAME:?set TPU_NAME, e.g. smf-v5e-16}"
: "${PROJECT:?set PROJECT, e.g. my-project}"
: "${ZONE:?set ZONE, e.g. us-west4-a}"
: "${SMF_SHARE:=}"
[[ ! $SMF_SHARE || $SMF_SHARE =~ ^[A-Za-z0-9._-]+:/[A-Za-z0-9._/-]*$ ]] ||
  refuse "SMF_SHARE=$SMF_SHARE must be HOST:/FOLDER, e.g. 10.0.0.2:/smf"

cd "$(dirname "$0")/.."
commit=$(git rev-parse HEAD)
[[ ! $(git status --porcelain) ]] || say "uncommitted changes are not sent"
archive=${TMPDIR:-/tmp}/smf_jax-$commit.tar.gz
trap 'rm -f "$archive"' EXIT

where=(--project "$PROJECT" --zone "$ZONE" --worker all)
run git archive --format tar.gz --output "$archive" "$commit"
run gcloud compute tpus tpu-vm scp "$archive" "$TPU_NAME:smf_jax.tar.gz" "${where[@]}"
run gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${where[@]}" --command \
  "rm -rf smf_jax.new && mkdir smf_jax.new && tar -xzf smf_jax.tar.gz -C smf_jax.new && bash smf_jax.new/tpu_scripts/on_worker/setup.sh '$SMF_SHARE'"
say "next: run.sh doctor"
