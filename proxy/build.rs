//! Builds the eBPF programs and hands their object to the agent, which embeds it.

#[path = "build/programs.rs"]
mod programs;

fn main() {
    programs::build("..", "");
}
