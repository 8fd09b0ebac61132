#!/usr/bin/env bash
# On a host of a slice: installs ~/smf_jax.new as ~/smf_jax. Called by setup.sh.
#
#   setup.sh SHARE   NFS folder, or '' to use what is mounted at /mnt/smf, if anything
set -euo pipefail
share=$1
: "${SHARE_MOUNT:=/mnt/smf}"
cd
# shellcheck source=cluster.sh
. smf_jax.new/tpu_scripts/on_worker/cluster.sh

fail() {
  echo "host $process: $*" >&2
  exit 2
}

mkdir -p smf_jax/.job
exec 9>smf_jax/.job/lock
flock -n 9 || fail "a command is running: wait for it, or use run.sh --stop"

if [[ $share ]] && ! mountpoint -q "$SHARE_MOUNT"; then
  command -v mount.nfs >/dev/null ||
    { sudo apt-get -qq update && sudo apt-get -qq install -y nfs-common; }
  sudo mkdir -p "$SHARE_MOUNT"
  sudo mount -t nfs -o hard "$share" "$SHARE_MOUNT"
fi
if mountpoint -q "$SHARE_MOUNT"; then
  for folder in runs data; do
    [[ -d $SHARE_MOUNT/$folder ]] || sudo install -d -o "$USER" "$SHARE_MOUNT/$folder"
    [[ -w $SHARE_MOUNT/$folder ]] || fail "user $USER (uid $(id -u)) cannot write to $SHARE_MOUNT/$folder, which belongs to uid $(stat -c %u "$SHARE_MOUNT/$folder"): the uid must be the same on all hosts, as with OS Login"
  done
  [[ -L smf_jax/runs || ! -e smf_jax/runs ]] || fail "smf_jax/runs is a local folder of this host: move it to $SHARE_MOUNT"
  ln -sfn "$SHARE_MOUNT/runs" smf_jax/runs
elif ((processes > 1)); then
  fail "$processes hosts need a shared file system: set SMF_SHARE, or mount one at $SHARE_MOUNT"
else
  echo "no share: runs are on the disk of the slice and are deleted with it"
fi

# Replaces the files that the last setup sent, and leaves all others.
[[ ! -f smf_jax/.sent ]] || (cd smf_jax && xargs -r -d '\n' rm -f -- <.sent)
cp -a smf_jax.new/. smf_jax/
(cd smf_jax.new && find . -type f) >smf_jax/.sent
rm -rf smf_jax.new smf_jax.tar.gz

# The images have Python 3.10; uv installs a later one.
cd smf_jax
PATH=$HOME/.local/bin:$PATH
command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
[[ -x .venv/bin/python ]] || uv venv --quiet --python '>=3.11' .venv
uv pip install --quiet --python .venv/bin/python --constraint constraints.txt --editable '.[tpu]'
echo "host $process of $processes: ready"
