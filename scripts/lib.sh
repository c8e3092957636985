# shellcheck shell=bash disable=SC2034
# Shared by the scripts beside it: where things are, what is said, how a long step is shown.
# Sourced, never run. Every step is idempotent; what it made carries a stamp of its inputs.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
readonly ROOT
readonly LOGS="$ROOT/.cache/logs"
readonly VENV="$ROOT/.venv"
readonly RUNTIME="$ROOT/.runtime"
readonly STATE="$ROOT/.data"
readonly INIT="$ROOT/src/code_executor/sandbox/_build"

say() { printf '%s\n' "$*"; }
warn() { printf 'warning: %s\n' "$*" >&2; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# watch_pid PID TITLE: one moving line on a terminal, a line every 15 seconds elsewhere.
watch_pid() {
    local pid=$1 title=$2 marks='|/-+' turn=0 started=$SECONDS shown=0
    while kill -0 "$pid" 2>/dev/null; do
        if [[ -t 1 ]]; then
            printf '\r  %s %s %ds ' "${marks:turn++%4:1}" "$title" $((SECONDS - started))
        elif ((SECONDS - started >= shown + 15)); then
            shown=$((SECONDS - started))
            say "  … $title, ${shown}s"
        fi
        sleep 0.1
    done
    [[ ! -t 1 ]] || printf '\r\033[K'
}

# step TITLE LOG COMMAND...: runs COMMAND with its output in LOG; shows the log's end if it fails.
# COMMAND is a program or a function that returns its own status (`set -e` is off inside it).
step() {
    local title=$1 log="$LOGS/$2.log" started=$SECONDS status=0
    shift 2
    mkdir -p "$LOGS"
    "$@" >"$log" 2>&1 </dev/null &
    local pid=$!
    watch_pid "$pid" "$title"
    wait "$pid" || status=$?
    if ((status)); then
        say "  ✗ $title failed after $((SECONDS - started))s; the end of ${log#"$ROOT"/}:" >&2
        tail -n 25 "$log" | sed 's/^/      /' >&2
        return "$status"
    fi
    say "  ✓ $title ($((SECONDS - started))s)"
}

# hash_of FILES...: one word for their contents and for where this checkout is.
hash_of() { { printf '%s\n' "$ROOT"; cat -- "$@"; } | sha256sum | cut -c1-32; }

# contents_of FILES...: the same for what is made alike in every checkout.
contents_of() { cat -- "$@" | sha256sum | cut -c1-32; }

# stamped FILE HASH / stamp FILE HASH: was it made from these inputs; it was.
stamped() { [[ -f $1 && $(<"$1") == "$2" ]]; }
stamp() { printf '%s' "$2" >"$1"; }

# What the running service was started from; differs after any part of it was built anew.
installed() {
    { cat "$VENV"/.stamp "$RUNTIME"/*/.stamp "$INIT"/.stamp 2>/dev/null || true; } |
        sha256sum | cut -c1-16
}

# one_at_a_time: a second call in the same checkout waits for the first. The lock is held until
# this script ends; scripts that it calls know so from the variable.
one_at_a_time() {
    [[ -z ${SETUP_LOCK_HELD:-} ]] || return 0
    mkdir -p "$ROOT/.cache" 2>/dev/null || true
    [[ -w $ROOT/.cache ]] ||
        die "$ROOT is not writable by $(id -un); clone the project as the user who runs it"
    exec 9>"$ROOT/.cache/lock"
    flock --nonblock 9 || { say "waiting for another make in this checkout …" && flock 9; }
    export SETUP_LOCK_HELD=1
}
