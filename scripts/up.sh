#!/usr/bin/env bash
# `make up`: from whatever state the machine is in to a service that has run every language.
#
# HOST, PORT, API_KEYS and every other setting of docs/settings.md are taken from the environment.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
source "$ROOT/scripts/service.sh"

cd "$ROOT" # the settings' default paths are relative
readonly READY_SECONDS=120

client() { "$VENV/bin/python" "$ROOT/scripts/first_run.py" "$@"; }

port_taken() { # URL
    local authority=${1#http://}
    local host=${authority%:*}
    host=${host#[}
    (exec 3<>"/dev/tcp/${host%]}/${authority##*:}") 2>/dev/null
}

refuse_taken_port() { # URL
    local port=${1##*:} who="another program"
    ((port != 0)) || die "PORT=0 is for tests; make up needs to know the port"
    port_taken "$1" || return 0
    ! client health "$1" || who="a Code Executor that this checkout did not start"
    die "port $port is taken by $who; stop it, or choose another: PORT=$((port + 1)) make up"
}

show_log_and_stop() {
    say "the end of .data/service.log:" >&2
    tail -n 20 "$SERVICE_LOG" | sed 's/^/    /' >&2
    ! find_service || stop_service
    rm -f "$RUN_FILE"
    die "the service did not become ready"
}

start_and_wait() {
    SERVICE_URL=$(client url) || die "the settings cannot be used"
    refuse_taken_port "$SERVICE_URL"
    start_service
    step "starting the service" ready client ready "$SERVICE_URL" --pid "$SERVICE_PID" \
        --seconds "$READY_SECONDS" || show_log_and_stop
}

main() {
    one_at_a_time
    "$ROOT/scripts/setup.sh"
    if find_service && [[ $SERVICE_BUILD != "$(installed)" ]]; then
        say "what the service runs with was built anew: restarting it"
        stop_service
    fi
    if find_service; then
        say "already running; to take up other changes: make down up"
    else
        start_and_wait
    fi
    client run "$SERVICE_URL" || die "not every program ran as it should"
    say ""
    say "Code Executor: $SERVICE_URL   (pid $SERVICE_PID, log .data/service.log, stop: make down)"
}

main "$@"
