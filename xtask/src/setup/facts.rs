//! What there is on this machine, read without changing anything.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::plan::TOOLS;
use crate::cargo::{root, stdout_of};

/// A release as `major.minor`; what comes after decides nothing here.
pub(super) type Release = (u32, u32);

/// All that [`super::plan`] decides from.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// Whether packages may be installed.
    pub(super) root: bool,
    /// Debian's major release, if this is Debian.
    pub(super) debian: Option<u32>,
    /// The running kernel.
    pub(super) kernel: Option<Release>,
    /// Rust compilers, the one cargo uses first.
    pub(super) compilers: Vec<Compiler>,
    /// The bpf-linker that a build would call.
    pub(super) linker: Option<Linker>,
    /// LLVM majors whose development files are installed where Debian puts them.
    pub(super) llvm: Vec<u32>,
    /// Path of each of [`TOOLS`], in that order.
    pub(super) tools: Vec<Option<PathBuf>>,
}

/// A Rust compiler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Compiler {
    pub(super) rustc: PathBuf,
    pub(super) release: Release,
    /// Major release of the LLVM inside; the linker's may not be older.
    pub(super) llvm: u32,
    /// Whether the source of `core` lies beside it.
    pub(super) source: bool,
    /// Whether rustup manages it and can add components.
    pub(super) rustup: bool,
}

/// A bpf-linker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Linker {
    pub(super) path: PathBuf,
    pub(super) release: Release,
    /// Major release of the LLVM it loads; none if it is linked in, and then not known.
    pub(super) llvm: Option<u32>,
}

/// The questions that [`Facts::gather`] puts to a machine.
pub(super) trait Machine {
    /// A program on the search path, or where administrators' programs are.
    fn find(&self, program: &str) -> Option<PathBuf>;
    /// Whether a file or folder is there.
    fn exists(&self, path: &Path) -> bool;
    /// A file's content, if it is readable.
    fn read(&self, path: &Path) -> Option<Vec<u8>>;
    /// What a program prints, if it succeeds.
    fn ask(&self, program: &Path, args: &[&str]) -> Option<String>;
}

/// The machine we run on.
pub(super) struct ThisMachine;

impl Machine for ThisMachine {
    fn find(&self, program: &str) -> Option<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        // Administrators' programs are often not on a user's search path; cargo installs to a folder that may not be.
        let cargo_home = std::env::var_os("CARGO_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
        std::env::split_paths(&path)
            .chain(cargo_home.map(|home| home.join("bin")))
            .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
            .chain([PathBuf::from("/usr/lib/cni")]) // Debian's place for CNI plugins
            .map(|folder| folder.join(program))
            .find(|candidate| candidate.is_file())
    }

    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }

    fn read(&self, path: &Path) -> Option<Vec<u8>> {
        std::fs::read(path).ok()
    }

    fn ask(&self, program: &Path, args: &[&str]) -> Option<String> {
        // The workspace's folder decides which toolchain rustup takes.
        stdout_of(Command::new(program).args(args).current_dir(root())).ok()
    }
}

impl Facts {
    /// Looks at everything the plan needs to know.
    pub(super) fn gather(machine: &impl Machine) -> Self {
        let text = |path: &str| {
            machine.read(Path::new(path)).map(|b| String::from_utf8_lossy(&b).into_owned())
        };
        Self {
            root: text("/proc/self/status").is_some_and(|status| runs_as_root(&status)),
            debian: text("/etc/os-release").and_then(|release| debian_release(&release)),
            kernel: text("/proc/sys/kernel/osrelease").and_then(|release| parse_release(&release)),
            compilers: compilers(machine),
            linker: linker(machine),
            llvm: (21..=23)
                .filter(|major| machine.exists(Path::new(&llvm_header(*major))))
                .collect(),
            tools: TOOLS.iter().map(|tool| machine.find(tool.program)).collect(),
        }
    }
}

/// Where Debian's packages put an LLVM.
pub(super) fn llvm_prefix(major: u32) -> String {
    format!("/usr/lib/llvm-{major}")
}

/// The file of an LLVM's development package that stands for all of them.
fn llvm_header(major: u32) -> String {
    format!("{}/include/llvm-c/Core.h", llvm_prefix(major))
}

/// Cargo's own compiler, and that of Debian's packages if it is another one.
fn compilers(machine: &impl Machine) -> Vec<Compiler> {
    let mut compilers: Vec<Compiler> = Vec::new();
    let mut sysroots = Vec::new();
    for rustc in machine.find("rustc").into_iter().chain([PathBuf::from("/usr/bin/rustc")]) {
        let Some(sysroot) = machine.ask(&rustc, &["--print", "sysroot"]) else {
            continue;
        };
        if sysroots.contains(&sysroot) {
            continue;
        }
        let Some(version) = machine.ask(&rustc, &["-vV"]) else {
            continue;
        };
        let field = |name: &str| {
            version.lines().find_map(|line| line.strip_prefix(name)).and_then(parse_release)
        };
        if let (Some(release), Some((llvm, _))) = (field("release: "), field("LLVM version: ")) {
            let library = Path::new(sysroot.trim()).join("lib/rustlib");
            compilers.push(Compiler {
                release,
                llvm,
                source: machine.exists(&library.join("src/rust/library/core/Cargo.toml")),
                // Rustup's installer leaves this list of components; a distribution's package has none.
                rustup: machine.exists(&library.join("components")),
                rustc,
            });
        }
        sysroots.push(sysroot);
    }
    compilers
}

fn linker(machine: &impl Machine) -> Option<Linker> {
    let path = machine.find("bpf-linker")?;
    let version = machine.ask(&path, &["--version"])?;
    let release = parse_release(version.trim().strip_prefix("bpf-linker ")?)?;
    let llvm = loaded_llvm(&machine.read(&path)?);
    Some(Linker { path, release, llvm })
}

/// The major release in a binary's reference to `libLLVM.so.22.1`, the library it loads.
fn loaded_llvm(binary: &[u8]) -> Option<u32> {
    const LIBRARY: &[u8] = b"libLLVM.so.";
    let at = binary.windows(LIBRARY.len()).position(|window| window == LIBRARY)?;
    let digits: String = binary[at + LIBRARY.len()..]
        .iter()
        .map(|&byte| char::from(byte))
        .take_while(char::is_ascii_digit)
        .collect();
    digits.parse().ok()
}

/// `6.18.0-rc3`, `1.96.0` and `12.2` alike.
fn parse_release(text: &str) -> Option<Release> {
    let mut numbers = text.trim().split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Whether the effective user, the second number of the `Uid:` line in `/proc/self/status`, is root.
fn runs_as_root(status: &str) -> bool {
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    uid.and_then(|uid| uid.split_whitespace().nth(1)) == Some("0")
}

/// The major release that an `/etc/os-release` of Debian names.
fn debian_release(os_release: &str) -> Option<u32> {
    let field = |name: &str| {
        os_release.lines().find_map(|line| Some(line.strip_prefix(name)?.trim_matches('"')))
    };
    (field("ID=") == Some("debian")).then(|| field("VERSION_ID=")?.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn a_bare_machine_has_nothing_and_asking_it_is_no_error() {
        let facts = Facts::gather(&Fake::default());
        assert!(!facts.root);
        assert_eq!((facts.debian, facts.kernel, facts.linker), (None, None, None));
        assert_eq!((facts.compilers, facts.llvm), (vec![], vec![]));
        assert!(facts.tools.iter().all(Option::is_none));
        assert_eq!(facts.tools.len(), TOOLS.len());
    }

    #[test]
    fn everything_that_is_there_is_seen() {
        let machine = Fake::default()
            .file("/proc/self/status", "Name:\txtask\nUid:\t1000\t0\t0\t0\n")
            .file("/proc/sys/kernel/osrelease", "6.18.5-cloud\n")
            .file("/etc/os-release", "ID=debian\nVERSION_ID=\"12\"\n")
            .program("rustc", "/home/me/.cargo/bin/rustc")
            .answer("/home/me/.cargo/bin/rustc --print sysroot", "/toolchains/stable\n")
            .answer(
                "/home/me/.cargo/bin/rustc -vV",
                "rustc\nrelease: 1.95.0\nLLVM version: 22.1.2\n",
            )
            .file("/toolchains/stable/lib/rustlib/components", "")
            .answer("/usr/bin/rustc --print sysroot", "/usr\n")
            .answer("/usr/bin/rustc -vV", "release: 1.96.0-beta.1\nLLVM version: 22.1.8\n")
            .file("/usr/lib/rustlib/src/rust/library/core/Cargo.toml", "")
            .program("bpf-linker", "/bin/bpf-linker")
            .answer("/bin/bpf-linker --version", "bpf-linker 0.13.0\n")
            .file("/bin/bpf-linker", "\u{7f}ELF..\0libLLVM.so.22.1\0libc.so.6\0")
            .file("/usr/lib/llvm-22/include/llvm-c/Core.h", "")
            .program("nft", "/usr/sbin/nft");
        let facts = Facts::gather(&machine);
        assert!(facts.root, "the effective user counts");
        assert_eq!((facts.debian, facts.kernel), (Some(12), Some((6, 18))));
        assert_eq!(facts.compilers.len(), 2);
        let [rustup, debian] = &facts.compilers[..] else { unreachable!("counted above") };
        assert!(rustup.rustup && !rustup.source && rustup.release == (1, 95) && rustup.llvm == 22);
        assert!(!debian.rustup && debian.source && debian.release == (1, 96) && debian.llvm == 22);
        let linker = facts.linker.unwrap();
        assert_eq!((linker.release, linker.llvm), ((0, 13), Some(22)));
        assert_eq!(facts.llvm, [22]);
        let found: Vec<_> = facts.tools.into_iter().flatten().collect();
        assert_eq!(found, [Path::new("/usr/sbin/nft")]);
    }

    #[test]
    fn one_compiler_under_two_names_is_one() {
        let machine = Fake::default()
            .program("rustc", "/usr/bin/rustc")
            .answer("/usr/bin/rustc --print sysroot", "/usr\n")
            .answer("/usr/bin/rustc -vV", "release: 1.96.0\nLLVM version: 22.1\n");
        assert_eq!(Facts::gather(&machine).compilers.len(), 1);
    }

    #[test]
    fn a_linker_with_llvm_inside_has_an_unknown_llvm() {
        assert_eq!(loaded_llvm(b"\x7fELF nothing of the kind"), None);
        assert_eq!(loaded_llvm(b"libLLVM.so."), None);
        assert_eq!(loaded_llvm(b"x libLLVM.so.23"), Some(23));
    }

    #[test]
    fn only_debian_counts_as_debian() {
        assert_eq!(debian_release("ID=ubuntu\nID_LIKE=debian\nVERSION_ID=\"24.04\""), None);
        assert_eq!(debian_release("VERSION_ID=13\nID=debian"), Some(13));
        assert_eq!(debian_release("ID=debian\nVERSION_CODENAME=sid"), None);
    }

    #[test]
    fn releases_of_all_kinds_are_read() {
        assert_eq!(parse_release("6.18.0-rc3\n"), Some((6, 18)));
        assert_eq!(parse_release("22.1"), Some((22, 1)));
        assert_eq!(parse_release("13"), None);
        assert_eq!(parse_release("v1.2"), None);
    }

    /// A machine that has what a test says, and nothing else.
    #[derive(Default)]
    struct Fake {
        files: HashMap<PathBuf, String>,
        programs: HashMap<String, PathBuf>,
        answers: HashMap<String, String>,
    }

    impl Fake {
        fn file(mut self, path: &str, content: &str) -> Self {
            self.files.insert(path.into(), content.to_owned());
            self
        }

        fn program(mut self, name: &str, path: &str) -> Self {
            self.programs.insert(name.to_owned(), path.into());
            self
        }

        fn answer(mut self, command: &str, stdout: &str) -> Self {
            self.answers.insert(command.to_owned(), stdout.to_owned());
            self
        }
    }

    impl Machine for Fake {
        fn find(&self, program: &str) -> Option<PathBuf> {
            self.programs.get(program).cloned()
        }

        fn exists(&self, path: &Path) -> bool {
            self.files.contains_key(path)
        }

        fn read(&self, path: &Path) -> Option<Vec<u8>> {
            self.files.get(path).map(|content| content.clone().into_bytes())
        }

        fn ask(&self, program: &Path, args: &[&str]) -> Option<String> {
            self.answers.get(&format!("{} {}", program.display(), args.join(" "))).cloned()
        }
    }
}
