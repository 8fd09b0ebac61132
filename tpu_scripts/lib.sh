# shellcheck shell=bash
# Shared by the scripts: messages, --dry-run, copying a run.

DRY_RUN=no

say() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; }

refuse() {
  say "$*"
  exit 2
}

# Parses the arguments of a script whose only option is --dry-run.
only_dry_run() {
  local word
  for word in "$@"; do
    [[ $word == --dry-run ]] || refuse "unknown argument '$word'; the only option is --dry-run"
    DRY_RUN=yes
  done
}

# Prints a command as it would be typed.
show() {
  local word line=+
  for word in "$@"; do
    if [[ $word =~ ^[][A-Za-z0-9_./:=,@%+~-]+$ ]]; then
      line+=" $word"
    else
      line+=" '${word//\'/\'\\\'\'}'"
    fi
  done
  printf '%s\n' "$line" >&2
}

# Prints a command and, unless it is a dry run, runs it.
run() {
  show "$@"
  [[ $DRY_RUN == yes ]] || "$@"
}

# Prints the cost of $1 chips per hour, if PRICE_PER_CHIP_HOUR is set.
say_cost() {
  local chips=$1
  if [[ ! ${PRICE_PER_CHIP_HOUR:=} ]]; then
    say "$chips chips; set PRICE_PER_CHIP_HOUR to see their cost"
  elif [[ ! $PRICE_PER_CHIP_HOUR =~ ^[0-9]+(\.[0-9]+)?$ ]]; then
    refuse "PRICE_PER_CHIP_HOUR=$PRICE_PER_CHIP_HOUR must be a number, e.g. 1.20"
  elif [[ $chips =~ ^[0-9]+$ ]]; then
    say "$chips chips x $PRICE_PER_CHIP_HOUR =" \
      "$(awk "BEGIN { printf \"%.2f\", $chips * $PRICE_PER_CHIP_HOUR }") per hour"
  fi
}

# Copies folder $2 inside folder $1 of another host to the local folder $3. A file that
# exists here with the same size and time is not sent. The remaining arguments are a
# command that runs its last argument in a shell on the other host.
copy_run() {
  local base=$1 folder=$2 destination=$3
  shift 3
  local find="find '$folder' -follow -type f -printf '%s %Ts %p\n'"
  if [[ $DRY_RUN == yes ]]; then
    show "$@" "cd $base && $find"
    show "$@" "cd $base && tar -cz FILES"
    return
  fi
  mkdir -p "$destination/$folder"
  local remote copied missing sent=0
  remote=$(run "$@" "cd $base && $find" </dev/null | sort)
  [[ $remote ]] || refuse "$folder does not exist"
  copied=$(cd "$destination" && eval "$find" | sort)
  mapfile -t missing < <(comm -23 <(echo "$remote") <(echo "$copied") | cut -d ' ' -f 3-)
  while ((sent < ${#missing[@]})); do
    # In batches of 100: the names must fit into a command, and batches that arrived stay.
    "$@" "cd $base && tar -ch$(printf " '%s'" "${missing[@]:sent:100}") | gzip -1" </dev/null |
      tar -xz -C "$destination"
    sent=$((sent + 100 < ${#missing[@]} ? sent + 100 : ${#missing[@]}))
    say "$sent of ${#missing[@]} files"
  done
  say "$destination/$folder is complete, ${#missing[@]} files were sent; check it: smf verify $destination/$folder"
}
