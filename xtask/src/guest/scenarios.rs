//! What is run on the older kernel.

/// Tests of one program.
pub(super) struct Scenario {
    /// What it is about; also what a filter is compared with.
    pub(super) title: &'static str,
    /// The test program: kind and name of cargo's target.
    pub(super) program: &'static str,
    /// Arguments of the test harness.
    pub(super) arguments: &'static [&'static str],
    /// What the kernel has to load besides [`MODULES`].
    pub(super) modules: &'static [&'static str],
}

/// What every scenario needs of the kernel.
pub(super) const MODULES: &[&str] = &["veth", "vxlan", "bridge", "sch_ingress", "cls_bpf"];

/// Programs that tests call; those that this machine does not have are left out.
pub(super) const TOOLS: &[&str] = &[
    "sh", "cat", "sleep", "kill", "ip", "tc", "ethtool", "bpftool", "sysctl", "curl", "ping",
    "setpriv", "unshare", "mount",
];

/// All of them, the quickest first.
pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        title: "every program passes the verifier",
        program: "test budget",
        arguments: &["--nocapture"],
        modules: &[],
    },
    Scenario {
        title: "programs are attached, replaced and taken away",
        program: "lib fairway_proxy",
        // Those that ask something of a kernel: each loads the programs that it attaches, which takes seconds there.
        // Agents that are killed at many steps load them dozens of times, and do so on the newer kernel alone.
        arguments: &[
            "dataplane::tests::a_successor_puts",
            "dataplane::tests::a_device_",
            "an_uninstall_leaves_no_filter",
            "attaching_the_other_way",
            "filters_of_others",
            "what_is_detached",
            "a_pod_is_in_force",
            "a_pods_sockets_are_known",
            "a_pod_whose_device_vanishes",
        ],
        modules: &[],
    },
    Scenario {
        title: "a tunnel's answers establish flows",
        program: "test differential",
        arguments: &["overlay::"],
        modules: &[],
    },
    Scenario {
        title: "pods, Services and NodePorts in both families",
        program: "test labs",
        // One lab: to load the programs of each of its nodes takes long there.
        arguments: &["dual_stack::both_families"],
        modules: &[],
    },
    Scenario {
        title: "connections outlive the agents",
        program: "test labs",
        arguments: &["outages::a_connection_outlives"],
        modules: &[],
    },
    Scenario {
        title: "pods' sending is paced by fq",
        program: "test pacing",
        arguments: &["--nocapture"],
        modules: &["sch_fq"],
    },
    Scenario {
        title: "WireGuard devices and their peers",
        program: "test kernel",
        arguments: &["wireguard::"],
        modules: &["wireguard"],
    },
    Scenario {
        title: "nodes connected by WireGuard",
        program: "test labs",
        arguments: &["wireguard::"],
        modules: &["wireguard"],
    },
    Scenario {
        title: "associations of SCTP",
        program: "test labs",
        arguments: &["sctp::"],
        // Nothing of the module says that it needs a checksum by another's name.
        modules: &["crc32c_generic", "sctp"],
    },
];
