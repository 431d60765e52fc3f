//! The rules of kube-proxy's iptables mode: a Service is found by trying one rule after the other.
//!
//! Only the `nat` table: what kube-proxy adds to `filter` would cost the baseline more.

use std::fmt::Write as _;

use super::plan::{MASQUERADE_MARK as MARK, PORT, Plan, TARGET_PORT};

/// The input of `iptables-restore`.
pub(super) fn rules(plan: &Plan) -> String {
    let mut chains = String::new();
    let mut portals = String::new();
    let mut node_ports = String::new();
    let mut rules = String::new();
    for service in plan.services() {
        let (name, address, hash) = (&service.name, service.address, &service.hash);
        let [(first, _), (second, _)] = &service.endpoints;
        let target = format!("-m comment --comment \"bench/{name}:http cluster IP\"");
        let matches = format!("-d {address}/32 -p tcp {target} -m tcp --dport {PORT}");
        lines(&mut chains, [format!(":KUBE-SVC-{hash} - [0:0]")]);
        lines(&mut portals, [format!("-A KUBE-SERVICES {matches} -j KUBE-SVC-{hash}")]);
        let comment = |endpoint| {
            format!("-m comment --comment \"bench/{name}:http -> {endpoint}:{TARGET_PORT}\"")
        };
        let [(_, a), (_, b)] = &service.endpoints;
        lines(
            &mut rules,
            [
                format!("-A KUBE-SVC-{hash} ! -s {} {matches} -j KUBE-MARK-MASQ", plan.pod_range),
                format!(
                    "-A KUBE-SVC-{hash} {} -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-{first}",
                    comment(*a)
                ),
                format!("-A KUBE-SVC-{hash} {} -j KUBE-SEP-{second}", comment(*b)),
            ],
        );
        if let Some(port) = service.node_port {
            let comment = format!("-m comment --comment bench/{name}:http");
            let masquerade = format!(
                "-m comment --comment \"masquerade traffic for bench/{name}:http external destinations\""
            );
            lines(&mut chains, [format!(":KUBE-EXT-{hash} - [0:0]")]);
            lines(
                &mut node_ports,
                [format!(
                    "-A KUBE-NODEPORTS -p tcp {comment} -m tcp --dport {port} -j KUBE-EXT-{hash}"
                )],
            );
            lines(
                &mut rules,
                [
                    format!("-A KUBE-EXT-{hash} {masquerade} -j KUBE-MARK-MASQ"),
                    format!("-A KUBE-EXT-{hash} -j KUBE-SVC-{hash}"),
                ],
            );
        }
        for (hash, endpoint) in &service.endpoints {
            let comment = format!("-m comment --comment bench/{name}:http");
            lines(&mut chains, [format!(":KUBE-SEP-{hash} - [0:0]")]);
            lines(
                &mut rules,
                [
                    format!("-A KUBE-SEP-{hash} -s {endpoint}/32 {comment} -j KUBE-MARK-MASQ"),
                    format!(
                        "-A KUBE-SEP-{hash} -p tcp {comment} -m tcp -j DNAT --to-destination {endpoint}:{TARGET_PORT}"
                    ),
                ],
            );
        }
    }
    format!(
        "*nat\n\
         :KUBE-SERVICES - [0:0]\n\
         :KUBE-NODEPORTS - [0:0]\n\
         :KUBE-POSTROUTING - [0:0]\n\
         :KUBE-MARK-MASQ - [0:0]\n\
         {chains}\
         -A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n\
         -A KUBE-POSTROUTING -m mark ! --mark {MARK}/{MARK} -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark {MARK}\n\
         -A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully\n\
         -A KUBE-MARK-MASQ -j MARK --or-mark {MARK}\n\
         {portals}\
         -A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n\
         {node_ports}\
         {rules}\
         COMMIT\n"
    )
}

fn lines<const N: usize>(text: &mut String, lines: [String; N]) {
    for line in lines {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{line}");
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::example;
    use super::*;

    #[test]
    fn the_last_service_is_the_last_portal_and_leads_to_both_endpoints() {
        let text = rules(&example(3));
        let portals: Vec<&str> =
            text.lines().filter(|line| line.starts_with("-A KUBE-SERVICES")).collect();
        assert_eq!(portals.len(), 5);
        let last = portals[3];
        assert!(last.contains("-d 10.96.0.14/32 -p tcp"), "{last}");
        let (_, chain) = last.rsplit_once(' ').unwrap();
        let outside = chain.replace("SVC", "EXT");
        let node_port = text.lines().find(|line| line.contains("--dport 30000 ")).unwrap();
        assert!(node_port.starts_with("-A KUBE-NODEPORTS -p tcp"), "{node_port}");
        assert!(node_port.ends_with(&format!(" -j {outside}")), "{node_port}");
        assert!(text.lines().any(|line| line == format!("-A {outside} -j {chain}")));

        let jumps: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with(&format!("-A {chain} ")))
            .filter_map(|line| Some(line.rsplit_once(' ')?.1))
            .collect();
        assert_eq!(jumps[0], "KUBE-MARK-MASQ");
        for (endpoint, address) in jumps[1..].iter().zip(["10.244.1.3", "10.244.1.4"]) {
            assert!(text.contains(&format!(":{endpoint} - [0:0]")), "{endpoint}");
            let rules = text.lines().filter(|line| line.starts_with(&format!("-A {endpoint} ")));
            let target = format!("-j DNAT --to-destination {address}:8080");
            assert!(rules.clone().any(|rule| rule.ends_with(&target)), "{endpoint}");
            assert_eq!(rules.count(), 2);
        }
    }
}
