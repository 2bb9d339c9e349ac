#!/usr/bin/env bash
# Runs one benchmark; each result is a JSON line beside its limit, measured in the same run.
#
#   scripts/bench.sh NAME [--json FILE] [options of the benchmark, see perf/README.md]
#
#   index    the prefix index                 step     thread time of the connector's calls in a step
#   ring     questions to the daemon          e2e      a real vLLM with and without the cache
#   copy     copies of fragments              restart  after kill -9: daemon ready, first load, a real vLLM's
#   ssd      disk, checksum, SSD to device             time to first token from SSD (needs 13 GiB of disk)
#   trace    reading, recording, LRU curve, replay, sweep of traces
source "$(dirname "$0")/common.sh"
usage() { sed -n '2,10s/^# \{0,1\}//p' "$0"; }
[ $# -gt 0 ] || { usage >&2; exit 2; }
name=$1
shift
case "$name" in
  -h|--help) usage; exit 0 ;;
  index|ring|copy|ssd|step|e2e|restart|trace) ;;
  *) die "unknown benchmark '$name': index, ring, copy, ssd, step, e2e, restart or trace" ;;
esac
scripts/install.sh >&2
scripts/build.sh >&2
case "$name" in
  restart)
    build/release/perf/restart/flexkv_restart_bench "$@"
    exec "$VENV/bin/python" perf/e2e_ssd_bench.py "$@"
    ;;
  trace)
    build/release/perf/trace/flexkv_trace_parse_bench "$@"
    build/release/perf/trace/flexkv_trace_bench "$@"
    build/release/perf/trace/flexkv_trace_record_bench "$@"
    exec "$VENV/bin/python" perf/record_cost_bench.py "$@"
    ;;
  step|e2e) exec "$VENV/bin/python" "perf/${name}_bench.py" "$@" ;;
  *) exec "build/release/perf/$name/flexkv_${name}_bench" "$@" ;;
esac
