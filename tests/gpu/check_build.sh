#!/usr/bin/env bash
# What can be said of build/gpu without a GPU: sizes, symbols, and one clear sentence where there is no driver.
# Usage: tests/gpu/check_build.sh (after scripts/gpu.sh build)
set -euo pipefail
cd "$(dirname "$0")/../.."
bin=build/gpu/bin
last="a GPU is here: scripts/gpu.sh run tests it"
fail() { echo "check_build.sh: $*" >&2; exit 1; }

size=$(du -sm build/gpu | cut -f1)
[ "$size" -lt 40 ] || fail "build/gpu has $size MiB; less than 40 are allowed"
exported=$(nm -D --defined-only "$bin/libflexkv_cuda.so" | awk '{print $3}')
[ "$exported" = flexkv_cuda_open ] || fail "libflexkv_cuda.so exports: $exported"
for file in libflexkv_cuda.so flexkv_gpu_test flexkv_gpu_peer flexkv_gpu_c.so; do
  others=$(ldd "$bin/$file" | awk '{print $1}' | grep -vE '^(linux-vdso|libc|libm|/lib.*ld-linux)' || true)
  [ -z "$others" ] || fail "$file needs $others"
done

# Code for the GPUs that are promised, where the toolkit can look.
if command -v cuobjdump > /dev/null; then
  for sm in 80 90 100; do
    cuobjdump --list-elf "$bin/libflexkv_cuda.so" | grep -q "sm_$sm\." || fail "no code for sm_$sm"
  done
  cuobjdump --list-ptx "$bin/libflexkv_cuda.so" | grep -q 'sm_100\.' || fail "no PTX"
fi

"$bin/flexkv_gpu_test" --gtest_list_tests > /dev/null
said=$("$bin/flexkv_gpu_test" --gtest_filter=None 2>&1)
if grep -q '^nothing can be tested here: ' <<< "$said"; then
  grep '^nothing can be tested here: ' <<< "$said"
  last=$("$bin/flexkv_gpu_test" | tail -1)
  [[ $last =~ ^0\ passed,\ 0\ failed,\ [1-9][0-9]*\ skipped$ ]] || fail "without a GPU flexkv_gpu_test says: $last"
  status=0
  said=$(scripts/gpu.sh run 2>&1) || status=$?
  [ "$status" -eq 1 ] && [ "$(wc -l <<< "$said")" -eq 1 ] || fail "without a GPU scripts/gpu.sh run says: $said"
fi
echo "build/gpu: $size MiB; $last"
