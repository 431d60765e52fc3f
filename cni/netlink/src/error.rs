//! What can go wrong, by kind. Each error's text names the operation and its object; the reason is
//! its [`source`](std::error::Error::source), so that whoever prints the chain prints each once.

use std::fmt;
use std::io;

use netlink_packet_core::DecodeError;

/// A failed operation: the text says which, the source says why.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused a netlink request.
    #[error("{operation}")]
    Refused {
        /// The verb and its object, as in `create veth "eth0"`.
        operation: String,
        /// What the kernel said.
        source: Refusal,
    },
    /// The netlink socket itself failed: not opened, or nothing came back.
    #[error("{operation}: netlink socket")]
    Socket {
        /// The verb and its object.
        operation: String,
        /// What the system call said.
        source: io::Error,
    },
    /// The kernel answered with something that could not be read.
    #[error("{operation}: read the kernel's answer")]
    Malformed {
        /// The verb and its object.
        operation: String,
        /// Which part.
        source: DecodeError,
    },
    /// A listing kept changing while it was read, also when it was read again.
    #[error("{operation}: the list changed during each of {tries} readings")]
    Interrupted {
        /// The verb and its object.
        operation: String,
        /// How often it was tried.
        tries: u32,
    },
    /// An argument that no kernel would take.
    #[error("{operation}: {problem}")]
    Invalid {
        /// The verb and its object.
        operation: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A system call other than netlink failed: a namespace, a sysctl, an offload.
    #[error("{operation}")]
    System {
        /// The verb and its object.
        operation: String,
        /// What the system call said.
        source: io::Error,
    },
}

impl Error {
    /// Is it that the object to be made exists already?
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }

    /// Is it that the object does not exist?
    pub fn is_not_found(&self) -> bool {
        matches!(
            self.errno(),
            // A link, a namespace or file, a route, an address.
            Some(libc::ENODEV | libc::ENOENT | libc::ESRCH | libc::EADDRNOTAVAIL)
        )
    }

    /// The system's error number behind it, if one is.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => Some(source.errno),
            Self::Socket { source, .. } | Self::System { source, .. } => source.raw_os_error(),
            Self::Malformed { .. } | Self::Interrupted { .. } | Self::Invalid { .. } => None,
        }
    }

    pub(crate) fn system(operation: impl fmt::Display, source: impl Into<io::Error>) -> Self {
        Self::System { operation: operation.to_string(), source: source.into() }
    }

    pub(crate) fn invalid(operation: impl fmt::Display, problem: &'static str) -> Self {
        Self::Invalid { operation: operation.to_string(), problem }
    }
}

/// The kernel's answer to a request it did not carry out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The error number, positive.
    pub errno: i32,
    /// The kernel's own explanation (extended ack), where it gives one.
    pub explanation: Option<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.errno {
            libc::EEXIST => f.write_str("already exists")?,
            libc::ENODEV => f.write_str("no such device")?,
            libc::EPERM => f.write_str("not permitted (is CAP_NET_ADMIN missing?)")?,
            libc::EOPNOTSUPP => f.write_str("not supported (is a kernel module missing?)")?,
            errno => write!(f, "{}", io::Error::from_raw_os_error(errno))?,
        }
        match &self.explanation {
            Some(explanation) => write!(f, "; kernel: {explanation}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(errno: i32, explanation: Option<&str>) -> Error {
        Error::Refused {
            operation: "create veth \"eth0\"".to_owned(),
            source: Refusal { errno, explanation: explanation.map(str::to_owned) },
        }
    }

    #[test]
    fn kinds_follow_the_error_number() {
        assert!(refused(libc::EEXIST, None).is_exists());
        assert!(refused(libc::ENODEV, None).is_not_found());
        assert!(refused(libc::ESRCH, None).is_not_found());
        assert!(!refused(libc::EINVAL, None).is_not_found());
        assert!(Error::system("open", io::Error::from_raw_os_error(libc::ENOENT)).is_not_found());
    }

    #[test]
    fn text_and_source_say_each_thing_once() {
        let error = refused(libc::EINVAL, Some("Invalid MTU"));
        assert_eq!(error.to_string(), "create veth \"eth0\"");
        let source = std::error::Error::source(&error).expect("a source").to_string();
        assert_eq!(source, "Invalid argument (os error 22); kernel: Invalid MTU");
    }
}
