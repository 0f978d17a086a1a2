#!/usr/bin/env bash
# Makes the Debian package: the binary, its manual pages and completions, and the guide. Needs `cargo install cargo-deb`.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release -p millpond-server
millpond=${CARGO_TARGET_DIR:-target}/release/millpond
# server/Cargo.toml names these.
files=target/package
rm -rf "$files"
mkdir -p "$files"
"$millpond" man "$files/man"
"$millpond" completions bash > "$files/millpond.bash"
"$millpond" completions zsh > "$files/_millpond"
"$millpond" completions fish > "$files/millpond.fish"
cargo deb -p millpond-server --no-build "$@"
