#!/usr/bin/env bash
# Sets everything up and runs all tests. The last line is `N passed, N failed`; exit status 1 when anything failed.
#
#   scripts/test.sh                 everything
#   scripts/test.sh --only cpp      one part (may be given several times)
#   scripts/test.sh --long          also what takes longer, and more repeats of what is random
#
# Parts: cpp (C++ tests), ssd (crashes and kills of the SSD store), asan, tsan (the C++ tests under sanitizers), fuzz,
# cuda (the CUDA library and the GPU tests: built, and what of them needs no GPU), python (style, types, unit tests), wheel,
# harness (vLLM's real scheduler with the real connector), e2e (a real vLLM).
source "$(dirname "$0")/common.sh"

PARTS=(cpp ssd asan tsan fuzz cuda python wheel harness e2e)
ONLY=()
LONG=()
while [ $# -gt 0 ]; do
  case "$1" in
    --only) [ $# -gt 1 ] || die "--only needs a part: ${PARTS[*]}"; ONLY+=("$2"); shift 2 ;;
    --long) LONG=(--long); shift ;;
    -h|--help) sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) die "unknown argument '$1' (see --help)" ;;
  esac
done
for part in "${ONLY[@]}"; do
  [[ " ${PARTS[*]} " == *" $part "* ]] || die "unknown part '$part'; parts are: ${PARTS[*]}"
done
[ ${#ONLY[@]} -gt 0 ] && PARTS=("${ONLY[@]}")
FUZZ_SECONDS=10
if [ ${#LONG[@]} -gt 0 ]; then
  FUZZ_SECONDS=120
  export FLEXKV_TEST_REPEATS=2000
fi

PASSED=0 FAILED=0 SKIPPED=0
SUMMARY=()

# Adds what ctest or pytest counted in a log; a run that failed without a count is one failure.
count_ctest() {
  local failed total
  failed=$(sed -n 's/.* tests passed, \([0-9]*\) tests failed out of \([0-9]*\)/\1/p' "$1" | tail -1)
  total=$(sed -n 's/.* tests passed, \([0-9]*\) tests failed out of \([0-9]*\)/\2/p' "$1" | tail -1)
  PASSED=$((PASSED + ${total:-0} - ${failed:-0})) FAILED=$((FAILED + ${failed:-0}))
  [ -n "$total" ] || FAILED=$((FAILED + 1))
}
count_pytest() {
  local line number
  line=$(grep -E '^=+ .*(passed|failed|error|skipped).* =+$' "$1" | tail -1)
  number() { sed -n "s/.*[^0-9]\([0-9][0-9]*\) $1.*/\1/p" <<< "$line"; }
  PASSED=$((PASSED + $(number passed || true) + 0))
  FAILED=$((FAILED + $(number failed || true) + 0)) FAILED=$((FAILED + $(number errors\\? || true) + 0))
  SKIPPED=$((SKIPPED + $(number skipped || true) + 0))
  [ -n "$line" ] || FAILED=$((FAILED + 1))
}
# check NAME COMMAND...: one check that passes or fails.
check() {
  local name=$1; shift
  if "$@" > "build/logs/$name.log" 2>&1; then
    PASSED=$((PASSED + 1))
  else
    FAILED=$((FAILED + 1)); tail -40 "build/logs/$name.log"; say "FAILED: $name"
  fi
}
run_ctest() {  # PRESET_DIR EXTRA...
  local dir=$1; shift
  local log="build/logs/ctest-$dir.log"
  (cd "build/$dir" && ctest -j2 --output-on-failure "$@") > "$log" 2>&1 || { tail -80 "$log"; say "FAILED: ctest in build/$dir"; }
  tail -4 "$log"
  count_ctest "$log"
}
run_pytest() {  # NAME ARGS...
  local name=$1; shift
  local log="build/logs/pytest-$name.log"
  "$VENV/bin/python" -m pytest "$@" "${LONG[@]}" 2>&1 | tee "$log" | grep -E '^(tests/|FAILED|ERROR|=+ .*(passed|failed))' || true
  grep -qE 'FAILED|ERROR' "$log" && tail -120 "$log"
  count_pytest "$log"
}
build_sanitized() {  # PRESET
  cmake --preset "$1" > "build/logs/configure-$1.log" && ninja -C "build/$1" --quiet
}

part_cpp() {
  check includes python3 tests/check_includes.py
  run_ctest release
}
part_asan() { build_sanitized asan && run_ctest asan; }
# What has threads; the rest is single-threaded by design. Not simulate_test and cuda_agent_sim_test: they take minutes there.
# Not the tests whose clients reuse blocks when another process, the daemon, said so: TSan does not see that order.
part_tsan() {
  local which=(-R 'trace_writer|ring|session|reduced|agent|cuda_copier|pinned_segments|segment_store|disk|ssd_device|server|fault' -E 'ssd_faults|daemon_torture|cuda_agent_sim')
  local tests
  cmake --preset tsan > build/logs/configure-tsan.log
  tests=$(cd build/tsan && ctest -N "${which[@]}" | sed -n 's/^ *Test *#[0-9]*: //p')
  # shellcheck disable=SC2086  # a word each; and the programs that those tests start
  ninja -C build/tsan --quiet $tests flexkvd flexkv_cli server_test_peer && run_ctest tsan "${which[@]}"
}
part_fuzz() {
  cmake --preset fuzz > build/logs/configure-fuzz.log && ninja -C build/fuzz --quiet fuzzers || { FAILED=$((FAILED + 1)); return; }
  local target
  for target in build/fuzz/tests/fuzz/*_fuzz; do
    mkdir -p "build/corpus/$(basename "$target")"
    check "$(basename "$target")" "$target" "build/corpus/$(basename "$target")" -max_total_time="$FUZZ_SECONDS" -rss_limit_mb=1024
  done
}
part_python() {
  check ruff "$VENV/bin/python" -m ruff check connector tests perf examples
  check mypy "$VENV/bin/python" -m mypy
  run_pytest python tests/python
}
# The SSD store: power loss at 100,000 transfers (--long: 1,000,000), 2,000 kills of a real process (--long: 10,000),
# 300 of the whole daemon under four clients (--long: 3,000).
part_ssd() {
  local scale=1
  [ ${#LONG[@]} -eq 0 ] || scale=10
  check ssd_crash build/release/tests/storage/ssd_crash_test --points $((100000 * scale)) --modes drop,tear,reorder --seed 1
  check ssd_kills build/release/tests/storage/ssd_torture_test --kills $((2000 * (scale > 1 ? 5 : 1))) --backend threads --seed 11
  check ssd_daemon_kills build/release/tests/server/flexkv_daemon_torture --kills $((300 * scale)) --dir build/daemon_torture --seed 1
  tail -qn 1 build/logs/ssd_crash.log build/logs/ssd_kills.log build/logs/ssd_daemon_kills.log
}
part_cuda() {
  if ! command -v nvcc > /dev/null && [ ! -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; then
    say "cuda: skipped, no nvcc"
    SKIPPED=$((SKIPPED + 1))
    return
  fi
  check cuda_build scripts/gpu.sh build
  check cuda_without_gpu tests/gpu/check_build.sh
  tail -qn 1 build/logs/cuda_build.log build/logs/cuda_without_gpu.log
}
part_wheel() { check wheel tests/check_wheel.sh "$VENV/bin/python"; }
part_harness() { run_pytest harness tests/e2e/test_harness.py; }
part_e2e() { run_pytest e2e tests/e2e --ignore tests/e2e/test_harness.py; }

minutes() { awk -v s="$1" 'BEGIN { printf "%.1f", s / 60 }'; }
mkdir -p build/logs
started=$SECONDS
scripts/install.sh
scripts/build.sh
SUMMARY+=("setup and build: $(minutes $((SECONDS - started))) min")
for part in "${PARTS[@]}"; do
  say "$part"
  began=$SECONDS failed_before=$FAILED
  "part_$part" || FAILED=$((FAILED + 1))
  SUMMARY+=("$part: $(minutes $((SECONDS - began))) min, $((FAILED - failed_before)) failed")
done
printf '%s\n' "${SUMMARY[@]}"
echo "total: $(minutes $((SECONDS - started))) min, $SKIPPED skipped"
echo "$PASSED passed, $FAILED failed"
[ "$FAILED" -eq 0 ]
