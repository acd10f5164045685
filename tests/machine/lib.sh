# Shared by the scripts beside this one, which source it: a node driven by hand in a machine of its own. BERTH_BIN_DIR is where its programs
# are; `state` and `log` are set by who sources this.

: "${BERTH_BIN_DIR:?the directory of berthd and berth}"
say() { printf '\033[1m== %s\033[0m\n' "$*" >&2; }
die() {
  printf '%s\n' "$*" >&2
  exit 1
}

berth() { "$BERTH_BIN_DIR/berth" --endpoint "unix://$state/berth.sock" "$@"; }

# Waits for as long as an emulated machine may take.
until_true() {
  local what=$1 tries=0
  shift
  until "$@"; do
    tries=$((tries + 1))
    [ $tries -lt 600 ] || die "not within a minute and more: $what; the daemon said: $(tail -30 "$log")"
    sleep 0.1
  done
}

# start OPTION…: the daemon, as long after the boot as a node's other programs take.
start() {
  PATH=$BERTH_BIN_DIR:$PATH setsid "$BERTH_BIN_DIR/berthd" --state "$state" "$@" >>"$log" 2>&1 </dev/null &
  until_true "berthd answers" eval 'berth version >/dev/null 2>&1'
}

# run NAME COMMAND: a pod with one container.
run() {
  local manifest=$scratch/$1.yaml
  printf 'apiVersion: v1\nkind: Pod\nmetadata: {name: %s, namespace: default}\nspec:\n  containers:\n' "$1" >"$manifest"
  printf '    - {name: main, image: "localhost/berth-demo:1", command: %s}\n' "${2:-[sleep, \"100000\"]}" >>"$manifest"
  berth run --detach "$manifest" --volumes-dir "$scratch/volumes"
}

# is_clean ROOT: nothing is left but images.
is_clean() { until_true "the audit is silent" "$BERTH_BIN_DIR/berth" audit --root "$1" --state "$state"; }
