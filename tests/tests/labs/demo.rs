//! The walk that newcomers take.

use std::process::Command;

use fairway_tests::{binaries::binaries, may_run, unique_name};

#[test]
fn every_step_of_the_demo_is_as_it_should_be() {
    if !may_run("demo") {
        return;
    }
    let output = Command::new(binaries().unwrap().join("fairway-lab"))
        .args(["demo", "--check", "--name", unique_name("demo").as_str()])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
