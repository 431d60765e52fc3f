//! Builds the eBPF programs of the other version.

#[path = "../build/programs.rs"]
mod programs;

fn main() {
    programs::build("../..", "next");
}
