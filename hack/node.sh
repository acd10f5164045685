# Where hack/up puts a cluster and hack/down finds it: sourced by both after lib.sh.

data=${BERTH_DATA:-/var/lib/berth/cluster}
state=${BERTH_STATE:-/run/berth}
log=${BERTH_LOG:-/var/log/berth/up.log}
bin=${BERTH_BIN:-$(target_dir)/release}
socket=$state/berth.sock
kubeconfig=$data/admin.kubeconfig

berth() { "$bin/berth" --endpoint "unix://$socket" "$@"; }

# The kubectl that is installed, or else the one that hack/deps has fetched.
kubectl() {
  local program
  program=$(type -P kubectl || echo "${XDG_CACHE_HOME:-$HOME/.cache}/berth/kubectl/kubectl")
  "$program" --kubeconfig "$kubeconfig" "$@"
}
