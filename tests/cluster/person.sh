#!/usr/bin/env bash
# A node for a person to play with, with Weir and the shop on it: person.sh start [PROGRAMS_DIR], or person.sh stop
#
# `make cluster` and `make cluster-stop`. The tests leave this node alone, and refuse to start one beside it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd); root=$(cd "$here/../.." && pwd)
. "$here/cache.sh"
state=${WEIR_CLUSTER_STATE:-$cache/node}
say() { echo "== $*" >&2; }
[ "$(id -u)" = 0 ] || { echo "a node needs root: say \`sudo make cluster\`" >&2; exit 1; }
exec 9>"$state.lock"
flock -n 9 || { echo "a test run uses the node: wait for its end, or end it" >&2; exit 1; }
if [ "$1" = stop ]; then
  "$here/down.sh" "$state"; rm -rf --one-file-system "$state"
  say "the cluster is gone, with all that was in it"
  exit 0
fi
programs=$(cd "${2:-$root/target/debug}" && pwd)
bin=$("$here/build.sh"); mkdir -p "$state"; touch "$state/for-a-person"
export PATH=$bin:$PATH KUBECONFIG=$state/admin.conf
began=$SECONDS
say "starting a node"
# The node must not hold the lock for as long as it lives.
"$here/up.sh" "$state" "$bin" >/dev/null 9>&-
say "the node is up after $((SECONDS - began)) s; making images"
"$here/images.sh" "$state" "$programs"
say "installing Weir (helm, both charts)"
helm upgrade --install weir-crds "$root/charts/weir-crds" -n weir-system --create-namespace >/dev/null
helm upgrade --install weir "$root/charts/weir" -n weir-system --wait --timeout 180s >/dev/null \
  --set image.repository=weir.test/weir,image.tag=dev,collector.storage.type=EmptyDir
say "the shop: a database, a policy, four kinds of workload, a lineage endpoint (namespace shop)"
kubectl create namespace shop --dry-run=client -o yaml | kubectl apply -f - >/dev/null
kubectl -n shop create configmap client --from-file="$here/shop/client.py" --dry-run=client -o yaml | kubectl apply -f - >/dev/null
kubectl -n shop apply -f "$here/shop/database.yaml" -f "$here/shop/policy.yaml" -f "$here/shop/lineage-endpoint.yaml" >/dev/null
kubectl -n shop rollout status statefulset/orders-db --timeout=120s >/dev/null
kubectl -n shop apply -f "$here/shop/workloads.yaml" >/dev/null
for workload in deployment/report statefulset/worker; do kubectl -n shop rollout status "$workload" --timeout=120s >/dev/null; done
say "ready after $((SECONDS - began)) s"
cat <<T
export KUBECONFIG=$state/admin.conf PATH=$bin:$programs:\$PATH

  kubectl -n shop logs deployment/report --tail=2     what the application sees: names, and masked addresses
  kubectl get dap -A                                  the policy, and how many pods enforce it
  weir status -A                                      policies, pods, sinks
  kubectl -n shop edit dap orders                     change a mask, and look at the log again

\`make cluster-stop\` removes all of it.
T
