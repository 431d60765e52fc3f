use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use fairway_netlink::{Error, NetNs, Netlink};

use crate::{netns, root};

#[test]
fn a_new_namespace_has_a_loopback_device_alone() {
    let Some(netns) = netns() else { return };
    let links = Netlink::open_in(&netns).unwrap().links().unwrap();
    let names: Vec<_> = links.iter().map(|link| link.name.as_str()).collect();
    assert_eq!(names, ["lo"]);
    assert!(links[0].loopback && !links[0].up && links[0].index == 1);
}

#[test]
fn a_named_namespace_is_the_one_ip_netns_knows() {
    if !root() {
        return;
    }
    let name = Name::new();
    let netns = NetNs::create(&name.0).unwrap();
    assert!(NetNs::open(NetNs::path(&name.0)).unwrap() == netns);
    assert!(NetNs::create(&name.0).unwrap_err().is_exists());
    assert!(NetNs::open(NetNs::path(&name.0)).unwrap() == netns, "a refusal changes nothing");

    let listed = Command::new("ip").args(["netns", "list"]).output().unwrap();
    assert!(String::from_utf8(listed.stdout).unwrap().contains(&name.0));

    NetNs::delete(&name.0).unwrap();
    NetNs::delete(&name.0).unwrap();
    assert!(!NetNs::path(&name.0).exists());
    assert!(NetNs::open(NetNs::path(&name.0)).unwrap_err().is_not_found());
    // Whoever still holds it can still use it.
    assert_eq!(Netlink::open_in(&netns).unwrap().links().unwrap().len(), 1);
}

#[test]
fn what_is_no_network_namespace_is_not_opened() {
    for path in ["/dev/null", "/proc/self/ns/mnt", "/proc/self/status", "/"] {
        let error = NetNs::open(path).unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{path}: {error:?}");
    }
    assert!(NetNs::open("/nonexistent").unwrap_err().is_not_found());
    assert!(matches!(NetNs::create("a/b").unwrap_err(), Error::Invalid { .. }));
    assert!(matches!(NetNs::delete("..").unwrap_err(), Error::Invalid { .. }));
}

#[test]
fn run_enters_the_namespace_and_leaves_the_caller_where_it_was() {
    let Some(netns) = netns() else { return };
    let before = NetNs::current().unwrap();
    let inside = netns.run(|| NetNs::current().unwrap()).unwrap();
    assert!(inside == netns);
    assert!(NetNs::current().unwrap() == before && before != netns);

    let panic = std::panic::catch_unwind(|| netns.run(|| panic!("inside"))).unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"inside"));
}

#[test]
fn a_child_process_starts_inside() {
    let Some(netns) = netns() else { return };
    let mut command = Command::new("readlink");
    command.arg("/proc/self/ns/net");
    netns.enter_on_spawn(&mut command).unwrap();
    let output = command.output().unwrap();
    let inode = netns.identity().1;
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), format!("net:[{inode}]"));
}

/// A namespace name nobody else uses; unregistered when the test is over, however it ends.
struct Name(String);

impl Name {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Self(format!("fwnl-{}-{count}", std::process::id()))
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let _ = NetNs::delete(&self.0);
    }
}
