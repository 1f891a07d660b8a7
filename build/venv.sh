#!/usr/bin/env bash
# Makes a Python environment for the SDK tests: build/venv.sh DIR REQUIREMENTS
set -euo pipefail
dir=$1
requirements=$2
if ! python3 -m venv "$dir" >/dev/null 2>&1; then
  # Debian keeps venv in a package of its own.
  if ! command -v apt-get >/dev/null 2>&1; then
    echo "python3 can't make a virtual environment: install Python 3 with its venv and ensurepip modules, and try again" >&2
    exit 1
  fi
  echo "python3-venv is missing; installing it" >&2
  sudo=""
  [ "$(id -u)" = 0 ] || sudo="sudo"
  export DEBIAN_FRONTEND=noninteractive
  $sudo apt-get update -qq
  $sudo apt-get install -y -qq python3-venv >/dev/null
  python3 -m venv "$dir"
fi
"$dir/bin/pip" install --quiet --disable-pip-version-check -r "$requirements"
