# shellcheck shell=bash disable=SC2034
# On a host of a slice, to be sourced: sets coordinator, processes and process (the rank)
# from the metadata server, which lists all hosts in the order of their ranks.

_metadata() {
  curl --silent --show-error --fail --retry 5 --header 'Metadata-Flavor: Google' \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}

_endpoints=$(_metadata worker-network-endpoints) || return 1
process=$(_metadata agent-worker-number) || return 1
IFS=, read -r -a _hosts <<<"$_endpoints"
processes=${#_hosts[@]}
coordinator=${_hosts[0]##*:}:8476 # an endpoint is ADDRESS or NAME:ID:ADDRESS
