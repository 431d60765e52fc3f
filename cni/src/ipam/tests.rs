use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;

use super::*;
use crate::pool::node_pools_of;

#[test]
fn each_range_gives_one_address_and_the_first_two_are_kept() {
    let store = Scratch::new();
    assert_eq!(store.reserve("a", &["10.1.0.0/24", "fd00:1::/64"]), ["10.1.0.2", "fd00:1::2"]);
    assert_eq!(store.reserve("b", &["10.1.0.0/24", "fd00:1::/64"]), ["10.1.0.3", "fd00:1::3"]);
    assert_eq!(store.held(), ["10.1.0.2 a", "10.1.0.3 b", "fd00:1::2 a", "fd00:1::3 b"]);
}

#[test]
fn an_address_just_freed_is_given_out_last() {
    let store = Scratch::new();
    let range = &["10.1.0.0/29"]; // .2 to .6
    assert_eq!(store.reserve("a", range), ["10.1.0.2"]);
    store.release("a");
    let mut given = Vec::new();
    for name in ["b", "c", "d", "e", "f"] {
        given.extend(store.reserve(name, range));
    }
    assert_eq!(given, ["10.1.0.3", "10.1.0.4", "10.1.0.5", "10.1.0.6", "10.1.0.2"]);
}

#[test]
fn an_exhausted_range_is_named_and_changes_nothing() {
    let store = Scratch::new();
    for name in ["a", "b", "c", "d", "e"] {
        store.reserve(name, &["10.1.0.0/29"]);
    }
    let before = store.held();
    let error = store.try_reserve("f", &["fd00::/64", "10.1.0.0/29"]).unwrap_err();
    assert!(matches!(error, Error::Exhausted { used: 5, size: 5, .. }), "{error:?}");
    assert!(error.to_string().contains("10.1.0.0/29: 5 of 5"), "{error}");
    assert_eq!(store.held(), before);
}

#[test]
fn nobody_else_can_hold_the_lock() {
    use std::os::unix::fs::PermissionsExt as _;
    let store = Scratch::new();
    store.reserve("a", &["10.1.0.0/24"]);
    let mode = fs::metadata(&store.store.directory).unwrap().permissions().mode();
    assert_eq!(mode & 0o77, 0, "{mode:o}");
}

#[test]
fn ranges_too_small_for_a_pod() {
    let store = Scratch::new();
    for range in ["10.1.0.0/31", "10.1.0.0/32", "fd00::/127", "fd00::/128"] {
        let error = store.try_reserve("a", &[range]).unwrap_err();
        assert!(matches!(error, Error::Exhausted { size: 0, .. }), "{range}");
    }
    assert_eq!(store.reserve("a", &["10.1.0.0/30"]), ["10.1.0.2"]);
}

#[test]
fn an_address_asked_for_is_given_or_its_holder_named() {
    let store = Scratch::new();
    let reserve = |name: &str, address: &str, routed: &[&str]| {
        let mut pools = node_pools_of(&["10.1.0.0/24", "fd00::/64"]);
        let wanted = Wanted { key: "runtimeConfig.ips".into(), address: address.parse().unwrap() };
        let pool = pools.iter_mut().find(|pool| pool.contains(wanted.address)).unwrap();
        pool.wanted = Some(wanted);
        let routed = routed.iter().map(|address| address.parse().unwrap()).collect();
        let reserved =
            store.store.reserve(&owner(name), &pools, &routed, &KnownAddresses::default());
        reserved.map(|reservation| reservation.addresses.iter().map(IpAddr::to_string).collect())
    };
    let refused = |result: Result<Vec<String>, Error>, text: &str| {
        let before = store.held();
        let error = result.unwrap_err().to_string();
        assert!(error.contains("runtimeConfig.ips") && error.contains(text), "{error}");
        assert_eq!(store.held(), before);
    };
    assert_eq!(reserve("a", "10.1.0.9", &[]).unwrap(), ["10.1.0.9", "fd00::2"]);
    assert_eq!(reserve("a", "10.1.0.9", &[]).unwrap(), ["10.1.0.9", "fd00::2"], "theirs");
    refused(reserve("b", "10.1.0.9", &[]), "container a has it on \"eth0\"");
    refused(reserve("b", "fd00::2", &[]), "container a");
    refused(reserve("b", "10.1.0.7", &["10.1.0.7"]), "a route of the node");
    fs::write(store.directory.join("10.1.0.8"), "").unwrap();
    refused(reserve("b", "10.1.0.8", &[]), "cannot be read");
    // Another one than before: the first is given back.
    assert_eq!(reserve("a", "10.1.0.4", &[]).unwrap(), ["10.1.0.4", "fd00::2"]);
    store.release("a");
    assert_eq!(reserve("b", "10.1.0.9", &[]).unwrap(), ["10.1.0.9", "fd00::3"]);
}

#[test]
fn each_pool_goes_its_own_way_round() {
    let store = Scratch::new();
    let (wide, narrow) = (&["10.1.0.0/29"], &["10.1.0.8/29"]);
    assert_eq!(store.reserve("a", wide), ["10.1.0.2"]);
    store.release("a");
    assert_eq!(store.reserve("b", narrow), ["10.1.0.10"]);
    // Freed a moment ago, so not yet, although another pool was used since.
    assert_eq!(store.reserve("c", wide), ["10.1.0.3"]);
}

#[test]
fn whether_an_address_is_free() {
    let store = Scratch::new();
    let pool = &node_pools_of(&["10.1.0.0/29"])[0]; // .2 to .6
    let check = |routed: &[&str]| {
        let routed = routed.iter().map(|address| address.parse().unwrap()).collect();
        store.check_free(pool, &routed)
    };
    for name in ["a", "b", "c"] {
        store.reserve(name, &["10.1.0.0/29"]);
    }
    check(&["10.1.0.2", "10.1.0.5", "192.0.2.1"]).unwrap();
    let error = check(&["10.1.0.6", "10.1.0.5", "192.0.2.1"]).unwrap_err();
    assert!(error.to_string().contains("10.1.0.0/29: 5 of 5"), "{error}");
}

#[test]
fn the_same_attachment_gets_what_it_holds_and_loses_what_it_should_not() {
    let store = Scratch::new();
    assert_eq!(store.reserve("a", &["10.1.0.0/24"]), ["10.1.0.2"]);
    assert_eq!(store.reserve("a", &["10.1.0.0/24", "fd00::/64"]), ["10.1.0.2", "fd00::2"]);
    // The node's range has changed since.
    assert_eq!(store.reserve("a", &["10.2.0.0/24"]), ["10.2.0.2"]);
    assert_eq!(store.held(), ["10.2.0.2 a"]);
}

#[test]
fn routed_addresses_are_nobodys() {
    let store = Scratch::new();
    let range = &["10.1.0.0/29"]; // .2 to .6
    let got = store.reserve_unless(&owner("a"), range, &["10.1.0.2", "10.1.0.4"]).unwrap();
    assert_eq!(got, ["10.1.0.3"]);
    // Not even theirs who held it: they did not make that route, or it would be gone.
    assert_eq!(store.reserve_unless(&owner("a"), range, &["10.1.0.3"]).unwrap(), ["10.1.0.4"]);
    assert_eq!(store.held(), ["10.1.0.4 a"]);
    let all = ["10.1.0.2", "10.1.0.3", "10.1.0.5", "10.1.0.6"];
    let error = store.reserve_unless(&owner("b"), range, &all).unwrap_err();
    assert!(matches!(error, Error::Exhausted { used: 5, size: 5, .. }), "{error:?}");
}

#[test]
fn networks_share_the_addresses() {
    let store = Scratch::new();
    let range = &["10.1.0.0/24"];
    let elsewhere = |name| Owner { network: "other".to_owned(), ..owner(name) };
    assert_eq!(store.reserve("a", range), ["10.1.0.2"]);
    assert_eq!(store.reserve_unless(&elsewhere("b"), range, &[]).unwrap(), ["10.1.0.3"]);
    // The network of a pod that is added again has another name now.
    assert_eq!(store.reserve_unless(&elsewhere("a"), range, &[]).unwrap(), ["10.1.0.4"]);
    assert_eq!(store.held(), ["10.1.0.3 b", "10.1.0.4 a"]);
    store.release("a");
    assert_eq!(store.held(), ["10.1.0.3 b"]);
}

#[test]
fn only_what_was_not_held_before_is_fresh() {
    let store = Scratch::new();
    store.reserve("a", &["10.1.0.0/24"]);
    let pools = node_pools_of(&["10.1.0.0/24", "fd00::/64"]);
    let reservation = store
        .store
        .reserve(&owner("a"), &pools, &HashSet::new(), &KnownAddresses::default())
        .unwrap();
    assert_eq!(reservation.fresh, reservation.addresses[1..]);
    store.give_back(&owner("b"), &reservation.fresh).unwrap();
    assert_eq!(store.held(), ["10.1.0.2 a", "fd00::2 a"]);
    store.give_back(&owner("a"), &reservation.fresh).unwrap();
    assert_eq!(store.held(), ["10.1.0.2 a"]);
}

#[test]
fn releasing_is_idempotent_and_touches_nobody_else() {
    let store = Scratch::new();
    store.release("nobody");
    assert!(!store.directory.exists(), "nothing is made to free nothing");
    store.reserve("a", &["10.1.0.0/24"]);
    store.reserve("b", &["10.1.0.0/24"]);
    store.release("a");
    store.release("a");
    assert_eq!(store.held(), ["10.1.0.3 b"]);
}

#[test]
fn a_crash_at_any_point_leaves_a_store_that_works() {
    let store = Scratch::new();
    store.reserve("a", &["10.1.0.0/24"]);
    // While writing aside; after linking but before the other name went; while noting the last.
    fs::write(store.directory.join("tmp-10.1.0.3"), "{\"contai").unwrap();
    let entry = store.directory.join("10.1.0.2");
    fs::hard_link(entry, store.directory.join("tmp-10.1.0.2")).unwrap();
    fs::write(store.directory.join("tmp-last"), "10.").unwrap();
    fs::write(store.directory.join("last.10.1.0.2"), "").unwrap();
    assert_eq!(store.held(), ["10.1.0.2 a"]);
    assert_eq!(store.reserve("b", &["10.1.0.0/24"]), ["10.1.0.3"]);
    let names = store.names().unwrap();
    assert!(names.iter().all(|name| !name.starts_with(TEMPORARY)), "{names:?}");
}

#[test]
fn a_damaged_entry_stays_taken() {
    let store = Scratch::new();
    store.reserve("a", &["10.1.0.0/24"]);
    fs::write(store.directory.join("10.1.0.3"), "").unwrap();
    assert_eq!(store.reserve("b", &["10.1.0.0/24"]), ["10.1.0.4"]);
    assert_eq!(store.held(), ["10.1.0.2 a", "10.1.0.3 ?", "10.1.0.4 b"]);
}

#[test]
fn reconciling_frees_what_nobody_has_and_restores_what_somebody_has() {
    let store = Scratch::new();
    for name in ["a", "b", "c", "d"] {
        store.reserve(name, &["10.1.0.0/24"]);
    }
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    fs::write(store.directory.join("10.1.0.4"), "{").unwrap(); // c's
    fs::write(store.directory.join("10.1.0.9"), "{").unwrap();
    fs::write(store.directory.join("tmp-10.1.0.7"), "{").unwrap();
    // a and c are known; so is e, whose entry was lost; b's interface is there, d's is not.
    let held = [("10.1.0.2", "a"), ("10.1.0.4", "c"), ("10.1.0.8", "e")];
    let held = held.map(|(text, name)| (address(text), owner(name).attachment));
    let in_use = |address: IpAddr, attachment: Option<&Attachment>| {
        assert_eq!(attachment.is_none(), address.to_string() == "10.1.0.9");
        attachment.is_some_and(|attachment| attachment.container_id == "b")
    };
    let reconciled = store.reconcile(&BTreeMap::from(held), in_use).unwrap();
    assert_eq!(reconciled.freed, ["10.1.0.5", "10.1.0.9"].map(address));
    assert_eq!(reconciled.restored, ["10.1.0.4", "10.1.0.8"].map(address));
    assert_eq!(store.held(), ["10.1.0.2 a", "10.1.0.3 b", "10.1.0.4 c", "10.1.0.8 e"]);
    let mut aside = store.names().unwrap();
    aside.retain(|name| name.starts_with("damaged-") || name.starts_with(TEMPORARY));
    aside.sort();
    assert_eq!(aside, ["damaged-10.1.0.4", "damaged-10.1.0.9"], "kept for who wants to know");
    // Freed is not forgotten: these come again only after all others.
    assert_eq!(store.reserve("f", &["10.1.0.0/24"]), ["10.1.0.6"]);
}

#[test]
fn reconciling_nothing_makes_nothing() {
    let store = Scratch::new();
    let reconciled = store.reconcile(&BTreeMap::new(), |_, _| false).unwrap();
    assert_eq!(reconciled, Reconciled::default());
    assert!(!store.directory.exists());
}

#[test]
fn concurrent_reservations_never_give_an_address_twice() {
    let store = Scratch::new();
    let range = &["10.1.0.0/25"]; // 125 addresses for 8 * 15 = 120 calls, and some come back
    thread::scope(|scope| {
        for thread in 0..8 {
            let store = &store;
            scope.spawn(move || {
                for n in 0..15 {
                    let name = format!("{thread}-{n}");
                    store.reserve(&name, range);
                    if n % 5 == 0 {
                        store.release(&name);
                        store.reserve(&name, range);
                    }
                }
            });
        }
    });
    let owners: HashSet<_> =
        store.entries().unwrap().into_iter().filter_map(|entry| entry.owner).collect();
    assert_eq!(owners.len(), 120);
    assert_eq!(store.held().len(), 120);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..Default::default() })]

    /// Whatever the order of calls, the store does what a table in memory would do.
    #[test]
    fn any_calls_in_any_order(calls in prop::collection::vec((any::<bool>(), 0..8_u8), 1..60)) {
        let store = Scratch::new();
        let mut model: BTreeMap<String, String> = BTreeMap::new();
        for (reserve, name) in calls {
            let name = name.to_string();
            if !reserve {
                store.release(&name);
                model.remove(&name);
                continue;
            }
            // Five addresses for eight names.
            match (store.try_reserve(&name, &["10.1.0.0/29"]), model.get(&name)) {
                (Ok(got), Some(held)) => prop_assert_eq!(&got, std::slice::from_ref(held)),
                (Ok(got), None) => {
                    prop_assert!(!model.values().any(|taken| *taken == got[0]));
                    model.insert(name, got[0].clone());
                }
                (Err(_), held) => prop_assert!(held.is_none() && model.len() == 5),
            }
            let mut held: Vec<_> =
                model.iter().map(|(name, address)| format!("{address} {name}")).collect();
            held.sort();
            prop_assert_eq!(store.held(), held);
        }
    }
}

/// A store of its own for one test.
struct Scratch {
    root: PathBuf,
    store: Store,
}

impl std::ops::Deref for Scratch {
    type Target = Store;

    fn deref(&self) -> &Store {
        &self.store
    }
}

impl Scratch {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("fairway-ipam-{}-{count}", std::process::id());
        let root = std::env::temp_dir().join(name);
        let store = Store::new(&root);
        Self { root, store }
    }

    fn try_reserve(&self, name: &str, ranges: &[&str]) -> Result<Vec<String>, Error> {
        self.reserve_unless(&owner(name), ranges, &[])
    }

    fn reserve_unless(
        &self,
        owner: &Owner,
        ranges: &[&str],
        routed: &[&str],
    ) -> Result<Vec<String>, Error> {
        let routed = routed.iter().map(|address| address.parse().unwrap()).collect();
        let known = KnownAddresses::default();
        let reservation = self.store.reserve(owner, &node_pools_of(ranges), &routed, &known)?;
        Ok(reservation.addresses.iter().map(IpAddr::to_string).collect())
    }

    #[track_caller]
    fn reserve(&self, name: &str, ranges: &[&str]) -> Vec<String> {
        self.try_reserve(name, ranges).unwrap()
    }

    fn release(&self, name: &str) {
        self.store.release(&owner(name).attachment).unwrap();
    }

    /// The whole state as text.
    fn held(&self) -> Vec<String> {
        let entries = self.entries().unwrap().into_iter().map(|entry| {
            let owner = entry.owner.map_or("?".to_owned(), |owner| owner.attachment.container_id);
            format!("{} {owner}", entry.address)
        });
        let mut entries: Vec<_> = entries.collect();
        entries.sort();
        entries
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

fn owner(name: &str) -> Owner {
    let attachment = Attachment { container_id: name.to_owned(), interface: "eth0".to_owned() };
    Owner { network: "pods".to_owned(), attachment }
}

#[test]
fn a_pod_has_its_former_address_again_and_others_have_it_last() {
    let store = Scratch::new();
    let pools = node_pools_of(&["10.1.0.0/29", "fd00::/64"]);
    let reserve = |name: &str, own: &[&str], others: &[&str]| {
        let parse = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let known = KnownAddresses { own: parse(own), others: parse(others) };
        let reserved = store.store.reserve(&owner(name), &pools, &HashSet::new(), &known);
        reserved.map(|reservation| reservation.addresses.iter().map(IpAddr::to_string).collect())
    };
    let given = |result: Result<Vec<String>, Error>| result.unwrap().remove(0);
    assert_eq!(
        reserve("a", &["10.1.0.4", "fd00::9"], &["10.1.0.2"]).unwrap(),
        ["10.1.0.4", "fd00::9"]
    );
    assert_eq!(given(reserve("a", &[], &[])), "10.1.0.4", "what it holds");
    assert_eq!(given(reserve("b", &["10.1.0.4"], &["10.1.0.5"])), "10.1.0.6", "it is taken");
    assert_eq!(given(reserve("c", &["10.9.0.4"], &["10.1.0.2"])), "10.1.0.3", "of another range");
    assert_eq!(given(reserve("d", &[], &["10.1.0.2", "10.1.0.5"])), "10.1.0.5", "the last ones");
    assert_eq!(given(reserve("e", &[], &["10.1.0.2"])), "10.1.0.2");
    let full: Result<Vec<String>, Error> = reserve("f", &["10.1.0.2"], &[]);
    full.unwrap_err();
}
