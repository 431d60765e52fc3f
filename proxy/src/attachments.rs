//! Which programs sit where on this node.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Result;
use aya::programs::XdpMode;
use tracing::warn;

use crate::dataplane::{Dataplane, Side, VXLAN, WIREGUARD};
use crate::node::Overlay;
use crate::options::XdpOption;

/// A device, by name and index: another one may come under the same name.
pub(crate) type Device = (String, u32);

/// What has been attached since the agent started. Before that, a predecessor's programs go on with
/// the tables they know.
#[derive(Debug, Default)]
pub(crate) struct Attachments {
    sockets: bool,
    devices: BTreeSet<Device>,
    overlay: u32,
    xdp: Option<Device>,
}

impl Attachments {
    /// Socket-level programs for the processes of a cgroup.
    pub(crate) fn sockets(&mut self, dataplane: &mut Dataplane, cgroup: &Path) -> Result<()> {
        if !self.sockets {
            dataplane.attach_sockets(cgroup)?;
            self.sockets = true;
        }
        Ok(())
    }

    /// Packet-level programs on every device that leads out of the node, and on no other.
    pub(crate) fn devices(
        &mut self,
        dataplane: &mut Dataplane,
        devices: BTreeSet<Device>,
    ) -> Result<()> {
        let mut wanted = BTreeSet::new();
        for device @ (name, index) in &devices {
            let pins =
                [format!("uplink-{name}-{index}-ingress"), format!("uplink-{name}-{index}-egress")];
            if !self.devices.contains(device) {
                dataplane.attach_classifier("uplink_ingress", name, Side::Ingress, &pins[0])?;
                dataplane.attach_classifier("uplink_egress", name, Side::Egress, &pins[1])?;
            }
            wanted.extend(pins);
        }
        detach_others(dataplane, "uplink-", &wanted)?;
        self.devices = devices;
        Ok(())
    }

    /// The XDP program on the uplink, or nowhere.
    pub(crate) fn xdp(
        &mut self,
        dataplane: &mut Dataplane,
        option: XdpOption,
        uplink: &Device,
    ) -> Result<()> {
        if self.xdp.as_ref() == Some(uplink) {
            return Ok(());
        }
        let (name, index) = uplink;
        let mut wanted = BTreeSet::new();
        if let Some((mode, called)) = xdp_mode(option, name) {
            let pin = format!("xdp-{name}-{index}-{called}");
            // Only one mode can be attached at a time.
            detach_others(dataplane, "xdp-", &BTreeSet::from([pin.clone()]))?;
            match dataplane.attach_xdp(name, mode, &pin) {
                Ok(()) => {
                    wanted.insert(pin);
                }
                Err(error) if option == XdpOption::Auto => warn!(
                    error = format!("{error:#}"),
                    "no XDP on {name}; traffic control does the same job"
                ),
                Err(error) => return Err(error),
            }
        }
        detach_others(dataplane, "xdp-", &wanted)?;
        self.xdp = Some(uplink.clone());
        Ok(())
    }

    /// The overlay device's programs; `index` 0: there is none.
    pub(crate) fn overlay(
        &mut self,
        dataplane: &mut Dataplane,
        overlay: Overlay,
        index: u32,
    ) -> Result<()> {
        if index == self.overlay {
            return Ok(());
        }
        let mut wanted = BTreeSet::new();
        if index != 0 {
            let pins = [format!("overlay-{index}-ingress"), format!("overlay-{index}-egress")];
            let device = overlay.device();
            let programs = match overlay {
                Overlay::Vxlan { .. } => VXLAN,
                Overlay::WireGuard { .. } => WIREGUARD,
            };
            dataplane.prepare(&programs)?;
            let [ingress, egress] = programs;
            dataplane.attach_classifier(ingress, device, Side::Ingress, &pins[0])?;
            dataplane.attach_classifier(egress, device, Side::Egress, &pins[1])?;
            wanted.extend(pins);
        }
        detach_others(dataplane, "overlay-", &wanted)?;
        self.overlay = index;
        Ok(())
    }
}

/// Takes away every attachment whose pin begins with `prefix` but those named.
pub(crate) fn detach_others(
    dataplane: &mut Dataplane,
    prefix: &str,
    wanted: &BTreeSet<String>,
) -> Result<()> {
    for pin in dataplane.attachments()? {
        if pin.starts_with(prefix) && !wanted.contains(&pin) {
            dataplane.detach(&pin);
        }
    }
    Ok(())
}

/// Drivers whose native XDP keeps checksum and segmentation offloads.
const XDP_DRIVERS: [&str; 5] = ["bnxt_en", "i40e", "ice", "ixgbe", "mlx5_core"];

fn xdp_mode(option: XdpOption, device: &str) -> Option<(XdpMode, &'static str)> {
    match option {
        XdpOption::Off => None,
        XdpOption::Native => Some((XdpMode::Driver, "native")),
        XdpOption::Generic => Some((XdpMode::Skb, "generic")),
        XdpOption::Auto => {
            let driver =
                std::fs::read_link(format!("/sys/class/net/{device}/device/driver")).ok()?;
            let name = driver.file_name()?.to_str()?;
            XDP_DRIVERS.contains(&name).then_some((XdpMode::Driver, "native"))
        }
    }
}
