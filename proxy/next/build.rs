//! Builds the eBPF programs of the other version.

#[path = "../build/programs.rs"]
mod programs;

fn main() {
    // Whether something came before them or not: the real version shows that there are two kinds.
    programs::build("../..", &[("FAIRWAY_EBPF_OBJECT", "next,aside")]);
}
