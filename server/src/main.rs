//! The `millpond` binary.
#![forbid(unsafe_code)]

fn main() {
    println!("{}", env!("CARGO_PKG_VERSION"));
}
