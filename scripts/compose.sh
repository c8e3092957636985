#!/usr/bin/env bash
# `make compose-up`, `make compose-down`: the service in containers.
#
#   scripts/compose.sh up native|docker
#   scripts/compose.sh down
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

docker compose version >/dev/null 2>&1 || die "no docker compose; apt-get install docker-compose-v2"
case "${1:-} ${2:-}" in
    "up native") docker compose --profile native up --build --detach --wait ;;
    "up docker")
        scripts/images.sh
        docker compose --profile docker up --build --detach --wait
        ;;
    "down "*) API_KEYS=none docker compose --profile '*' down ;;
    *) die "what: up native, up docker or down?" ;;
esac
