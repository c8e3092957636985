#!/usr/bin/env bash
# `make down`: stops the service that `make up` started in this checkout, and no other process.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
source "$ROOT/scripts/service.sh"

one_at_a_time
if find_service; then
    stop_service
    say "stopped (pid $SERVICE_PID)"
else
    rm -f "$RUN_FILE"
    say "not running"
fi
