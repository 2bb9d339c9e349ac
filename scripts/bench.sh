#!/usr/bin/env bash
# Runs one benchmark; each result is a JSON line beside its limit, measured in the same run.
#
#   scripts/bench.sh NAME [--json FILE]      NAME: index, ring, copy, ssd, step, e2e
source "$(dirname "$0")/common.sh"
usage() { sed -n '2,4s/^# \{0,1\}//p' "$0"; }
[ $# -gt 0 ] || { usage >&2; exit 2; }
name=$1
shift
case "$name" in
  -h|--help) usage; exit 0 ;;
  index|ring|copy|ssd|step|e2e) ;;
  *) die "unknown benchmark '$name': index, ring, copy, ssd, step or e2e" ;;
esac
scripts/install.sh >&2
scripts/build.sh >&2
case "$name" in
  step|e2e) exec "$VENV/bin/python" "perf/${name}_bench.py" "$@" ;;
  *) exec "build/release/perf/$name/flexkv_${name}_bench" "$@" ;;
esac
