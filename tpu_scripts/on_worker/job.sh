#!/usr/bin/env bash
# On a host of a slice: one command of smf that outlives the connection. Called by run.sh.
#
#   job.sh start VERB ...   starts it, unless one runs
#   job.sh status           prints a line: HOST running COMMAND, HOST CODE COMMAND, HOST none
#   job.sh follow           prints its log until it ends
#   job.sh stop             tells it to save and stop
#
# ~/smf_jax/.job has command, pid, log, code; lock is held as long as anything of it lives.
set -euo pipefail
cd "$(dirname "$0")/../.."
mkdir -p .job
action=$1
shift

running() { ! flock -n .job/lock true; }

case $action in
  start)
    exec 9>.job/lock
    flock -n 9 || { echo "host $SMF_PROCESS_ID: one is running already" && exit 0; }
    printf '%q ' "$@" | sed 's/ $/\n/' >.job/command
    rm -f .job/code
    # A handler, not an ignored signal, which the command would inherit: all of the group
    # are told to stop, and this shell must live to write down the exit code.
    # shellcheck disable=SC2016
    setsid nohup bash -c 'trap : TERM HUP INT; code=0
      .venv/bin/python -m smf_jax "$@" || code=$?
      echo $code >.job/code' job "$@" </dev/null >.job/log 2>&1 &
    echo $! >.job/pid
    echo "host $SMF_PROCESS_ID of $SMF_NUM_PROCESSES: started"
    ;;
  status)
    if running; then
      echo "host $SMF_PROCESS_ID running $(<.job/command)"
    elif [[ ! -f .job/command ]]; then
      echo "host $SMF_PROCESS_ID none"
    elif [[ -f .job/code ]]; then
      echo "host $SMF_PROCESS_ID $(<.job/code) $(<.job/command)"
    else
      echo "host $SMF_PROCESS_ID 137 $(<.job/command)" # killed, or the host restarted
    fi
    ;;
  follow)
    if running; then
      tail -n 200 --pid "$(<.job/pid)" -f .job/log
      flock .job/lock true
    elif [[ -f .job/log ]]; then
      tail -n 200 .job/log
    fi
    ;;
  stop)
    ! running || kill -TERM -- "-$(<.job/pid)"
    ;;
esac
