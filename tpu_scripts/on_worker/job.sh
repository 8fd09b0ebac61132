#!/usr/bin/env bash
# On a host of a slice: an smf command that outlives the connection. Called by run.sh.
#
#   job.sh start VERB ...   starts it, unless one is running
#   job.sh status           prints HOST running COMMAND, HOST CODE COMMAND, or HOST none
#   job.sh follow           prints its log until it ends
#   job.sh wait             waits until it ends, for a minute at most
#   job.sh stop             makes it save and stop
#
# ~/smf_jax/.job has the files command, pid, log, code, and lock, which is held while any
# process of the command is alive.
set -euo pipefail
cd "$(dirname "$0")/../.."
mkdir -p .job
action=$1
shift

running() { ! flock -n .job/lock true; }

case $action in
  start)
    exec 9>.job/lock
    flock -n 9 || { echo "host $SMF_PROCESS_ID: a command is running already" && exit 0; }
    printf '%q ' "$@" | sed 's/ $/\n/' >.job/command
    rm -f .job/code
    # `stop` signals the whole group, and this shell must survive to record the exit code.
    # With a handler, since the command would inherit an ignored signal.
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
  wait) # the hosts of one command end within seconds of each other
    flock --timeout 60 .job/lock true || true
    ;;
  stop)
    ! running || kill -TERM -- "-$(<.job/pid)"
    ;;
esac
