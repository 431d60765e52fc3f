//! Builds the eBPF programs for the build script that asks, whose crate embeds their object.
//!
//! It needs a rustc with the core library's source and a bpf-linker whose LLVM is at least as new as
//! that rustc's; `cargo xtask setup` finds or installs both.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

/// What the programs are built from, relative to the workspace.
const SOURCES: [&str; 9] = [
    "Cargo.toml",
    "Cargo.lock",
    "ebpf/src",
    "ebpf/Cargo.toml",
    "ebpf/core/src",
    "ebpf/core/Cargo.toml",
    "ebpf/abi/src",
    "ebpf/abi/Cargo.toml",
    "proxy/build/programs.rs",
];

const TARGET: &str = "bpfel-unknown-none";

/// Builds them once for each of `objects`: the name under which the path of the object is in the environment
/// of the crate that is built, and features of `fairway-ebpf`. `workspace`: where that is.
pub(crate) fn build(workspace: &str, objects: &[(&str, &str)]) {
    for source in SOURCES {
        println!("cargo:rerun-if-changed={workspace}/{source}");
    }
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=PATH");
    for (variable, features) in objects {
        let object = build_one(workspace, features, variable);
        println!("cargo:rustc-env={variable}={}", object.display());
    }
}

/// Builds them with some features; the object, a file called `name`.
fn build_one(workspace: &str, features: &str, name: &str) -> PathBuf {
    let Some((cargo, rustc)) = toolchain() else {
        fail("no rustc with the core library's source");
    };
    let Some(linker) = linker() else { fail("no bpf-linker") };
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let target_dir = out.join("ebpf");
    let flags = [
        // Registers and system call numbers are those of the machine the programs run on.
        format!(
            "--cfg=bpf_target_arch=\"{}\"",
            env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default()
        ),
        // Type information for the kernel and for bpftool.
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // LLVM 22 crashes on memcpy pseudo instructions with many live registers.
        "-Clink-arg=--disable-expand-memcpy-in-order".to_owned(),
        // 32-bit jumps and arithmetic, fetching atomics: kernel 5.12 and newer.
        "-Ctarget-cpu=v3".to_owned(),
        format!("-Clinker={}", linker.display()),
    ];
    let mut build = Command::new(&cargo);
    build
        .args(["build", "--release", "--locked", "--package", "fairway-ebpf", "--target", TARGET])
        .args(["--features", features, "-Z", "build-std=core", "--target-dir"])
        .arg(&target_dir)
        .current_dir(workspace)
        .env("RUSTC", &rustc)
        // `build-std` is unstable; the compiler and its source are of one version.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    // What cargo tells this script is about the host's build, not about the one it starts.
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        let about_host = ["CARGO_CFG_", "CARGO_FEATURE_", "CARGO_PKG_", "CARGO_PROFILE_"];
        let unset = [
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTFLAGS",
            "RUSTDOC",
            "RUSTUP_TOOLCHAIN",
            "TARGET",
            "CARGO_TARGET_DIR",
            "CARGO_BUILD_TARGET",
            "CARGO_MAKEFLAGS",
            "MAKEFLAGS",
        ];
        if about_host.iter().any(|prefix| name.starts_with(prefix)) || unset.contains(&&*name) {
            build.env_remove(&name);
        }
    }
    match build.status() {
        Ok(status) if status.success() => {}
        Ok(status) => fail(&format!("the eBPF build failed ({status}), see above")),
        Err(error) => fail(&format!("{}: {error}", cargo.display())),
    }
    let built = target_dir.join(TARGET).join("release/fairway-ebpf");
    let object = out.join(name);
    if let Err(error) = fs::copy(&built, &object) {
        fail(&format!("copy {} to {}: {error}", built.display(), object.display()));
    }
    object
}

/// Cargo and a rustc that has the core library's source beside it: the ones that build us, or
/// Debian's.
fn toolchain() -> Option<(PathBuf, PathBuf)> {
    let ours = (
        PathBuf::from(env::var_os("CARGO").unwrap_or_else(|| "cargo".into())),
        PathBuf::from(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into())),
    );
    let debian = (PathBuf::from("/usr/bin/cargo"), PathBuf::from("/usr/bin/rustc"));
    [ours, debian].into_iter().find(|(_, rustc)| {
        let Ok(output) = Command::new(rustc).args(["--print", "sysroot"]).output() else {
            return false;
        };
        let sysroot = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success()
            && Path::new(&sysroot).join("lib/rustlib/src/rust/library/core").is_dir()
    })
}

/// bpf-linker on the path, or where cargo installs it.
fn linker() -> Option<PathBuf> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(home.map(|home| home.join("bin")))
        .map(|folder| folder.join("bpf-linker"))
        .find(|file| file.is_file())
}

fn fail(what: &str) -> ! {
    println!("cargo:warning=cannot build the eBPF programs: {what}; run `cargo xtask setup`");
    exit(1)
}
