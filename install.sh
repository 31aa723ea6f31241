#!/usr/bin/env bash
# Builds the environment: Debian packages (as root), .venv, requirements.txt, then ffcv and detectron2, which need commands
# of their own. Repeatable: each step leaves a stamp of what it installed and is skipped while that holds.
# VENV=DIR, PYTHON=INTERPRETER; SKIP_FFCV=1 goes without ffcv (then data.loader=folder is for you).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
venv=${VENV:-.venv}
python=${PYTHON:-python3}
stamps=$venv/.stamps
quiet=(--quiet --disable-pip-version-check --no-compile)

say() { printf '\033[1m%s\033[0m\n' "$*"; }
die() { printf 'install: %s\n' "$*" >&2; exit 1; }
done_already() { [ "$(cat "$stamps/$1" 2>/dev/null)" = "$2" ]; }
stamp() { printf '%s' "$2" >"$stamps/$1"; }

debian=(g++ pkg-config python3-venv libturbojpeg0-dev libopencv-core-dev libopencv-imgproc-dev)
# a test cluster and its accounting database; only the tests need them
slurm=(munge slurmctld slurmd slurm-client slurmdbd mariadb-server-core mariadb-client-core)

missing() { for p in "$@"; do [ "$(dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || printf '%s ' "$p"; done; }

system_packages() {
  command -v dpkg-query >/dev/null || { say "Not Debian: ffcv needs a C++ compiler, pkg-config, libturbojpeg and OpenCV (core, imgproc) with headers."; return; }
  local need; need=$(missing "$@")
  [ -n "$need" ] || return 0
  if [ "$(id -u)" -ne 0 ]; then
    say "Missing Debian packages. Please run:  sudo apt-get install --no-install-recommends $need"
    return
  fi
  say "Debian packages: $need"
  export DEBIAN_FRONTEND=noninteractive
  apt-get -qq -o DPkg::Lock::Timeout=300 update
  # shellcheck disable=SC2086
  apt-get -qq -o DPkg::Lock::Timeout=300 install -y --no-install-recommends $need >/dev/null
}

environment() {
  "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' ||
    die "$python is $("$python" -V 2>&1); Python 3.11 or 3.12 is needed (set PYTHON=...)"
  [ -x "$venv/bin/python" ] || { say "Virtual environment: $venv"; "$python" -m venv "$venv"; }
  mkdir -p "$stamps"
  local want; want=$(sha256sum requirements.txt pyproject.toml)
  done_already requirements "$want" && return
  say "Python packages (requirements.txt; about 5.5 GB with torch)"
  "$venv/bin/pip" install "${quiet[@]}" -r requirements.txt
  "$venv/bin/pip" install "${quiet[@]}" --no-deps --no-build-isolation -e .
  stamp requirements "$want"
}

# native NAME STEP [pip options]: the release of NAME that requirements-native.txt pins by version and hash, once
native() {
  local name=$1; shift
  local pin; pin=$(grep "^$name==" requirements-native.txt)
  done_already "$name" "$pin" && return
  say "$name"
  local file; file=$(mktemp); echo "$pin" >"$file"
  "$venv/bin/pip" install "${quiet[@]}" --no-deps --require-hashes "$@" -r "$file" >"$stamps/$name.log" 2>&1 || { cat "$stamps/$name.log" >&2; return 1; }
  stamp "$name" "$pin"
}

# ffcv is compiled against OpenCV's core and imgproc. Where only these two are installed, Debian gives no .pc file, and an
# umbrella header that includes them all: both are made here for the two.
ffcv() {
  local shim; shim=$(mktemp -d)
  if ! pkg-config --exists opencv4; then
    mkdir "$shim/opencv2"
    printf '#include <opencv2/core.hpp>\n#include <opencv2/imgproc.hpp>\n' >"$shim/opencv2/opencv.hpp"
    printf 'Name: opencv4\nDescription: core and imgproc\nVersion: 4\nCflags: -I${pcfiledir} -I/usr/include/opencv4\nLibs: -lopencv_imgproc -lopencv_core\n' >"$shim/opencv4.pc"
  fi
  PKG_CONFIG_PATH="$shim:${PKG_CONFIG_PATH:-}" native ffcv --no-build-isolation ||
    die "ffcv did not compile (above). 'make doctor' says what is missing. To go on without it: SKIP_FFCV=1 make env, and data.loader=folder"
}

# The wheel is the real detectron2 tree, pure Python for our use but tagged for one interpreter: unpacked by --target
detectron2() {
  native sal-detectron2 --only-binary=:all: --python-version 3.10 --implementation cp --abi none --platform any --upgrade \
    --target "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
}

# Once for all processes, also where PYTHONDONTWRITEBYTECODE keeps each of them from it: torch is imported in half the time
bytecode() {
  local want; want=$(cat "$stamps"/{requirements,ffcv,sal-detectron2,lightly-utils,lightly,lvis,cityscapesscripts} 2>/dev/null | sha256sum)
  done_already bytecode "$want" && return
  say "Bytecode"
  # its exit code tells of files that are no Python, which some packages ship as templates
  "$venv/bin/python" -m compileall -q -j 0 "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" >/dev/null 2>&1 || :
  stamp bytecode "$want"
}

case ${1:-all} in
  all)
    system_packages "${debian[@]}"
    environment
    [ -n "${SKIP_FFCV:-}" ] || ffcv
    detectron2
    native lightly-utils
    native lightly
    native lvis
    native cityscapesscripts
    bytecode
    ;;
  slurm) system_packages "${slurm[@]}" ;;
  *) die "unknown step '$1' (all, slurm)" ;;
esac
