#!/usr/bin/env python3
"""Dependencies between folders point one way only. Prints each include that does not, exits 1 then."""

import pathlib
import re
import sys

# What each folder may include besides itself.
ALLOWED = {
    "flexkv/base": set(),
    "proto": {"flexkv/base"},
    "flexkv/index": {"flexkv/base"},
    "flexkv/storage": {"flexkv/base"},
    "flexkv/transfer": {"flexkv/base", "flexkv/storage"},
    "flexkv/cache": {"flexkv/base", "flexkv/index", "flexkv/storage", "flexkv/transfer"},
    "flexkv/trace": {"flexkv/base", "flexkv/index", "flexkv/storage", "flexkv/transfer", "flexkv/cache"},
    # The device agent is the one part of transfer that lives in the engine's process.
    "flexkv/client": {
        "flexkv/base",
        "proto",
        "flexkv/transfer/device_agent.h",
        "flexkv/transfer/transfer_op.h",
        "flexkv/transfer/cuda/cuda_agent.h",
        "flexkv/transfer/cuda/cuda_library.h",
    },
    "flexkv/server": {
        "flexkv/base",
        "flexkv/index",
        "flexkv/storage",
        "flexkv/transfer",
        "flexkv/cache",
        "flexkv/trace",
        "proto",
    },
    "flexkv/cli": {
        "flexkv/base",
        "flexkv/index",
        "flexkv/storage",
        "flexkv/cache",
        "flexkv/trace",
        "flexkv/client",
        "flexkv/server",
        "flexkv/transfer/device_agent.h",
        # For `flexkv bench device`.
        "flexkv/transfer/cuda/copy_route.h",
        "flexkv/transfer/cuda/cuda_api.h",
        "flexkv/transfer/cuda/cuda_library.h",
        "proto",
    },
    "connector": {"flexkv/base", "flexkv/client"},
}
INCLUDE = re.compile(r'^\s*#include\s+"([^"]+)"')


def folder_of(path: str) -> str:
    parts = path.split("/")
    return "/".join(parts[:2]) if parts[0] == "flexkv" else parts[0]


def main() -> int:
    root = pathlib.Path(__file__).resolve().parent.parent
    bad = 0
    for folder, allowed in ALLOWED.items():
        files = [p for p in (root / folder).rglob("*") if p.suffix in {".h", ".cc", ".cu"}]
        for file in files:
            for number, line in enumerate(file.read_text().splitlines(), 1):
                match = INCLUDE.match(line)
                if not match:
                    continue
                target = match.group(1)
                known = target.startswith("flexkv/") or target.startswith("proto/")
                home = folder_of(target)
                if not known or home == folder or home in allowed or target in allowed:
                    continue
                print(f"{file.relative_to(root)}:{number}: {folder} must not include {target}")
                bad += 1
    print(f"checked {len(ALLOWED)} folders, {bad} wrong includes")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
