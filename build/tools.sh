#!/usr/bin/env bash
# Installs what the build needs and the machine lacks. Today that is cmake alone: the zlib-ng
# that Pingora links is built with it.
set -euo pipefail
if [ "$(uname -s)" != Linux ]; then
  echo "Tollbar needs Linux: sockets that change hands, systemd and /proc are part of it" >&2
  exit 1
fi
command -v cmake >/dev/null 2>&1 && exit 0

echo "cmake is missing; installing it (Pingora's zlib is built with it)" >&2
sudo=""
[ "$(id -u)" = 0 ] || sudo="sudo"
if command -v apt-get >/dev/null 2>&1; then
  export DEBIAN_FRONTEND=noninteractive
  $sudo apt-get update -qq
  $sudo apt-get install -y -qq cmake >/dev/null
elif command -v dnf >/dev/null 2>&1; then
  $sudo dnf install -y -q cmake
elif command -v apk >/dev/null 2>&1; then
  $sudo apk add --quiet cmake
elif command -v pacman >/dev/null 2>&1; then
  $sudo pacman -S --noconfirm --quiet cmake
else
  echo "no package manager that this script knows: install cmake and try again" >&2
  exit 1
fi
