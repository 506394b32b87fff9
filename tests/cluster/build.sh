#!/usr/bin/env bash
# Builds the programs of the test cluster, once, and prints the folder that holds them.
#
#   tests/cluster/build.sh        a whole node and the API servers (cold 10 to 17 minutes on two cores, then under a second)
#   tests/cluster/build.sh api    only etcd, kubectl, helm and the API servers: no root, no Debian packages
#
# Everything comes from Go modules pinned by go.mod and go.sum next to this file; a Go that is missing or too old is
# fetched from the module proxy too (GOPROXY is heeded). Two builders wait for each other; a build that was cut off
# goes on where it stopped. Only the folder's name goes to stdout; progress goes to stderr.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/cache.sh"
parts=(kubernetes apiserver etcd helm)
[ "${1:-}" = api ] || parts+=(coredns pause)
bin=$cache/bin-$(cache_key "$here"/*/go.mod "$here"/*/go.sum "$here"/*.c "$here/build.sh")
missing() { for part in "${parts[@]}"; do [ -e "$bin/.$part" ] || echo "$part"; done; }
say() { echo "== test cluster: $*" >&2; }

# One at a time: apt waits for nobody who reads its lists. What the packages start must not keep the lock (-o).
if [ "${1:-}" != api ] || [ -n "$(missing)" ]; then flock -o "$cache/deps.lock" "$here/../../scripts/install-deps.sh" cluster >&2; fi
if [ -z "$(missing)" ]; then touch "$bin"; echo "$bin"; exit 0; fi
mkdir -p "$bin"
# The lock is inherited by the compilers: if this script is killed, the next one waits for those it left behind.
exec 9>"$cache/build.lock"
flock -n 9 || { say "another build is running; waiting for it"; flock 9; }
mapfile -t todo < <(missing)
[ ${#todo[@]} -gt 0 ] || { echo "$bin"; exit 0; }

# ---- Go -------------------------------------------------------------------------------------------------------------
go_version=1.26.8
case $(uname -m) in
  x86_64) arch=amd64 go_sum=30c2b1bf7dcc88d3eb0a1364e47ddd9128edb3110a30e8a0ef61cd5856b31de7 ;;
  aarch64) arch=arm64 go_sum=02b36b6787b3ac767668f630e2998df45a3b1f9ffee08d1bf3ef6487cd658d99 ;;
  *) echo "the test cluster is built for x86_64 and aarch64, not for $(uname -m)" >&2; exit 1 ;;
esac
new_enough() { # the go line of the modules is 1.26
  local minor; minor=$(GOTOOLCHAIN=local go version 2>/dev/null | sed -n 's/^go version go1\.\([0-9]*\).*/\1/p')
  [ "${minor:-0}" -ge 26 ]
}
fetch_go() {
  local module=golang.org/toolchain@v0.0.1-go$go_version.linux-$arch zip=$cache/go-$go_version.zip proxy
  say "fetching Go $go_version (70 MB)"
  for proxy in $(tr ',|' '  ' <<<"${GOPROXY:-https://proxy.golang.org}"); do
    case $proxy in direct | off) continue ;; esac
    curl -fsSL --retry 3 --connect-timeout 20 -o "$zip" "${proxy%/}/${module%@*}/@v/${module#*@}.zip" && break
  done
  echo "$go_sum  $zip" | sha256sum --quiet -c - >&2 || { rm -f "$zip"; echo "Go $go_version could not be fetched, or is not what it should be" >&2; exit 1; }
  rm -rf "$cache/go.new"
  python3 -m zipfile -e "$zip" "$cache/go.new"
  chmod -R +x "$cache/go.new/$module/bin" "$cache/go.new/$module/pkg/tool" # a module's zip keeps no modes
  rm -rf "$cache/go-$go_version"; mv "$cache/go.new/$module" "$cache/go-$go_version"; rm -rf "$cache/go.new" "$zip"
}
export GOTOOLCHAIN=local GOWORK=off GOFLAGS=-buildvcs=false CGO_ENABLED=0 GOOS=linux GOARCH=$arch
if [ "${todo[*]}" != pause ] && ! new_enough; then
  [ -x "$cache/go-$go_version/bin/go" ] || fetch_go
  # Who has no Go has no use for its caches: they live, and go, with this build.
  export PATH=$cache/go-$go_version/bin:$PATH GOPATH=$cache/go-path GOCACHE=$cache/go-build GOFLAGS="-buildvcs=false -modcacherw"
  own_go=yes
fi

# ---- the parts ------------------------------------------------------------------------------------------------------
number=0 began=$SECONDS
watch_progress() { # log: a line every 15 seconds
  while sleep 15 && kill -0 $$ 2>/dev/null; do
    say "part $number of ${#todo[@]} ($part): $(grep -vc '^go: ' "$1") packages compiled, $((SECONDS - began)) s so far"
  done
}
for part in "${todo[@]}"; do
  number=$((number + 1)) flags='-s -w' new=$bin/new-$part
  rm -rf "$new"; mkdir "$new"
  case $part in
    pause)
      say "building $part (part $number of ${#todo[@]})"
      for program in pause own-root; do gcc -static -Os -o "$new/$program" "$here/$program.c"; done ;;
    *)
      case $part in
        kubernetes | apiserver)
          version=$(sed -n 's#.*k8s.io/kubernetes \(v[0-9.]*\).*#\1#p' "$here/$part/go.mod" | head -1)
          IFS=. read -r major minor _ <<<"${version#v}"
          stamp=k8s.io/component-base/version
          flags+=" -X $stamp.gitVersion=$version -X $stamp.gitMajor=$major -X $stamp.gitMinor=$minor" ;;
        *) version='' ;;
      esac
      say "building $part${version:+ $version} (part $number of ${#todo[@]})"
      watch_progress "$new/.log" 9>&- &
      watcher=$!
      (cd "$here/$part" && GOBIN=$new go install -v -trimpath -ldflags "$flags" tool) 2>"$new/.log" || {
        kill $watcher; tail -n 20 "$new/.log" >&2; echo "cannot build $part" >&2; exit 1; }
      kill $watcher
      # go install names a program after its folder.
      case $part in
        etcd) mv "$new/server" "$new/etcd" ;;
        apiserver) mv "$new/kube-apiserver" "$new/kube-apiserver-next" ;;
      esac ;;
  esac
  rm -f "$new/.log"; mv -f "$new"/* "$bin"; rmdir "$new"; touch "$bin/.$part"
done
say "built in $((SECONDS - began)) s: $bin"
# An `api` build keeps them for the rest.
[ -z "${own_go:-}" ] || [ "${1:-}" = api ] || rm -rf "$cache/go-path" "$cache/go-build" "$cache/go-$go_version"
find "$cache" -maxdepth 1 -name 'bin-*' -mtime +30 -exec rm -rf {} + # of older pins
echo "$bin"
