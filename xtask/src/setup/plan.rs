//! What is needed, held against what is there. Pure: the whole of it is tested with literals.

use std::fmt;

use super::facts::{Compiler, Facts, Linker, Release, llvm_prefix};

/// A program that tests, the lab or the benchmarks call.
pub(super) struct Tool {
    pub(super) program: &'static str,
    /// Debian's package that has it.
    package: &'static str,
    /// Who asks for it.
    why: &'static str,
}

pub(super) const TOOLS: &[Tool] = &[
    Tool { program: "ip", package: "iproute2", why: "tests look at the kernel through it" },
    Tool { program: "ethtool", package: "ethtool", why: "tests switch offloads off" },
    Tool { program: "bpftool", package: "bpftool", why: "tests look at loaded programs" },
    Tool { program: "sysctl", package: "procps", why: "tests set up their namespaces" },
    Tool { program: "curl", package: "curl", why: "tests and the demo ask Services with it" },
    Tool { program: "ping", package: "iputils-ping", why: "tests ask whether packets get through" },
    Tool {
        program: "/usr/lib/cni/portmap",
        package: "containernetworking-plugins",
        why: "tests put the reference CNI plugins in a chain with ours",
    },
    Tool { program: "iptables", package: "iptables", why: "a baseline of the benchmarks" },
    Tool { program: "nft", package: "nftables", why: "a baseline of the benchmarks" },
    Tool {
        program: "host-local",
        package: "containernetworking-plugins",
        why: "the reference plugins, beside ours and in chains with it",
    },
    Tool {
        program: "dpkg-shlibdeps",
        package: "dpkg-dev",
        why: "Debian packages are made with it",
    },
    Tool { program: "redis-server", package: "redis-server", why: "redis pods of the lab" },
    Tool { program: "nginx", package: "nginx", why: "nginx pods of the lab" },
    Tool { program: "nghttp", package: "nghttp2-client", why: "tests ask gateways with it" },
    Tool { program: "h2load", package: "nghttp2-client", why: "tests ask gateways with it" },
    Tool {
        program: "/usr/lib/python3/dist-packages/h2/__init__.py",
        package: "python3-h2",
        why: "tests ask gateways by HTTP/2, frame by frame",
    },
    Tool {
        program: "/usr/lib/python3/dist-packages/grpc/__init__.py",
        package: "python3-grpcio",
        why: "gRPC pods of the lab, and who asks them",
    },
    Tool {
        program: "/usr/lib/python3/dist-packages/websockets/__init__.py",
        package: "python3-websockets",
        why: "WebSocket pods of the lab, and who asks them",
    },
    Tool { program: "dig", package: "bind9-dnsutils", why: "tests ask for names with it" },
    Tool { program: "musl-gcc", package: "musl-tools", why: "a test asks for names through musl" },
    Tool { program: "testssl", package: "testssl.sh", why: "tests look at gateways with it" },
    Tool { program: "openssl", package: "openssl", why: "the examples' certificates" },
    Tool {
        program: "qemu-system-x86_64",
        package: "qemu-system-x86",
        why: "tests run on an older kernel in it",
    },
];

/// The release of bpf-linker that the eBPF crate is built and tested with.
pub(super) const LINKER: &str = "0.13.0";
const OLDEST_LINKER: Release = (0, 13);
/// The LLVMs that this bpf-linker can be built against.
const LINKER_LLVMS: std::ops::RangeInclusive<u32> = 21..=23;

/// The oldest that `cargo xtask guest` tries.
const OLDEST_KERNEL: Release = (6, 1);

/// Debian's newest compiler that comes with its source, and the LLVM it was built with: the pair for the eBPF build.
const DEBIAN: u32 = 12;
const DEBIAN_COMPILER: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
const DEBIAN_LLVM: u32 = 22;
const DEBIAN_LLVM_PACKAGE: &str = "llvm-22-dev";

/// A requirement and how it stands.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) requirement: &'static str,
    pub(super) state: State,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Met; the text says by what.
    Found(String),
    /// Not met yet, and this would help.
    Needs(Step),
    /// Not met, and for the user to meet; the text says how.
    Missing(String),
}

/// Something that changes the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Add the source of `core` to rustup's toolchain.
    RustSource,
    /// Install Debian packages, without those they merely recommend.
    Packages(Vec<&'static str>),
    /// Build bpf-linker against the LLVM of this major release.
    Linker(u32),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RustSource => f.write_str("rustup component add rust-src"),
            Self::Packages(packages) => {
                write!(f, "apt-get install --no-install-recommends {}", packages.join(" "))
            }
            Self::Linker(llvm) => write!(
                f,
                "LLVM_PREFIX={} cargo install bpf-linker --version {LINKER} --no-default-features \
                 --features llvm-{llvm} --locked",
                llvm_prefix(*llvm)
            ),
        }
    }
}

/// Holds the machine against every requirement, always in the same order; `refused` are steps not to ask for again.
pub(super) fn assess(facts: &Facts, refused: &[Step]) -> Vec<Line> {
    let [compiler, linker] = toolchain(facts, refused);
    let mut lines = vec![
        Line { requirement: "kernel", state: kernel(facts) },
        Line { requirement: "rustc + core", state: compiler },
        Line { requirement: "bpf-linker", state: linker },
    ];
    for (tool, path) in TOOLS.iter().zip(&facts.tools) {
        let state = match path {
            Some(path) => State::Found(path.display().to_string()),
            None if facts.debian.is_some() => packages(facts, &[tool.package]),
            None => State::Missing(format!("install the package that has it ({})", tool.why)),
        };
        lines.push(Line { requirement: tool.program, state });
    }
    lines
}

/// The next step that some line needs. All packages are one step, so that one transaction installs them.
pub(super) fn next_step(lines: &[Line]) -> Option<Step> {
    let needs = || {
        lines.iter().filter_map(|line| match &line.state {
            State::Needs(step) => Some(step),
            State::Found(_) | State::Missing(_) => None,
        })
    };
    // Rustup first: if it cannot, more packages are asked for.
    if needs().any(|step| *step == Step::RustSource) {
        return Some(Step::RustSource);
    }
    let mut all: Vec<&'static str> = Vec::new();
    for step in needs() {
        if let Step::Packages(packages) = step {
            all.extend(packages);
        }
    }
    if all.is_empty() { needs().next().cloned() } else { Some(Step::Packages(all)) }
}

fn kernel(facts: &Facts) -> State {
    let (major, minor) = OLDEST_KERNEL;
    if std::env::consts::ARCH != "x86_64" {
        return State::Missing(format!("x86_64; this is {}", std::env::consts::ARCH));
    }
    match facts.kernel {
        Some(running) if running >= OLDEST_KERNEL => {
            State::Found(format!("{}.{} (needs {major}.{minor})", running.0, running.1))
        }
        Some(running) => State::Missing(format!(
            "Linux {major}.{minor} or newer; {}.{} is running",
            running.0, running.1
        )),
        None => State::Missing(format!(
            "Linux {major}.{minor} or newer; /proc/sys/kernel/osrelease does not say what is running"
        )),
    }
}

/// The compiler and the linker of the eBPF build: they belong together, because the linker reads what the compiler's LLVM
/// wrote and an older LLVM cannot.
fn toolchain(facts: &Facts, refused: &[Step]) -> [State; 2] {
    let serves = |linker: &Linker, llvm: u32| {
        linker.release >= OLDEST_LINKER && linker.llvm.is_none_or(|its| its >= llvm)
    };
    let linkable = |llvm: u32| {
        facts.linker.as_ref().is_some_and(|linker| serves(linker, llvm))
            || obtainable_llvm(facts).is_some_and(|best| best >= llvm)
    };
    let compilers = || facts.compilers.iter().filter(|compiler| compiler.release >= oldest_rustc());

    let (compiler, llvm) = if let Some(ready) =
        compilers().find(|compiler| compiler.source && linkable(compiler.llvm))
    {
        (State::Found(describe(ready)), ready.llvm)
    } else if let Some(ours) =
        compilers().find(|compiler| compiler.rustup && linkable(compiler.llvm))
        && !refused.contains(&Step::RustSource)
    {
        (State::Needs(Step::RustSource), ours.llvm)
    } else if facts.debian == Some(DEBIAN) {
        (packages(facts, &DEBIAN_COMPILER), DEBIAN_LLVM)
    } else {
        let llvm = compilers().map(|compiler| compiler.llvm).next().unwrap_or(DEBIAN_LLVM);
        let (major, minor) = oldest_rustc();
        let hint = format!(
            "a rustc {major}.{minor} or newer with the source of core: `{}`",
            Step::RustSource
        );
        (State::Missing(hint), llvm)
    };

    let linker = match &facts.linker {
        Some(linker) if serves(linker, llvm) => State::Found(describe_linker(linker)),
        _ => linker_for(facts, llvm),
    };
    [compiler, linker]
}

/// How to come to a linker for what a compiler with this LLVM writes.
fn linker_for(facts: &Facts, llvm: u32) -> State {
    let installed =
        facts.llvm.iter().copied().find(|&major| major >= llvm && LINKER_LLVMS.contains(&major));
    match installed {
        Some(major) => State::Needs(Step::Linker(major)),
        None if facts.debian == Some(DEBIAN) && llvm <= DEBIAN_LLVM => {
            packages(facts, &[DEBIAN_LLVM_PACKAGE])
        }
        None => State::Missing(format!(
            "install LLVM {llvm} with its development files, then, with LLVM_PREFIX as the folder it is in, `{}`; \
             or put a ready-made bpf-linker {LINKER} on the search path",
            Step::Linker(llvm)
        )),
    }
}

/// The newest LLVM that a linker can be built with here.
fn obtainable_llvm(facts: &Facts) -> Option<u32> {
    let packaged = (facts.debian == Some(DEBIAN)).then_some(DEBIAN_LLVM);
    facts.llvm.iter().copied().filter(|major| LINKER_LLVMS.contains(major)).chain(packaged).max()
}

/// Packages are installed by root and by nobody else; the user of the second kind gets the command.
fn packages(facts: &Facts, packages: &[&'static str]) -> State {
    let step = Step::Packages(packages.to_vec());
    if facts.root { State::Needs(step) } else { State::Missing(format!("as root: {step}")) }
}

/// The release that the workspace says it needs.
fn oldest_rustc() -> Release {
    const DECLARED: &str = env!("CARGO_PKG_RUST_VERSION");
    let mut numbers = DECLARED.split('.').map_while(|number| number.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn describe(compiler: &Compiler) -> String {
    let Compiler { rustc, release: (major, minor), llvm, .. } = compiler;
    format!("{} ({major}.{minor}, LLVM {llvm})", rustc.display())
}

fn describe_linker(linker: &Linker) -> String {
    let Linker { path, release: (major, minor), llvm } = linker;
    let llvm = llvm.map_or("inside".to_owned(), |llvm| llvm.to_string());
    format!("{} ({major}.{minor}, LLVM {llvm})", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_with_everything_needs_nothing() {
        let lines = assess(&complete(), &[]);
        assert_eq!(lines.len(), 3 + TOOLS.len());
        assert!(lines.iter().all(|line| matches!(line.state, State::Found(_))), "{lines:#?}");
        assert_eq!(next_step(&lines), None);
    }

    #[test]
    fn a_bare_debian_gets_rust_source_then_all_packages_at_once_then_the_linker() {
        let mut facts = complete();
        facts.compilers[0].source = false;
        facts.linker = None;
        facts.llvm.clear();
        facts.tools.fill(None);
        assert_eq!(step(&facts, &[]), Some(Step::RustSource));

        facts.compilers[0].source = true;
        let Some(Step::Packages(packages)) = step(&facts, &[]) else {
            panic!("packages come next")
        };
        assert_eq!(packages.len(), 1 + TOOLS.len());
        assert_eq!(packages[0], "llvm-22-dev");
        assert!(packages.contains(&"redis-server"));

        facts.tools = complete().tools;
        facts.llvm = vec![22];
        assert_eq!(step(&facts, &[]), Some(Step::Linker(22)));
        facts.linker = complete().linker;
        assert_eq!(step(&facts, &[]), None);
    }

    #[test]
    fn debians_compiler_is_taken_where_rustup_cannot() {
        let mut facts = complete();
        facts.compilers[0].source = false;
        let compiler = Step::Packages(vec!["rustc-web", "cargo-web", "rust-web-src"]);
        assert_eq!(step(&facts, &[Step::RustSource]), Some(compiler.clone()));
        // A compiler that no linker here can follow is as good as none, even with its source.
        facts.compilers[0] = Compiler { llvm: 24, source: true, ..facts.compilers[0].clone() };
        assert_eq!(step(&facts, &[]), Some(compiler.clone()));
        // So is one that is too old, or none at all.
        facts.compilers[0] = Compiler { release: (1, 90), llvm: 20, ..facts.compilers[0].clone() };
        assert_eq!(step(&facts, &[]), Some(compiler.clone()));
        facts.compilers.clear();
        assert_eq!(step(&facts, &[]), Some(compiler));
    }

    #[test]
    fn the_second_compiler_is_taken_if_the_first_has_no_source() {
        let mut facts = complete();
        let debian = Compiler {
            rustc: "/usr/bin/rustc".into(),
            rustup: false,
            ..facts.compilers[0].clone()
        };
        facts.compilers[0].source = false;
        facts.compilers.push(debian);
        assert_eq!(step(&facts, &[]), None);
        assert!(text(&facts, "rustc + core").starts_with("/usr/bin/rustc"));
    }

    #[test]
    fn a_linker_with_an_older_llvm_or_an_older_release_is_built_anew() {
        let mut facts = complete();
        facts.linker = Some(Linker { llvm: Some(21), ..complete().linker.unwrap() });
        assert_eq!(step(&facts, &[]), Some(Step::Linker(22)));
        facts.linker = Some(Linker { release: (0, 9), ..complete().linker.unwrap() });
        assert_eq!(step(&facts, &[]), Some(Step::Linker(22)));
        facts.linker = Some(Linker { llvm: None, ..complete().linker.unwrap() });
        assert_eq!(step(&facts, &[]), None);
    }

    #[test]
    fn without_root_the_exact_command_is_given() {
        let mut facts = complete();
        facts.root = false;
        facts.tools.fill(None);
        assert_eq!(step(&facts, &[]), None);
        assert_eq!(
            text(&facts, "nft"),
            "as root: apt-get install --no-install-recommends nftables"
        );
    }

    #[test]
    fn another_distribution_is_told_what_to_do() {
        let mut facts = complete();
        facts.debian = None;
        facts.compilers.clear();
        facts.linker = None;
        facts.llvm.clear();
        facts.tools.fill(None);
        assert_eq!(step(&facts, &[]), None);
        assert!(text(&facts, "rustc + core").contains("rustup component add rust-src"));
        assert!(text(&facts, "bpf-linker").contains("--version 0.13.0"));
        assert!(text(&facts, "ip").contains("install the package"));
        // Its own LLVM, where it lies as on Debian, is used.
        facts.llvm = vec![23];
        assert_eq!(step(&facts, &[]), Some(Step::Linker(23)));
    }

    #[test]
    fn an_old_or_unknown_kernel_is_missing() {
        let mut facts = complete();
        facts.kernel = Some((5, 15));
        assert!(text(&facts, "kernel").contains("5.15 is running"));
        facts.kernel = None;
        assert!(text(&facts, "kernel").contains("6.1 or newer"));
        facts.kernel = Some((7, 0));
        assert!(text(&facts, "kernel").starts_with("7.0"));
    }

    fn complete() -> Facts {
        Facts {
            root: true,
            debian: Some(12),
            kernel: Some((6, 6)),
            compilers: vec![Compiler {
                rustc: "/home/me/.cargo/bin/rustc".into(),
                release: (1, 95),
                llvm: 22,
                source: true,
                rustup: true,
            }],
            linker: Some(Linker {
                path: "/home/me/.cargo/bin/bpf-linker".into(),
                release: (0, 13),
                llvm: Some(22),
            }),
            llvm: vec![22],
            tools: TOOLS.iter().map(|tool| Some(tool.program.into())).collect(),
        }
    }

    fn step(facts: &Facts, refused: &[Step]) -> Option<Step> {
        next_step(&assess(facts, refused))
    }

    fn text(facts: &Facts, requirement: &str) -> String {
        let line = assess(facts, &[]).into_iter().find(|line| line.requirement == requirement);
        match line.expect("a known requirement").state {
            State::Found(text) | State::Missing(text) => text,
            State::Needs(step) => step.to_string(),
        }
    }
}
