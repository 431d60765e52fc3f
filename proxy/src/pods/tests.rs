//! Registered pods in a real kernel, with real devices.

use fairway_netlink::Veth;

use super::*;
use crate::sandbox::sandbox;

/// An agent's view of its pods, and what outlives it.
struct Node {
    dataplane: Dataplane,
    netlink: Netlink,
    pods: Pods,
}

impl Node {
    fn start(bpffs: &Path, state_dir: &Path) -> Self {
        let mut dataplane = Dataplane::load_tables(bpffs, &[]).expect("programs that load");
        let mut netlink = Netlink::open().expect("a netlink socket");
        let mut pods = Pods::adopt(&mut dataplane, &mut netlink, state_dir).expect("pods");
        pods.attach(&mut dataplane).expect("programs on every pod");
        Self { dataplane, netlink, pods }
    }

    /// A pod with a device of its own.
    fn plug(&mut self, name: &str, last: u8) -> Endpoint {
        let peer_name = &format!("{name}-pod");
        let veth = Veth { name, peer_name, ..Veth::default() };
        let link = self.netlink.create_veth(&veth).expect("a veth");
        self.netlink.set_up(link.index).expect("up");
        let peer = self.netlink.link(peer_name).expect("an answer").expect("the other end");
        Endpoint {
            container_id: format!("container-{name}"),
            interface: "eth0".to_owned(),
            pod_namespace: "shop".to_owned(),
            pod_name: name.to_owned(),
            pod_uid: format!("uid-{name}"),
            host_interface: name.to_owned(),
            host_ifindex: link.index,
            host_mac: link.mac.expect("a MAC address"),
            pod_mac: peer.mac.expect("a MAC address"),
            addresses: vec![
                IpAddr::from([10, 244, 1, last]),
                IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(last)]),
            ],
            host_ports: Vec::new(),
            bandwidth: Bandwidth::default(),
            netns_cookie: Some(u64::from(last)),
            netns: String::new(),
        }
    }

    fn add(&mut self, pod: &Endpoint) -> Result<()> {
        self.pods.add(&mut self.dataplane, &mut self.netlink, pod.clone(), None)
    }

    /// Flags of a network namespace, if it has an entry; with its pod's last byte.
    fn namespace(&self, cookie: u64) -> Option<(u32, u8)> {
        let found = self.pods.namespaces.get(&cookie).expect("a table")?;
        assert_eq!(found.addresses.address4[3], found.addresses.address6[15]);
        Some((found.flags, found.addresses.address4[3]))
    }

    fn check(&self, pod: &Endpoint) -> Result<()> {
        self.pods.check(&self.dataplane, pod)
    }

    /// How much there is in the tables of interfaces (as many as of their namespaces), IPv4 and IPv6
    /// addresses, and how many pins.
    fn counts(&self) -> [usize; 4] {
        let namespaces = self.pods.namespaces.entries().expect("entries").len();
        assert_eq!(namespaces, self.pods.interfaces.entries().expect("entries").len());
        [
            self.pods.interfaces.entries().expect("entries").len(),
            self.pods.v4.entries().expect("entries").len(),
            self.pods.v6.entries().expect("entries").len(),
            self.dataplane.attachments().expect("names").len(),
        ]
    }
}

/// Runs a test with a BPF file system and a folder for the agent's state.
fn on_a_node(test: impl FnOnce(&Path, &Path) + Send) {
    let state_dir = tempfile::tempdir().expect("a temporary folder");
    sandbox(|bpffs| test(bpffs, state_dir.path()));
}

#[test]
fn a_pod_is_in_force_until_it_is_removed() {
    on_a_node(|bpffs, state_dir| {
        let mut node = Node::start(bpffs, state_dir);
        let cart = node.plug("cart", 2);
        assert!(node.check(&cart).is_err());
        node.add(&cart).expect("a pod");
        node.add(&cart).expect("the same again");
        node.check(&cart).expect("in force");
        assert_eq!(node.counts(), [1, 1, 1, 2]);

        node.pods.remove(&mut node.dataplane, &cart.container_id, "eth0").expect("removed");
        node.pods.remove(&mut node.dataplane, &cart.container_id, "eth0").expect("no error");
        assert_eq!(node.pods.leaving(), [cart], "once");
        assert_eq!(node.counts(), [0; 4]);
    });
}

#[test]
fn an_address_belongs_to_one_pod() {
    on_a_node(|bpffs, state_dir| {
        let mut node = Node::start(bpffs, state_dir);
        let (cart, thief) = (node.plug("cart", 2), node.plug("thief", 2));
        node.add(&cart).expect("a pod");
        let error = node.add(&thief).expect_err("its addresses are taken");
        assert!(error.to_string().contains("shop/cart"), "{error}");
        node.check(&cart).expect("in force as before");
        assert_eq!(node.counts(), [1, 1, 1, 2]);
    });
}

#[test]
fn a_successor_keeps_pods_whose_device_is_there_and_drops_all_of_the_others() {
    on_a_node(|bpffs, state_dir| {
        let mut node = Node::start(bpffs, state_dir);
        let (cart, gone) = (node.plug("cart", 2), node.plug("gone", 3));
        node.add(&cart).expect("a pod");
        node.add(&gone).expect("a pod");
        node.netlink.delete_link(gone.host_ifindex).expect("a device that goes");
        drop(node);

        let node = Node::start(bpffs, state_dir);
        node.check(&cart).expect("in force");
        assert!(node.check(&gone).is_err());
        assert_eq!(node.counts(), [1, 1, 1, 2]);
        assert_eq!(node.pods.leaving(), [gone], "whose flows are to be forgotten, too");
    });
}

#[test]
fn pods_whose_flows_an_agent_was_killed_before_forgetting_are_still_known_to_its_successor() {
    on_a_node(|bpffs, state_dir| {
        let mut node = Node::start(bpffs, state_dir);
        let (cart, gone) = (node.plug("cart", 2), node.plug("gone", 3));
        node.add(&cart).expect("a pod");
        node.add(&gone).expect("a pod");
        node.netlink.delete_link(cart.host_ifindex).expect("a device that goes");
        node.netlink.delete_link(gone.host_ifindex).expect("a device that goes");
        node.pods.remove(&mut node.dataplane, &cart.container_id, "eth0").expect("removed");
        node.pods.forget_vanished(&mut node.dataplane, &mut node.netlink).expect("pods");
        assert_eq!(node.pods.leaving(), [cart.clone(), gone.clone()]);
        // It writes the list for another one, and is killed.
        let late = node.plug("late", 4);
        node.add(&late).expect("a pod");
        drop(node);

        let mut node = Node::start(bpffs, state_dir);
        node.check(&late).expect("in force");
        assert_eq!(node.pods.leaving(), [cart, gone]);
        node.pods.have_left();
        drop(node);
        let node = Node::start(bpffs, state_dir);
        node.check(&late).expect("in force");
        assert_eq!(node.pods.leaving(), []);
    });
}

#[test]
fn a_lost_or_damaged_list_of_pods_leaves_those_whose_device_is_there_in_force() {
    on_a_node(|bpffs, state_dir| {
        let mut node = Node::start(bpffs, state_dir);
        let (cart, gone) = (node.plug("cart", 2), node.plug("gone", 3));
        node.add(&cart).expect("a pod");
        node.add(&gone).expect("a pod");
        node.netlink.delete_link(gone.host_ifindex).expect("a device that goes");
        drop(node);
        let list = state_dir.join("endpoints.json");
        std::fs::remove_file(&list).expect("a file");
        assert_eq!(Node::start(bpffs, state_dir).counts(), [1, 1, 1, 2]);

        // As after a power failure, which is no damage.
        std::fs::write(&list, "").expect("a file");
        assert_eq!(Node::start(bpffs, state_dir).counts(), [1, 1, 1, 2]);
        assert!(!list.with_extension("damaged").exists());

        std::fs::write(&list, "[{").expect("a file");
        let mut node = Node::start(bpffs, state_dir);
        assert_eq!(node.counts(), [1, 1, 1, 2]);
        assert!(list.with_extension("damaged").exists());

        node.netlink.delete_link(cart.host_ifindex).expect("a device that goes");
        node.pods.forget_vanished(&mut node.dataplane, &mut node.netlink).expect("pods");
        assert_eq!(node.counts(), [0; 4]);
    });
}

#[test]
fn a_pod_whose_device_vanishes_is_forgotten_with_its_pins() {
    on_a_node(|bpffs, state_dir| {
        let mut node = Node::start(bpffs, state_dir);
        let (cart, gone) = (node.plug("cart", 2), node.plug("gone", 3));
        node.add(&cart).expect("a pod");
        node.add(&gone).expect("a pod");
        node.netlink.delete_link(gone.host_ifindex).expect("a device that goes");
        node.pods.forget_vanished(&mut node.dataplane, &mut node.netlink).expect("pods");
        assert_eq!(node.pods.leaving(), [gone]);
        node.check(&cart).expect("in force");
        assert_eq!(node.counts(), [1, 1, 1, 2]);
    });
}

#[test]
fn a_disk_that_takes_nothing_takes_no_pod_and_keeps_none() {
    on_a_node(|bpffs, state_dir| {
        let mut node = Node::start(bpffs, state_dir);
        let (cart, gone) = (node.plug("cart", 2), node.plug("gone", 3));
        node.add(&cart).expect("a pod");
        node.add(&gone).expect("a pod");
        // Stands for a full disk, which root has to respect as well.
        let list = state_dir.join("endpoints.json");
        std::fs::remove_file(&list).expect("a file");
        std::fs::create_dir_all(list.join("in the way")).expect("a folder");

        let late = node.plug("late", 4);
        node.add(&late).expect_err("it would be forgotten");
        assert_eq!(node.counts(), [2, 2, 2, 4]);
        // Whoever is told of what has gone has more to forget of it.
        node.netlink.delete_link(gone.host_ifindex).expect("a device that goes");
        node.pods.forget_vanished(&mut node.dataplane, &mut node.netlink).expect("pods");
        assert_eq!(node.pods.leaving(), std::slice::from_ref(&gone));
        node.pods.remove(&mut node.dataplane, &cart.container_id, "eth0").expect("removed");
        assert_eq!(node.pods.leaving(), [gone, cart]);
        node.pods.have_left();
        assert_eq!(node.counts(), [0; 4]);
    });
}

#[test]
fn a_pod_plugged_anew_under_its_old_name_replaces_its_earlier_life() {
    on_a_node(|bpffs, state_dir| {
        let mut node = Node::start(bpffs, state_dir);
        let before = node.plug("cart", 2);
        node.add(&before).expect("a pod");
        node.netlink.delete_link(before.host_ifindex).expect("a device that goes");
        let after = node.plug("cart", 2);
        node.add(&after).expect("a pod");
        node.check(&after).expect("in force");
        assert_eq!(node.counts(), [1, 1, 1, 2]);
    });
}

#[test]
fn a_host_port_belongs_to_one_pod_at_a_time() {
    on_a_node(|bpffs, state_dir| {
        let mut node = Node::start(bpffs, state_dir);
        let port = |ip: Option<[u8; 4]>| HostPort {
            host_port: 8080,
            container_port: 80,
            protocol: fairway_cni_protocol::Protocol::Tcp,
            host_ip: ip.map(IpAddr::from),
        };
        let mut cart = node.plug("cart", 2);
        cart.host_ports = vec![port(Some([192, 0, 2, 1]))];
        node.add(&cart).expect("a pod");
        let mut till = node.plug("till", 3);
        till.host_ports = vec![port(None)];
        let before = node.counts();
        let error = format!("{:#}", node.add(&till).expect_err("a port in use"));
        assert_eq!(
            error,
            "host port *:8080/tcp is already that of pod shop/cart (192.0.2.1:8080/tcp)"
        );
        assert_eq!(node.counts(), before, "nothing was changed");

        // On other addresses it is another port, and after its pod nobody's.
        till.host_ports = vec![port(Some([192, 0, 2, 2]))];
        node.add(&till).expect("a pod");
        node.check(&till).expect("in force");
        drop(node);
        let node = Node::start(bpffs, state_dir);
        let known: Vec<_> = node.pods.all().flat_map(|pod| &pod.host_ports).collect();
        assert_eq!(known, [&cart.host_ports[0], &till.host_ports[0]], "kept on disk");
    });
}

#[test]
fn after_a_reboot_nothing_is_left_of_the_pods() {
    let state_dir = tempfile::tempdir().expect("a temporary folder");
    let mut before = None;
    for boot in 0..2 {
        sandbox(|bpffs| {
            let mut node = Node::start(bpffs, state_dir.path());
            assert_eq!(node.counts(), [0; 4], "boot {boot}");
            assert_eq!(node.pods.all().count(), 0, "boot {boot}");
            // What a pod was is remembered, also by an agent that is started once more, until it is there again.
            node.pods.have_left();
            drop(node);
            let mut node = Node::start(bpffs, state_dir.path());
            assert_eq!(node.pods.former().len(), boot);
            // Devices get the same numbers in each boot.
            let cart = node.plug(if boot == 0 { "cart" } else { "other" }, 2);
            assert_eq!(*before.get_or_insert(cart.host_ifindex), cart.host_ifindex);
            node.add(&cart).expect("a pod");
        });
    }
}

#[test]
fn a_number_that_now_is_another_devices_is_not_taken_for_the_pods() {
    on_a_node(|bpffs, state_dir| {
        let mut node = Node::start(bpffs, state_dir);
        let cart = node.plug("cart", 2);
        node.add(&cart).expect("a pod");
        std::fs::remove_file(state_dir.join("endpoints.json")).expect("a file");
        drop(node);
        // As a device that took the number after the pod's had gone.
        let mac = [2, 0, 0, 0, 9, 9];
        let mut netlink = Netlink::open().expect("a netlink socket");
        netlink.set_mac(cart.host_ifindex, mac).expect("another MAC address");
        assert_eq!(Node::start(bpffs, state_dir).counts(), [0; 4]);
    });
}

#[test]
fn limits_are_in_force_with_the_pod_and_gone_after_it() {
    on_a_node(|bpffs, state_dir| {
        let mut node = Node::start(bpffs, state_dir);
        let before = node.counts();
        let mut cart = node.plug("cart", 2);
        let limit = |rate, burst| Some(Rate { rate, burst });
        cart.bandwidth = Bandwidth {
            ingress: limit(1_000_000, 8000),
            egress: limit(2_000_000, u32::MAX.into()),
        };
        node.add(&cart).expect("a pod");
        node.check(&cart).expect("in force");
        let key = |direction| MeterKey { ifindex: cart.host_ifindex, direction };
        let meter =
            |node: &Node, direction| node.pods.meters.get(&key(direction)).expect("a table");
        let sends = meter(&node, meter::EGRESS).expect("a meter");
        assert_eq!((sends.rate, sends.patience), (2_000_000, 1_048_576_000), "no burst was meant");
        let receives = meter(&node, meter::INGRESS).expect("a meter");
        assert_eq!((receives.rate, receives.patience), (1_000_000, 8_000_000));
        let flags = node.pods.v4.get(&[10, 244, 1, 2]).expect("a table").map(|pod| pod.flags);
        assert_eq!(flags, Some(fairway_abi::pod::INGRESS_LIMITED));
        assert_eq!(node.counts()[3], before[3] + 4, "pins of two programs and two limits");

        // What is used of a limit stays used, whatever becomes of the agent.
        let used = Meter { next: 4711, ..sends };
        node.pods.meters.put(&key(meter::EGRESS), &used).expect("room");
        drop(node);
        let mut node = Node::start(bpffs, state_dir);
        node.add(&cart).expect("the same again");
        assert_eq!(meter(&node, meter::EGRESS), Some(used));
        node.check(&cart).expect("in force");

        // A limit that somebody takes away is missed.
        node.pods.meters.remove(&key(meter::INGRESS)).expect("a table");
        let error = node.check(&cart).expect_err("a limit that is gone");
        assert!(error.to_string().contains("meters"), "{error}");

        node.pods.remove(&mut node.dataplane, "container-cart", "eth0").expect("a pod");
        assert_eq!(node.pods.meters.entries().expect("entries").len(), 0);
        assert_eq!(node.counts(), before);
    });
}

#[test]
fn a_pods_sockets_are_known_with_it_and_left_alone_while_that_is_asked_for() {
    on_a_node(|bpffs, state_dir| {
        const EXEMPT: u32 = namespace::EXEMPT;
        let mut node = Node::start(bpffs, state_dir);
        let (cart, web) = (node.plug("cart", 2), node.plug("web", 3));
        let Node { dataplane, netlink, pods } = &mut node;
        pods.add(dataplane, netlink, cart.clone(), Some(true)).expect("a pod");
        pods.add(dataplane, netlink, web.clone(), Some(false)).expect("a pod");
        assert_eq!([2, 3].map(|cookie| node.namespace(cookie)), [Some((EXEMPT, 2)), Some((0, 3))]);
        node.check(&cart).expect("in force");

        // A successor that has not heard of the pods yet changes nothing.
        drop(node);
        let mut node = Node::start(bpffs, state_dir);
        node.pods.exempt_sockets(|_| None).expect("a table");
        assert_eq!([2, 3].map(|cookie| node.namespace(cookie)), [Some((EXEMPT, 2)), Some((0, 3))]);
        let is_web = |pod: &Endpoint| Some(pod.pod_name == "web");
        node.pods.exempt_sockets(is_web).expect("a table");
        assert_eq!([2, 3].map(|cookie| node.namespace(cookie)), [Some((0, 2)), Some((EXEMPT, 3))]);

        // Nor does one that lost its list, as long as the pod's device is there.
        drop(node);
        std::fs::remove_file(state_dir.join("endpoints.json")).expect("a file");
        let mut node = Node::start(bpffs, state_dir);
        assert_eq!([2, 3].map(|cookie| node.namespace(cookie)), [Some((0, 2)), Some((EXEMPT, 3))]);
        node.netlink.delete_link(web.host_ifindex).expect("a device that goes");
        node.pods.forget_vanished(&mut node.dataplane, &mut node.netlink).expect("pods");
        assert_eq!([2, 3].map(|cookie| node.namespace(cookie)), [Some((0, 2)), None]);
        node.add(&cart).expect("a pod");
        node.pods.namespaces.remove(&2).expect("a table");
        let error = node.check(&cart).expect_err("what is gone is missed").to_string();
        assert!(error.contains("namespaces"), "{error}");
    });
}

#[test]
fn the_first_of_a_pods_interfaces_says_who_its_sockets_are() {
    on_a_node(|bpffs, state_dir| {
        let mut node = Node::start(bpffs, state_dir);
        let first = node.plug("cart", 2);
        let mut second = node.plug("more", 3);
        (second.container_id, second.netns_cookie) = (first.container_id.clone(), Some(2));
        second.interface = "net1".to_owned();
        node.add(&second).expect("an interface");
        assert_eq!(node.namespace(2), Some((0, 3)));
        node.add(&first).expect("another");
        node.check(&first).expect("in force");
        node.check(&second).expect("in force");
        assert_eq!(node.namespace(2), Some((0, 2)));
        for (interface, left) in [("eth0", Some((0, 3))), ("net1", None)] {
            let removed = node.pods.remove(&mut node.dataplane, &first.container_id, interface);
            removed.expect("removed");
            assert_eq!(node.namespace(2), left, "without {interface}");
        }
    });
}

#[test]
fn a_pod_that_a_plugin_of_another_release_registered_passes_the_check() {
    on_a_node(|bpffs, state_dir| {
        let mut node = Node::start(bpffs, state_dir);
        let cart = Endpoint { netns: "/run/netns/cart".to_owned(), ..node.plug("cart", 2) };
        let older = Endpoint { netns_cookie: None, netns: String::new(), ..cart.clone() };
        node.add(&older).expect("a pod");
        node.check(&cart).expect("in force");
        assert_eq!(node.namespace(2), None);
        node.add(&cart).expect("the same, now with what was not known");
        assert_eq!(node.namespace(2), Some((0, 2)));
        node.check(&older).expect("in force, as far as an older plugin says");
        let elsewhere = Endpoint { netns: "/run/netns/other".to_owned(), ..cart.clone() };
        node.check(&elsewhere).expect_err("another namespace");
        node.check(&Endpoint { netns_cookie: Some(7), ..cart }).expect_err("another namespace");
    });
}
