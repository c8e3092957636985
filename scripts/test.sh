#!/usr/bin/env bash
# `make test`: sets a fresh machine up, judges the code, runs every test.
# pytest's summary at the end names whatever was skipped, with the reason.
#
#   scripts/test.sh             everything
#   scripts/test.sh PATHS...    those tests only, without the checks of the code
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

scripts/setup.sh --tests
(($#)) && exec "$VENV/bin/pytest" "$@"

# Two at once, since neither keeps two cores busy: one has the engine and the other runtimes to itself.
# With `set -m` it is a process group of its own that an interrupt reaches through us alone.
set -m
"$VENV/bin/pytest" -m beside >"$LOGS/tests-beside.log" 2>&1 </dev/null &
beside=$!
set +m
trap 'kill -INT "$beside" 2>/dev/null && wait "$beside"' EXIT

status=0
scripts/check.sh || status=1
"$VENV/bin/pytest" -m "not beside" || status=$?
watch_pid "$beside" "the tests of the other backends"
wait "$beside" || status=$?
trap - EXIT
cat "$LOGS/tests-beside.log"
((status == 0)) || die "the checks of the code or the tests failed; all are above"
