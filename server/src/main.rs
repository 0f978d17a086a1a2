//! The `millpond` binary.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    millpond_server::cli::main(std::env::args_os())
}
