# shellcheck shell=bash disable=SC2034
# The service that runs in the background: found, started and stopped by its pid.
# Sourced by up.sh and down.sh.
#
# .data/service.run holds PID, the process's start time, URL and `installed` at its start. The
# start time tells our process from a later one that the system gave the same number.

readonly RUN_FILE="$STATE/service.run"
readonly SERVICE_LOG="$STATE/service.log"

started_at() { # PID: clock ticks since boot; nothing if there is no such process
    local stat
    { stat=$(<"/proc/$1/stat"); } 2>/dev/null || return 0
    read -ra stat <<<"${stat##*) }"
    # A zombie has ended; whoever started it has not looked yet.
    [[ ${stat[0]} == Z ]] || echo "${stat[19]}"
}

# find_service: 0 and SERVICE_PID, SERVICE_URL, SERVICE_BUILD set when ours is running.
find_service() {
    local start
    [[ -f $RUN_FILE ]] || return 1
    read -r SERVICE_PID start SERVICE_URL SERVICE_BUILD <"$RUN_FILE"
    [[ -n $start && $(started_at "$SERVICE_PID") == "$start" ]]
}

start_service() { # in the background; SERVICE_URL says where
    mkdir -p "$STATE" && chmod 700 "$STATE"
    setsid "$VENV/bin/code-executor" serve >>"$SERVICE_LOG" 2>&1 </dev/null 9>&- &
    SERVICE_PID=$!
    printf '%s %s %s %s\n' "$SERVICE_PID" "$(started_at "$SERVICE_PID")" "$SERVICE_URL" \
        "$(installed)" >"$RUN_FILE"
}

# stop_service: asks, waits while it finishes the programs that run, then insists.
stop_service() {
    local grace=${SHUTDOWN_GRACE_S:-15}
    local deadline=$((SECONDS + ${grace%.*} + 20))
    kill -TERM "$SERVICE_PID" 2>/dev/null || true
    while find_service && ((SECONDS < deadline)); do sleep 0.1; done
    if find_service; then
        warn "the service did not end by itself; killed (the next start cleans up after it)"
        kill -KILL "$SERVICE_PID" 2>/dev/null || true
        while find_service; do sleep 0.1; done
    fi
    rm -f "$RUN_FILE"
}
