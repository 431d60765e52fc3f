//! Calls killed before each single change they make, and what the next call makes of the remains.

use std::cell::Cell;
use std::time::{Duration, Instant};
use std::{fs, thread};

use serde_json::json;

use crate::support::{Node, Pod, root};
use crate::tracer::{Ending, Moment};
use crate::{V4, V6};

/// More changes than any call makes: a test that gets here does not end.
const TOO_MANY: usize = 500;

/// Kills ADD before each change in turn, each time on the same node and for the same pod, and calls
/// `after` with the number of the change. Returns the calls it was killed at.
#[track_caller]
fn kill_add_everywhere(node: &Node, pod: &Pod, after: impl Fn(usize)) -> Vec<&'static str> {
    let mut killed_at = Vec::new();
    for step in 1..TOO_MANY {
        match node.kill_before(&pod.env("ADD"), &node.config().to_string(), Moment::Change(step)) {
            Ending::Killed(call) => {
                killed_at.push(call);
                after(step);
            }
            Ending::Exited { status, stdout } => {
                assert_eq!(status, 0, "{stdout}");
                assert!(killed_at.len() > 20, "{killed_at:?}");
                return killed_at;
            }
        }
    }
    panic!("ADD makes more than {TOO_MANY} changes: {killed_at:?}");
}

#[track_caller]
fn nothing_is_left(node: &Node, pod: &Pod, step: usize, what: &str) {
    assert_eq!(node.state(), Vec::<String>::new(), "{what} after ADD was killed at change {step}");
    assert_eq!(node.leftovers(), Vec::<String>::new(), "{what} after change {step}");
    assert!(!pod.has_link("eth0"), "{what} after change {step}");
    assert!(node.agent.endpoints().is_empty(), "{what} after change {step}");
}

#[test]
fn del_removes_what_an_add_left_that_was_killed_at_any_change() {
    if !root() {
        return;
    }
    let node = Node::new(&[V4, V6]);
    let pod = Pod::new("aaa", "eth0");
    let killed_at = kill_add_everywhere(&node, &pod, |step| {
        node.call("DEL", &pod, &node.config()).success();
        nothing_is_left(&node, &pod, step, "DEL");
    });
    // It was killed in the middle of everything: the store, the kernel, the agent, the answer.
    for call in ["openat", "link", "rename", "sendto", "write"] {
        assert!(killed_at.contains(&call), "{call} in {killed_at:?}");
    }
    assert_eq!(killed_at.last(), Some(&"write"), "the answer is the last of {killed_at:?}");
}

#[test]
fn gc_removes_what_an_add_left_that_was_killed_at_any_change() {
    if !root() {
        return;
    }
    let node = Node::new(&[V4, V6]);
    let pod = Pod::new("aaa", "eth0");
    let config = node.config_with("cni.dev/valid-attachments", &json!([])).to_string();
    kill_add_everywhere(&node, &pod, |step| {
        node.exec(&[("CNI_COMMAND", "GC")], &config).success();
        nothing_is_left(&node, &pod, step, "GC");
    });
}

#[test]
fn add_repairs_what_an_add_left_that_was_killed_before_the_pod_was_complete() {
    if !root() {
        return;
    }
    let node = Node::new(&[V4, V6]);
    let pod = Pod::new("aaa", "eth0");
    let complete = Cell::new(0);
    kill_add_everywhere(&node, &pod, |step| {
        let reply = node.call("ADD", &pod, &node.config());
        if reply.succeeded() {
            let result = reply.success();
            assert_eq!(node.reserved().len(), 2, "one address a family, after change {step}");
            assert_eq!(node.agent.endpoints().len(), 1, "after change {step}");
            let config = node.config_with("prevResult", &result);
            node.call("CHECK", &pod, &config).success();
        } else {
            // All was done but for telling: whether the runtime knows, nobody can know.
            complete.set(complete.get() + 1);
            reply.failure(101, &["DEL comes first"]);
        }
        node.call("DEL", &pod, &node.config()).success();
        nothing_is_left(&node, &pod, step, "ADD and DEL");
    });
    // What announces the addresses (a change, and one for each address), and the answer.
    assert_eq!(complete.get(), 4);
}

#[test]
fn del_finishes_what_a_del_left_that_was_killed_at_any_change() {
    if !root() {
        return;
    }
    let node = Node::new(&[V4, V6]);
    let pod = Pod::new("aaa", "eth0");
    let mut steps = 0;
    let mut killed = |moment| {
        steps += 1;
        node.call("ADD", &pod, &node.config()).success();
        let ending = node.kill_before(&pod.env("DEL"), &node.config().to_string(), moment);
        if matches!(ending, Ending::Killed(_)) {
            node.call("DEL", &pod, &node.config()).success();
            nothing_is_left(&node, &pod, steps, "DEL");
            return true;
        }
        assert_eq!(ending, Ending::Exited { status: 0, stdout: String::new() });
        false
    };
    (1..TOO_MANY).take_while(|step| killed(Moment::Change(*step))).for_each(drop);
    // How many changes there are differs, but not that these are among them: the middle of the kernel's
    // part, and of the store's.
    for call in ["sendto", "unlink"] {
        assert!(killed(Moment::Call(call)), "{call}");
    }
    nothing_is_left(&node, &pod, 0, "DEL");
}

#[test]
fn the_kernel_does_not_hurry_for_ever_after_a_del_that_was_killed() {
    const SETTING: &str = "/sys/kernel/rcu_expedited";
    if !root() {
        return;
    }
    let value = || fs::read_to_string(SETTING).map(|value| value.trim().to_owned());
    if value().is_err() {
        return eprintln!("NOT RUN: this kernel has no {SETTING}");
    }
    let node = Node::new(&[V4, V6]);
    let pod = Pod::new("aaa", "eth0");
    let mut left_on = 0;
    for step in 1..TOO_MANY {
        node.call("ADD", &pod, &node.config()).success();
        let ending =
            node.kill_before(&pod.env("DEL"), &node.config().to_string(), Moment::Change(step));
        left_on += u32::from(value().is_ok_and(|value| value == "1"));
        node.call("DEL", &pod, &node.config()).success();
        // Other tests have the kernel hurry at the same time, each for a moment.
        let deadline = Instant::now() + Duration::from_secs(10);
        while value().is_ok_and(|value| value != "0") {
            assert!(Instant::now() < deadline, "{SETTING} after {ending:?} at change {step}");
            thread::yield_now();
        }
        if matches!(ending, Ending::Exited { .. }) {
            break;
        }
    }
    assert!(left_on > 0, "no kill has left {SETTING} on");
}
