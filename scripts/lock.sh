#!/usr/bin/env bash
# Resolves the three lock files anew: the service, its tests, the Python that user programs see.
# A lock lists every published file of each release by hash, so it serves every architecture;
# it is resolved on the lowest Python the project supports and holds no address of an index.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly LOCK_PYTHON=python3.11
readonly TOOLS="$ROOT/.cache/lock-venv"

compile() {  # OUTPUT ARGS...: the flags that make a lock complete and free of local details
    local output=$1
    shift
    "$TOOLS/bin/pip-compile" --quiet --upgrade --generate-hashes --allow-unsafe --strip-extras \
        --no-header --no-emit-index-url --no-emit-trusted-host --no-emit-find-links \
        --no-emit-options --output-file "$output" "$@"
}

lock_all() {
    [[ -x $TOOLS/bin/pip-compile ]] || {
        "$LOCK_PYTHON" -m venv "$TOOLS"
        "$TOOLS/bin/pip" install --quiet "pip-tools>=7.5"
    }
    cd "$ROOT"
    compile requirements.lock --build-deps-for editable pyproject.toml
    compile requirements-dev.lock --extra dev --constraint requirements.lock pyproject.toml
    compile runners/python/requirements.lock runners/python/requirements.txt
}

step "resolving the lock files" lock lock_all
