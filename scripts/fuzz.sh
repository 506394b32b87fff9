#!/usr/bin/env bash
# Runs a fuzz target for some seconds: scripts/fuzz.sh TARGET [SECONDS]
#
# Targets are in fuzz/fuzz_targets. Needs a nightly compiler (rustup toolchain install nightly) and nothing else;
# `cargo +nightly fuzz run TARGET` works as well. What it found once is kept in fuzz/corpus, what broke it in
# fuzz/artifacts: make a test of it.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"
target=${1:?a target: $(ls fuzz_targets | sed 's/[.]rs$//' | tr '\n' ' ')}
seconds=${2:-60}
case $target in
  manifests | snapshots) seeds=(../tests/manifests/right ../tests/manifests/wrong) ;;
  pods) seeds=(../crates/pod-injection/tests/pods) ;;
  statements) seeds=(seeds/statements) ;;
  *) seeds=() ;;
esac
triple=$(rustc -vV | sed -n 's/^host: //p')
# Coverage tells the fuzzer what is new; overflows are mistakes here.
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Coverflow-checks -Cdebug-assertions"
cargo +nightly build --locked --release --target "$triple" --bin "$target"
mkdir -p "corpus/$target" "artifacts/$target"
# The grammar of SQL recurses deeply.
ulimit -s unlimited 2>/dev/null || true
exec "target/$triple/release/$target" "corpus/$target" "${seeds[@]}" \
  -artifact_prefix="artifacts/$target/" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=4096
