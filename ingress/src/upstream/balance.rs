//! Which endpoint gets a request.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fairway_model::EndpointState;

use super::pool::Identity;

/// What an endpoint is taken to need before it has answered: not nothing, or a new one would get all
/// requests at once.
const UNKNOWN: f64 = 0.001;
/// How much of a measurement is left after this long is 1/e.
const DECAY: f64 = 10.0;
/// What an endpoint is taken to need that could not be reached.
const PENALTY: Duration = Duration::from_secs(5);

/// An address that requests go to, whatever routes lead there: what is known of it is known to all.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    /// Connections to it that speak HTTP/1.1 and no TLS.
    pub(crate) plain: Arc<Identity>,
    /// Requests that are not answered in full.
    pending: AtomicUsize,
    /// Seconds to the head of an answer, a moving average that follows what is worse at once (the bits of an
    /// `f64`). Of two who write at once one is lost, which the next measurement makes up for.
    latency: AtomicU64,
    /// When that was, in nanoseconds since `born`.
    measured: AtomicU64,
    born: Instant,
}

impl Endpoint {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self {
            address,
            plain: Arc::new(Identity::new(address, false, None)),
            pending: AtomicUsize::new(0),
            latency: AtomicU64::new(UNKNOWN.to_bits()),
            measured: AtomicU64::new(0),
            born: Instant::now(),
        }
    }

    /// A request is on its way, until what is returned is dropped.
    pub(crate) fn begin(self: &Arc<Self>) -> Pending {
        self.pending.fetch_add(1, Ordering::Relaxed);
        Pending(Arc::clone(self))
    }

    /// An answer that is there now took so long.
    pub(crate) fn answered(&self, latency: Duration, now: Instant) {
        self.measure(latency.as_secs_f64(), now);
    }

    /// A client waits for an answer, since then, until what is returned is [over](Waiting::over).
    pub(crate) fn waiting(&self, since: Instant) -> Waiting<'_> {
        Waiting { endpoint: self, since }
    }

    /// Nobody waited for an answer any longer than this. What is less than is known already says nothing.
    fn given_up(&self, waited: Duration, now: Instant) {
        if waited.as_secs_f64() > f64::from_bits(self.latency.load(Ordering::Relaxed)) {
            self.measure(waited.as_secs_f64(), now);
        }
    }

    /// There was none.
    pub(crate) fn failed(&self) {
        self.measure(PENALTY.as_secs_f64(), Instant::now());
    }

    fn measure(&self, latency: f64, now: Instant) {
        let nanoseconds = |since: Duration| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        let at = nanoseconds(now.saturating_duration_since(self.born));
        let before = self.measured.swap(at, Ordering::Relaxed);
        let age = Duration::from_nanos(at.saturating_sub(before)).as_secs_f64();
        let old = f64::from_bits(self.latency.load(Ordering::Relaxed));
        let keep = (-age / DECAY).exp();
        let new = if latency > old { latency } else { old * keep + latency * (1.0 - keep) };
        self.latency.store(new.max(UNKNOWN).to_bits(), Ordering::Relaxed);
    }

    /// What one more request would have to wait for, roughly.
    fn load(&self, now: Instant) -> f64 {
        let measured = self.born + Duration::from_nanos(self.measured.load(Ordering::Relaxed));
        let age = now.saturating_duration_since(measured).as_secs_f64();
        let latency = f64::from_bits(self.latency.load(Ordering::Relaxed));
        let pending = self.pending.load(Ordering::Relaxed);
        #[expect(clippy::cast_precision_loss, reason = "no process has 2^52 requests")]
        let pending = pending as f64;
        (latency * (-age / DECAY).exp()).max(UNKNOWN) * (pending + 1.0)
    }
}

/// Counts a request of an [`Endpoint`].
#[derive(Debug)]
pub(crate) struct Pending(Arc<Endpoint>);

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.pending.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A client that waits for an [`Endpoint`]. If this is dropped, it has waited in vain.
#[derive(Debug)]
pub(crate) struct Waiting<'a> {
    endpoint: &'a Endpoint,
    since: Instant,
}

impl Waiting<'_> {
    /// There is an answer, or a reason why there is none.
    pub(crate) fn over(self) {
        std::mem::forget(self);
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        self.endpoint.given_up(now.saturating_duration_since(self.since), now);
    }
}

/// How to choose.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Method {
    /// Of two at random the better one.
    Ewma,
    /// One after the other.
    RoundRobin,
    /// The same for the same number, as long as it is there (rendezvous hashing).
    Hash(u64),
}

/// The endpoints of a port of a Service.
#[derive(Debug, Default)]
pub(crate) struct Upstream {
    /// Those that take new requests: who is ready and has a weight, else who is about to go, else who has
    /// no weight.
    endpoints: Vec<Arc<Endpoint>>,
    next: AtomicUsize,
}

impl Upstream {
    /// `endpoint` answers what is known of an address.
    pub(crate) fn new(
        endpoints: &[fairway_model::Endpoint],
        endpoint: &mut impl FnMut(SocketAddr) -> Arc<Endpoint>,
    ) -> Self {
        let classes: [&dyn Fn(&fairway_model::Endpoint) -> bool; 3] = [
            &|endpoint| endpoint.state == EndpointState::Ready && endpoint.weight > 0,
            &|endpoint| endpoint.state == EndpointState::Ready,
            &|endpoint| endpoint.state == EndpointState::ServingTerminating,
        ];
        let class = classes.into_iter().find(|class| endpoints.iter().any(class));
        let takes = |each: &&fairway_model::Endpoint| class.is_some_and(|class| class(each));
        let addresses = endpoints.iter().filter(takes).map(|each| (each.address, each.port));
        let endpoints = addresses.map(|address| endpoint(address.into())).collect();
        Self { endpoints, next: AtomicUsize::new(0) }
    }

    /// How many may be chosen.
    pub(crate) fn len(&self) -> usize {
        self.endpoints.len()
    }

    /// All of them.
    pub(crate) fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    /// One of them, if need be one that was `tried`.
    pub(crate) fn choose(
        &self,
        method: Method,
        tried: &[SocketAddr],
        dice: u64,
    ) -> Option<&Arc<Endpoint>> {
        self.choose_at(method, tried, dice, Instant::now())
    }

    /// The same, when it is known what time it is.
    pub(crate) fn choose_at(
        &self,
        method: Method,
        tried: &[SocketAddr],
        dice: u64,
        now: Instant,
    ) -> Option<&Arc<Endpoint>> {
        let fresh = |endpoint: &&Arc<Endpoint>| !tried.contains(&endpoint.address);
        let left = self.endpoints.iter().filter(fresh).count();
        if left == 0 {
            let again = pick(self.endpoints.len(), dice)?;
            return self.endpoints.get(again);
        }
        let mut candidates = self.endpoints.iter().filter(fresh);
        match method {
            Method::RoundRobin => {
                let turn = self.next.fetch_add(1, Ordering::Relaxed);
                candidates.nth(turn % left)
            }
            Method::Hash(key) => {
                candidates.max_by_key(|endpoint| mix(key ^ hash(&endpoint.address)))
            }
            Method::Ewma => {
                let first = pick(left, dice)?;
                let one = candidates.clone().nth(first)?;
                if left == 1 {
                    return Some(one);
                }
                let other = (first + 1 + pick(left - 1, mix(dice))?) % left;
                let other = candidates.nth(other)?;
                Some(if other.load(now) < one.load(now) { other } else { one })
            }
        }
    }
}

/// A number below `count`, if there is one.
fn pick(count: usize, dice: u64) -> Option<usize> {
    let count = u64::try_from(count).ok().filter(|count| *count > 0)?;
    usize::try_from(dice % count).ok()
}

/// Spreads all bits over all others (SplitMix64's last step).
pub(crate) fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// The same in every process, so that all gateways choose alike (FNV-1a).
pub(crate) fn hash_bytes(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn hash(address: &SocketAddr) -> u64 {
    let mut bytes = [0; 18];
    match address.ip() {
        std::net::IpAddr::V4(ip) => bytes[..4].copy_from_slice(&ip.octets()),
        std::net::IpAddr::V6(ip) => bytes[..16].copy_from_slice(&ip.octets()),
    }
    bytes[16..].copy_from_slice(&address.port().to_be_bytes());
    hash_bytes(&bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use fairway_model::Hints;

    use super::*;

    fn of_model(last: u8, state: EndpointState, weight: u16) -> fairway_model::Endpoint {
        let address = [192, 0, 2, last].into();
        let hints = Hints::default();
        fairway_model::Endpoint {
            address,
            port: 80,
            node: None,
            state,
            hints,
            weight,
            hostname: None,
        }
    }

    fn upstream(endpoints: &[fairway_model::Endpoint]) -> Upstream {
        Upstream::new(endpoints, &mut |address| Arc::new(Endpoint::new(address)))
    }

    fn ready(count: u8) -> Upstream {
        let all: Vec<_> = (1..=count).map(|last| of_model(last, EndpointState::Ready, 1)).collect();
        upstream(&all)
    }

    #[test]
    fn who_is_about_to_go_is_asked_only_if_nobody_else_is_there() {
        use EndpointState::*;
        let (one, two) = (of_model(1, Ready, 1), of_model(2, ServingTerminating, 1));
        let (weightless, gone) = (of_model(3, Ready, 0), of_model(4, NotReady, 1));
        let addresses = |all: &[fairway_model::Endpoint]| -> Vec<String> {
            upstream(all).endpoints().iter().map(|each| each.address.to_string()).collect()
        };
        let all = [one, two.clone(), weightless.clone(), gone.clone()];
        assert_eq!(addresses(&all), ["192.0.2.1:80"]);
        assert_eq!(addresses(&[two.clone(), weightless, gone.clone()]), ["192.0.2.3:80"]);
        assert_eq!(addresses(&[two, gone.clone()]), ["192.0.2.2:80"]);
        assert!(addresses(&[gone]).is_empty());
    }

    #[test]
    fn nobody_is_tried_twice_while_others_are_left() {
        let upstream = ready(3);
        for method in [Method::Ewma, Method::RoundRobin, Method::Hash(7)] {
            for dice in 0..50 {
                let mut tried = Vec::new();
                for _ in 0..3 {
                    let next = upstream.choose(method, &tried, mix(dice)).unwrap().address;
                    assert!(!tried.contains(&next));
                    tried.push(next);
                }
                assert!(upstream.choose(method, &tried, dice).is_some());
            }
        }
        assert!(ready(0).choose(Method::Ewma, &[], 1).is_none());
    }

    #[test]
    fn one_after_the_other() {
        let upstream = ready(3);
        let turns = (0..6).map(|_| upstream.choose(Method::RoundRobin, &[], 0).unwrap().address);
        let turns: Vec<_> = turns.collect();
        assert_eq!(turns[..3], turns[3..]);
        assert_eq!(turns[..3].iter().collect::<std::collections::BTreeSet<_>>().len(), 3);
    }

    #[test]
    fn of_a_hash_only_the_share_of_who_goes_moves() {
        let (five, four) = (ready(5), ready(4));
        let mut shares = BTreeMap::<SocketAddr, u32>::new();
        for key in 0..1000 {
            let key = hash_bytes(&u64::to_be_bytes(key));
            let before = five.choose(Method::Hash(key), &[], 0).unwrap().address;
            let after = four.choose(Method::Hash(key), &[], 0).unwrap().address;
            *shares.entry(before).or_default() += 1;
            assert!(before == after || before.to_string() == "192.0.2.5:80");
        }
        assert!(shares.values().all(|share| (120..280).contains(share)), "{shares:?}");
    }

    #[test]
    fn who_is_slow_or_busy_or_fails_gets_less() {
        let upstream = ready(2);
        let share = || {
            let first = &upstream.endpoints()[0];
            let chosen =
                (0..100).map(|dice| upstream.choose(Method::Ewma, &[], mix(dice)).unwrap());
            chosen.filter(|each| each.address == first.address).count()
        };
        assert!((20..80).contains(&share()), "{}", share());
        let busy: Vec<_> = (0..3).map(|_| upstream.endpoints()[0].begin()).collect();
        assert_eq!(share(), 0);
        drop(busy);
        assert!(share() > 0);
        upstream.endpoints()[1].answered(Duration::from_millis(200), Instant::now());
        assert_eq!(share(), 100);
        upstream.endpoints()[0].failed();
        assert_eq!(share(), 0);
    }

    #[test]
    fn who_is_not_waited_for_any_more_gets_less() {
        let upstream = ready(2);
        let [one, other] = upstream.endpoints() else { panic!("two") };
        let chosen = || upstream.choose(Method::Ewma, &[], 0).unwrap().address;
        let now = Instant::now();
        let [long, short] = [300, 100].map(|seconds| now - Duration::from_secs(seconds));
        other.answered(Duration::from_secs(200), now);
        assert_eq!(chosen(), one.address);
        one.waiting(long).over();
        assert_eq!(chosen(), one.address);
        drop(one.waiting(short));
        assert_eq!(chosen(), one.address);
        drop(one.waiting(long));
        assert_eq!(chosen(), other.address);
        // Who leaves at once does not make it any faster.
        (0..1000).for_each(|_| drop(one.waiting(Instant::now())));
        assert_eq!(chosen(), other.address);
    }
}
