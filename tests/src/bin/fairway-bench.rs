//! `fairway-bench`: what Fairway costs, side by side with what it replaces.

use std::process::ExitCode;

fn main() -> ExitCode {
    fairway_tests::bench::main()
}
