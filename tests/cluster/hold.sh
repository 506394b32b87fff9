#!/usr/bin/env bash
# Holds a node for as long as its stdin is open: hold.sh STATE_DIR BIN_DIR. Says "ready" on stdout when it is up.
#
# The tests start this and keep the pipe. When they end, also by kill -9, the pipe ends, and the node is stopped; with
# WEIR_KEEP_CLUSTER=1 it stays. One holder at a time: a second one waits. What an earlier run left behind is repaired
# if it still runs, and cleared away if it does not.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd); mkdir -p "$1"; state=$(cd "$1" && pwd -P); bin=$2
exec 9>"$state.lock"
flock -n 9 || { echo "== test cluster: another test run uses the node; waiting for it" >&2; flock 9; }
if [ -e "$state/for-a-person" ]; then
  echo "a node of \`make cluster\` is running: end it with \`make cluster-stop\`, or test there with WEIR_TEST_KUBECONFIG=$state/admin.conf" >&2
  exit 1
fi
alive() { local pid; pid=$(cat "$state/pids/apiserver.pid" 2>/dev/null) && [ "$(readlink "/proc/$pid/cwd")" = "$state" ]; }
clear() { "$here/down.sh" "$state"; rm -rf --one-file-system "$state"; mkdir -p "$state"; }
up() { "$here/up.sh" "$state" "$bin" >/dev/null; }
began=$SECONDS
echo "== test cluster: starting a node" >&2
# What cannot be repaired is made anew; what does not come up at all is not left behind.
if ! alive || ! up; then clear; up || { clear; exit 1; }; fi
echo "== test cluster: the node is up after $((SECONDS - began)) s" >&2
echo ready
cat >/dev/null || true
[ -n "${WEIR_KEEP_CLUSTER:-}" ] || clear
