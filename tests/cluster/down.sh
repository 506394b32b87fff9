#!/usr/bin/env bash
# Stops what up.sh started and removes its pods, mounts, links and rules: down.sh STATE_DIR
# Safe to run twice, after a crash and after a reboot. The state stays for the next up.sh; delete the folder to forget it.
[ "$(id -u)" = 0 ] || { echo "down.sh needs root" >&2; exit 1; }
here=$(cd "$(dirname "$0")" && pwd); cd "$1" 2>/dev/null || exit 0
dir=$(pwd -P)
shims() { # with or without a living containerd: they name its socket
  grep -lzsF -- "$dir/containerd/c.sock" /proc/[0-9]*/cmdline | cut -d/ -f3 | while read -r pid; do
    grep -qs ^containerd-shim "/proc/$pid/comm" && echo "$pid"; done
}
# In a chroot the parts live in a mount namespace of their own (up.sh): what they mounted is seen there only.
if ! awk '$5 == "/" {found = 1} END {exit !found}' /proc/self/mountinfo; then
  for pid in $(cat pids/*.pid 2>/dev/null) $(shims); do
    [ "$(readlink "/proc/$pid/cwd" 2>/dev/null)" = "$dir" ] || grep -qs ^containerd-shim "/proc/$pid/comm" || continue
    exec nsenter --mount="/proc/$pid/ns/mnt" -- "$here/down.sh" "$dir"
  done
fi
stop() { # TERM, and KILL after 10 seconds; only a process that works in our folder is ours
  local pid; pid=$(cat "pids/$1.pid" 2>/dev/null); rm -f "pids/$1.pid"
  ours() { [ -n "$pid" ] && [ "$(readlink "/proc/$pid/cwd")" = "$dir" ]; }
  ours && kill "$pid"
  for _ in $(seq 100); do ours || return; sleep 0.1; done
  kill -KILL "$pid"
}
end() { xargs -r kill -KILL 2>/dev/null; }
stop kubelet; stop proxy; stop scheduler; stop controller-manager
mkdir -p pids; shims >pids/shims
grep -lsE " / / .*[=:]$dir/containerd/" /proc/[0-9]*/mountinfo | cut -d/ -f3 | end
stop containerd; end <pids/shims; rm -f pids/shims
stop apiserver; stop etcd
for _ in 1 2 3; do awk -v d="$dir/" 'index($2, d) == 1 {print $2}' /proc/mounts | sort -r | xargs -r umount -l 2>/dev/null; done
for ns in $(ls /run/netns 2>/dev/null | grep '^cni-'); do [ -n "$(ip netns pids "$ns" 2>/dev/null)" ] || ip netns delete "$ns"; done
find /sys/fs/cgroup -depth -path '*/kubepods*' -type d -exec rmdir {} + 2>/dev/null # only empty ones can go
nft delete table ip kube-proxy 2>/dev/null; nft delete table ip6 kube-proxy 2>/dev/null
ip link delete kube-test0 2>/dev/null
rm -rf ipam containerd/state containerd/runc
# What the parts keep elsewhere, whatever they are told.
find /var/log/containers -lname "$dir/*" -delete 2>/dev/null
for f in /var/lib/cni/results/test-*-eth0; do id=${f##*/test-}; rm -f "$f" "/var/lib/cni/results/cni-loopback-${id%-eth0}-lo"; done
for s in /run/containerd/s/*; do ss -Hlx | grep -qF "$s" || rm -f "$s"; done
rm -f /var/lib/kubelet/device-plugins/kubelet.sock
rmdir -p /var/log/containers /var/lib/cni/results /run/containerd/s /var/lib/kubelet/device-plugins 2>/dev/null
exit 0
