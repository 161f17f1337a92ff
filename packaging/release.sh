#!/usr/bin/env bash
# Makes what is published of a commit: the Debian packages, a tarball with a static binary, a bill of materials, and
# their checksums. The same commit gives the same bytes in whatever folder, by the same compiler, linker and tools.
#
# usage: release.sh COMMIT FOLDER
#
# FOLDER/published is what has been made; FOLDER/source is the commit's tree, FOLDER/target what cargo made of it.
# FOLDER is new, or of an earlier release: what has these names in it is replaced.
set -euo pipefail

for tool in cargo-deb cargo-cyclonedx; do
    command -v "$tool" > /dev/null || { echo "$tool is missing: cargo install --locked $tool" >&2; exit 1; }
done

commit=$1
mkdir -p "$2"
folder=$(cd "$2" && pwd)
source=$folder/source
published=$folder/published
own=$folder/made-by-release.sh
if [[ ! -e $own && -n $(ls -A "$folder") ]]; then
    echo "$folder is neither empty nor of an earlier release: name another, or remove it" >&2
    exit 1
fi
touch "$own"

# The commit and nothing else: no file that git does not know, no change that it has not got.
rm -rf "$source" "$published"
mkdir "$source" "$published"
repository=$(git -C "$(dirname "$0")" rev-parse --show-toplevel) # of a folder below, git would archive that folder
git -C "$repository" archive "$commit" | tar --extract --directory "$source"
SOURCE_DATE_EPOCH=$(git -C "$repository" log -1 --format=%ct "$commit")
export SOURCE_DATE_EPOCH
cd "$source"

# Paths are in panics' messages and in what debuggers read.
flags="--remap-path-prefix=$folder=/steadfast"
for registry in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*; do
    flags+=" --remap-path-prefix=$registry=/crates"
done
export CARGO_TARGET_DIR=$folder/target
export CARGO_INCREMENTAL=0

# --- The Debian packages --------------------------------------------------------
RUSTFLAGS=$flags cargo deb --quiet --locked --output "$published/"

# --- The tarball ----------------------------------------------------------------
host=$(rustc -vV | sed -n 's/^host: //p')
version=$(cargo pkgid --locked)
version=${version##*[#@]}
name=steadfast-$version-${host%%-*}-linux
# With glibc: with musl, whose allocator is slower, a request took half as much CPU time again, and the start no less.
# With a target of its own, for build scripts and macros cannot be static.
RUSTFLAGS="$flags -C target-feature=+crt-static" cargo build --quiet --release --locked --bin steadfast --target "$host"

root=$folder/tarball/$name
rm -rf "$folder/tarball"
mkdir -p "$root"
cp -r README.md ARCHITECTURE.md CONTRIBUTING.md CHANGELOG.md LICENSE-* config.toml.example docs packaging "$root"
mkdir "$root/bench"
cp -r bench/*.md bench/plots "$root/bench"
strip --strip-all -o "$root/steadfast" "$CARGO_TARGET_DIR/$host/release/steadfast"
"$root/steadfast" check --config "$root/config.toml.example" > /dev/null
tar --create --directory "$folder/tarball" --sort=name --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX \
    --mtime="@$SOURCE_DATE_EPOCH" "$name" | gzip --no-name --best > "$published/$name.tar.gz"

# --- The bill of materials ------------------------------------------------------
# It is written beside every Cargo.toml of the workspace, and tells of the folder that it was made in.
cargo cyclonedx --quiet --format json --spec-version 1.5 --target "$host" --override-filename bom
sed "s|$source|/steadfast/source|g" bom.json > "$published/steadfast-$version.cdx.json"

cd "$published"
sha256sum -- * > SHA256SUMS
cat SHA256SUMS
