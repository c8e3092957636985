# shellcheck shell=bash
# What user programs see below /opt: Python with its packages, Go with its standard library.
# Sourced by setup.sh. Changing this file builds them anew.
#
# Nothing in them says where they were made, so a stamp names what they were made of and no place.
# Where tests are run, checkout after checkout is made of the same: what one has built is kept in
# the user's cache, under its stamp, and the next one copies it.

readonly KEPT="${XDG_CACHE_HOME:-${HOME:-}/.cache}/code-executor/runtimes"
readonly KEPT_DAYS=7 # since its last use
KEEPING= # set by `setup.sh --tests`; who only runs the service has no use for a second copy

# made NAME STAMP COMMAND...: COMMAND makes $RUNTIME/NAME, unless a copy of one is to be had.
made() {
    local name=$1 wanted=$2 kept="$KEPT/$1-$2"
    shift 2
    if [[ $KEEPING && -d $kept ]]; then
        copied "$kept" "$RUNTIME/$name" "$wanted" && return
        rm -rf "$kept"
    fi
    "$@" && stamp "$RUNTIME/$name/.stamp" "$wanted" || return
    [[ ! $KEEPING ]] || keep "$name" "$kept" || warn "nothing is kept in $KEPT"
}

copied() { # FROM TO STAMP: in TO's place when it is whole
    local fresh="$2.kept"
    rm -rf "$fresh" && mkdir -p "${2%/*}" && touch "$1" && cp -a --reflink=auto "$1" "$fresh" &&
        stamped "$fresh/.stamp" "$3" && rm -rf "$2" && mv "$fresh" "$2"
}

# Two checkouts may keep the same at once: the second is not needed.
keep() { # NAME TO
    local fresh="$2.$$"
    mkdir -p "$KEPT" && cp -a --reflink=auto "$RUNTIME/$1" "$fresh" && mv -T "$fresh" "$2"
    local status=$?
    rm -rf "$fresh"
    [[ -d $2 ]] || return "$status"
    find "$KEPT" -mindepth 1 -maxdepth 1 -mtime "+$KEPT_DAYS" -exec rm -rf {} +
}

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
    wanted=$(contents_of "$lock" "${BASH_SOURCE[0]}")-$({ echo "$1" && "$1" -VV; } | sha256sum | cut -c1-8)
    ! stamped "$RUNTIME/python/.stamp" "$wanted" || return 0
    step "installing Python's packages for user programs" python-runtime \
        made python "$wanted" build_python_runtime "$1" "$lock" ||
        warn "no Python for user programs: its packages could not be installed"
}

go_runtime() { # GO, empty when the host has none
    local sources="$ROOT/src/code_executor/languages" wanted
    [[ -n $1 ]] || return 0
    wanted=$({ echo "$1" && contents_of "$sources"/go*.py "$sources"/go_build.sh \
        "$sources"/go_ahead/* "$1" "${BASH_SOURCE[0]}"; } | sha256sum | cut -c1-32)
    ! stamped "$RUNTIME/go/.stamp" "$wanted" || return 0
    step "building Go's standard library" go-runtime made go "$wanted" \
        "$VENV/bin/python" -m code_executor.languages.goindex --go "$1" "$RUNTIME/go" ||
        warn "no Go: its standard library could not be built"
}
