#!/usr/bin/env bash
# `make images`: builds the docker backend's images with whatever engine `docker` speaks to.
#
#   scripts/images.sh [ARGS for docker build, such as --build-arg BASE=debian:trixie-slim]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

command -v docker >/dev/null || die "no docker; apt-get install docker.io"
for language in python node ruby php go; do
    step "building code-executor/$language" "image-$language" docker build \
        --tag "code-executor/$language" --file "runners/$language/Dockerfile" "$@" . ||
        die "the image could not be built; see .cache/logs/image-$language.log"
done
