#!/usr/bin/env bash
# Builds the wheel as a user would, installs it into an empty environment, and starts what it brings.
# Usage: tests/check_wheel.sh PYTHON (one that has scikit-build-core and nanobind)
set -euo pipefail
python=$1
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$root"
unset PYTHONPATH
uv=$root/build/tools/bin/uv
"$uv" build --wheel --no-build-isolation --python "$python" --out-dir "$work/dist" . >"$work/build.log" 2>&1 || { tail -40 "$work/build.log"; exit 1; }
"$uv" venv -q --python "$python" "$work/venv"
"$uv" pip install -q --python "$work/venv/bin/python" --offline "$work"/dist/*.whl
cd "$work"
export FLEXKV_SOCKET_DIR=$work/flexkv
venv/bin/flexkvd --version
venv/bin/flexkv --help >/dev/null
venv/bin/python -c 'import flexkv._core; print("imported", flexkv._core.__name__)'
if command -v nvcc > /dev/null || [ -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; then  # the wheel carries what nvcc built
  venv/bin/python - << 'END'
import ctypes, flexkv, pathlib
library = ctypes.CDLL(str(pathlib.Path(flexkv.__file__).with_name("libflexkv_cuda.so")))
print("loaded", library.flexkv_cuda_open.__name__)
END
fi
venv/bin/flexkvd --cpu-cache-bytes 16MiB & daemon=$!
for _ in $(seq 100); do venv/bin/flexkv status >/dev/null 2>&1 && break; sleep 0.05; done
venv/bin/flexkv status --json | "$python" -c 'import json, sys; json.load(sys.stdin)'
venv/bin/flexkv stop
wait "$daemon"
