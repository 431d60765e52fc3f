//! What API servers made of objects of versions that they do not have any more.

use serde_json::{Value, json};

/// An Ingress of `extensions/v1beta1` or `networking.k8s.io/v1beta1` as `networking.k8s.io/v1` has it; anything
/// else as it is.
pub(crate) fn converted(mut object: Value) -> Value {
    let is_older = object["apiVersion"].as_str().is_some_and(|version| version.ends_with("beta1"));
    if object["kind"] != "Ingress" || !is_older {
        return object;
    }
    object["apiVersion"] = "networking.k8s.io/v1".into();
    if let Some(backend) = take(&mut object["spec"], "backend") {
        object["spec"]["defaultBackend"] = of_service(&backend);
    }
    for rule in object["spec"]["rules"].as_array_mut().into_iter().flatten() {
        for path in rule["http"]["paths"].as_array_mut().into_iter().flatten() {
            if let Some(backend) = take(path, "backend") {
                path["backend"] = of_service(&backend);
            }
            if path["pathType"].is_null() {
                path["pathType"] = "ImplementationSpecific".into();
            }
        }
    }
    object
}

fn take(object: &mut Value, field: &str) -> Option<Value> {
    object.as_object_mut()?.remove(field)
}

/// A backend, whose port was a number or a name.
fn of_service(backend: &Value) -> Value {
    let port = &backend["servicePort"];
    let port = if port.is_string() { json!({"name": port}) } else { json!({"number": port}) };
    json!({"service": {"name": backend["serviceName"], "port": port}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_have_another_form_and_paths_a_type() {
        let older = json!({"apiVersion": "extensions/v1beta1", "kind": "Ingress", "spec": {
            "backend": {"serviceName": "a", "servicePort": "http"},
            "rules": [{"http": {"paths": [{"path": null, "backend": {"serviceName": "b", "servicePort": 80}}]}}]}});
        let newer = json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "spec": {
            "defaultBackend": {"service": {"name": "a", "port": {"name": "http"}}},
            "rules": [{"http": {"paths": [{"path": null, "pathType": "ImplementationSpecific",
                "backend": {"service": {"name": "b", "port": {"number": 80}}}}]}}]}});
        assert_eq!(converted(older), newer);
        assert_eq!(converted(newer.clone()), newer);
        let other =
            json!({"apiVersion": "apps/v1beta1", "kind": "Deployment", "spec": {"backend": {}}});
        assert_eq!(converted(other.clone()), other);
    }
}
