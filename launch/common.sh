# Shared by the scripts in launch/: where the project is, how they speak, what they install. Sourced, never run.
# shellcheck shell=bash

LEVIN_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '%s\n' "$*"; }
heading() { printf '\n== %s\n' "$*"; }

# die STATUS MESSAGE: status 2 is something the user can put right, 1 anything else (as in the program itself).
die() {
    local status=$1
    shift
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit "$status"
}

# needs WHAT OPTION [VALUE]..: ends with status 2 where the option has no value.
needs() { [[ -n ${3:-} ]] || die 2 "$2 needs $1; see launch/${0##*/} --help"; }

# The comment block at the top of the calling script is its help text.
usage() { awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"; }

# Open MPI refuses root and more ranks than cores unless told otherwise; a container is often both. Every script that
# starts ranks goes through here; exporting leaves a value the user has set alone.
export OMPI_ALLOW_RUN_AS_ROOT=${OMPI_ALLOW_RUN_AS_ROOT:-1}
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=${OMPI_ALLOW_RUN_AS_ROOT_CONFIRM:-1}
export OMPI_MCA_rmaps_base_oversubscribe=${OMPI_MCA_rmaps_base_oversubscribe:-1}
# Containers often forbid cross-memory attach; the copy through shared memory always works.
export OMPI_MCA_btl_vader_single_copy_mechanism=${OMPI_MCA_btl_vader_single_copy_mechanism:-none}

# OpenMP's threads spin while they wait for each other. Where something else wants the cores too (other ranks, another
# job), that spinning keeps out the very thread waited for; a short spin lost far less on a crowded machine (measured:
# training up to 3 times as fast) and at most a tenth on a quiet one.
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-10000}

has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU '; }

# Compilers at a time: one per core, but no more than one per 1.5 GiB of memory that is free now.
build_jobs() {
    local cores available_kib by_memory
    cores=$(nproc)
    available_kib=$(awk '/^MemAvailable:/ { print $2 }' /proc/meminfo 2>/dev/null || true)
    by_memory=$(( ${available_kib:-0} / 1572864 ))
    if (( by_memory < 1 )); then by_memory=1; fi
    say $(( cores < by_memory ? cores : by_memory ))
}

# packages_of SECTION..: the package names listed there.
packages_of() {
    local section
    for section in "$@"; do
        awk -v section="[$section]" '
            /^\[/ { inside = ($1 == section); next }
            inside { sub(/#.*/, ""); if (NF) print $1 }' "$LEVIN_ROOT/launch/packages.txt"
    done
}

# missing_packages SECTION..: those of them that dpkg does not know as installed. Touches no network.
missing_packages() {
    local wanted installed
    wanted=$(packages_of "$@")
    # shellcheck disable=SC2086  # one word per package
    installed=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' $wanted 2>/dev/null |
        awk '$1 == "installed" { print $2 }') || true
    comm -23 <(sort -u <<<"$wanted") <(sort -u <<<"$installed")
}

# install_packages SECTION..: returns 0 when all is there; 2 (with the one command to run printed) when it may not
# install; apt's own failure otherwise.
install_packages() {
    if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
        say "no apt here: taking it that the libraries of launch/packages.txt are installed by other means"
        return 0
    fi
    local missing=() as_root=()
    mapfile -t missing < <(missing_packages "$@")
    if (( ${#missing[@]} == 0 )); then return 0; fi
    if (( EUID != 0 )); then
        if ! command -v sudo >/dev/null || ! sudo -n true 2>/dev/null; then
            local prefix='sudo sh -c'
            if ! command -v sudo >/dev/null; then prefix='su -c'; fi
            {
                say "Packages are missing, and this account may not install them. Run this once, then start again:"
                say
                say "  $prefix 'apt-get update && apt-get install -y --no-install-recommends ${missing[*]}'"
                say
                say "(launch/build --no-install goes on without, for libraries that came by other means.)"
            } >&2
            return 2
        fi
        as_root=(sudo)
    fi
    heading "Installing ${#missing[@]} packages: ${missing[*]}"
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3)
    if ! compgen -G '/var/lib/apt/lists/*_Packages*' >/dev/null; then
        "${as_root[@]}" "${apt[@]}" update || return
    fi
    # Lists that are there may be old and name files that the mirror has dropped: refresh them, and try once more.
    "${as_root[@]}" "${apt[@]}" install -y --no-install-recommends "${missing[@]}" && return 0
    "${as_root[@]}" "${apt[@]}" update || return
    "${as_root[@]}" "${apt[@]}" install -y --no-install-recommends "${missing[@]}"
}

# supervise HANDLER COMMAND..: runs the command out of reach of the terminal's Ctrl-C (a session of its own); each
# SIGTERM or SIGINT calls HANDLER PID COUNT instead, which decides what the command is told. Returns the command's
# status; supervised_signals is how many signals came.
supervise() {
    local handler=$1 pid='' before status
    shift
    supervised_signals=0
    # A signal before the command runs is told to it once it does.
    trap 'supervised_signals=$(( supervised_signals + 1 )); [[ ! $pid ]] || "$handler" "$pid" "$supervised_signals"' TERM INT
    setsid "$@" </dev/null &
    pid=$!
    if (( supervised_signals )); then "$handler" "$pid" "$supervised_signals"; fi
    # A trapped signal ends the wait early; then wait again, for the status of the command itself.
    while :; do
        before=$supervised_signals status=0
        wait "$pid" || status=$?
        if (( supervised_signals == before )); then break; fi
    done
    trap - TERM INT
    return "$status"
}
