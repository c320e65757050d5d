#!/usr/bin/env bash
# Runs a unittest file with the generated stubs and this folder on the path.
set -euo pipefail
export PYTHONPATH="$PWD/tests/e2e:$PWD/tests/e2e/stubs" PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
exec /usr/bin/python3 "$@"
