#!/usr/bin/env bash
# `make check`: what is judged without running the service. Runs all of it, then fails if one did.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

failed=()
check() { # COMMAND...
    say "— $*"
    "$VENV/bin/$1" "${@:2}" || failed+=("$1 $2")
}

check ruff format --check .
check ruff check .
check mypy src tests scripts benchmarks
check lint-imports
check pytest -q tests/test_docs.py tests/test_architecture.py

((${#failed[@]} == 0)) || die "failed: $(printf '%s; ' "${failed[@]}")"
