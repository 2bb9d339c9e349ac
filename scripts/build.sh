#!/usr/bin/env bash
# Builds everything into build/release and puts the Python package's binaries in place (connector/flexkv).
# Ninja and ccache make a second run quick. Usage: scripts/build.sh
source "$(dirname "$0")/common.sh"
[ -x "$VENV/bin/python" ] || die "run scripts/install.sh first"

configure() {
  cmake --preset release -DFLEXKV_PYTHON=ON -DPython_EXECUTABLE="$VENV/bin/python" > build/configure.log 2>&1 ||
    { tail -20 build/configure.log >&2; die "cmake failed; the whole output is in build/configure.log"; }
}

mkdir -p build
grep -qs '^FLEXKV_PYTHON:BOOL=ON' build/release/CMakeCache.txt || { say "configuring build/release"; configure; }
say "building build/release"
ninja -C build/release --quiet || die "the build failed"
cmake --install build/release --component python --prefix "$ROOT/connector" > build/install.log
