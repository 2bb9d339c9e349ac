#!/usr/bin/env bash
# The tests and measurements that need an NVIDIA GPU.
#
#   scripts/gpu.sh build            builds them into build/gpu; needs nvcc 13 (PATH, /usr/local/cuda), no GPU
#   scripts/gpu.sh run [--json OUT] runs what is in build/gpu; needs a driver for CUDA 13, no compiler
#
# `run` takes under 8 minutes, skips what the machine refuses and says why, and ends with `N passed, N failed, N
# skipped`. OUT gets GPU, driver, command and each figure beside its limit. PYTHON names an interpreter with torch (else
# python3). build/gpu/bin is all that the other machine needs, beside tests/gpu/torch_check.py and this script.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
bin=build/gpu/bin

die() { printf 'gpu.sh: %s\n' "$*" >&2; exit 1; }
usage() { sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }

build() {
  command -v nvcc > /dev/null || [ -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ] ||
    die "no nvcc on PATH or in /usr/local/cuda: CUDA 13 is needed to build"
  mkdir -p build/gpu
  cmake --preset gpu > build/gpu/configure.log 2>&1 || { tail -20 build/gpu/configure.log >&2; die "cmake failed"; }
  local log=build/gpu/build.log
  nice ninja -C build/gpu gpu_tests > "$log" 2>&1 || { grep -A20 'FAILED' "$log" | head -60 >&2; die "the build failed; see $log"; }
  echo "built $bin: $(du -sm "$bin" | cut -f1) MiB there, $(du -sm build/gpu | cut -f1) MiB in build/gpu"
}

passed=0 failed=0 skipped=0
# One check that is more than a line of flexkv_gpu_test: ok, skip, fail.
tell() {
  case $1 in
    ok) passed=$((passed + 1)) ;;
    skip) skipped=$((skipped + 1)) ;;
    *) failed=$((failed + 1)) ;;
  esac
  printf '%-5s %s\n' "$1" "$2"
}
# Adds up the last line `N passed, N failed, N skipped` of a log; none is a failure.
count() {
  local line
  line=$(grep -E '^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$' "$1" | tail -1)
  [ -n "$line" ] || { tell fail "$2 ended early"; return; }
  read -r p _ f _ s _ <<< "${line//,/}"
  passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
}

# The driver's own words, where nvidia-smi is there.
driver() {
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2> /dev/null | head -1 || true
}

# Where an interpreter with torch has NCCL, in case the system has none.
nccl_folder() {
  "${PYTHON:-python3}" -c 'import nvidia.nccl as n; print(list(n.__path__)[0] + "/lib")' 2> /dev/null || true
}

run_tests() {
  echo "==> flexkv_gpu_test"
  LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$(nccl_folder)" timeout 260 "$bin/flexkv_gpu_test" --json "$work/figures.json" --gtest_print_time=1 2>&1 | tee "$work/test.log" |
    grep -vE '^\[ (RUN|      OK) |^$|^\[-+\]' || true
  count "$work/test.log" flexkv_gpu_test
}

run_torch() {
  echo "==> torch tensors"
  local python=${PYTHON:-python3}
  if ! command -v "$python" > /dev/null; then tell skip "torch tensors: no $python"; return; fi
  if ! "$python" -c 'import torch' 2> /dev/null; then tell skip "torch tensors: $python has no torch"; return; fi
  timeout 80 "$python" tests/gpu/torch_check.py "$bin/flexkv_gpu_c.so" 2>&1 | tee "$work/torch.log" || true
  count "$work/torch.log" torch_check.py
}

# memcheck and racecheck on the copies and one round trip of each kind.
run_sanitizer() {
  echo "==> compute-sanitizer"
  local tool log=$work/sanitizer.log
  local sanitizer
  sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2> /dev/null || true)
  for tool in memcheck racecheck; do
    if [ -z "$sanitizer" ]; then tell skip "$tool: there is no compute-sanitizer"; continue; fi
    local status=0
    timeout 60 "$sanitizer" --tool "$tool" --error-exitcode 9 "$bin/flexkv_gpu_test" \
      --gtest_filter='GpuCopy.EmptyAndSingle:GpuCopy.KernelSplitsOneLargeCopy:Shapes/GpuRoundTrip.By*/OneOfEach:Shapes/GpuRoundTrip.By*/LargeRows' \
      > "$log" 2>&1 || status=$?
    if grep -qiE 'device not supported|not supported on this|unable to find|failed to initialize' "$log"; then
      tell skip "$tool: the machine refuses it"
    elif [ $status -eq 124 ]; then
      tell skip "$tool: not done within 60 s here"
    elif [ $status -eq 0 ] && grep -qE 'ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards' "$log"; then
      tell ok "$tool"
    else
      tail -30 "$log"; tell fail "$tool"
    fi
  done
}

run() {
  local json=""
  while [ $# -gt 0 ]; do
    case $1 in
      --json) [ $# -gt 1 ] || die "--json needs a file"; json=$2; shift 2 ;;
      *) die "unknown argument '$1' (see --help)" ;;
    esac
  done
  [ -x "$bin/flexkv_gpu_test" ] || die "there is no $bin/flexkv_gpu_test: run scripts/gpu.sh build where there is an nvcc"
  local problem
  problem=$("$bin/flexkv_gpu_test" --gtest_filter=None 2>&1 | sed -n 's/^nothing can be tested here: //p')
  [ -z "$problem" ] || die "nothing can be run: $problem"
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  local began=$SECONDS
  echo "GPU: $(driver)"
  run_tests
  run_torch
  run_sanitizer
  if [ -n "$json" ]; then
    {
      printf '{"command": "scripts/gpu.sh run --json %s",\n"nvidia_smi": "%s",\n"kernel": "%s",\n' "$json" "$(driver)" "$(uname -r)"
      printf '"seconds": %d, "passed": %d, "failed": %d, "skipped": %d,\n"measured": ' \
        $((SECONDS - began)) "$passed" "$failed" "$skipped"
      cat "$work/figures.json" 2> /dev/null || echo null
      echo '}'
    } > "$json"
  fi
  echo "took $((SECONDS - began)) s"
  echo "$passed passed, $failed failed, $skipped skipped"
  [ "$failed" -eq 0 ]
}

case ${1:-} in
  build) shift; [ $# -eq 0 ] || die "build takes no argument"; build ;;
  run) shift; run "$@" ;;
  -h|--help) usage ;;
  *) usage >&2; exit 2 ;;
esac
