# Sourced by the other scripts: places, messages, and stamps by content so that a second run does nothing twice.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"
VENV="$ROOT/.venv"
# The same compiler output for the same sources, wherever the checkout lies.
export CCACHE_BASEDIR="$ROOT" CCACHE_NOHASHDIR=1
export PYTHONPATH="$ROOT/connector${PYTHONPATH:+:$PYTHONPATH}"
export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1

say() { printf '==> %s\n' "$*"; }
die() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

# stamp_fresh NAME TEXT: true when NAME was last stamped with this TEXT.
stamp_fresh() { [ -f "build/stamps/$1" ] && [ "$(cat "build/stamps/$1")" = "$2" ]; }
stamp() { mkdir -p build/stamps; printf '%s' "$2" > "build/stamps/$1"; }
