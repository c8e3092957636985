#!/usr/bin/env bash
# `make compose-up`, `make compose-down`: the service in containers.
#
#   scripts/compose.sh up native|docker
#   scripts/compose.sh down
#
# Takes `docker compose` or the older `docker-compose`, 1.29 or newer. BASE names another base
# image, DOCKER_SOCKET the engine's socket where it is neither the usual one nor in DOCKER_HOST.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

readonly WAIT_S=${COMPOSE_WAIT_S:-180}
readonly RESTARTS_MAX=2 # of a service that ends by itself; it is not going to start

if docker compose version >/dev/null 2>&1; then
    readonly COMPOSE=(docker compose)
elif command -v docker-compose >/dev/null; then
    readonly COMPOSE=(docker-compose)
else
    die "no docker compose; apt-get install docker-compose-v2, or docker-compose"
fi
[[ ${DOCKER_HOST:-} != unix://* ]] || export DOCKER_SOCKET=${DOCKER_SOCKET:-${DOCKER_HOST#unix://}}

# fail CONTAINER REASON: says why, with the container's last words.
fail() {
    say "the end of its log:" >&2
    docker logs --tail 25 "$1" 2>&1 | sed 's/^/      /' >&2
    die "$2; 'make compose-down' removes it"
}

# await_healthy SERVICE: the older program cannot wait, and neither shows why it waits in vain.
await_healthy() {
    local id seen started=$SECONDS
    id=$("${COMPOSE[@]}" --profile "$1" ps --quiet "$1")
    [[ -n $id ]] || die "$1 has no container"
    while true; do
        seen=$(docker inspect --format \
            '{{.State.Health.Status}} {{.RestartCount}} {{.State.Status}}' "$id")
        read -r health restarts state <<<"$seen"
        [[ $health != healthy ]] || break
        ((restarts <= RESTARTS_MAX)) || fail "$id" "$1 ends again and again"
        ((SECONDS - started < WAIT_S)) || fail "$id" "$1 is $state and $health after ${WAIT_S}s"
        sleep 0.5
    done
    say "  ✓ $1 is healthy ($((SECONDS - started))s)"
}

up() { # PROFILE
    : "${API_KEYS:?set API_KEYS to token:label, for example from openssl rand -hex 24}"
    step "building the service's image" compose-build "${COMPOSE[@]}" --profile "$1" build
    step "starting $1" compose-up "${COMPOSE[@]}" --profile "$1" up --detach --no-build
    await_healthy "$1"
    say "Code Executor is ready at ${PUBLIC_BASE_URL:-http://${BIND:-127.0.0.1}:${PORT:-8080}}"
}

case "${1:-} ${2:-}" in
    "up native") up native ;;
    "up docker")
        scripts/images.sh ${BASE:+--build-arg "BASE=$BASE"}
        up docker
        ;;
    "down "*) API_KEYS=none "${COMPOSE[@]}" --profile native --profile docker down ;;
    *) die "what: up native, up docker or down?" ;;
esac
