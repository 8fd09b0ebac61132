# shellcheck shell=bash
# What the scripts share: words on the terminal, --dry-run, copying a run.

DRY_RUN=no

say() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; }

refuse() {
  say "$*"
  exit 2
}

# Takes the arguments of a script that knows only --dry-run.
only_dry_run() {
  local word
  for word in "$@"; do
    [[ $word == --dry-run ]] || refuse "unknown argument '$word'; there is --dry-run"
    DRY_RUN=yes
  done
}

# Prints a command as one would type it.
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

# Prints a command, then runs it: only prints it after --dry-run.
run() {
  show "$@"
  [[ $DRY_RUN == yes ]] || "$@"
}

# Prints what so many chips cost an hour, if PRICE_PER_CHIP_HOUR is set.
say_cost() {
  local chips=$1
  if [[ ! ${PRICE_PER_CHIP_HOUR:=} ]]; then
    say "$chips chips; set PRICE_PER_CHIP_HOUR to see what they cost"
  elif [[ ! $PRICE_PER_CHIP_HOUR =~ ^[0-9]+(\.[0-9]+)?$ ]]; then
    refuse "PRICE_PER_CHIP_HOUR=$PRICE_PER_CHIP_HOUR must be a number, e.g. 1.20"
  elif [[ $chips =~ ^[0-9]+$ ]]; then
    say "$chips chips x $PRICE_PER_CHIP_HOUR =" \
      "$(awk "BEGIN { printf \"%.2f\", $chips * $PRICE_PER_CHIP_HOUR }") an hour"
  fi
}

# Copies folder $2, which lies in folder $1 of another host, to below folder $3, file by
# file: what is here in the same size and age is not sent again. The other arguments are
# a command that runs its last argument in a shell there.
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
  local there here missing sent=0
  there=$(run "$@" "cd $base && $find" </dev/null | sort)
  [[ $there ]] || refuse "there is no $folder"
  here=$(cd "$destination" && eval "$find" | sort)
  mapfile -t missing < <(comm -23 <(echo "$there") <(echo "$here") | cut -d ' ' -f 3-)
  while ((sent < ${#missing[@]})); do
    # By hundreds: their names must fit into a command, and what has come stays.
    "$@" "cd $base && tar -ch$(printf " '%s'" "${missing[@]:sent:100}") | gzip -1" </dev/null |
      tar -xz -C "$destination"
    sent=$((sent + 100 < ${#missing[@]} ? sent + 100 : ${#missing[@]}))
    say "$sent of ${#missing[@]} files"
  done
  say "$destination/$folder is complete, ${#missing[@]} files were sent; check it: smf verify $destination/$folder"
}
