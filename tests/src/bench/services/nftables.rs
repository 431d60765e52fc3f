//! The rules of kube-proxy's nftables mode: one look-up in a map finds a Service's chain.

use std::fmt::Write as _;

use super::plan::{MASQUERADE_MARK as MARK, PORT, Plan, TARGET_PORT};

/// The input of `nft -f -`.
pub(super) fn rules(plan: &Plan) -> String {
    let mut text = format!(
        "add table ip kube-proxy\n\
         add map ip kube-proxy service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict ; }}\n\
         add map ip kube-proxy service-nodeports {{ type inet_proto . inet_service : verdict ; }}\n\
         add set ip kube-proxy cluster-ips {{ type ipv4_addr ; }}\n\
         add set ip kube-proxy nodeport-ips {{ type ipv4_addr ; }}\n\
         add element ip kube-proxy nodeport-ips {{ {node} }}\n\
         add chain ip kube-proxy services\n\
         add chain ip kube-proxy cluster-ips-check\n\
         add chain ip kube-proxy masquerading\n\
         add chain ip kube-proxy mark-for-masquerade\n\
         add chain ip kube-proxy reject-chain\n\
         add chain ip kube-proxy nat-prerouting {{ type nat hook prerouting priority -100 ; }}\n\
         add chain ip kube-proxy nat-output {{ type nat hook output priority -100 ; }}\n\
         add chain ip kube-proxy nat-postrouting {{ type nat hook postrouting priority 100 ; }}\n\
         add chain ip kube-proxy filter-forward {{ type filter hook forward priority 0 ; }}\n\
         add chain ip kube-proxy filter-output {{ type filter hook output priority 0 ; }}\n\
         add rule ip kube-proxy nat-prerouting jump services\n\
         add rule ip kube-proxy nat-output jump services\n\
         add rule ip kube-proxy nat-postrouting jump masquerading\n\
         add rule ip kube-proxy filter-forward ct state new jump cluster-ips-check\n\
         add rule ip kube-proxy filter-output ct state new jump cluster-ips-check\n\
         add rule ip kube-proxy reject-chain reject\n\
         add rule ip kube-proxy cluster-ips-check ip daddr @cluster-ips reject\n\
         add rule ip kube-proxy cluster-ips-check ip daddr {range} drop\n\
         add rule ip kube-proxy mark-for-masquerade mark set mark or {MARK}\n\
         add rule ip kube-proxy masquerading mark and {MARK} == 0 return\n\
         add rule ip kube-proxy masquerading mark set mark xor {MARK}\n\
         add rule ip kube-proxy masquerading masquerade fully-random\n\
         add rule ip kube-proxy services ip daddr . meta l4proto . th dport vmap @service-ips\n\
         add rule ip kube-proxy services ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports\n",
        range = plan.service_range,
        node = plan.node,
    );
    let mut add = |what: std::fmt::Arguments<'_>| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "add {what}");
    };
    for service in plan.services() {
        let (name, address) = (&service.name, service.address);
        let chain = format!("service-{}-bench/{name}/tcp/http", service.hash);
        let endpoints = service.endpoints.map(|(hash, endpoint)| {
            let chain = format!("endpoint-{hash}-bench/{name}/tcp/http__{endpoint}/{TARGET_PORT}");
            (chain, endpoint)
        });
        add(format_args!("chain ip kube-proxy {chain}"));
        for (endpoint_chain, endpoint) in &endpoints {
            add(format_args!("chain ip kube-proxy {endpoint_chain}"));
            add(format_args!(
                "rule ip kube-proxy {endpoint_chain} ip saddr {endpoint} jump mark-for-masquerade"
            ));
            add(format_args!(
                "rule ip kube-proxy {endpoint_chain} meta l4proto tcp dnat to {endpoint}:{TARGET_PORT}"
            ));
        }
        add(format_args!("element ip kube-proxy cluster-ips {{ {address} }}"));
        add(format_args!(
            "element ip kube-proxy service-ips {{ {address} . tcp . {PORT} : goto {chain} }}"
        ));
        add(format_args!(
            "rule ip kube-proxy {chain} ip daddr {address} tcp dport {PORT} ip saddr != {} jump mark-for-masquerade",
            plan.pod_range
        ));
        if let Some(port) = service.node_port {
            let outside = format!("external-{}-bench/{name}/tcp/http", service.hash);
            add(format_args!("chain ip kube-proxy {outside}"));
            add(format_args!("rule ip kube-proxy {outside} jump mark-for-masquerade"));
            add(format_args!("rule ip kube-proxy {outside} goto {chain}"));
            add(format_args!(
                "element ip kube-proxy service-nodeports {{ tcp . {port} : goto {outside} }}"
            ));
        }
        let [(first, _), (second, _)] = &endpoints;
        add(format_args!(
            "rule ip kube-proxy {chain} numgen random mod 2 vmap {{ 0 : goto {first} , 1 : goto {second} }}"
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::plan::example;
    use super::*;

    #[test]
    fn the_map_leads_to_a_chain_that_leads_to_both_endpoints() {
        let text = rules(&example(3));
        let start = "add element ip kube-proxy service-ips { 10.96.0.14 . tcp . 80 : goto ";
        let element = text.lines().find_map(|line| line.strip_prefix(start)).unwrap();
        let chain = element.trim_end_matches(" }");
        let start = "add element ip kube-proxy service-nodeports { tcp . 30000 : goto ";
        let outside = text.lines().find_map(|line| line.strip_prefix(start)).unwrap();
        let outside = outside.trim_end_matches(" }");
        let onwards = format!("add rule ip kube-proxy {outside} goto {chain}");
        assert!(text.lines().any(|line| line == onwards), "{onwards}");
        let choice = format!("add rule ip kube-proxy {chain} numgen random mod 2 vmap ");
        let choice = text.lines().find_map(|line| line.strip_prefix(&choice)).unwrap();
        for (end, address) in ["10.244.1.3", "10.244.1.4"].iter().enumerate() {
            let (_, rest) = choice.split_once(&format!("{end} : goto ")).unwrap();
            let (endpoint, _) = rest.split_once(' ').unwrap();
            let rule = format!(
                "add rule ip kube-proxy {endpoint} meta l4proto tcp dnat to {address}:8080"
            );
            assert!(text.lines().any(|line| line == rule), "{rule}");
        }
    }
}
