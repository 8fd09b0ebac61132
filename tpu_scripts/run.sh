#!/usr/bin/env bash
# Starts an smf command on every host of a slice, and follows its log.
#
#   run.sh pretrain configs/world.py     starts it, or follows it if it is running
#   run.sh                               follows the last command, or reports its exit code
#   run.sh --again evaluate runs/world   starts it even if it has succeeded before
#   run.sh --stop                        makes it save and stop, with exit code 75
#
# Cost: the time of the slice.
# Leaves behind: the run's folder; on every host ~/smf_jax/.job with log and exit code.
# If repeated: follows a running command, does not restart one that succeeded, and resumes
#   one that stopped (75, or 69: a host was lost). Ctrl-C only stops following.
# Exit code: that of the command; 3 if the command is still running.
#
#   TPU_NAME PROJECT ZONE   which slice
set -euo pipefail
. "$(dirname "$0")/lib.sh"
again=no stop=no
while [[ ${1:-} == -* ]]; do
  case $1 in
    --dry-run) DRY_RUN=yes ;;
    --again) again=yes ;;
    --stop) stop=yes ;;
    *) refuse "unknown argument '$1'; options before the command are --dry-run, --again, --stop" ;;
  esac
  shift
done
: "${TPU_NAME:?set TPU_NAME, e.g. smf-v5e-16}"
: "${PROJECT:?set PROJECT, e.g. my-project}"
: "${ZONE:?set ZONE, e.g. us-west4-a}"
[[ $stop == no || $# == 0 ]] || refuse "--stop takes no command"

# Runs an action of on_worker/job.sh on host $1 or on all; each host sets its own rank.
job() {
  local hosts=$1
  shift
  run gcloud compute tpus tpu-vm ssh "$TPU_NAME" --project "$PROJECT" --zone "$ZONE" \
    --worker "$hosts" --command ". smf_jax/tpu_scripts/on_worker/cluster.sh && SMF_COORDINATOR=\$coordinator SMF_NUM_PROCESSES=\$processes SMF_PROCESS_ID=\$process bash smf_jax/tpu_scripts/on_worker/job.sh$(printf ' %q' "$@")"
}

lost() {
  say "the hosts do not answer. If the slice was preempted, run delete.sh, create.sh and" \
    "setup.sh; the same run.sh then resumes"
  exit 3
}

command=$(printf '%q ' "$@")
command=${command% }
(($#)) || command=
status=$(job all status | grep '^host ') || [[ $DRY_RUN == yes ]] || lost
running=$(sed -n 's/^host [0-9]* running //p' <<<"$status" | sort -u)
ended=$(cut -d ' ' -f 3- <<<"$status" | sort -u)

if [[ $stop == yes ]]; then
  job all stop
elif [[ $running && $command && $running != "$command" ]]; then
  refuse "another command is running: $running; wait for it, or use run.sh --stop"
elif [[ $running ]]; then
  say "running: $running"
elif [[ $command && $ended == "0 $command" && $again == no ]]; then
  say "it has succeeded; --again starts it again"
elif [[ $command ]]; then
  job all start "$@"
elif [[ $ended == none ]]; then
  say "no command was started yet"
  exit 0
fi

if job 0 follow; then
  job all wait
fi
[[ $DRY_RUN == no ]] || exit 0
status=$(job all status | grep '^host ') || lost
sort -V <<<"$status"
if [[ $status == *" running "* ]]; then
  say "it is still running; run.sh follows it"
  exit 3
fi
# The exit code of the first host that failed.
exit "$(sort -V <<<"$status" | awk '$3 != 0 { print $3; found = 1; exit } END { if (!found) print 0 }')"
