#!/usr/bin/env bash
# Makes container images without a registry and imports them: images.sh STATE_DIR PROGRAMS_DIR (up.sh first)
#
#   weir.test/postgres:15        server and psql. As a server: user 999, PGPASSWORD, a writable /data; *.sql of /initdb once
#   weir.test/python-client:1    python3 with psycopg2 and a shell
#   weir.test/weir:dev           weir, weir-operator, weir-sidecar, weir-collector of PROGRAMS_DIR, as the Dockerfile lays them out
#
# Layers from Debian packages are kept in the cache folder (half a minute each, once); Weir's own is made anew whenever a program changed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd); state=$(cd "$1" && pwd -P); programs=$(cd "$2" && pwd)
. "$here/cache.sh"
images=$cache/images-$(cache_key "$here/images.sh" "$here/image.py"); mkdir -p "$images"; cd "$images"
exec 9>lock; flock 9
say() { echo "== test cluster: $*" >&2; }
drop=(); for p in doc man locale i18n 'perl*'; do drop+=(--dpkgopt="path-exclude=/usr/share/$p/*"); done
for p in 'libLLVM*' 'libz3*' 'perl*'; do drop+=(--dpkgopt="path-exclude=/usr/lib/*/$p"); done
debian() { # layer packages: no package script runs in such an extract
  say "fetching Debian packages for $1"
  mmdebstrap --quiet --format=tar --variant=extract --include="$2" "${drop[@]}" bookworm "$1.new" </dev/null
  mv "$1.new" "$1"
}
add() { tar -C "$2" --owner=0 --group=0 -rf "$1" .; } # layer folder
import() { # name archive: only what containerd does not have
  local mark=$state/imported-$1 digest; digest=$(stat -c '%s-%Y-%i' "$2")
  [ "$(cat "$mark" 2>/dev/null)" = "$digest" ] && return
  ctr -a "$state/containerd/c.sock" -n k8s.io images import "$2" >/dev/null; echo "$digest" >"$mark"
}
if [ ! -f postgres.tar ]; then
  debian postgres.layer postgresql-15,dash,coreutils
  work=$(mktemp -d); chmod 755 "$work"; mkdir -p "$work/etc" "$work/usr/local/bin"
  # initdb asks who it is, and links that a postinst would make are missing; Debian's own psql is a Perl script.
  echo "postgres:x:999:999::/tmp:/bin/sh" >"$work/etc/passwd"; echo "postgres:x:999:" >"$work/etc/group"
  for tool in initdb postgres pg_ctl psql pgbench pg_isready; do ln -s "/usr/lib/postgresql/15/bin/$tool" "$work/usr/local/bin/$tool"; done
  cat >"$work/usr/local/bin/serve-postgres" <<'S'
#!/bin/sh
set -e
flags="-k /tmp -c jit=off"
if [ ! -f /data/pg/ready ]; then
  rm -rf /data/pg; echo "$PGPASSWORD" >/data/pw
  initdb -D /data/pg -U postgres -A scram-sha-256 --pwfile=/data/pw --no-sync >/dev/null; rm /data/pw
  echo "host all all all scram-sha-256" >>/data/pg/pg_hba.conf
  pg_ctl -D /data/pg -o "$flags -c listen_addresses=" -w start >/dev/null
  for f in /initdb/*.sql; do [ ! -f "$f" ] || psql -q -v ON_ERROR_STOP=1 -h /tmp -U postgres -f "$f"; done
  pg_ctl -D /data/pg -w stop >/dev/null
  touch /data/pg/ready
fi
exec postgres -D /data/pg $flags -c listen_addresses='*'
S
  chmod 755 "$work/usr/local/bin/serve-postgres"
  add postgres.layer "$work"
  python3 "$here/image.py" weir.test/postgres:15 postgres.new postgres.layer /usr/local/bin/serve-postgres
  rm -rf postgres.layer "$work"; mv postgres.new postgres.tar
fi
if [ ! -f python.tar ]; then
  debian python.layer python3-psycopg2,dash,coreutils
  work=$(mktemp -d); chmod 755 "$work"; mkdir -p "$work/etc"
  echo "app:x:1000:1000::/tmp:/bin/sh" >"$work/etc/passwd"; echo "app:x:1000:" >"$work/etc/group"
  add python.layer "$work"
  python3 "$here/image.py" weir.test/python-client:1 python.new python.layer
  rm -rf python.layer "$work"; mv python.new python.tar
fi
if [ ! -f weir.base ]; then
  debian weir.layer libc6,libgcc-s1,ca-certificates
  work=$(mktemp -d); chmod 755 "$work"; mkdir -p "$work/etc/ssl/certs" "$work/out"
  # What ca-certificates' postinst would write.
  tar -C "$work/out" -xf weir.layer ./usr/share/ca-certificates
  find "$work/out" -name '*.crt' -exec cat {} + >"$work/etc/ssl/certs/ca-certificates.crt"; rm -rf "$work/out"
  add weir.layer "$work"; rm -rf "$work"; mv weir.layer weir.base
fi
key=$(stat -Lc '%n %s %Y' "$programs"/weir{,-operator,-sidecar,-collector} | sha256sum | cut -c1-12)
if [ ! -f "weir-$key.tar" ]; then
  rm -f weir-*.tar
  work=$(mktemp -d -p .); chmod 755 "$work"; mkdir -p "$work/usr/local/bin"
  for program in weir weir-operator weir-sidecar weir-collector; do strip -g -o "$work/usr/local/bin/$program" "$programs/$program"; chmod 755 "$work/usr/local/bin/$program"; done
  ln -s weir "$work/usr/local/bin/kubectl-weir"
  tar -C "$work" --owner=0 --group=0 -cf weir.top .
  python3 "$here/image.py" --user 65532:65532 weir.test/weir:dev weir.new weir.base,weir.top /usr/local/bin/weir-sidecar
  rm -rf weir.top "$work"; mv weir.new "weir-$key.tar"
fi
import postgres postgres.tar; import python python.tar; import weir "weir-$key.tar"
