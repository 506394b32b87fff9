#!/usr/bin/env bash
# deny.toml: licences, banned crates, sources. Where cargo-deny is not installed, a test reads the same file.
set -euo pipefail
cd "$(dirname "$0")/.."
if command -v cargo-deny >/dev/null; then
  cargo deny --offline check bans licenses sources
else
  echo "== cargo-deny is not installed: a test of crates/test-support reads deny.toml"
  cargo test --locked -q -p test-support --test it dependencies::
fi
