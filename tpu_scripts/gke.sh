#!/usr/bin/env bash
# Trains on a TPU slice of a GKE cluster, as a JobSet.
#
#   gke.sh create    creates a node pool, which is one slice
#   gke.sh setup     builds and pushes an image of the current commit
#   gke.sh run VERB ...   starts an smf command on every host of the slice
#   gke.sh logs      follows the log of the first host, then shows the status
#   gke.sh fetch     copies a run to this machine
#   gke.sh delete    deletes the JobSet and the node pool
#
# Cost: chips x price per hour of the node pool, used or not, and the cluster.
# Leaves behind: after delete, the cluster, the image and the share.
# If repeated: create and delete report that nothing is left to do; run does not start a
#   command twice; fetch sends the rest. A preempted JobSet restarts by itself, and the
#   run resumes.
#
#   TPU_NAME                    of the node pool and the JobSet
#   PROJECT CLUSTER LOCATION    which cluster; it needs JobSet 0.6 or later
#   IMAGE                       without a tag: the commit is the tag     (setup run fetch)
#   SMF_SHARE                   NFS folder for runs and data             (run fetch)
#   MACHINE_TYPE TPU_TOPOLOGY   e.g. ct5lp-hightpu-4t and 4x4            (create run)
#   TPU_ACCELERATOR             e.g. tpu-v5-lite-podslice                (run)
#   ZONE TPU_SPOT PRICE_PER_CHIP_HOUR                                    (create)
#   RUN FETCH_TO                e.g. runs/world; local folder            (fetch)
set -euo pipefail
. "$(dirname "$0")/lib.sh"
usage="gke.sh [--dry-run] [--again] create | setup | run VERB ... | logs | fetch | delete"
again=no
while [[ ${1:-} == -* ]]; do
  case $1 in
    --dry-run) DRY_RUN=yes ;;
    --again) again=yes ;;
    *) refuse "unknown argument '$1': $usage" ;;
  esac
  shift
done
action=${1:-}
[[ $action =~ ^(create|setup|run|logs|fetch|delete)$ ]] || refuse "unknown action '$action': $usage"
shift
[[ $action == run || $# == 0 ]] || refuse "unknown argument '$1': $usage"
[[ $action != run || $# != 0 ]] || refuse "run needs a command, e.g. gke.sh run pretrain configs/world.py"

: "${TPU_NAME:?set TPU_NAME, e.g. smf-v5e-16}"
: "${PROJECT:?set PROJECT, e.g. my-project}"
: "${CLUSTER:?set CLUSTER, e.g. smf}"
: "${LOCATION:?set LOCATION, the region or zone of the cluster, e.g. us-west4}"
case $action in
  setup | run | fetch)
    : "${IMAGE:?set IMAGE, e.g. us-docker.pkg.dev/my-project/smf/smf_jax}"
    image=$IMAGE:$(git -C "$(dirname "$0")" rev-parse HEAD)
    ;;
esac
case $action in
  run | fetch)
    : "${SMF_SHARE:?set SMF_SHARE, an NFS folder, e.g. 10.0.0.2:/smf}"
    [[ $SMF_SHARE =~ ^[A-Za-z0-9._-]+:/[A-Za-z0-9._/-]*$ ]] ||
      refuse "SMF_SHARE=$SMF_SHARE must be HOST:/FOLDER, e.g. 10.0.0.2:/smf"
    ;;
esac
case $action in
  create | run)
    : "${MACHINE_TYPE:?set MACHINE_TYPE, e.g. ct5lp-hightpu-4t}"
    : "${TPU_TOPOLOGY:?set TPU_TOPOLOGY, e.g. 4x4}"
    [[ $MACHINE_TYPE =~ -([0-9]+)t$ ]] || refuse "MACHINE_TYPE=$MACHINE_TYPE must end in the number of chips, e.g. ct5lp-hightpu-4t"
    chips_per_host=${BASH_REMATCH[1]}
    [[ $TPU_TOPOLOGY =~ ^[0-9]+(x[0-9]+)+$ ]] || refuse "TPU_TOPOLOGY=$TPU_TOPOLOGY must be like 4x4"
    chips=$((${TPU_TOPOLOGY//x/*}))
    ((chips % chips_per_host == 0)) || refuse "TPU_TOPOLOGY=$TPU_TOPOLOGY has $chips chips, not a multiple of the $chips_per_host per host of MACHINE_TYPE=$MACHINE_TYPE"
    hosts=$((chips / chips_per_host))
    ;;
esac
cluster=(--project "$PROJECT" --location "$LOCATION" --cluster "$CLUSTER")
# As named by `gcloud container clusters get-credentials`, so that no other cluster is used.
kubectl=(kubectl --context "gke_${PROJECT}_${LOCATION}_$CLUSTER")

pool_state() {
  run gcloud container node-pools list "${cluster[@]}" --filter "name=$TPU_NAME" --format "value(status)"
}

# Prints manifest $1 with @NAME@ replaced by the value of argument NAME=...
render() {
  local text pair
  text=$(<"$(dirname "$0")/$1")
  for pair in "${@:2}"; do
    text=${text//@${pair%%=*}@/"${pair#*=}"}
  done
  printf '%s\n' "$text"
}

# Prints a manifest and applies it.
apply() {
  printf '%s\n' "$1" >&2
  run "${kubectl[@]}" apply -f - <<<"$1"
}

jobset() {
  run "${kubectl[@]}" get jobset "$TPU_NAME" --ignore-not-found --output "jsonpath=$1"
}

create() {
  : "${ZONE:?set ZONE, e.g. us-west4-a}" "${TPU_SPOT:=no}"
  [[ $TPU_SPOT == yes || $TPU_SPOT == no ]] || refuse "TPU_SPOT=$TPU_SPOT must be yes or no"
  say_cost "$chips"
  local state options=()
  state=$(pool_state)
  if [[ $state == RUNNING ]]; then
    say "$TPU_NAME exists already"
    return
  fi
  [[ ! $state ]] || { say "$TPU_NAME is $state; wait, or run gke.sh delete" && exit 1; }
  ((hosts == 1)) || options+=(--tpu-topology "$TPU_TOPOLOGY")
  [[ $TPU_SPOT == no ]] || options+=(--spot)
  run gcloud container node-pools create "$TPU_NAME" "${cluster[@]}" \
    --node-locations "$ZONE" --machine-type "$MACHINE_TYPE" --num-nodes "$hosts" "${options[@]}"
}

setup() {
  cd "$(dirname "$0")/.."
  [[ ! $(git status --porcelain) ]] || say "uncommitted changes are not sent"
  local build=(docker build --file tpu_scripts/Dockerfile --tag "$image" -)
  show git archive HEAD
  show "${build[@]}" # its input is the archive
  [[ $DRY_RUN == yes ]] || git archive HEAD | "${build[@]}"
  run docker push "$image"
}

start() {
  : "${TPU_ACCELERATOR:?set TPU_ACCELERATOR, e.g. tpu-v5-lite-podslice}"
  local arguments state before word
  for word in "$@"; do # as JSON, which is YAML
    word=${word//\\/\\\\}
    arguments+="${arguments:+, }\"${word//\"/\\\"}\""
  done
  local command="[\"python\", \"-m\", \"smf_jax\", $arguments]" manifest
  manifest=$(render jobset.yaml "NAME=$TPU_NAME" "IMAGE=$image" "HOSTS=$hosts" \
    "CHIPS_PER_HOST=$chips_per_host" "ACCELERATOR=$TPU_ACCELERATOR" "TOPOLOGY=$TPU_TOPOLOGY" \
    "SERVER=${SMF_SHARE%%:*}" "FOLDER=${SMF_SHARE#*:}" "COMMAND=$command")
  before=$(jobset '{.spec.replicatedJobs[0].template.spec.template.spec.containers[0].command}')
  state=" $(jobset '{.status.conditions[?(@.status=="True")].type}') "
  if [[ $before && ! $state =~ " Completed "|" Failed " ]]; then
    [[ ${before//, /,} == "${command//, /,}" ]] || refuse "another command is running: $before; wait for it, or run gke.sh delete"
    say "it is running already"
  elif [[ ${before//, /,} == "${command//, /,}" && $state == *" Completed "* && $again == no ]]; then
    say "it has completed; --again starts it again"
  else
    [[ ! $before ]] || run "${kubectl[@]}" delete jobset "$TPU_NAME" # it has ended
    apply "$manifest"
  fi
  say "next: gke.sh logs"
}

logs() {
  local pods="jobset.sigs.k8s.io/jobset-name=$TPU_NAME"
  run "${kubectl[@]}" logs --follow --tail 200 --selector "$pods,batch.kubernetes.io/job-completion-index=0"
  run "${kubectl[@]}" get jobset "$TPU_NAME"
  run "${kubectl[@]}" get pods --selector "$pods" --output \
    "custom-columns=POD:.metadata.name,STATE:.status.phase,CODE:.status.containerStatuses[0].state.terminated.exitCode"
}

fetch() {
  : "${RUN:?set RUN, e.g. runs/world}" "${FETCH_TO:=fetched}"
  [[ $RUN =~ ^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*$ ]] || refuse "RUN=$RUN must be below smf_jax, e.g. runs/world"
  local name=$TPU_NAME-reader
  apply "$(render reader.yaml "NAME=$name" "IMAGE=$image" \
    "SERVER=${SMF_SHARE%%:*}" "FOLDER=${SMF_SHARE#*:}")"
  run "${kubectl[@]}" wait --for condition=Ready --timeout 10m "pod/$name"
  copy_run /smf_jax "$RUN" "$FETCH_TO" "${kubectl[@]}" exec "$name" -- bash -c
  run "${kubectl[@]}" delete pod "$name"
}

delete() {
  run "${kubectl[@]}" delete jobset "$TPU_NAME" --ignore-not-found
  local state
  state=$(pool_state)
  if [[ $DRY_RUN == no && ! $state ]]; then
    say "node pool $TPU_NAME does not exist"
    return
  fi
  run gcloud container node-pools delete "$TPU_NAME" "${cluster[@]}" --quiet
}

case $action in
  run) start "$@" ;;
  *) "$action" ;;
esac
