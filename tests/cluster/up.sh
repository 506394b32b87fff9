#!/usr/bin/env bash
# Starts a one-node Kubernetes on this machine: up.sh STATE_DIR BIN_DIR
# etcd, API server, controller manager, scheduler, containerd + runc, kubelet, kube-proxy, CoreDNS.
# KUBECONFIG is STATE_DIR/admin.conf. Needs root. Run again at any time: it starts only what is not running,
# and returns when the node has reported in after its start and the cluster's DNS answers.
set -euo pipefail
[ "$(id -u)" = 0 ] || { echo "up.sh needs root" >&2; exit 1; }
here=$(cd "$(dirname "$0")" && pwd); mkdir -p "$1"; dir=$(cd "$1" && pwd -P); bin=$(cd "$2" && pwd)
cd "$dir"; mkdir -p cni containerd logs pids
# In a chroot the root is no mount point and runc's pivot_root fails: everything then runs in a mount namespace of its
# own, the one of the parts that run already, if any do.
if ! awk '$5 == "/" {found = 1} END {exit !found}' /proc/self/mountinfo; then
  for pid in $(cat pids/*.pid 2>/dev/null); do
    [ "$(readlink "/proc/$pid/cwd")" = "$dir" ] && exec nsenter --mount="/proc/$pid/ns/mnt" -- "$here/up.sh" "$dir" "$bin"
  done
  exec "$bin/own-root" "$here/up.sh" "$dir" "$bin"
fi
export PATH=$bin:$PATH KUBECONFIG=$dir/admin.conf
bridge=kube-test0 node=10.244.0.1 pods=10.244.0.0/24 services=10.96.0.0/16 dns=10.96.0.10
port=16443

# A pid file alone proves nothing after a reboot; the working directory says that the process is ours.
running() { [ -s "pids/$1.pid" ] && [ "$(readlink "/proc/$(cat "pids/$1.pid")/cwd")" = "$dir" ]; }
for name in etcd apiserver controller-manager scheduler containerd kubelet proxy; do running $name || rm -f pids/$name.pid; done
start() { # name ports command...: in a session of its own, so that Ctrl-C or a killed CI job does not end half of the cluster
  local name=$1 ports=$2 p taken; shift 2
  if running "$name"; then return; fi
  for p in ${ports//,/ }; do
    taken=$(ss -Hltnp "sport = :$p")
    [ -z "$taken" ] || { echo "$name: port $p is taken (one cluster per machine; down.sh the other first): $taken" >&2; exit 1; }
  done
  # Without the caller's open files: a part must not keep a lock that the caller holds.
  setsid bash -c 'for fd in /proc/self/fd/*; do fd=${fd##*/}; [ "$fd" -le 2 ] || eval "exec $fd>&-"; done 2>/dev/null
    echo $$ >"$0"; exec "$@"' "pids/$name.pid" "$@" </dev/null >"logs/$name.log" 2>&1 &
  until [ -s "pids/$name.pid" ]; do sleep 0.02; done
}
wait_for() { # command...: at most a minute, and not at all for a process that has died
  local name
  for _ in $(seq 1 240); do
    "$@" >/dev/null 2>&1 && return 0
    for name in pids/*.pid; do
      name=$(basename "$name" .pid); running "$name" || { echo "$name died; the end of $dir/logs/$name.log:" >&2; tail -n 15 "logs/$name.log" >&2; exit 1; }
    done
    sleep 0.25
  done
  echo "gave up waiting for: $*; logs are in $dir/logs" >&2; exit 1
}

put() { # file: takes stdin, and touches the file only if it differs (kube-proxy ends itself when its file is written)
  cat >"$1.new"
  if cmp -s "$1.new" "$1"; then rm "$1.new"; else mv "$1.new" "$1"; fi
}
certificate() { # name subject [alternative names]
  openssl req -newkey rsa:2048 -nodes -keyout "pki/$1.key" -out "pki/$1.csr" -subj "$2" 2>/dev/null
  openssl x509 -req -in "pki/$1.csr" -CA pki/ca.crt -CAkey pki/ca.key -CAcreateserial -days 30 -out "pki/$1.crt" \
    -extfile <(echo extendedKeyUsage=clientAuth,serverAuth; [ -z "${3:-}" ] || echo "subjectAltName=$3") 2>/dev/null
}
kubeconfig() { # certificate file
  kubectl --kubeconfig "$2" config set-cluster test --server=https://127.0.0.1:$port --certificate-authority=pki/ca.crt --embed-certs
  kubectl --kubeconfig "$2" config set-credentials "$1" --client-certificate="pki/$1.crt" --client-key="pki/$1.key" --embed-certs
  kubectl --kubeconfig "$2" config set-context test --cluster=test --user="$1"
  kubectl --kubeconfig "$2" config use-context test
}
if ! grep -qs '^current-context: test' proxy.conf; then # the last file written: a half-made set is made anew
  rm -rf pki ./*.conf; mkdir pki
  openssl req -x509 -newkey rsa:2048 -nodes -keyout pki/ca.key -out pki/ca.crt -days 30 -subj /CN=test-cluster 2>/dev/null
  openssl genrsa -out pki/sa.key 2048 2>/dev/null
  openssl rsa -in pki/sa.key -pubout -out pki/sa.pub 2>/dev/null
  certificate apiserver /CN=kube-apiserver "IP:127.0.0.1,IP:10.96.0.1,IP:$node,DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc"
  certificate admin /O=system:masters/CN=admin
  certificate kubelet-client /O=system:masters/CN=kube-apiserver-kubelet-client
  certificate kubelet /O=system:nodes/CN=system:node:node1
  certificate controller-manager /CN=system:kube-controller-manager
  certificate scheduler /CN=system:kube-scheduler
  certificate proxy /CN=system:kube-proxy
  for name in admin kubelet controller-manager scheduler proxy; do kubeconfig $name $name.conf >/dev/null; done
fi

modprobe br_netfilter 2>/dev/null || true
sysctl -qw net.ipv4.ip_forward=1 net.bridge.bridge-nf-call-iptables=1 ||
  echo "no bridge netfilter: pods will not reach Services" >&2
ip link show $bridge >/dev/null 2>&1 || { ip link add $bridge type bridge; ip addr add $node/24 dev $bridge; ip link set $bridge up; }
start etcd 23790,23800 etcd --data-dir=etcd --unsafe-no-fsync --listen-client-urls=http://127.0.0.1:23790 --advertise-client-urls=http://127.0.0.1:23790 \
  --listen-peer-urls=http://127.0.0.1:23800 --initial-advertise-peer-urls=http://127.0.0.1:23800 --initial-cluster=default=http://127.0.0.1:23800
start apiserver $port kube-apiserver --etcd-servers=http://127.0.0.1:23790 --secure-port=$port --bind-address=0.0.0.0 --advertise-address=$node \
  --tls-cert-file=pki/apiserver.crt --tls-private-key-file=pki/apiserver.key --client-ca-file=pki/ca.crt \
  --service-account-issuer=https://kubernetes.default.svc --service-account-key-file=pki/sa.pub --service-account-signing-key-file=pki/sa.key \
  --kubelet-client-certificate=pki/kubelet-client.crt --kubelet-client-key=pki/kubelet-client.key --kubelet-preferred-address-types=InternalIP \
  --service-cluster-ip-range=$services --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged
wait_for kubectl get --raw /readyz
start controller-manager 10257 kube-controller-manager --kubeconfig=controller-manager.conf --service-account-private-key-file=pki/sa.key \
  --root-ca-file=pki/ca.crt --cluster-signing-cert-file=pki/ca.crt --cluster-signing-key-file=pki/ca.key --use-service-account-credentials --leader-elect=false
start scheduler 10259 kube-scheduler --kubeconfig=scheduler.conf --leader-elect=false

put cni/10-test.conflist <<E
{"cniVersion": "1.0.0", "name": "test", "plugins": [{"type": "bridge", "bridge": "$bridge", "isGateway": true, "hairpinMode": true,
  "ipam": {"type": "host-local", "dataDir": "$dir/ipam", "ranges": [[{"subnet": "$pods", "rangeStart": "10.244.0.10"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
E
# restrict_oom_score_adj: without CAP_SYS_RESOURCE runc cannot lower the score and dies with "can't get final child's PID".
put containerd.toml <<E
version = 2
root = "$dir/containerd/root"
state = "$dir/containerd/state"
[grpc]
  address = "$dir/containerd/c.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "weir.test/pause:1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      Root = "$dir/containerd/runc"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$dir/cni"
E
start containerd '' containerd -c containerd.toml
wait_for ctr -a containerd/c.sock version
image() { # name binary
  if ctr -a containerd/c.sock -n k8s.io images ls -q | grep -qx "weir.test/$1:1"; then return; fi
  tar -C "$bin" -cf "$1.layer.tar" "$2"
  python3 "$here/image.py" "weir.test/$1:1" "$1.tar" "$1.layer.tar" "/$2"
  ctr -a containerd/c.sock -n k8s.io images import "$1.tar" >/dev/null
}
image pause pause; image coredns coredns

# Kubelet 1.34 is the last to run on cgroup v1 without a switch and to accept containerd 1.6.
put kubelet.yaml <<E
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $dir/pki/ca.crt}}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
clusterDNS: ["$dns"]
clusterDomain: cluster.local
containerRuntimeEndpoint: unix://$dir/containerd/c.sock
resolvConf: ""
makeIPTablesUtilChains: false
volumePluginDir: $dir/volume-plugins
podLogsDir: $dir/pod-logs
imageGCHighThresholdPercent: 100
evictionHard: {nodefs.available: "1%", imagefs.available: "1%", memory.available: 100Mi}
E
started=$(date -u +%FT%TZ)
running kubelet && started=
start kubelet 10248,10250 kubelet --config=kubelet.yaml --kubeconfig=kubelet.conf --root-dir="$dir/kubelet" --cert-dir="$dir/kubelet/pki" --hostname-override=node1 --node-ip=$node
put proxy.yaml <<E
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clientConnection: {kubeconfig: $dir/proxy.conf}
hostnameOverride: node1
conntrack: {maxPerCore: 0, min: 0}
nftables: {minSyncPeriod: 100ms}
E
start proxy 10249,10256 kube-proxy --config=proxy.yaml
kubectl apply -f "$here/coredns.yaml" >/dev/null
# What the API server says is from before a restart until the kubelet has reported again; only an answer proves the DNS.
node_reported() {
  read -r ready at < <(kubectl get node node1 -o 'jsonpath={range .status.conditions[?(@.type=="Ready")]}{.status} {.lastHeartbeatTime}{"\n"}{end}')
  [ "$ready" = True ] && ! [[ "$at" < "$started" ]]
}
knows_pods() { kubectl get --raw /api/v1/nodes/node1/proxy/pods | grep -q '"name":"coredns-'; } # before that, exec says "pod does not exist"
dns_answers() {
  timeout 2 python3 -c 'import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(0.5); s.connect((sys.argv[1], 53))
s.send(b"\0\1\1\0\0\1\0\0\0\0\0\0" + b"".join(bytes([len(p)]) + p for p in b"kubernetes.default.svc.cluster.local".split(b".")) + b"\0\0\1\0\1")
answer = s.recv(512); sys.exit(0 if answer[3] & 15 == 0 and answer[7] else 1)' "$dns"
}
wait_for node_reported
wait_for knows_pods
wait_for dns_answers
wait_for kubectl get serviceaccount default
echo "export KUBECONFIG=$KUBECONFIG"
