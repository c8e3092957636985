#!/usr/bin/env bash
# Brings a fresh Debian or Ubuntu machine to where the service can start; fast when it is there.
#
#   scripts/setup.sh            what the service needs
#   scripts/setup.sh --tests    what the tests need as well
#
# What the service cannot do without ends the script with the reason. A language that cannot be
# had is named with the reason, and the rest goes on.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
source "$ROOT/scripts/runtimes.sh"
umask 022 # sandboxes read the runtimes under another uid

# ---- system packages -------------------------------------------------------------------------

readonly LANGUAGES=(ruby php go node)
declare -rA PACKAGES=(
    [python]="python3 python3-venv" [compiler]="gcc libc6-dev" [libseccomp]=libseccomp2
    [runc]=runc [runsc]=runsc [docker]=docker.io [compose]=docker-compose
    [debootstrap]=debootstrap [apparmor]=apparmor [bwrap]=bubblewrap [uidmap]=uidmap
    [ruby]=ruby [php]=php-cli [go]=golang-go [node]=nodejs
)

# The sandbox sees the system's /usr and nothing else of the host, so only that counts here.
first_of() { # PATHS...: the first that can be executed; nothing if there is none
    local path
    for path in "$@"; do
        if [[ -x $path ]]; then echo "$path" && return; fi
    done
}
has_ruby() { [[ -n $(first_of /usr/bin/ruby /usr/local/bin/ruby) ]]; }
has_php() { [[ -n $(first_of /usr/bin/php /usr/local/bin/php) ]]; }
has_node() { [[ -n $(first_of /usr/bin/node /usr/local/bin/node) ]]; }
has_go() { [[ -n $(system_go) ]]; }
has_python() { [[ -n $(system_python) ]]; }
has_libseccomp() { [[ $(/sbin/ldconfig -p) == *libseccomp.so.2* ]]; }
has_runc() { [[ -n $(first_of /usr/sbin/runc /usr/bin/runc /usr/local/bin/runc) ]]; }
has_runsc() { [[ -n $(first_of /usr/bin/runsc /usr/local/bin/runsc) ]]; }
has_docker() { # the engine, and a client for the tests
    [[ -n $(first_of /usr/sbin/dockerd /usr/bin/dockerd) ]] && command -v docker >/dev/null
}
has_compose() { docker compose version >/dev/null 2>&1 || command -v docker-compose >/dev/null; }
has_bwrap() { command -v bwrap >/dev/null; }
has_debootstrap() { [[ -n $(first_of /usr/sbin/debootstrap) ]]; }
has_apparmor() { [[ -n $(first_of /usr/sbin/apparmor_parser /sbin/apparmor_parser) ]]; }
# Without root, every run gets its uid from a range that newuidmap hands out.
has_uidmap() { ((EUID == 0)) || command -v newuidmap >/dev/null; }
has_compiler() { # and the static C library
    local out status=0
    out=$(mktemp)
    echo 'int main(void) { return 0; }' | cc -static -x c -o "$out" - 2>/dev/null || status=1
    rm -f "$out"
    return "$status"
}

system_go() {
    first_of /usr/bin/go /usr/local/bin/go /usr/local/go/bin/go
}

# usable PYTHON: new enough, and complete (Debian splits venv and ensurepip off).
usable() {
    "$1" -c 'import sys, venv, ensurepip, sqlite3, ssl, ctypes
sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

first_usable() {
    local candidate
    for candidate in "$@"; do
        if usable "$candidate"; then echo "$candidate" && return; fi
    done
}
system_python() { first_usable /usr/bin/python3{,.14,.13,.12,.11}; }
# The service itself can do with an interpreter from anywhere; the system's is the better kept one.
service_python() { first_usable /usr/bin/python3{,.14,.13,.12,.11} python3{.14,.13,.12,.11,}; }

as_root() {
    if ((EUID == 0)); then "$@"; else sudo -n "$@"; fi
}

may_install() {
    command -v apt-get >/dev/null && as_root true 2>/dev/null
}

apt_install() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet \
        --no-install-recommends -o DPkg::Lock::Timeout=120 "$@"
}

apt_install_updating() { # a fresh machine has no package lists, or old ones
    apt_install "$@" || { as_root apt-get update --quiet && apt_install "$@"; }
}

missing_of() { # NAMES...: those that are not there
    local name
    for name in "$@"; do "has_$name" || echo "$name"; done
}

# All at once first, since that is quick; then one by one, so that one bad package fails alone.
install_packages() { # NAMES...
    local name wanted=()
    for name in "$@"; do read -ra wanted <<<"${wanted[*]} ${PACKAGES[$name]}"; done
    step "installing ${wanted[*]}" apt apt_install_updating "${wanted[@]}" && return
    for name in "$@"; do
        read -ra wanted <<<"${PACKAGES[$name]}"
        step "installing ${wanted[*]}" "apt-$name" apt_install_updating "${wanted[@]}" || true
    done
}

# A release whose default Python is too old may offer a newer one under its own name.
install_newer_python() {
    local name
    for name in python3.13 python3.12 python3.11; do
        step "installing $name" apt-python apt_install "$name" "$name-venv" && return
    done
}

why_missing() { # NAME
    if may_install; then
        echo "apt-get could not install ${PACKAGES[$1]}; see .cache/logs/apt-$1.log"
    else
        echo "not installed; as root: apt-get install ${PACKAGES[$1]}"
    fi
}

report_missing() { # what cannot be done without ends it, once everything has been named
    local name fatal=0
    for name in $(missing_of compiler libseccomp uidmap); do
        warn "no $name: $(why_missing "$name")" && fatal=1
    done
    [[ -n $(service_python) ]] || { warn "no Python 3.11 or newer for the service" && fatal=1; }
    for name in $(missing_of python "${LANGUAGES[@]}"); do
        warn "no $name for user programs: $(why_missing "$name")"
    done
    ((fatal == 0)) || die "the service cannot do without what is named above"
}

system_packages() {
    local missing
    mapfile -t missing < <(missing_of python compiler libseccomp uidmap "${LANGUAGES[@]}")
    ((${#missing[@]})) || return 0
    if may_install; then
        install_packages "${missing[@]}"
        has_python || install_newer_python || true
    fi
    report_missing
}

# Backends whose runtime cannot be had skip their tests. The engine of the docker backend's is started
# by them, on a base that debootstrap makes; apparmor has the parser that checks the profile. With
# bubblewrap the benchmark compares.
test_packages() {
    local names=(runc runsc docker compose debootstrap apparmor bwrap) missing name
    mapfile -t missing < <(missing_of "${names[@]}")
    ((${#missing[@]})) || return 0
    ! may_install || install_packages "${missing[@]}"
    for name in $(missing_of "${names[@]}"); do warn "no $name: $(why_missing "$name")"; done
}

# ---- the service's own environment -----------------------------------------------------------

pip_install() {
    "$VENV/bin/python" -m pip --disable-pip-version-check --no-input install --quiet \
        --progress-bar off "$@"
}

install_service() { # exactly what the lock lists, then the project itself
    usable "$VENV/bin/python" || "$(service_python)" -m venv --clear "$VENV" || return
    pip_install --require-hashes -r "$ROOT/requirements.lock" &&
        pip_install --no-deps --no-build-isolation --editable "$ROOT"
}

service_environment() {
    local wanted
    wanted=$(hash_of "$ROOT/requirements.lock" "$ROOT/pyproject.toml")
    if stamped "$VENV/.stamp" "$wanted" && usable "$VENV/bin/python"; then return; fi
    step "installing the service's packages" service install_service ||
        die "the service's packages could not be installed"
    stamp "$VENV/.stamp" "$wanted"
}

test_environment() {
    local wanted lock="$ROOT/requirements-dev.lock"
    wanted=$(hash_of "$lock")
    ! stamped "$VENV/.stamp-tests" "$wanted" || return 0
    step "installing the tests' packages" tests pip_install --require-hashes -r "$lock" ||
        die "the tests' packages could not be installed"
    stamp "$VENV/.stamp-tests" "$wanted"
}

# ---- the sandbox's own program ---------------------------------------------------------------

sandbox_init() {
    local sandbox="$ROOT/src/code_executor/sandbox" wanted
    wanted=$(hash_of "$sandbox"/init/* "$sandbox/build.py")
    ! stamped "$INIT/.stamp" "$wanted" || return 0
    step "building the sandbox's init" init "$VENV/bin/python" -m code_executor.sandbox.build ||
        die "the sandbox's init could not be built"
    stamp "$INIT/.stamp" "$wanted"
}

main() {
    one_at_a_time
    [[ ${1:-} != --tests || -z ${XDG_CACHE_HOME:-${HOME:-}} ]] || KEEPING=1
    system_packages
    [[ ${1:-} != --tests ]] || test_packages
    service_environment
    [[ ${1:-} != --tests ]] || test_environment
    python_runtime "$(system_python)"
    go_runtime "$(system_go)"
    sandbox_init
}

main "$@"
