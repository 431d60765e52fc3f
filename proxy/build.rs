//! Builds the eBPF programs and hands their objects to the agent, which embeds them.

#[path = "build/programs.rs"]
mod programs;

fn main() {
    programs::build("..", &[("FAIRWAY_EBPF_OBJECT", ""), ("FAIRWAY_EBPF_OBJECT_ASIDE", "aside")]);
}
