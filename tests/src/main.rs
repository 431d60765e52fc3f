//! `fairway-lab`: a cluster on one machine.

use std::process::ExitCode;

fn main() -> ExitCode {
    fairway_tests::cli::main()
}
