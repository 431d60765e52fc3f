//! The node's WireGuard key, and the peers of its device.
//!
//! The private key is made here, is kept in a file of the state folder that only its owner may read,
//! and is told to nobody but the kernel, which answers the public one. The key changes when the file
//! is removed, and never by itself.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use fairway_compile::{Unreachable, WireGuardPeer};
use fairway_feed::disk;
use fairway_model::WireGuardKey;
use fairway_netlink::{
    DeviceChange, Netlink, PeerChange, PrivateKey, PublicKey, WireGuard, WireGuardDevice,
};
use rustix::rand::{GetRandomFlags, getrandom};
use tracing::{info, warn};

use crate::node::Overlay;

/// The file in the state folder.
const KEY: &str = "wireguard.key";

/// What the command line says of the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// The UDP port of all nodes' devices.
    pub(crate) port: u16,
    /// Seconds between two packets that keep a way open; 0: none are sent.
    pub(crate) keepalive: u16,
}

impl Settings {
    /// The device that they are of.
    pub(crate) fn overlay(self) -> Overlay {
        Overlay::WireGuard { port: self.port }
    }
}

/// The node's WireGuard device.
pub(crate) struct Tunnel {
    kernel: WireGuard,
    private: PrivateKey,
    public: WireGuardKey,
    settings: Settings,
    /// Where each peer was last said to be. A peer may be heard from elsewhere, and is then answered
    /// there.
    endpoints: BTreeMap<PublicKey, SocketAddr>,
    /// What was last said of nodes that cannot be reached.
    unreachable: Vec<Unreachable>,
}

impl Tunnel {
    /// Finds or makes the key, and the device that takes it. Changes nothing on a node whose kernel
    /// has no WireGuard.
    pub(crate) fn open(
        netlink: &mut Netlink,
        state_dir: &Path,
        settings: Settings,
    ) -> Result<Self> {
        let kernel = WireGuard::open().map_err(|error| match error.is_not_found() {
            true => anyhow!(
                "--backend wireguard: this kernel has no WireGuard; load its module (modprobe \
                 wireguard; Linux 5.6 or newer with CONFIG_WIREGUARD) or choose another backend"
            ),
            false => anyhow::Error::new(error),
        })?;
        let private = private_key(&state_dir.join(KEY))?;
        let device = settings.overlay().device();
        let link = match netlink.link(device)? {
            Some(link) => link,
            None => netlink.create_wireguard(device, None)?,
        };
        let mut tunnel = Self {
            kernel,
            private,
            public: WireGuardKey([0; 32]),
            settings,
            endpoints: BTreeMap::new(),
            unreachable: Vec::new(),
        };
        tunnel.public = tunnel.take_key(link.index)?;
        info!(device, key = %tunnel.public, port = settings.port, "the node's WireGuard device");
        Ok(tunnel)
    }

    /// What encrypts to this node.
    pub(crate) fn public_key(&self) -> WireGuardKey {
        self.public
    }

    /// Brings the device to these peers.
    pub(crate) fn reconcile(
        &mut self,
        index: u32,
        want: &[WireGuardPeer],
        unreachable: Vec<Unreachable>,
    ) -> Result<()> {
        // Another one may have come in its place.
        self.take_key(index)?;
        let have = self.show(index)?;
        let steps = plan(want, &have, &self.endpoints, self.settings);
        if !steps.is_empty() {
            let change = DeviceChange { peers: &steps, ..DeviceChange::default() };
            self.kernel.configure(index, &change)?;
        }
        let port = self.settings.port;
        let endpoint = |peer: &WireGuardPeer| (peer.key.0, SocketAddr::new(peer.underlay, port));
        self.endpoints = want.iter().map(endpoint).collect();
        if unreachable != self.unreachable {
            for node in unreachable.iter().filter(|node| !self.unreachable.contains(node)) {
                warn!("{node}; until then its pods and this node's do not reach each other");
            }
            self.unreachable = unreachable;
        }
        Ok(())
    }

    /// Gives the device its key and port, which changes nothing if it has them; answers the public
    /// key.
    fn take_key(&mut self, index: u32) -> Result<WireGuardKey> {
        let port = self.settings.port;
        let change = DeviceChange {
            private_key: Some(&self.private),
            listen_port: Some(port),
            ..DeviceChange::default()
        };
        self.kernel.configure(index, &change).map_err(|error| match error.errno() {
            Some(libc::EADDRINUSE) => anyhow::Error::new(error).context(format!(
                "UDP port {port} is in use; stop what listens there, or choose another port on all \
                 nodes with --wireguard-port"
            )),
            _ => anyhow::Error::new(error),
        })?;
        let key = self.show(index)?.public_key;
        key.map(WireGuardKey).context("the kernel answers no public key to the private one")
    }

    fn show(&mut self, index: u32) -> Result<WireGuardDevice> {
        let device = self.settings.overlay().device();
        self.kernel.device(index)?.ok_or_else(|| anyhow!("device {device} has vanished"))
    }
}

/// What leads from the peers that are there to those wanted. A peer whose key changes is a new one
/// beside the old, which loses its addresses to it; those who are to go go last. Who stays as it is
/// keeps its session undisturbed.
fn plan(
    want: &[WireGuardPeer],
    have: &WireGuardDevice,
    told: &BTreeMap<PublicKey, SocketAddr>,
    settings: Settings,
) -> Vec<PeerChange> {
    let mut steps = Vec::new();
    for peer in want {
        let endpoint = SocketAddr::new(peer.underlay, settings.port);
        let known = have.peers.iter().find(|known| known.public_key == peer.key.0);
        let same = known.is_some_and(|known| {
            let mut allowed = known.allowed.clone();
            allowed.sort();
            // It may have been heard from elsewhere since it was told, as behind a translation.
            let reached =
                known.endpoint == Some(endpoint) || told.get(&peer.key.0) == Some(&endpoint);
            reached && known.keepalive == settings.keepalive && allowed == peer.allowed
        });
        if !same {
            steps.push(PeerChange::Set {
                public_key: peer.key.0,
                endpoint: Some(endpoint),
                keepalive: settings.keepalive,
                allowed: peer.allowed.clone(),
            });
        }
    }
    let wanted = |key: &PublicKey| want.iter().any(|peer| peer.key.0 == *key);
    let gone = have.peers.iter().map(|peer| peer.public_key).filter(|key| !wanted(key));
    steps.extend(gone.map(PeerChange::Remove));
    steps
}

/// The key in the file, or a new one if there is none. One that cannot be read is not replaced: peers
/// know this node by its key.
fn private_key(path: &Path) -> Result<PrivateKey> {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let bytes = BASE64_STANDARD.decode(text.trim_end()).ok();
            let key = bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
            key.filter(|key| *key != [0; 32]).map(PrivateKey).with_context(|| {
                format!(
                    "{}: not a WireGuard key (the base64 of 32 bytes); bring it back, or remove it \
                     to give this node a new one",
                    path.display()
                )
            })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = PrivateKey(random()?);
            let text = format!("{}\n", BASE64_STANDARD.encode(key.0));
            disk::replace_secret(path, text.as_bytes())
                .with_context(|| format!("write {}", path.display()))?;
            Ok(key)
        }
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

fn random() -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    // Up to 256 bytes come at once, as soon as the kernel has gathered enough to draw from.
    let drawn = getrandom(&mut bytes[..], GetRandomFlags::empty()).context("draw a random key")?;
    anyhow::ensure!(drawn == bytes.len(), "the kernel drew {drawn} random bytes");
    Ok(bytes)
}

#[cfg(test)]
mod packets;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use fairway_netlink::WireGuardPeer as Known;
    use ipnet::IpNet;

    use super::*;

    const SETTINGS: Settings = Settings { port: 51820, keepalive: 0 };

    fn want(key: u8, number: u8) -> WireGuardPeer {
        WireGuardPeer {
            key: WireGuardKey([key; 32]),
            underlay: [192, 0, 2, number].into(),
            allowed: vec![
                IpNet::new([10, 244, number, 0].into(), 24).unwrap(),
                IpNet::from(std::net::IpAddr::from([192, 0, 2, number])),
            ],
        }
    }

    /// The kernel lists prefixes in an order of its own.
    fn have(peers: &[WireGuardPeer]) -> WireGuardDevice {
        let peers = peers.iter().map(|peer| Known {
            public_key: peer.key.0,
            endpoint: Some((peer.underlay, 51820).into()),
            keepalive: 0,
            allowed: peer.allowed.iter().rev().copied().collect(),
            last_handshake: None,
            received: 0,
            sent: 0,
        });
        WireGuardDevice { peers: peers.collect(), ..WireGuardDevice::default() }
    }

    fn told(peers: &[WireGuardPeer]) -> BTreeMap<PublicKey, SocketAddr> {
        peers.iter().map(|peer| (peer.key.0, (peer.underlay, 51820).into())).collect()
    }

    /// Each step as `+key` or `-key`.
    fn steps(steps: &[PeerChange]) -> Vec<String> {
        let text = |step: &PeerChange| match step {
            PeerChange::Set { public_key, .. } => format!("+{}", public_key[0]),
            PeerChange::Remove(key) => format!("-{}", key[0]),
        };
        steps.iter().map(text).collect()
    }

    #[test]
    fn only_what_differs_is_changed_and_removals_come_last() {
        let check = |wanted: &[WireGuardPeer], had: &[WireGuardPeer], expected: &[&str]| {
            let plan = plan(wanted, &have(had), &BTreeMap::new(), SETTINGS);
            assert_eq!(steps(&plan), expected);
        };
        check(&[want(1, 1), want(2, 2)], &[want(1, 1), want(2, 2)], &[]);
        check(&[want(1, 1), want(2, 2)], &[want(2, 2)], &["+1"]);
        check(&[want(2, 2)], &[want(1, 1), want(2, 2)], &["-1"]);
        // The node of peer 1 has another key now.
        check(&[want(3, 1), want(2, 2)], &[want(1, 1), want(2, 2)], &["+3", "-1"]);
        // It has moved, with its range or without.
        check(&[want(1, 7)], &[want(1, 1)], &["+1"]);
        let moved = WireGuardPeer { underlay: [192, 0, 2, 9].into(), ..want(1, 1) };
        check(std::slice::from_ref(&moved), &[want(1, 1)], &["+1"]);
    }

    #[test]
    fn a_peer_that_is_heard_from_elsewhere_is_answered_there() {
        let wanted = [want(1, 1)];
        let mut known = have(&wanted);
        known.peers[0].endpoint = Some(([203, 0, 113, 5], 40_000).into());
        let elsewhere = |told: &_| steps(&plan(&wanted, &known, told, SETTINGS));
        assert_eq!(elsewhere(&told(&wanted)), [""; 0]);
        // This agent has not told it yet: what is there may be a predecessor's.
        assert_eq!(elsewhere(&BTreeMap::new()), ["+1"]);
        // It is said to be in yet another place.
        assert_eq!(elsewhere(&told(&[want(1, 2)])), ["+1"]);
    }

    #[test]
    fn another_interval_is_told_to_every_peer() {
        let wanted = [want(1, 1)];
        let settings = Settings { keepalive: 25, ..SETTINGS };
        assert_eq!(steps(&plan(&wanted, &have(&wanted), &told(&wanted), settings)), ["+1"]);
    }

    #[test]
    fn a_key_is_made_once_and_for_nobody_elses_eyes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(KEY);
        let made = private_key(&path).unwrap();
        assert_ne!(made.0, [0; 32]);
        assert_eq!(private_key(&path).unwrap().0, made.0);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::remove_file(&path).unwrap();
        assert_ne!(private_key(&path).unwrap().0, made.0);
    }

    #[test]
    fn a_damaged_key_is_neither_used_nor_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(KEY);
        for damaged in ["", "AAAA\n", &"A".repeat(43), &format!("{}=", "A".repeat(43))] {
            std::fs::write(&path, damaged).unwrap();
            let error = private_key(&path).unwrap_err().to_string();
            assert!(error.contains("wireguard.key: not a WireGuard key"), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), damaged);
        }
    }
}
