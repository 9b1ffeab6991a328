//! Peers over real connections, and the protocol under random operations.

use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::json;
use tokio::runtime::Runtime;
use wardrop_core::{LocalHash, WorkerId};

use super::inbox::PeerBookings;
use super::proto::change::Kind;
use super::proto::peers_client::PeersClient;
use super::proto::{Booked, Change, FollowRequest};
use super::{Peers, messages};
use crate::config::{PeerOptions, ServiceConfig};
use crate::pool::Role;
use crate::{Booking, Service};

const A: WorkerId = WorkerId::new(1, 0);
const B: WorkerId = WorkerId::new(2, 0);

fn options() -> PeerOptions {
    PeerOptions {
        listen: Some("127.0.0.1:0".into()),
        silence_ms: 60_000,
        heartbeat_ms: 20,
        ..PeerOptions::default()
    }
}

/// A service with model `m` on workers A and B.
fn service(options: PeerOptions) -> Arc<Service> {
    let service = without_workers(options);
    add_workers(&service);
    service
}

fn without_workers(options: PeerOptions) -> Arc<Service> {
    let config = ServiceConfig {
        peers: Some(options),
        ..ServiceConfig::default()
    };
    let service = Service::new(config).unwrap();
    let model = json!({"name": "m", "block_size": 16, "context_length": 1 << 20});
    service.upsert_model(&model.to_string()).unwrap();
    service
}

fn add_workers(service: &Service) {
    for worker in [A, B] {
        let upsert = json!({"model": "m", "role": "aggregated", "instance": worker.instance});
        service.upsert_worker(&upsert.to_string()).unwrap();
    }
}

/// Starts a service that follows the addresses, and returns the address on which it is followed.
fn start(service: &Service) -> String {
    service.start_peers().unwrap().unwrap().to_string()
}

fn following(addresses: &[&str]) -> PeerOptions {
    PeerOptions {
        routers: addresses.iter().map(|&address| address.to_owned()).collect(),
        ..options()
    }
}

fn book(service: &Service, worker: WorkerId, blocks: u64) -> Booking {
    let hashes = (0..blocks).map(LocalHash).collect();
    let prepared = service
        .prepare_hashes("m", hashes, blocks as u32 * 16 + 3)
        .ok()
        .unwrap();
    service.book_on(&prepared, worker).unwrap()
}

/// Prefill tokens, decode blocks and requests of worker A and worker B.
fn load(service: &Service) -> Vec<(u64, u64, u32)> {
    let (model, _) = service.models.find("m").unwrap();
    let report = model.pool(Role::Aggregated).report(service.clock.now_s());
    let figures = report.iter().map(|worker| {
        (
            worker.prefill_tokens,
            worker.decode_blocks,
            worker.active_requests,
        )
    });
    figures.collect()
}

fn peers(service: &Service) -> &Peers {
    service.peers.as_ref().unwrap()
}

fn metric(service: &Service, name: &str) -> f64 {
    let page = service.render_metrics();
    let lines = page.lines().filter(|line| line.starts_with(name));
    lines
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum()
}

/// Waits for an event, up to a time that only a failure needs.
#[track_caller]
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "waited 30 s: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn only_routers_with_the_secret_follow() {
    let folder = std::env::temp_dir().join(format!("wardrop-peers-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = |name: &str, secret: &str| {
        let path = folder.join(name);
        std::fs::write(&path, secret).unwrap();
        Some(path)
    };
    let first = service(PeerOptions {
        token_file: file("first", "thesecretofonefleet"),
        ..options()
    });
    let _own = book(&first, A, 10);
    let address = start(&first);
    let strangers = [None, file("other", "another-secret-of-a-fleet")].map(|token_file| {
        let stranger = service(PeerOptions {
            token_file,
            ..following(&[&address])
        });
        start(&stranger);
        stranger
    });
    let second = service(PeerOptions {
        token_file: file("second", "thesecretofonefleet\n"),
        ..following(&[&address])
    });
    start(&second);
    wait_until("the load of the first router", || load(&second) == load(&first));
    let refused = r#"wardrop_peer_streams_ended_total{reason="unauthenticated""#;
    for stranger in &strangers {
        wait_until("a refusal", || metric(stranger, refused) >= 1.0);
        assert_eq!(load(stranger)[0], (0, 0, 0));
        let state = peers(stranger).state();
        assert!(!state.up && state.error.contains(&address), "{}", state.error);
    }
    let counted = r#"wardrop_peer_followers_cut_off_total{reason="unauthenticated""#;
    assert!(metric(&first, counted) >= 2.0);
    assert_eq!(metric(&first, "wardrop_peer_followers{"), 1.0);
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn two_routers_that_name_each_other_see_one_load() {
    let first = service(options());
    let _own = book(&first, A, 10);
    let first_address = start(&first);
    let second = service(following(&[&first_address]));
    let second_address = start(&second);
    // The third names both, and both of its names for the first lead to one router.
    let third = service(following(&[&first_address, &second_address]));
    start(&third);
    wait_until("the snapshot", || load(&second)[0] == (163, 10, 1));
    let mut second_booking = book(&second, B, 20);
    let third_booking = book(&third, B, 20);
    assert_eq!(
        load(&first),
        [(163, 10, 1), (0, 0, 0)],
        "nobody is followed by the first"
    );
    wait_until("the third to hear of the second", || {
        load(&third) == [(163, 10, 1), (646, 20, 2)]
    });
    assert_eq!(load(&second), [(163, 10, 1), (323, 20, 1)]);
    second_booking.prefill_done(0.1);
    wait_until("the first token", || load(&third)[1] == (323, 20, 2));
    drop((second_booking, third_booking));
    wait_until("the ends", || load(&third) == [(163, 10, 1), (0, 0, 0)]);
    assert_eq!(metric(&third, "wardrop_peer_bookings_expired_total"), 0.0);
}

#[test]
fn router_that_names_itself_holds_no_booking_of_itself() {
    let reserved = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = reserved.local_addr().unwrap().to_string();
    drop(reserved);
    let alone = service(PeerOptions {
        listen: Some(address.clone()),
        ..following(&[&address])
    });
    let _own = book(&alone, A, 10);
    start(&alone);
    let ended = "wardrop_peer_streams_ended_total{reason=\"itself\"";
    wait_until("its own name", || metric(&alone, ended) == 1.0);
    assert_eq!(load(&alone)[0], (163, 10, 1));
    assert_eq!(metric(&alone, "wardrop_peer_bookings{"), 0.0);
    assert!(peers(&alone).state().up, "its own name is no fault");
}

#[test]
fn two_addresses_of_one_router_count_once() {
    let first = service(PeerOptions {
        listen: Some("0.0.0.0:0".into()),
        ..options()
    });
    let _own = book(&first, A, 10);
    let port = start(&first).rsplit_once(':').unwrap().1.to_owned();
    let second = service(following(&[
        &format!("127.0.0.1:{port}"),
        &format!("127.0.0.2:{port}"),
    ]));
    start(&second);
    let ended = "wardrop_peer_streams_ended_total{reason=\"duplicate\"";
    wait_until("the second address", || metric(&second, ended) >= 1.0);
    wait_until("the snapshot", || load(&second)[0].2 > 0);
    assert_eq!(load(&second)[0], (163, 10, 1));
    assert!(peers(&second).state().up);
}

#[test]
fn restarted_peer_loses_its_old_bookings_at_once() {
    let first = service(options());
    let old = [book(&first, A, 10), book(&first, B, 10)];
    let address = start(&first);
    let second = service(following(&[&address]));
    start(&second);
    wait_until("the snapshot", || load(&second)[1].2 == 1);
    first.stop();
    // The old router's ends are not reported any more.
    drop(old);
    assert_eq!(load(&second), [(163, 10, 1), (163, 10, 1)], "it may come back");
    let again = service(PeerOptions {
        listen: Some(address),
        ..options()
    });
    let _new = book(&again, A, 5);
    wait_until("the port", || again.start_peers().is_ok());
    wait_until("the new incarnation", || load(&second) == [(83, 5, 1), (0, 0, 0)]);
    assert_eq!(metric(&second, "wardrop_peer_bookings_expired_total"), 0.0);
}

#[test]
fn load_of_a_dead_peer_expires() {
    let first = service(options());
    let _own = book(&first, A, 10);
    let address = start(&first);
    let second = service(PeerOptions {
        silence_ms: 200,
        ..following(&[&address])
    });
    start(&second);
    wait_until("the snapshot", || load(&second)[0] == (163, 10, 1));
    let mine = book(&second, A, 10);
    first.stop();
    wait_until("the expiry", || load(&second)[0] == (163, 10, 1));
    assert_eq!(metric(&second, "wardrop_peer_bookings_expired_total"), 1.0);
    assert_eq!(metric(&second, "wardrop_peer_bookings{"), 0.0);
    drop(mine);
    assert_eq!(load(&second)[0], (0, 0, 0));
    let state = peers(&second).state();
    assert!(!state.up && state.error.contains(&address), "{state:?}");
}

#[test]
fn booking_waits_for_a_worker_that_is_not_known_yet() {
    let first = service(options());
    let mut own = book(&first, B, 10);
    own.prefill_done(0.1);
    let address = start(&first);
    let second = without_workers(following(&[&address]));
    start(&second);
    wait_until("the snapshot", || {
        metric(&second, "wardrop_peer_bookings_waiting{") == 1.0
    });
    add_workers(&second);
    wait_until("its worker", || load(&second) == [(0, 0, 0), (0, 10, 1)]);
    drop(own);
    wait_until("its end", || load(&second) == [(0, 0, 0); 2]);
    assert_eq!(metric(&second, "wardrop_peer_bookings{"), 0.0);
}

#[test]
fn follower_that_reads_nothing_holds_up_no_booking_and_begins_again() {
    let first = service(PeerOptions {
        outgoing_changes: 16,
        hash_blocks: 4096,
        silence_ms: 500,
        ..options()
    });
    let address = start(&first);
    let runtime = Runtime::new().unwrap();
    let mut stream = runtime.block_on(async {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
        let mut client = PeersClient::new(endpoint.connect().await.unwrap());
        client
            .follow(FollowRequest::default())
            .await
            .unwrap()
            .into_inner()
    });
    wait_until("the follower", || {
        metric(&first, "wardrop_peer_followers{") == 1.0
    });
    // Each booking carries 32 kB, so the connection's window is full soon.
    let started = Instant::now();
    let mut kept = Vec::new();
    for _ in 0..200 {
        kept.push(book(&first, A, 4096));
    }
    let per_booking = started.elapsed() / 200;
    assert!(per_booking < Duration::from_millis(50), "{per_booking:?}");
    let cut_off = "wardrop_peer_followers_cut_off_total{reason=\"behind\"";
    wait_until("the ring to overrun the follower", || {
        metric(&first, cut_off) == 1.0
    });
    let mut received = 0;
    let ended = runtime.block_on(async {
        loop {
            match stream.message().await {
                Ok(Some(message)) => received += message.changes.len(),
                Ok(None) => return true,
                Err(status) => return status.code() == tonic::Code::Aborted,
            }
        }
    });
    assert!(ended && received < 200, "{received} changes before the end");
    let second = service(following(&[&address]));
    start(&second);
    wait_until("the whole snapshot", || load(&second)[0] == load(&first)[0]);
    assert_eq!(load(&second)[0].2, 200);
}

#[test]
fn followers_beyond_the_limit_are_refused_and_get_the_place_of_one_that_leaves() {
    let first = service(PeerOptions {
        max_peers: 1,
        ..options()
    });
    let _own = book(&first, A, 10);
    let address = start(&first);
    let second = service(following(&[&address]));
    start(&second);
    wait_until("the second", || load(&second)[0].2 == 1);
    let third = service(following(&[&address]));
    start(&third);
    let refused = "wardrop_peer_followers_cut_off_total{reason=\"too_many\"";
    wait_until("the refusal", || metric(&first, refused) >= 1.0);
    assert_eq!(load(&third)[0].2, 0);
    second.stop();
    wait_until("its place", || load(&third)[0].2 == 1);
}

fn inbox(service: &Service) -> PeerBookings {
    PeerBookings::new(peers(service).shared.clone())
}

fn booked(id: u64) -> Booked {
    Booked {
        id,
        model: "m".into(),
        role: super::proto::Role::Aggregated.into(),
        worker_id: 1,
        new_tokens: 100,
        further_blocks: 7,
        ..Booked::default()
    }
}

fn change(kind: Kind) -> Change {
    Change { kind: Some(kind) }
}

#[test]
fn bookings_beyond_the_limits_are_refused_and_counted() {
    let service = service(PeerOptions {
        max_bookings_per_peer: 3,
        max_bookings: 5,
        ..options()
    });
    let mut peers = [inbox(&service), inbox(&service)];
    for peer in &mut peers {
        peer.begin(7);
        for id in 0..4 {
            peer.apply(change(Kind::Booked(booked(id))));
        }
    }
    assert_eq!((peers[0].len(), peers[1].len()), (3, 2));
    assert_eq!(load(&service)[0], (500, 35, 5));
    let refused = |reason| {
        metric(
            &service,
            &format!("wardrop_peer_bookings_refused_total{{reason=\"{reason}\""),
        )
    };
    assert_eq!((refused("peer_full"), refused("full")), (1.0, 2.0));
    peers[1].apply(change(Kind::Released(3)));
    peers[1].apply(change(Kind::Released(0)));
    peers[1].apply(change(Kind::Booked(booked(9))));
    assert_eq!(load(&service)[0], (500, 35, 5), "an end makes room");
    drop(peers);
    assert_eq!(load(&service)[0], (0, 0, 0));
    assert_eq!(metric(&service, "wardrop_peer_bookings{"), 0.0);
}

#[test]
fn impossible_changes_are_refused_one_by_one() {
    let service = service(options());
    let mut peer = inbox(&service);
    peer.begin(7);
    let wrong = [
        Booked { role: 0, ..booked(1) },
        Booked {
            role: 99,
            ..booked(2)
        },
        Booked {
            model: "m".repeat(2000),
            ..booked(3)
        },
        Booked {
            new_tokens: u32::MAX,
            ..booked(4)
        },
        Booked {
            cached_tokens: u32::MAX,
            ..booked(5)
        },
        Booked {
            further_blocks: u32::MAX,
            ..booked(6)
        },
        Booked {
            local_hashes: vec![1; 20_000],
            ..booked(7)
        },
    ];
    let count = wrong.len();
    for booked in wrong {
        peer.apply(change(Kind::Booked(booked)));
    }
    for id in 0..10 {
        peer.apply(change(Kind::PrefillDone(id)));
        peer.apply(change(Kind::Renewed(id)));
        peer.apply(change(Kind::Released(id)));
    }
    peer.apply(Change { kind: None });
    let refused = "wardrop_peer_bookings_refused_total{reason=\"impossible\"";
    assert_eq!(metric(&service, refused), count as f64);
    assert_eq!(load(&service)[0], (0, 0, 0));
    peer.apply(change(Kind::Booked(booked(1))));
    peer.apply(change(Kind::Booked(booked(1))));
    assert_eq!(
        load(&service)[0],
        (100, 7, 1),
        "a second report of one booking changes nothing"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    /// A follower that begins at any time, and again at any time, has the load of the router that it follows.
    #[test]
    fn snapshot_and_changes_give_the_load_of_the_followed_router(
        steps in proptest::collection::vec((0u64..12, 0..2usize, 0u64..40, 0..4u8), 1..80),
        breaks in proptest::collection::vec((0..80usize, 0..10usize), 0..4),
    ) {
        let (first, second) = (service(PeerOptions { hash_blocks: 16_384, ..options() }), service(options()));
        let outbox = peers(&first).shared.outbox.clone();
        let mut held = inbox(&second);
        let mut changes = None;
        let mut open: std::collections::BTreeMap<u64, Booking> = std::collections::BTreeMap::new();
        let mut deaf = 0;
        for (at, (id, worker, blocks, action)) in steps.into_iter().enumerate() {
            if let Some((_, lasts)) = breaks.iter().find(|(when, _)| *when == at) {
                deaf = *lasts;
                changes = None;
            }
            if changes.is_none() && deaf == 0 {
                let (snapshot, receiver) = outbox.subscribe();
                held.begin(5);
                for booking in &snapshot {
                    held.apply(messages::open(booking));
                }
                held.end_snapshot();
                changes = Some(receiver);
            }
            deaf = deaf.saturating_sub(1);
            match (open.get_mut(&id), action) {
                (None, _) => {
                    open.insert(id, book(&first, [A, B][worker], blocks));
                }
                (Some(booking), 0) => booking.prefill_done(0.1),
                (Some(booking), 1) => booking.renew(),
                (Some(_), _) => drop(open.remove(&id)),
            }
            if let Some(receiver) = &mut changes {
                while let Ok(change) = receiver.try_recv() {
                    held.apply(messages::change(&change));
                }
                prop_assert_eq!(load(&second), load(&first));
                prop_assert_eq!((held.len(), outbox.len()), (open.len(), open.len()));
            }
        }
        drop(held);
        prop_assert_eq!(load(&second), vec![(0, 0, 0); 2]);
    }
}
