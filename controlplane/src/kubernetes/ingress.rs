//! Ingresses, in all forms that they had (networking.k8s.io/v1, networking.k8s.io/v1beta1 and
//! extensions/v1beta1), and who is to serve them.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Created, FieldError, Port, ServiceStatus};

/// The annotation that said the class before there was a field for it.
const CLASS: &str = "kubernetes.io/ingress.class";
/// The annotation of the class that Ingresses without one have.
const DEFAULT_CLASS: &str = "ingressclass.kubernetes.io/is-default-class";
/// The annotation of a class that says which gateways serve it.
const GATEWAY: &str = "fairway.dev/gateway";
/// What annotations must begin with to matter here.
const MATTERS: [&str; 4] = [
    "fairway.dev/",
    crate::ingress::PREFIX,
    crate::ingress::OWN_PREFIX,
    "ingressclass.kubernetes.io/",
];
/// The version in which every path says its type.
const V1: &str = "networking.k8s.io/v1";
/// The longest name of a host.
const LONGEST_HOST: usize = 253;

/// An Ingress.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Ingress {
    /// In which of its forms it was written, where that is known.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub api_version: String,
    /// Its annotations.
    pub metadata: IngressMetadata,
    /// What its owner wants.
    pub spec: IngressSpec,
    /// What is so.
    #[serde(skip_serializing_if = "ServiceStatus::is_empty")]
    pub status: ServiceStatus,
    /// It is what could be read of one that cannot be taken as it is: enough to deny its paths.
    #[serde(skip)]
    pub unreadable: bool,
}

/// Of an [`Ingress`] or an [`IngressClass`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IngressMetadata {
    /// Which life of an object of that name it is, where that is known.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// All of them, or those that matter here.
    pub annotations: BTreeMap<String, String>,
    /// When it came into being, where that is known.
    #[serde(skip_serializing_if = "Created::is_unknown")]
    pub creation_timestamp: Created,
}

/// Of an [`Ingress`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IngressSpec {
    /// Who is to serve it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress_class_name: Option<String>,
    /// For whatever no rule is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_backend: Option<IngressBackend>,
    /// The same, as it was called in v1beta1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<IngressBackend>,
    /// What is served.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<IngressRule>,
    /// With which certificates.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tls: Vec<IngressTls>,
}

/// Of an [`IngressSpec`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IngressRule {
    /// Empty: all hosts.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub host: String,
    /// Without it, all paths are meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<IngressHttp>,
}

/// Of an [`IngressRule`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IngressHttp {
    /// Its paths.
    pub paths: Vec<IngressPath>,
}

/// Of an [`IngressHttp`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IngressPath {
    /// Empty: as `/`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// How it is compared; v1beta1 need not say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_type: Option<PathType>,
    /// Where requests go.
    pub backend: IngressBackend,
}

/// Of an [`IngressPath`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum PathType {
    /// Equal.
    Exact,
    /// Element by element.
    Prefix,
    /// As whoever serves it likes.
    ImplementationSpecific,
}

/// Of an [`IngressPath`] or an [`IngressSpec`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IngressBackend {
    /// A Service of its namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceBackend>,
    /// Something else, which nobody here can serve.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource: Option<Resource>,
    /// v1beta1: the Service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_name: Option<String>,
    /// v1beta1: its port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_port: Option<NumberOrName>,
}

/// Of an [`IngressBackend`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceBackend {
    /// Its name.
    pub name: String,
    /// Its port.
    pub port: BackendPort,
}

/// Of a [`ServiceBackend`]: one of both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BackendPort {
    /// By name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// By number; 0 says nothing.
    #[serde(skip_serializing_if = "is_zero")]
    pub number: i64,
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// Of an [`IngressBackend`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resource {
    /// What it is.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// A port as v1beta1 has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum NumberOrName {
    /// `80`.
    Number(i64),
    /// `http`; `"80"` was meant as a number, too.
    Name(String),
}

/// Of an [`IngressSpec`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IngressTls {
    /// None: those of all rules.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// Where the certificate is; empty: nowhere.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub secret_name: String,
}

/// A networking.k8s.io IngressClass.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IngressClass {
    /// Its annotations.
    pub metadata: IngressMetadata,
    /// What it is.
    pub spec: IngressClassSpec,
}

/// Of an [`IngressClass`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IngressClassSpec {
    /// Who serves its Ingresses.
    pub controller: String,
}

impl IngressMetadata {
    /// Forgets annotations that do not matter here.
    pub(crate) fn compact(&mut self) {
        let matters = |key: &str| key == CLASS || MATTERS.iter().any(|head| key.starts_with(head));
        self.annotations.retain(|key, _| matters(key));
    }
}

impl IngressClass {
    /// Whether Ingresses without a class have this one.
    pub(crate) fn is_default(&self) -> bool {
        self.metadata.annotations.get(DEFAULT_CLASS).is_some_and(|value| value == "true")
    }

    /// The gateways that serve its Ingresses, if not all do.
    pub(crate) fn gateway(&self) -> Option<&String> {
        self.metadata.annotations.get(GATEWAY).filter(|name| !name.is_empty())
    }
}

impl Ingress {
    /// Its class, by whichever way it says it.
    pub(crate) fn class(&self) -> Option<&String> {
        self.spec.ingress_class_name.as_ref().or_else(|| self.metadata.annotations.get(CLASS))
    }

    /// Its default backend, by whichever name, and the field that has it.
    pub(crate) fn default_backend(&self) -> Option<(&'static str, &IngressBackend)> {
        let spec = &self.spec;
        let new = spec.default_backend.as_ref().map(|backend| ("spec.defaultBackend", backend));
        new.or_else(|| spec.backend.as_ref().map(|backend| ("spec.backend", backend)))
    }

    /// All its paths: numbers of rule and path, and the path.
    pub(crate) fn paths(&self) -> impl Iterator<Item = (usize, usize, &IngressPath)> {
        self.spec.rules.iter().enumerate().flat_map(|(rule, of)| {
            let paths = of.http.iter().flat_map(|http| http.paths.iter().enumerate());
            paths.map(move |(path, of)| (rule, path, of))
        })
    }

    /// What Kubernetes would not take.
    pub(crate) fn check(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut error = |field: String, message: String| {
            errors.push(FieldError::new(field, message));
        };
        for (index, rule) in self.spec.rules.iter().enumerate() {
            if let Err(message) = Some(&rule.host)
                .filter(|host| !host.is_empty())
                .map_or(Ok(()), |host| check_host(host))
            {
                error(format!("spec.rules[{index}].host"), message);
            }
        }
        for (index, tls) in self.spec.tls.iter().enumerate() {
            for (at, host) in tls.hosts.iter().enumerate().filter(|(_, host)| !host.is_empty()) {
                if let Err(message) = check_host(host) {
                    error(format!("spec.tls[{index}].hosts[{at}]"), message);
                }
            }
            let name = &tls.secret_name;
            if !name.is_empty() && !is_object_name(name) {
                let message = format!("\"{name:.300}\" is no name of a Secret");
                error(format!("spec.tls[{index}].secretName"), message);
            }
        }
        if let Some((field, backend)) = self.default_backend()
            && let Err(wrong) = backend.port()
        {
            error(format!("{field}{}", wrong.field), wrong.message);
        }
        for (rule, at, path) in self.paths() {
            let field = format!("spec.rules[{rule}].http.paths[{at}]");
            if path.path_type.is_none() && self.api_version == V1 {
                let message = "needs to be there: Exact, Prefix or ImplementationSpecific";
                error(format!("{field}.pathType"), message.to_owned());
            }
            if let Err(message) = path.check() {
                error(format!("{field}.path"), message);
            }
            if let Err(wrong) = path.backend.port() {
                error(format!("{field}.backend{}", wrong.field), wrong.message);
            }
        }
        errors
    }
}

impl IngressPath {
    fn check(&self) -> Result<(), String> {
        let path = &self.path;
        if path.chars().any(char::is_control) {
            return Err("a control character".to_owned());
        }
        if matches!(self.path_type, None | Some(PathType::ImplementationSpecific)) {
            return Ok(());
        }
        if !path.starts_with('/') {
            return Err(format!("\"{path:.300}\" does not begin with /"));
        }
        let never = ["//", "/./", "/../", "%2f", "%2F"];
        if let Some(never) = never.iter().find(|never| path.contains(*never)) {
            return Err(format!("\"{path:.300}\" contains {never}, which no request's path does"));
        }
        match path.ends_with("/..") || path.ends_with("/.") {
            true => Err(format!("\"{path:.300}\" ends with dots, which no request's path does")),
            false => Ok(()),
        }
    }
}

impl IngressBackend {
    /// The Service and its port; `None` of something else than a Service.
    pub(crate) fn port(&self) -> Result<Option<fairway_model::Backend>, FieldError> {
        let error = |field: &str, message: String| Err(FieldError::new(field, message));
        let number = |field: &str, number: i64| {
            let port = Port::try_from(number).map_err(|message| FieldError::new(field, message))?;
            Ok(fairway_model::BackendPort::Number(port.get()))
        };
        let (field, service, port) = match (&self.service, &self.service_name, &self.resource) {
            (Some(_), _, Some(_)) => {
                return error("", "has a service and a resource; one is the most".to_owned());
            }
            (Some(service), ..) => {
                let BackendPort { name, number: at } = &service.port;
                let field = ".service.port";
                let port = match (name.is_empty(), at) {
                    (false, 0) => fairway_model::BackendPort::Name(name.clone()),
                    (true, 0) => return error(field, "needs a name or a number".to_owned()),
                    (true, at) => number(".service.port.number", *at)?,
                    (false, _) => {
                        return error(field, "has a name and a number; one is the most".to_owned());
                    }
                };
                (".service.name", &service.name, port)
            }
            (None, Some(service), _) => {
                let field = ".servicePort";
                let port = match &self.service_port {
                    None => return error(field, "needs to be there".to_owned()),
                    Some(NumberOrName::Number(at)) => number(field, *at)?,
                    Some(NumberOrName::Name(name)) => match name.parse() {
                        Ok(at) => number(field, at)?,
                        Err(_) => fairway_model::BackendPort::Name(name.clone()),
                    },
                };
                (".serviceName", service, port)
            }
            (None, None, Some(_)) => return Ok(None),
            (None, None, None) => return error("", "needs a service".to_owned()),
        };
        if !is_object_name(service) {
            return error(field, format!("\"{service:.300}\" is no name of a Service"));
        }
        if let fairway_model::BackendPort::Name(name) = &port
            && !crate::rules::is_port_name(name)
        {
            return error(field, crate::rules::no_port_name(name));
        }
        Ok(Some(fairway_model::Backend { service: service.clone(), port }))
    }
}

/// Whether objects may have that name.
pub(crate) fn is_object_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = [name.bytes().next(), name.bytes().last()];
    name.len() <= LONGEST_HOST
        && ends.iter().all(|end| end.is_some_and(plain))
        && name.bytes().all(|byte| plain(byte) || byte == b'-' || byte == b'.')
}

/// What is wrong with the name of a host. Case does not matter.
pub(crate) fn check_host(host: &str) -> Result<(), String> {
    struct Quoted<'a>(&'a str);
    impl fmt::Display for Quoted<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "\"{:.300}\"", self.0)
        }
    }
    let quoted = Quoted(host);
    if host.parse::<IpAddr>().is_ok() {
        return Err(format!("{quoted} is an address; hosts have names"));
    }
    let name = host.to_ascii_lowercase();
    let bare = name.strip_prefix("*.").unwrap_or(&name);
    if !is_object_name(bare) || bare.split('.').any(|label| label.is_empty() || label.len() > 63) {
        return Err(format!(
            "{quoted} is no name of a host: labels of letters, digits and '-' with dots between \
             them, the first of which may be *"
        ));
    }
    Ok(())
}
