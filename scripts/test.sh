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

status=0
scripts/check.sh || status=1
"$VENV/bin/pytest" || status=$?
((status == 0)) || die "the checks of the code or the tests failed; both are above"
