# What several scripts need. Sourced by bash; sets no options and does nothing by itself.
#
#   root        the checkout
#   step NAME COMMAND…   runs a command under a heading and notes its time; `summary` prints them all

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

# The client that tests and quickstart speak through.
CLIENT_VERSION=$(sed -n 's/^modal==//p' "$root/tests/sdk/requirements.txt")

# What a node and its tests need from Debian. What is there already is not touched.
NODE_PACKAGES=(fuse3 mmdebstrap nftables patchelf iproute2 ca-certificates)
BUILD_PACKAGES=(gcc libc6-dev make)
PYTHON_PACKAGES=(python3 python3-venv python3-pip)

say() { printf '\033[1m%s\033[0m\n' "$*"; }
note() { printf '  %s\n' "$*"; }
fail() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

# Prints the packages of the arguments that are not installed.
missing_packages() {
    local package
    for package in "$@"; do
        dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || printf '%s\n' "$package"
    done
}

# Installs what is missing of the arguments, naming it.
install_packages() {
    local missing
    mapfile -t missing < <(missing_packages "$@")
    [ ${#missing[@]} -gt 0 ] || return 0
    [ "$(id -u)" = 0 ] || fail "these Debian packages are missing: ${missing[*]}; run as root, or install them yourself"
    command -v apt-get >/dev/null || fail "this machine has no apt-get; install what gives you: ${missing[*]}"
    note "installing ${missing[*]}"
    # An index that is there may be enough; a fresh machine has none.
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" >"$apt_log" 2>&1 ||
        { apt-get update -q >"$apt_log" 2>&1 &&
            DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" >>"$apt_log" 2>&1; } ||
        { tail -n 20 "$apt_log" >&2; fail "apt-get could not install ${missing[*]}"; }
}
apt_log=${TMPDIR:-/tmp}/shoal-apt.$$.log

# Puts cargo on the PATH and fails with a sentence where there is none new enough. A toolchain that is missing is
# installed: by $RUSTUP_INIT or a rustup-init on the PATH, else by Debian's rustup, else by rustup's own script.
need_rust() {
    [ ! -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ] || PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
    local wanted have
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml")
    if ! command -v cargo >/dev/null; then
        install_rust || fail "there is no Rust toolchain here and none could be had: install Rust $wanted or newer, or set RUSTUP_INIT to a rustup-init"
        PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
    fi
    have=$(cargo --version | cut -d' ' -f2)
    [ "$(printf '%s\n%s\n' "$wanted" "${have%%-*}" | sort -V | head -n 1)" = "$wanted" ] ||
        fail "Rust $have is too old: $wanted or newer is wanted"
}

install_rust() {
    local options=(-y --profile minimal --component rustfmt --component clippy)
    local installer=${RUSTUP_INIT:-$(command -v rustup-init || true)}
    if [ -n "$installer" ]; then
        note "installing a Rust toolchain with $installer"
        "$installer" "${options[@]}"
    elif [ -n "$(apt-cache policy rustup 2>/dev/null | grep 'Candidate: [0-9]')" ]; then
        install_packages rustup && rustup default stable && rustup component add rustfmt clippy
    elif command -v curl >/dev/null; then
        note "installing a Rust toolchain with rustup's script"
        curl --proto '=https' --tlsv1.2 -fsS -m 60 https://sh.rustup.rs | sh -s -- "${options[@]}"
    else
        return 1
    fi
}

# Makes the virtual environment $1 with the pinned packages of the other arguments (pip's own words), if it is not so already.
need_venv() {
    local folder=$1 word
    shift
    local stamp=$folder/.shoal-packages wanted=$*
    for word in "$@"; do
        [ ! -f "$word" ] || wanted+=" $(cksum <"$word")"
    done
    if [ -x "$folder/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        return 0
    fi
    # Debian's own Python, where it is there: others come and go.
    local python=/usr/bin/python3
    [ -x "$python" ] || python=$(command -v python3) || fail "no python3 here"
    "$python" -m venv --clear "$folder"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
    printf '%s' "$wanted" >"$stamp"
}

step_names=() step_seconds=() step_results=()
# Runs a command under a heading; notes how long it took and whether it went well, and returns its status.
# Called plainly under `set -e`, a failure anywhere inside ends the script; called as `step … || …` it is only noted.
step() {
    local name=$1 begin=$SECONDS status
    shift
    current_step=$name
    say "== $name"
    "$@"
    status=$?
    step_names+=("$name") step_seconds+=($((SECONDS - begin)))
    if [ $status = 0 ]; then step_results+=(ok); else step_results+=("FAILED ($status)"); fi
    return $status
}

# Prints what each step took.
summary() {
    local i
    printf '\n%-34s %8s  %s\n' step seconds result
    for i in "${!step_names[@]}"; do
        printf '%-34s %8d  %s\n' "${step_names[$i]}" "${step_seconds[$i]}" "${step_results[$i]}"
    done
    printf '%-34s %8d\n' total "$SECONDS"
}
