//! Gateways that end and start again, one after the other, as in an upgrade, while clients are busy.

use std::net::IpAddr;
use std::process::Command;

use fairway_tests::wait::wait_until;

use super::programs::{AUTHORITY, MEBIBYTE, Running, curl, start_client, start_script};
use super::{NEWS, Site};

pub(super) fn gateways_are_replaced_one_by_one(site: &Site) {
    let nodes: Vec<_> = site.nodes.iter().map(ToString::to_string).collect();
    let nodes: Vec<_> = nodes.iter().map(String::as_str).collect();
    let more = [&["files.example.com", "/client"], &nodes[..]].concat();
    let persistent = start_client(site, "persistent_client.py", &more);
    for (number, node) in site.nodes.iter().enumerate() {
        let others = Others::new(site, &site.nodes[1 - number]);
        told_to_stop(site, number, node);
        others.have_noticed_nothing();
    }
    // One that has no time for anything.
    site.lab.kill_gateway("node1").unwrap();
    site.lab.start_gateway("node1").unwrap();
    let said = String::from_utf8(persistent.finish()).unwrap();
    let counts: Vec<u32> = said.split_whitespace().map(|count| count.parse().unwrap()).collect();
    let [answered, elsewhere, failed] = counts[..] else { panic!("{said}") };
    assert!(answered > 50 && elsewhere > 0 && failed == 0, "{said}");
}

/// What is under way is answered, with the word that no more is to come.
fn told_to_stop(site: &Site, number: usize, node: &IpAddr) {
    let process = || site.lab.nodes().unwrap()[number].gateway_pid;
    let before = process().unwrap();
    let mut asking = start_script(site, "http2_client.py", &["drain"], node, &[]);
    assert_eq!(asking.line(), "asked");
    assert!(Command::new("kill").arg(before.to_string()).status().unwrap().success());
    assert_eq!(String::from_utf8(asking.finish()).unwrap(), "0 200 late\n");
    wait_until(NEWS, "the gateway to be another one", || {
        Ok(process().is_some_and(|now| now != before))
    })
    .unwrap();
    wait_until(NEWS, "the gateway to serve", || {
        Ok(site.ask(node, "https://files.example.com/client", AUTHORITY).status == 200)
    })
    .unwrap();
}

/// Clients of the gateway that stays.
struct Others {
    socket: Running,
    download: Running,
}

impl Others {
    fn new(site: &Site, node: &IpAddr) -> Self {
        let mut socket = start_script(site, "websocket_echo.py", &["stay"], node, &[]);
        assert_eq!(socket.line(), "open");
        let download = curl(site, node, &["--limit-rate", "400k"], "/curl-0");
        Self { socket, download }
    }

    fn have_noticed_nothing(mut self) {
        self.socket.say("still here");
        assert_eq!(self.socket.line(), "still here");
        assert_eq!(self.socket.finish(), b"4002 done\n");
        assert_eq!(self.download.finish().len(), MEBIBYTE);
    }
}
