//! `fairway-cni`: the executable a container runtime finds in its plugin folder.

use std::process::ExitCode;

fn main() -> ExitCode {
    let env = |name: &str| std::env::var_os(name);
    fairway_cni::run(&env, &mut std::io::stdin().lock(), &mut std::io::stdout().lock()).into()
}
