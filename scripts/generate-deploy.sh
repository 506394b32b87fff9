#!/usr/bin/env bash
# Prints deploy/ from the charts: scripts/generate-deploy.sh [FOLDER]
#
# helm is $HELM, or the one that the test cluster builds (minutes, the first time).
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-deploy}
helm=${HELM:-$(tests/cluster/build.sh api)/helm}

# What only Helm needs is left out: hooks, tests, and the labels that name the chart and its manager.
render() {
  "$helm" template "$@" --namespace weir-system --kube-version 1.33.0 --no-hooks --skip-tests \
    | grep -Ev '^ +(helm\.sh/chart:|app\.kubernetes\.io/managed-by: Helm)' \
    | sed '/^# Source: /d'
}
head() { printf '# Printed from charts/ by `make generate`. Edit the charts, not this file.\n'; }
mkdir -p "$out"
{
  head
  cat <<'YAML'
apiVersion: v1
kind: Namespace
metadata:
  name: weir-system
  labels:
    app.kubernetes.io/part-of: weir
    pod-security.kubernetes.io/enforce: restricted
YAML
  render weir-crds charts/weir-crds
  render weir charts/weir
} >"$out/install.yaml"
{
  head
  render weir charts/weir --set podMonitor.enabled=true,prometheusRule.enabled=true,dashboards.enabled=true \
    --show-only templates/monitoring/podmonitor.yaml --show-only templates/monitoring/prometheusrule.yaml \
    --show-only templates/monitoring/dashboards.yaml
} >"$out/monitoring.yaml"
