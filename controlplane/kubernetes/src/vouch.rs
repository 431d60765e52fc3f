//! Which node an agent's pod runs on, by the token of its ServiceAccount.
//!
//! The API server is asked about the token (TokenReview), and says whose it is, and of which pod. Since
//! Kubernetes 1.30 it also says on which node that pod is; of older ones, the pod is read. Kubelets get tokens
//! for pods of their own nodes alone, so nobody on a node can have one of another node.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use fairway_feed::authority::{NotVouched, Vouch, Vouching};
use http::Method;
use kube::Client;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::rest;

/// Whom agents' tokens are for; no other token lets anybody join.
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

/// Vouches for pods of one ServiceAccount.
pub struct Agents {
    client: Client,
    account: ServiceAccount,
    asking: Semaphore,
}

impl fmt::Debug for Agents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agents").field("account", &self.account).finish_non_exhaustive()
    }
}

impl Agents {
    /// Of this account.
    pub fn new(client: Client, account: ServiceAccount) -> Self {
        Self { client, account, asking: Semaphore::new(AT_A_TIME) }
    }

    async fn node_of(&self, token: &str) -> Result<String, NotVouched> {
        let _one = self.asking.acquire().await.map_err(|error| unavailable(&error))?;
        let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
            "metadata": {}, "spec": {"token": token, "audiences": [AUDIENCE]}});
        let uri = "/apis/authentication.k8s.io/v1/tokenreviews";
        let content = ("application/json", &review);
        let answer = rest::write(&self.client, Method::POST, uri, content, ANSWER).await;
        let answer = answer.map_err(|error| unavailable(&error))?;
        match judge(&answer["status"], &self.account).map_err(NotVouched::Refused)? {
            Speaks::For(node) => Ok(node),
            Speaks::Pod { name, uid } => self.node_of_pod(&name, &uid).await,
        }
    }

    /// Where a pod runs.
    async fn node_of_pod(&self, name: &str, uid: &str) -> Result<String, NotVouched> {
        let gone = || NotVouched::Refused(format!("its pod {name} is not there any more"));
        let uri = format!("/api/v1/namespaces/{}/pods/{name}", self.account.namespace);
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

impl Vouch for Agents {
    fn node<'a>(&'a self, token: &'a str) -> Vouching<'a> {
        Box::pin(self.node_of(token))
    }
}

fn unavailable(error: &dyn std::error::Error) -> NotVouched {
    NotVouched::Unavailable(format!("the API server cannot be asked: {error}"))
}

/// Whom a token speaks for.
#[derive(Debug, PartialEq, Eq)]
enum Speaks {
    /// The node of this name.
    For(String),
    /// The node that this pod is on.
    Pod { name: String, uid: String },
}

/// What the status of a TokenReview comes to.
fn judge(status: &Value, account: &ServiceAccount) -> Result<Speaks, String> {
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
    if user != format!("{USER}:{}:{}", account.namespace, account.name) {
        return Err(format!("it is that of {user}, and agents are {account}"));
    }
    let extra = |key: &str| {
        let value = status["user"]["extra"][key][0].as_str().filter(|value| !value.is_empty());
        value.map(str::to_owned)
    };
    let (Some(name), Some(uid)) = (extra(POD_NAME), extra(POD_UID)) else {
        return Err("it is not that of a pod".to_owned());
    };
    Ok(extra(NODE_NAME).map_or(Speaks::Pod { name, uid }, Speaks::For))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account() -> ServiceAccount {
        "kube-system/fairway-agent".parse().unwrap()
    }

    fn status() -> Value {
        json!({"authenticated": true, "audiences": [AUDIENCE], "user": {
            "username": "system:serviceaccount:kube-system:fairway-agent",
            "extra": {POD_NAME: ["a-1"], POD_UID: ["u-1"], NODE_NAME: ["n1"]}}})
    }

    #[test]
    fn a_token_speaks_for_the_node_of_its_pod() {
        assert_eq!(judge(&status(), &account()), Ok(Speaks::For("n1".to_owned())));
        let mut older = status();
        older["user"]["extra"].as_object_mut().unwrap().remove(NODE_NAME);
        let pod = Speaks::Pod { name: "a-1".to_owned(), uid: "u-1".to_owned() };
        assert_eq!(judge(&older, &account()), Ok(pod));
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
            let mut changed = status();
            *changed.pointer_mut(path).unwrap() = value;
            let refused = judge(&changed, &account()).unwrap_err();
            assert!(refused.contains(reason), "{path}: {refused}");
        }
        let why = json!({"authenticated": false, "error": "token is expired"});
        let refused = judge(&why, &account()).unwrap_err();
        assert_eq!(refused, "the API server says: token is expired");
    }

    #[test]
    fn accounts_are_typed_with_their_namespace() {
        assert_eq!(account().to_string(), "kube-system/fairway-agent");
        for bad in ["", "fairway-agent", "/a", "a/", "a/b/c"] {
            assert!(bad.parse::<ServiceAccount>().is_err(), "{bad}");
        }
    }
}
