#!/usr/bin/env bash
# Installs and builds what is missing, then serves the same chats by a real vLLM on CPU without and with FlexKV.
#
#   scripts/demo.sh                  8 chats of 4 turns with shared system prompts
#   scripts/demo.sh --trace FILE     requests of a trace in Mooncake's format, scaled down
#   scripts/demo.sh --json FILE      also write the numbers to FILE
source "$(dirname "$0")/common.sh"
case "${1:-}" in -h|--help) sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
scripts/install.sh
scripts/build.sh
exec "$VENV/bin/python" examples/demo.py "$@"
