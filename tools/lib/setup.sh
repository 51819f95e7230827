# Sourced by the commands in tools/: installs missing packages and configures and builds a preset. Works without a
# terminal and reads nothing from standard input.

readonly root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
export DEBIAN_FRONTEND=noninteractive

say() { printf '%s\n' "== $*"; }
fail() {
  printf '%s\n' "error: $*" >&2
  exit 1
}

cores() { nproc 2>/dev/null || getconf _NPROCESSORS_ONLN; }

# The package that carries a command, or nothing when the command is there.
package_unless_command() { command -v "$1" >/dev/null 2>&1 || printf '%s ' "$2"; }

is_installed() { [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# Prints what is missing of the given kinds: build, check (clang-format), clang (compiler, clang-tidy,
# sanitizers), python (what compares benchmarks), peers (other people's ops and collectives).
missing_packages() {
  local kind package
  for kind in "$@"; do
    case "$kind" in
      build)
        package_unless_command g++ g++
        package_unless_command cmake cmake
        package_unless_command ninja ninja-build
        package_unless_command ccache ccache
        package_unless_command python3 python3
        for package in libtbb-dev libeigen3-dev libcli11-dev nlohmann-json3-dev libfmt-dev libbenchmark-dev \
                       libgtest-dev libgmock-dev python3-venv python3-dev; do
          is_installed "$package" || printf '%s ' "$package"
        done ;;
      python) package_unless_command python3 python3 ;;
      peers)
        for package in libdnnl-dev libopenblas-dev libopenmpi-dev openmpi-bin python3-venv; do
          is_installed "$package" || printf '%s ' "$package"
        done ;;
      check) package_unless_command clang-format-14 clang-format-14 ;;
      clang)
        package_unless_command clang++-14 clang-14
        package_unless_command clang-tidy-14 clang-tidy-14
        package_unless_command python3 python3
        is_installed libclang-rt-14-dev || printf 'libclang-rt-14-dev ' ;;
    esac
  done
}

# install_packages KIND...: installs what is missing where apt can, and names it elsewhere.
install_packages() {
  local missing as_root=()
  if ! command -v apt-get >/dev/null 2>&1 || ! command -v dpkg-query >/dev/null 2>&1; then
    say "not Debian: expecting g++ 12 (or clang 14), CMake 3.25, ninja, and the headers and CMake packages of oneTBB," \
        "Eigen 3.4, CLI11, nlohmann-json, fmt 9, Google Benchmark and GoogleTest; ccache if there is one"
    command -v cmake >/dev/null 2>&1 && command -v ninja >/dev/null 2>&1 || fail "cmake and ninja are needed"
    return
  fi
  read -r -a missing <<<"$(missing_packages "$@")" || true
  [ "${#missing[@]}" -gt 0 ] || return 0
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null 2>&1 || fail "install these packages first: ${missing[*]}"
    as_root=(sudo ${CI:+-n} env DEBIAN_FRONTEND=noninteractive)
  fi
  say "installing ${missing[*]}"
  local install=(apt-get install -y -q --no-install-recommends "${missing[@]}")
  # The lists of a fresh machine may be absent or old; ask for them first and go on with what is there.
  "${as_root[@]}" apt-get update -q </dev/null >/dev/null || true
  "${as_root[@]}" "${install[@]}" </dev/null >/dev/null || fail "apt could not install: ${missing[*]}"
}

# Makes the environment that the Python package is built and tested in, build/python; false where it cannot be had.
python_environment() {
  local python="$root/build/python/bin/python"
  if ! "$python" -c 'import nanobind, numpy, pytest, rich' 2>/dev/null; then
    say "installing what the Python package needs into build/python"
    python3 -m venv "$root/build/python" </dev/null &&
      "$python" -m pip install -q -r "$root/tools/python/requirements-test.txt" </dev/null
  fi
}

configure() { # preset [cmake argument...]
  say "configure $1"
  cmake --preset "$@" -S "$root" >"$root/build/$1.configure.log" 2>&1 </dev/null ||
    { cat "$root/build/$1.configure.log" >&2; fail "configuring $1"; }
}

build() { # preset [target...]
  local preset="$1" began="$SECONDS"
  shift
  say "build $preset"
  cmake --build "$root/build/$preset" -j "$(cores)" ${1:+--target "$@"} </dev/null || fail "building $preset"
  say "built $preset in $((SECONDS - began)) s"
}

cd "$root" && mkdir -p build
