use std::time::Duration;

use fairway_netlink::{Event, Group, Netlink, Watch};

use crate::{device, netns};

#[test]
fn what_packets_wait_in_is_listed_and_its_changes_are_told() {
    let Some(netns) = netns() else { return };
    let mut node = Netlink::open_in(&netns).unwrap();
    let index = device(&mut node, "d0");
    let at_first = node.queue_disciplines().unwrap();
    let own = at_first.iter().find(|found| found.device == index).unwrap();
    assert_eq!((own.kind.as_str(), own.handle, own.parent), ("noqueue", 0, None));
    let mut watch = Watch::open_in(&netns, &[Group::QueueDisciplines]).unwrap();

    node.replace_root(index, "pfifo").unwrap();
    // Hooks are no queues.
    node.ensure_clsact(index).unwrap();
    let listed = node.queue_disciplines().unwrap();
    let mut of_device = listed.into_iter().filter(|found| found.device == index);
    let root = of_device.next().unwrap();
    assert_eq!((root.kind.as_str(), root.parent, of_device.next()), ("pfifo", None, None));
    assert_ne!(root.handle, 0, "somebody has made it");
    let events = watch.next(Duration::from_secs(5)).unwrap();
    assert!(events.contains(&Event::QueueDiscipline(root.clone())), "{events:?}");

    node.delete_root(index).unwrap();
    assert_eq!(node.queue_disciplines().unwrap(), at_first);
    let events = watch.next(Duration::from_secs(5)).unwrap();
    assert!(events.contains(&Event::QueueDisciplineGone(root)), "{events:?}");

    let error = node.replace_root(index, "nosuch").unwrap_err();
    assert!(error.is_not_found(), "{error:?}");
}

/// A device with two hardware queues has a discipline below each.
#[test]
fn the_queues_of_a_discipline_are_known_as_its_own() {
    let Some(netns) = netns() else { return };
    let mut node = Netlink::open_in(&netns).unwrap();
    let mut command = std::process::Command::new("ip");
    let words = "link add name d0 numtxqueues 2 type veth peer name d1";
    netns.enter_on_spawn(command.args(words.split(' '))).unwrap();
    assert!(command.status().unwrap().success());
    let index = node.link("d0").unwrap().unwrap().index;
    node.set_up(index).unwrap();
    node.replace_root(index, "mq").unwrap();
    let listed = node.queue_disciplines().unwrap();
    let root = listed.iter().find(|found| found.parent.is_none()).unwrap();
    assert_eq!((root.device, root.kind.as_str()), (index, "mq"));
    let below: Vec<_> = listed.iter().filter(|found| found.parent == Some(root.handle)).collect();
    assert_eq!(below.len(), 2, "{listed:?}");
    assert!(below.iter().all(|queue| queue.device == index && !queue.kind.is_empty()));
}
