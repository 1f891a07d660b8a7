#!/usr/bin/env bash
# Builds the fastest binaries, into target/trained/release: the load tests drive instrumented ones
# first, and the compiler then knows which way requests go (profile-guided optimisation).
#
# Where the system has LLVM's post-link optimizer (Debian: `apt-get install bolt-22`; older ones are
# untried), it then lays what runs close together: 40 % fewer instruction fetches of a small request
# miss a cache of 512 KiB. BOLT= leaves that out.
#
# Builds everything twice: some 25 minutes on 2 cores.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}
target=$PWD/target/trained
profiles=$target/profiles
scenarios=small,small-off,small-h2,body-4k,body-100k,embeddings,stream,stream-h2,disconnects,failover

# LLVM's tool for profiles: the toolchain's own, or a system's that reads its format. Looked for
# before the long build, tried after it.
host=$(rustc -vV | sed -n 's/^host: //p')
own=$(rustc --print sysroot)/lib/rustlib/$host/bin/llvm-profdata
if [ ! -x "$own" ] && command -v rustup >/dev/null 2>&1; then
  echo "llvm-profdata is missing; installing rustup's llvm-tools" >&2
  rustup component add llvm-tools || true # perhaps the system has one
fi
tools=()
[ ! -x "$own" ] || tools+=("$own")
while read -r tool; do tools+=("$tool"); done < <(compgen -c llvm-profdata | sort -Vru)
if [ ${#tools[@]} = 0 ]; then
  echo "llvm-profdata is missing: run \`rustup component add llvm-tools\`, or install your system's newest llvm" >&2
  exit 1
fi

# As Debian names it, llvm-bolt-NN, or without a number; and its tool for profiles beside it.
bolt=${BOLT-$(compgen -c llvm-bolt | grep -xE 'llvm-bolt(-[0-9]+)?' | sort -Vru | sed -n 1p || true)}
if [ -n "$bolt" ]; then
  merge_fdata=$(dirname "$(readlink -f "$(command -v "$bolt")")")/merge-fdata
  layout=", laid out by llvm-bolt"
else
  echo "without llvm-bolt (Debian: apt-get install bolt-22)" >&2
  layout=
fi

export TOLLBAR_BUILD="built by \`make release\`$layout" # the reports say so
build() {
  for package in tollbar tollbar-loadtest; do
    RUSTFLAGS="${RUSTFLAGS:-} $1" "$cargo" build --release --target-dir "$target" \
      --package "$package" --bins
  done
}

rm -rf "$profiles"
build "-Cprofile-generate=$profiles"
rm -rf "$profiles" # what build scripts and macros left
mkdir -p "$profiles"
# Exit code 1: it ran, and instrumented binaries miss the targets.
train() {
  "$1/loadtest" --scenario "$scenarios" --seconds 2 --rounds 1 \
    --results "$target/results" || [ $? = 1 ]
}
train "$target/release"

merged=$target/merged.profdata
for tool in "${tools[@]}"; do
  if "$tool" merge --sparse -o "$merged" "$profiles"/*.profraw; then break; fi
  rm -f "$merged"
done
if [ ! -e "$merged" ]; then
  echo "no llvm-profdata here reads what $(rustc --version) writes: ${tools[*]}" >&2
  exit 1
fi
# A profile of other processes only would optimise nothing, and say nothing.
if ! "$tool" show --all-functions "$merged" | grep 7tollbar5proxy >/dev/null; then
  echo "the load tests left no profile of tollbar in $profiles" >&2
  exit 1
fi
if [ -z "$bolt" ]; then
  build "-Cprofile-use=$merged"
else
  build "-Cprofile-use=$merged -Clink-arg=-Wl,--emit-relocs"
  laid=$target/layout
  rm -rf "$laid"
  mkdir -p "$laid"
  cp "$target/release/"{loadtest,quick-provider,scripted-provider} "$laid"
  for name in tollbar yardstick; do
    # BOLT takes `x.cold` and `x.warm` for parts of `x`; Rust writes `::cold` as `..cold`.
    plain=$laid/$name.plain
    nm "$target/release/$name" |
      sed -nE 's/.* (\S*\.\.(cold|warm)\S*)$/\1/p' | sort -u |
      sed -E 's/(.*)/\1 \1/; :again; s/( .*\.\.)(cold|warm)/\1_\2/; t again' >"$laid/$name.names"
    objcopy --redefine-syms="$laid/$name.names" "$target/release/$name" "$plain"
    "$bolt" "$plain" -instrument -o "$laid/$name" \
      --instrumentation-file="$laid/$name" --instrumentation-file-append-pid >"$laid/$name.log"
  done
  train "$laid"
  for name in tollbar yardstick; do
    "$merge_fdata" "$laid/$name".*.fdata -o "$laid/$name.fdata"
    "$bolt" "$laid/$name.plain" -o "$laid/$name" -data="$laid/$name.fdata" \
      -reorder-blocks=ext-tsp -reorder-functions=cdsort -split-functions -split-all-cold -split-eh \
      -icf=1 -use-gnu-stack >"$laid/$name.log"
    mv "$laid/$name" "$target/release/$name"
  done
fi
echo "built: $target/release/tollbar"
echo "measure it beside a yardstick built the same way: $target/release/loadtest --quick"
