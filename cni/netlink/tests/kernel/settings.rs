use fairway_netlink::offload::{self, Offload};
use fairway_netlink::{Netlink, Veth, sysctl};

use crate::netns;

#[test]
fn sysctls_and_offloads_are_the_namespaces_own() {
    let Some(netns) = netns() else { return };
    Netlink::open_in(&netns)
        .unwrap()
        .create_veth(&Veth { name: "a.1", peer_name: "b", ..Veth::default() })
        .unwrap();
    netns
        .run(|| {
            sysctl::set("net/ipv4/conf/a.1/rp_filter", "2").unwrap();
            assert_eq!(sysctl::get("net/ipv4/conf/a.1/rp_filter").unwrap(), "2");
            assert!(sysctl::get("net/ipv4/conf/none/rp_filter").unwrap_err().is_not_found());
            for offload in [Offload::TxChecksum, Offload::GenericReceive] {
                for on in [true, false, true] {
                    offload::set("a.1", offload, on).unwrap();
                    assert_eq!(offload::get("a.1", offload).unwrap(), on);
                }
            }
            offload::set("a.1", Offload::TxChecksum, false).unwrap();
            assert!(!offload::get("a.1", Offload::TcpSegmentation).unwrap());
            assert!(offload::set("none", Offload::TxChecksum, false).unwrap_err().is_not_found());
        })
        .unwrap();
}
