#!/usr/bin/env bash
# On a host of a slice: makes ~/smf_jax of ~/smf_jax.new. Sent and called by setup.sh.
#
#   setup.sh SHARE   NFS folder, or '' for what is mounted at /mnt/smf or for no share
set -euo pipefail
share=$1
: "${SHARE_MOUNT:=/mnt/smf}"
cd
# shellcheck source=who.sh
. smf_jax.new/tpu_scripts/on_worker/who.sh

fail() {
  echo "host $process: $*" >&2
  exit 2
}

mkdir -p smf_jax/.job
exec 9>smf_jax/.job/lock
flock -n 9 || fail "a command is running: wait, or run.sh --stop"

if [[ $share ]] && ! mountpoint -q "$SHARE_MOUNT"; then
  command -v mount.nfs >/dev/null ||
    { sudo apt-get -qq update && sudo apt-get -qq install -y nfs-common; }
  sudo mkdir -p "$SHARE_MOUNT"
  sudo mount -t nfs -o hard "$share" "$SHARE_MOUNT"
fi
if mountpoint -q "$SHARE_MOUNT"; then
  for folder in runs data; do
    [[ -d $SHARE_MOUNT/$folder ]] || sudo install -d -o "$USER" "$SHARE_MOUNT/$folder"
    [[ -w $SHARE_MOUNT/$folder ]] || fail "user $USER has the number $(id -u) and may not write $SHARE_MOUNT/$folder, which is of $(stat -c %u "$SHARE_MOUNT/$folder"): it needs one number on all hosts (OS Login gives it)"
  done
  [[ -L smf_jax/runs || ! -e smf_jax/runs ]] || fail "smf_jax/runs is a folder of this host: move it to $SHARE_MOUNT"
  ln -sfn "$SHARE_MOUNT/runs" smf_jax/runs
elif ((processes > 1)); then
  fail "$processes hosts need one file system: set SMF_SHARE, or mount it at $SHARE_MOUNT"
else
  echo "no share: runs are on the slice's own disk and end with it"
fi

# What the last setup sent is replaced; everything else is left as it is.
[[ ! -f smf_jax/.sent ]] || (cd smf_jax && xargs -r -d '\n' rm -f -- <.sent)
cp -a smf_jax.new/. smf_jax/
(cd smf_jax.new && find . -type f) >smf_jax/.sent
rm -rf smf_jax.new smf_jax.tar.gz

# The images have Python 3.10. uv brings a later one, whatever the image.
cd smf_jax
PATH=$HOME/.local/bin:$PATH
command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
[[ -x .venv/bin/python ]] || uv venv --quiet --python '>=3.11' .venv
uv pip install --quiet --python .venv/bin/python --constraint constraints.txt --editable '.[tpu]'
echo "host $process of $processes: ready"
