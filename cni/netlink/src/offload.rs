//! What a device computes instead of the host, switched as ethtool(8) does.
#![expect(unsafe_code, reason = "the ethtool ioctl takes a pointer inside a union")]

use std::io;
use std::os::fd::AsRawFd;

use rustix::net::{AddressFamily, SocketType};

use crate::Error;

/// A group of offload features, under ethtool's old names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// `tx`: checksums of packets sent; without it, segmentation offload goes as well.
    TxChecksum,
    /// `rx`: checksums of packets received.
    RxChecksum,
    /// `tso`: TCP segments are cut by the device.
    TcpSegmentation,
    /// `gso`: segments are cut as late as possible in the host.
    GenericSegmentation,
    /// `gro`: segments received are joined in the host.
    GenericReceive,
}

impl Offload {
    const fn command(self) -> u32 {
        match self {
            Self::RxChecksum => 0x15,          // ETHTOOL_SRXCSUM
            Self::TxChecksum => 0x17,          // ETHTOOL_STXCSUM
            Self::TcpSegmentation => 0x1f,     // ETHTOOL_STSO
            Self::GenericSegmentation => 0x24, // ETHTOOL_SGSO
            Self::GenericReceive => 0x2c,      // ETHTOOL_SGRO
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::TxChecksum => "tx",
            Self::RxChecksum => "rx",
            Self::TcpSegmentation => "tso",
            Self::GenericSegmentation => "gso",
            Self::GenericReceive => "gro",
        }
    }
}

/// Switches an offload of a device in the calling thread's network namespace.
pub fn set(device: &str, offload: Offload, on: bool) -> Result<(), Error> {
    ethtool(device, offload.command(), u32::from(on)).map(drop).map_err(|e| {
        let state = if on { "on" } else { "off" };
        Error::system(format!("set offload {} of {device:?} {state}", offload.name()), e)
    })
}

/// Is this offload on?
pub fn get(device: &str, offload: Offload) -> Result<bool, Error> {
    // Each "get" command is the number before its "set".
    ethtool(device, offload.command() - 1, 0)
        .map(|value| value != 0)
        .map_err(|e| Error::system(format!("read offload {} of {device:?}", offload.name()), e))
}

/// `struct ethtool_value` of the kernel.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

fn ethtool(device: &str, command: u32, data: u32) -> io::Result<u32> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    let mut value = Value { command, data };
    let mut name: [libc::c_char; libc::IFNAMSIZ] = [0; libc::IFNAMSIZ];
    if device.is_empty() || device.len() >= name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in name.iter_mut().zip(device.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let mut request = libc::ifreq {
        ifr_name: name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: (&raw mut value).cast() },
    };
    // SAFETY: for these commands the kernel reads and writes one `ethtool_value` behind ifru_data,
    // which `value` is; both live on this stack frame for the length of the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value.data) }
}
