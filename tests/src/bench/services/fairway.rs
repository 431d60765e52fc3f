//! Fairway's Services, as manifests.

use std::fmt::Write as _;

use super::plan::{PORT, Plan, TARGET_PORT};

/// The Services, each with its endpoints given: what would be read from an API server.
pub(super) fn manifests(plan: &Plan) -> String {
    let mut text = String::new();
    for service in plan.services() {
        let [(_, a), (_, b)] = service.endpoints;
        let (kind, port) = match service.node_port {
            Some(port) => ("NodePort", format!(", nodePort: {port}")),
            None => ("ClusterIP", String::new()),
        };
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "---\n\
             apiVersion: v1\n\
             kind: Service\n\
             metadata: {{name: {name}, namespace: bench}}\n\
             spec:\n  \
               type: {kind}\n  \
               clusterIP: {address}\n  \
               ports: [{{name: http, port: {PORT}, targetPort: {TARGET_PORT}{port}}}]\n\
             ---\n\
             apiVersion: discovery.k8s.io/v1\n\
             kind: EndpointSlice\n\
             metadata:\n  \
               name: {name}\n  \
               namespace: bench\n  \
               labels: {{kubernetes.io/service-name: {name}}}\n\
             addressType: IPv4\n\
             ports: [{{name: http, port: {TARGET_PORT}}}]\n\
             endpoints: [{{addresses: [{a}]}}, {{addresses: [{b}]}}]\n",
            name = service.name,
            address = service.address,
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::plan::example;
    use super::*;
    use crate::manifest::{Manifests, parse};

    #[test]
    fn each_service_has_its_address_and_both_endpoints() {
        let mut read = Manifests::default();
        parse(&manifests(&example(2)), &mut read).unwrap();
        let names: Vec<String> = read.objects.iter().map(|(key, _)| key.to_string()).collect();
        assert_eq!(names.len(), 6, "{names:?}");
        let (_, service) = &read.objects[2];
        assert_eq!(service["spec"]["clusterIP"], "10.96.0.12");
        let (_, slice) = &read.objects[3];
        assert_eq!(slice["metadata"]["labels"]["kubernetes.io/service-name"], "service-1");
        assert_eq!(slice["endpoints"][1]["addresses"][0], "10.244.0.4");
        let (_, last) = &read.objects[4];
        assert_eq!(last["spec"]["ports"][0]["nodePort"], 30_000);
        let (_, slice) = &read.objects[5];
        assert_eq!(slice["endpoints"][1]["addresses"][0], "10.244.1.4");
    }
}
