#!/usr/bin/env bash
# Starts one command of smf on every host of a slice, and follows it.
#
#   run.sh pretrain configs/world.py   starts it, or follows it where it runs
#   run.sh                             follows the last command, or tells its exit code
#   run.sh --again evaluate runs/world even if that has ended well before
#   run.sh --stop                      tells it to save and stop: exit code 75
#
# Costs: the time of the slice.
# Leaves behind: the run's folder; on every host ~/smf_jax/.job with log and exit code.
# Again: a command that runs is followed, one that ended with 0 is not started again, one
#   that stopped (75, or 69: a host was lost) goes on. Ctrl-C ends the following alone.
# Exit code: that of the command; 3 if it runs on without being followed.
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
    *) refuse "unknown argument '$1'; there are --dry-run, --again, --stop, then the command" ;;
  esac
  shift
done
: "${TPU_NAME:?set TPU_NAME, e.g. smf-v5e-16}"
: "${PROJECT:?set PROJECT, e.g. my-project}"
: "${ZONE:?set ZONE, e.g. us-west4-a}"
[[ $stop == no || $# == 0 ]] || refuse "--stop takes no command"

# Runs an action of on_worker/job.sh as the host that each host is.
job() {
  local hosts=$1
  shift
  run gcloud compute tpus tpu-vm ssh "$TPU_NAME" --project "$PROJECT" --zone "$ZONE" \
    --worker "$hosts" --command ". smf_jax/tpu_scripts/on_worker/who.sh && SMF_COORDINATOR=\$coordinator SMF_NUM_PROCESSES=\$processes SMF_PROCESS_ID=\$process bash smf_jax/tpu_scripts/on_worker/job.sh$(printf ' %q' "$@")"
}

lost() {
  say "the hosts do not answer. If the slice was taken away: delete.sh, create.sh, setup.sh," \
    "and the same run.sh goes on"
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
  refuse "another command is running: $running; wait for it, or run.sh --stop"
elif [[ $running ]]; then
  say "running: $running"
elif [[ $command && $ended == "0 $command" && $again == no ]]; then
  say "it has ended well; --again starts it anew"
elif [[ $command ]]; then
  job all start "$@"
elif [[ $ended == none ]]; then
  say "nothing was started yet"
  exit 0
fi

job 0 follow || true
[[ $DRY_RUN == no ]] || exit 0
status=$(job all status | grep '^host ') || lost
sort -V <<<"$status"
if [[ $status == *" running "* ]]; then
  say "it runs on; run.sh follows it"
  exit 3
fi
# Of all codes, one that is not 0 if there is one: first the main process's.
exit "$(sort -V <<<"$status" | awk '$3 != 0 { print $3; found = 1; exit } END { if (!found) print 0 }')"
