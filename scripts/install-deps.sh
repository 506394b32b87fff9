#!/usr/bin/env bash
# Installs the Debian or Ubuntu packages that a part of the project needs, and only those that are missing.
#
#   scripts/install-deps.sh build   clang and libclang, for PostgreSQL's parser
#   scripts/install-deps.sh demo    + a PostgreSQL server
#   scripts/install-deps.sh test    + Python and Node.js, for their drivers, and Prometheus
#   scripts/install-deps.sh bench   + pgbouncer, to compare with
#   scripts/install-deps.sh cluster   what the test cluster (tests/cluster) is made of, but for Go modules
#
# As root or with sudo it installs; otherwise it says what to install and fails. No database cluster is created and
# no server is left running by this: tests and demo make their own in temporary folders.
set -euo pipefail

have() { command -v "$1" >/dev/null 2>&1; }
have_server() { [ -n "${WEIR_PG_BIN:-}" ] || compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null; }
have_pgbench() { compgen -G "${WEIR_PG_BIN:-/usr/lib/postgresql/*/bin}/pgbench" >/dev/null; }
have_libclang() { compgen -G '/usr/lib/llvm-*/lib/libclang.so' >/dev/null || [ -n "${LIBCLANG_PATH:-}" ]; }
have_libc() { [ -e /usr/include/stdio.h ]; }
have_venv() { python3 -c 'import venv, ensurepip' >/dev/null 2>&1; }

missing=()
need() { missing+=("$@"); }
want_build() {
  have cc || need gcc
  have make || need make
  have_libc || need libc6-dev
  have clang || need clang
  have_libclang || need libclang-dev
}
want_demo() {
  want_build
  { have_server && have_pgbench; } || need postgresql
}
want_test() {
  want_demo
  have_venv || need python3 python3-venv
  have node || need nodejs
  have npm || need npm
  want_prometheus
}
# Scrapes what the tests start, and runs the dashboard's queries.
want_prometheus() {
  { have prometheus && have promtool; } || need prometheus
}
want_bench() {
  want_demo
  have pgbouncer || [ -x /usr/sbin/pgbouncer ] || need pgbouncer
}

want_cluster() {
  have curl || need curl ca-certificates
  have python3 || need python3
  have gcc || need gcc
  have openssl || need openssl
  want_prometheus
  # API servers need no more; a node does, and root to run it.
  [ "$(id -u)" = 0 ] || return 0
  have containerd || need containerd
  have runc || need runc
  [ -x /usr/lib/cni/bridge ] || need containernetworking-plugins
  have conntrack || need conntrack
  have nft || need nftables
  have ip || need iproute2
  have mmdebstrap || need mmdebstrap
  have sysctl || need procps
  have strip || need binutils
}

case "${1:-}" in
  build | demo | test | bench | cluster) "want_$1" ;;
  *) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
have cargo || {
  echo "Rust is missing: install it from https://rustup.rs (1.95 or newer), then run this again." >&2
  exit 1
}
[ ${#missing[@]} -gt 0 ] || exit 0

if ! have apt-get; then
  echo "This is no Debian or Ubuntu system. Please install what these packages hold: ${missing[*]}" >&2
  exit 1
fi
if [ "$(id -u)" = 0 ]; then
  root=()
elif have sudo; then
  root=(sudo)
else
  echo "Please install these packages as root, then run this again:" >&2
  echo "  apt-get install --no-install-recommends ${missing[*]}" >&2
  exit 1
fi

echo "== installing ${missing[*]}"
apt=("${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300)

# Debian makes and starts a cluster on port 5432 when a server is installed, and starts pgbouncer and Prometheus. Nobody asked for
# that: all are held back for the time of the installation and left as they were found.
conf=/etc/postgresql-common/createcluster.conf
policy=/usr/sbin/policy-rc.d
made_policy=no made_conf=no
restore() {
  [ "$made_policy" = no ] || "${root[@]}" rm -f "$policy"
  if [ "$made_conf" = yes ]; then
    "${root[@]}" sed -i '/^create_main_cluster = false # weir$/d' "$conf"
  fi
}
trap restore EXIT
if [ ! -e "$policy" ]; then
  made_policy=yes
  printf '#!/bin/sh\nexit 101\n' | "${root[@]}" tee "$policy" >/dev/null
  "${root[@]}" chmod 755 "$policy"
fi
"${apt[@]}" update
case " ${missing[*]} " in *" postgresql "*)
  "${apt[@]}" install -y --no-install-recommends postgresql-common
  made_conf=yes
  echo 'create_main_cluster = false # weir' | "${root[@]}" tee -a "$conf" >/dev/null ;;
esac
"${apt[@]}" install -y --no-install-recommends "${missing[@]}"
