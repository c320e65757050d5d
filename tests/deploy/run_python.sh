#!/usr/bin/env bash
# Runs a unittest file of this folder with the helpers and stubs of the end-to-end tests on the path.
set -euo pipefail
export PYTHONPATH="$PWD/tests/deploy:$PWD/tests/e2e:$PWD/tests/e2e/stubs" PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
exec /usr/bin/python3 "$@"
