# shellcheck shell=bash
# What user programs see below /opt: Python with its packages, Go with its standard library.
# Sourced by setup.sh. Changing this file builds them anew.

# Made beside its place and renamed, so that an interrupted build leaves the old one. Inside it is
# /opt/python: compiled files must say so, nothing may tell where it was made, and nobody there
# installs packages or has a use for scripts that name another interpreter.
build_python_runtime() { # INTERPRETER LOCK
    local fresh="$RUNTIME/python.new"
    rm -rf "$fresh" && mkdir -p "$RUNTIME" &&
        "$1" -m venv --without-pip "$fresh" &&
        "$VENV/bin/python" -m pip --python "$fresh/bin/python" --disable-pip-version-check \
            --no-input install --quiet --progress-bar off --no-compile --require-hashes -r "$2" &&
        find "$fresh/bin" -type f -delete &&
        sed -i '/^command = /d' "$fresh/pyvenv.cfg" &&
        "$fresh/bin/python" -m compileall -q -j 0 -s "$fresh" -p /opt/python "$fresh/lib" &&
        rm -rf "$RUNTIME/python" && mv "$fresh" "$RUNTIME/python"
}

python_runtime() { # INTERPRETER, empty when the host has none for user programs
    local lock="$ROOT/runners/python/requirements.lock" wanted
    [[ -n $1 ]] || return 0
    wanted=$(hash_of "$lock" "${BASH_SOURCE[0]}")-$("$1" -VV | sha256sum | cut -c1-8)
    ! stamped "$RUNTIME/python/.stamp" "$wanted" || return 0
    if step "installing Python's packages for user programs" python-runtime \
        build_python_runtime "$1" "$lock"; then
        stamp "$RUNTIME/python/.stamp" "$wanted"
    else
        warn "no Python for user programs: its packages could not be installed"
    fi
}

go_runtime() { # GO, empty when the host has none
    local sources="$ROOT/src/code_executor/languages" wanted
    [[ -n $1 ]] || return 0
    wanted=$(hash_of "$sources"/go*.py "$sources"/go_build.sh "$sources"/go_ahead/* "$1")
    ! stamped "$RUNTIME/go/.stamp" "$wanted" || return 0
    if step "building Go's standard library" go-runtime \
        "$VENV/bin/python" -m code_executor.languages.goindex --go "$1" "$RUNTIME/go"; then
        stamp "$RUNTIME/go/.stamp" "$wanted"
    else
        warn "no Go: its standard library could not be built"
    fi
}
