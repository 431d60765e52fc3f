//! Which node an agent's pod runs on, or which gateway a pod is, by the token of its ServiceAccount.
//!
//! The API server is asked about the token (TokenReview), and says whose it is, and of which pod. Since
//! Kubernetes 1.30 it also says on which node that pod is; of older ones, the pod is read. Kubelets get tokens
//! for pods of their own nodes alone, so nobody on a node can have one of another node. A gateway is called as
//! its pod is, and belongs to the group that its ServiceAccount is for.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use fairway_feed::authority::{NotVouched, Vouch, Vouching};
use fairway_feed::identity::{GatewayName, Role};
use http::Method;
use kube::Client;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::rest;

/// Whom tokens of agents and gateways are for; no other token lets anybody join.
pub const AUDIENCE: &str = "fairway-feed";
/// Tokens that are asked about at a time: whoever reaches the feed can show some.
const AT_A_TIME: usize = 16;
/// For an answer; an agent waits for five seconds.
const ANSWER: Duration = Duration::from_secs(4);

/// What users, of whom the API server tells, are called if they are ServiceAccounts.
const USER: &str = "system:serviceaccount";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// A ServiceAccount, as `NAMESPACE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccount {
    /// Its namespace, which is also that of its pods.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl FromStr for ServiceAccount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/').filter(|(namespace, name)| {
            !namespace.is_empty() && !name.is_empty() && !name.contains('/')
        });
        let (namespace, name) = parts.ok_or_else(|| format!("{text:?} is not NAMESPACE/NAME"))?;
        Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

impl fmt::Display for ServiceAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The ServiceAccount of a gateway's pods, as `NAMESPACE/NAME` or `NAMESPACE/NAME=GROUP`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayAccount {
    /// It.
    pub account: ServiceAccount,
    /// What its pods have in common; the account's name if nothing else is said.
    pub group: String,
}

impl FromStr for GatewayAccount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (account, group) = match text.split_once('=') {
            Some((account, group)) => (account, Some(group)),
            None => (text, None),
        };
        let account: ServiceAccount = account.parse()?;
        let GatewayName { group, replica } = group.unwrap_or(&account.name).parse()?;
        match replica {
            None => Ok(Self { account, group }),
            Some(_) => Err(format!("{text:?} is not NAMESPACE/NAME=GROUP")),
        }
    }
}

/// Whose pods may join, and as what.
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    agents: Option<ServiceAccount>,
    gateways: Vec<GatewayAccount>,
}

impl Accounts {
    /// Agents of one account, and gateways of others. An account that is named twice is an error, and so is a
    /// group: pods of two accounts may have one name.
    pub fn new(
        agents: Option<ServiceAccount>,
        gateways: Vec<GatewayAccount>,
    ) -> Result<Self, String> {
        let (mut accounts, mut groups) = (Vec::from_iter(&agents), Vec::new());
        for GatewayAccount { account, group } in &gateways {
            if accounts.contains(&account) {
                return Err(format!("ServiceAccount {account} is named twice"));
            }
            if groups.contains(&group) {
                return Err(format!("two ServiceAccounts are for gateways of the name {group}"));
            }
            accounts.push(account);
            groups.push(group);
        }
        Ok(Self { agents, gateways })
    }

    /// Whether nobody may.
    pub fn is_empty(&self) -> bool {
        self.agents.is_none() && self.gateways.is_empty()
    }

    /// What the pods of this user are.
    fn find(&self, user: &str) -> Option<PodsOf<'_>> {
        let is = |account: &ServiceAccount| {
            user == format!("{USER}:{}:{}", account.namespace, account.name)
        };
        if let Some(account) = self.agents.as_ref().filter(|account| is(account)) {
            return Some(PodsOf::Agent(account));
        }
        let gateway = self.gateways.iter().find(|gateway| is(&gateway.account));
        gateway.map(|gateway| PodsOf::Gateway(&gateway.group))
    }
}

/// `agents are a/b, gateways c/d, c/e`.
impl fmt::Display for Accounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gateways: Vec<_> =
            self.gateways.iter().map(|gateway| gateway.account.to_string()).collect();
        let gateways = gateways.join(", ");
        match (&self.agents, gateways.is_empty()) {
            (Some(agents), true) => write!(f, "agents are {agents}"),
            (Some(agents), false) => write!(f, "agents are {agents}, gateways {gateways}"),
            (None, _) => write!(f, "gateways are {gateways}"),
        }
    }
}

enum PodsOf<'a> {
    Agent(&'a ServiceAccount),
    Gateway(&'a str),
}

/// Vouches for pods of some ServiceAccounts.
pub struct Pods {
    client: Client,
    accounts: Accounts,
    asking: Semaphore,
}

impl fmt::Debug for Pods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pods").field("accounts", &self.accounts).finish_non_exhaustive()
    }
}

impl Pods {
    /// Of these accounts.
    pub fn new(client: Client, accounts: Accounts) -> Self {
        Self { client, accounts, asking: Semaphore::new(AT_A_TIME) }
    }

    async fn role_of(&self, token: &str) -> Result<Role, NotVouched> {
        let _one = self.asking.acquire().await.map_err(|error| unavailable(&error))?;
        let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
            "metadata": {}, "spec": {"token": token, "audiences": [AUDIENCE]}});
        let uri = "/apis/authentication.k8s.io/v1/tokenreviews";
        let content = ("application/json", &review);
        let answer = rest::write(&self.client, Method::POST, uri, content, ANSWER).await;
        let answer = answer.map_err(|error| unavailable(&error))?;
        match judge(&answer["status"], &self.accounts).map_err(NotVouched::Refused)? {
            Speaks::For(role) => Ok(role),
            Speaks::NodeOf { namespace, name, uid } => {
                self.node_of_pod(&namespace, &name, &uid).await.map(Role::Node)
            }
        }
    }

    /// Where a pod runs.
    async fn node_of_pod(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
    ) -> Result<String, NotVouched> {
        let gone = || NotVouched::Refused(format!("its pod {name} is not there any more"));
        let uri = format!("/api/v1/namespaces/{namespace}/pods/{name}");
        let pod: Value = match rest::get(&self.client, &uri, ANSWER).await {
            Ok(text) => rest::decode(&text).map_err(|error| unavailable(&error))?,
            Err(error) if error.code() == Some(404) => return Err(gone()),
            Err(error) => return Err(unavailable(&error)),
        };
        if pod["metadata"]["uid"] != *uid {
            return Err(gone());
        }
        let node = pod["spec"]["nodeName"].as_str().filter(|node| !node.is_empty());
        node.map(str::to_owned)
            .ok_or_else(|| NotVouched::Refused(format!("its pod {name} is on no node")))
    }
}

impl Vouch for Pods {
    fn vouch<'a>(&'a self, token: &'a str) -> Vouching<'a> {
        Box::pin(self.role_of(token))
    }
}

fn unavailable(error: &dyn std::error::Error) -> NotVouched {
    NotVouched::Unavailable(format!("the API server cannot be asked: {error}"))
}

/// Whom a token speaks for.
#[derive(Debug, PartialEq, Eq)]
enum Speaks {
    /// This one.
    For(Role),
    /// The node that this pod is on.
    NodeOf { namespace: String, name: String, uid: String },
}

/// What the status of a TokenReview comes to.
fn judge(status: &Value, accounts: &Accounts) -> Result<Speaks, String> {
    if status["authenticated"] != true {
        let error =
            status["error"].as_str().unwrap_or("it has expired, or is no token of this cluster");
        return Err(format!("the API server says: {error}"));
    }
    // A server that does not know audiences would have taken one for anybody.
    let mut audiences = status["audiences"].as_array().into_iter().flatten();
    if !audiences.any(|audience| audience == AUDIENCE) {
        return Err(format!("it is not for the audience {AUDIENCE}"));
    }
    let user = status["user"]["username"].as_str().unwrap_or_default();
    let pods = accounts.find(user);
    let pods = pods.ok_or_else(|| format!("it is that of {user}, and {accounts}"))?;
    let extra = |key: &str| {
        let value = status["user"]["extra"][key][0].as_str().filter(|value| !value.is_empty());
        value.map(str::to_owned)
    };
    let (Some(name), Some(uid)) = (extra(POD_NAME), extra(POD_UID)) else {
        return Err("it is not that of a pod".to_owned());
    };
    match pods {
        PodsOf::Agent(account) => Ok(match extra(NODE_NAME) {
            Some(node) => Speaks::For(Role::Node(node)),
            None => Speaks::NodeOf { namespace: account.namespace.clone(), name, uid },
        }),
        PodsOf::Gateway(group) => {
            let gateway = GatewayName { group: group.to_owned(), replica: Some(name) };
            Ok(Speaks::For(Role::Gateway(gateway)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        let gateways = ["kube-system/fairway-gateway=edge", "shop/own"];
        let gateways = gateways.map(|gateway| gateway.parse().unwrap());
        Accounts::new(Some("kube-system/fairway-agent".parse().unwrap()), gateways.into()).unwrap()
    }

    fn status_of(user: &str) -> Value {
        json!({"authenticated": true, "audiences": [AUDIENCE], "user": {
            "username": format!("system:serviceaccount:{user}"),
            "extra": {POD_NAME: ["a-1"], POD_UID: ["u-1"], NODE_NAME: ["n1"]}}})
    }

    fn status() -> Value {
        status_of("kube-system:fairway-agent")
    }

    #[test]
    fn a_token_speaks_for_the_node_of_its_pod() {
        let node = Speaks::For(Role::Node("n1".to_owned()));
        assert_eq!(judge(&status(), &accounts()), Ok(node));
        let mut older = status();
        older["user"]["extra"].as_object_mut().unwrap().remove(NODE_NAME);
        let [namespace, name, uid] = ["kube-system", "a-1", "u-1"].map(str::to_owned);
        assert_eq!(judge(&older, &accounts()), Ok(Speaks::NodeOf { namespace, name, uid }));
    }

    #[test]
    fn a_token_of_a_gateway_speaks_for_its_pod_in_its_group() {
        for (user, gateway) in
            [("kube-system:fairway-gateway", "gateway/edge/a-1"), ("shop:own", "gateway/own/a-1")]
        {
            let role = Speaks::For(gateway.parse().unwrap());
            assert_eq!(judge(&status_of(user), &accounts()), Ok(role));
        }
        for other in ["shop:fairway-gateway", "shop:fairway-agent", "kube-system:own"] {
            let refused = judge(&status_of(other), &accounts()).unwrap_err();
            let known = "agents are kube-system/fairway-agent, gateways kube-system/fairway-gateway, \
                         shop/own";
            let whole = format!("it is that of system:serviceaccount:{other}, and {known}");
            assert_eq!(refused, whole);
        }
    }

    #[test]
    fn what_is_not_said_is_refused() {
        for (path, value, reason) in [
            ("/authenticated", json!(false), "the API server says: it has expired"),
            ("/authenticated", json!("true"), "the API server says: it has expired"),
            ("/audiences", json!(["https://kubernetes.default.svc"]), "not for the audience"),
            ("/audiences", Value::Null, "not for the audience fairway-feed"),
            ("/user/username", json!("admin"), "that of admin, and agents are kube-system/fairway"),
            ("/user/username", json!("system:serviceaccount:a:fairway-agent"), "that of system"),
            ("/user/extra", Value::Null, "not that of a pod"),
            // One that somebody has asked for, about a node, without a pod there.
            ("/user/extra", json!({NODE_NAME: ["n1"]}), "not that of a pod"),
        ] {
            for mut changed in [status(), status_of("shop:own")] {
                *changed.pointer_mut(path).unwrap() = value.clone();
                let refused = judge(&changed, &accounts()).unwrap_err();
                assert!(refused.contains(reason), "{path}: {refused}");
            }
        }
        let why = json!({"authenticated": false, "error": "token is expired"});
        let refused = judge(&why, &accounts()).unwrap_err();
        assert_eq!(refused, "the API server says: token is expired");
    }

    #[test]
    fn accounts_are_typed_with_their_namespace() {
        let agent = "kube-system/fairway-agent";
        assert_eq!(agent.parse::<ServiceAccount>().unwrap().to_string(), agent);
        for bad in ["", "fairway-agent", "/a", "a/", "a/b/c"] {
            assert!(bad.parse::<ServiceAccount>().is_err(), "{bad}");
            assert!(bad.parse::<GatewayAccount>().is_err(), "{bad}");
        }
        for bad in ["a/b=", "a/b=c/d", "a/b=c=d", "=c"] {
            assert!(bad.parse::<GatewayAccount>().is_err(), "{bad}");
        }
    }

    #[test]
    fn nobody_is_two_at_once() {
        let make = |agents: Option<&str>, gateways: &[&str]| {
            let gateways = gateways.iter().map(|gateway| gateway.parse().unwrap());
            Accounts::new(agents.map(|agents| agents.parse().unwrap()), gateways.collect())
        };
        assert!(make(None, &[]).unwrap().is_empty());
        assert!(!make(None, &["a/b", "a/c"]).unwrap().is_empty());
        for (agents, gateways) in
            [(Some("a/b"), &["a/b"][..]), (None, &["a/b=c", "a/b=d"]), (None, &["a/b", "c/b"])]
        {
            assert!(make(agents, gateways).is_err(), "{agents:?} {gateways:?}");
        }
    }
}
