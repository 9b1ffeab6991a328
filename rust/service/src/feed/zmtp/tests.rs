//! The client against publishers of every kind: honest ones, odd ones, and damaged bytes.

use super::*;
use proptest::prelude::*;
use tokio::net::TcpListener;

use crate::feed::run_to_end as run;

const fn limits(frame_bytes: usize) -> SubscriberLimits {
    SubscriberLimits {
        frame_bytes,
        deadline: Some(Duration::from_millis(300)),
    }
}

/// A publisher that greets, then sends `wire` as it is.
async fn publisher(wire: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut greeting = [0u8; 64];
        stream.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting[10..17], b"\x03\0NULL\0");
        stream.write_all(&greeting).await.unwrap();
        stream
            .write_all(b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03PUB")
            .await
            .unwrap();
        let mut ready = [0u8; 2];
        stream.read_exact(&mut ready).await.unwrap();
        let mut rest = vec![0; ready[1] as usize + 3];
        stream.read_exact(&mut rest).await.unwrap();
        assert!(rest.ends_with(&[0, 1, 1]), "must subscribe to everything");
        stream.write_all(&wire).await.unwrap();
        tokio::time::sleep(Duration::from_secs(5)).await;
    });
    endpoint
}

#[test]
fn message_of_several_frames_is_received() {
    run(async {
        let endpoint = publisher(b"\x01\x02ab\x04\x07\x04PING\0\0\x00\x01c".to_vec()).await;
        let mut subscriber = Subscriber::connect(&endpoint, limits(100)).await.unwrap();
        assert_eq!(
            subscriber.receive().await.unwrap(),
            vec![b"ab".to_vec(), b"c".to_vec()]
        );
    });
}

#[test]
fn fuzz_of_what_a_publisher_sends() {
    let mut greeting = [0u8; 64];
    (greeting[0], greeting[9], greeting[10]) = (0xff, 0x7f, 3);
    greeting[12..16].copy_from_slice(b"NULL");
    let ready: &[u8] = b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03PUB";
    let messages: [&[u8]; 3] = [
        b"\x01\x02ab\x04\x07\x04PING\0\0\x00\x01c",
        b"\x01\x09kv-events\x01\x08\0\0\0\0\0\0\0\x01\x01\x08\0\0\0\0\0\0\0\x02\x00\x03abc",
        b"\x03\0\0\0\0\0\0\0\x02ab\x02\0\0\0\0\0\0\0\x01c\x04\x05\x04PONG",
    ];
    let examples: Vec<Vec<u8>> = messages
        .iter()
        .map(|message| [&greeting[..], ready, message].concat())
        .collect();
    run(async {
        wardrop_mutation::run("ZMTP", &examples, |input, dice| {
            // Most inputs pass the greeting, so that the frames behind it are read.
            let mut wire = input.to_vec();
            if dice.below(8) > 0 {
                let kept = wire.len().min(64 + ready.len());
                wire[..kept].copy_from_slice(&examples[0][..kept]);
            }
            // Everything is there, so nothing waits and one poll is enough.
            let stream = tokio::io::join(&wire[..], tokio::io::sink());
            let read = async {
                let Ok(mut subscriber) = Subscriber::greet(stream, limits(1 << 10)).await else {
                    return;
                };
                while let Ok(frames) = subscriber.receive().await {
                    assert!(
                        frames.len() <= MAX_FRAMES && frames.iter().map(Vec::len).sum::<usize>() <= 1 << 10
                    );
                }
            };
            // Tokio's budget of a task would end after some reads.
            let mut read = std::pin::pin!(tokio::task::unconstrained(read));
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(
                read.as_mut().poll(&mut context).is_ready(),
                "nothing is left to wait for"
            );
        });
    });
}

#[test]
fn announced_giant_is_refused_before_memory_is_taken() {
    run(async {
        let endpoint = publisher(b"\x02\x7f\xff\xff\xff\xff\xff\xff\xff".to_vec()).await;
        let mut subscriber = Subscriber::connect(&endpoint, limits(8 << 20)).await.unwrap();
        assert!(matches!(subscriber.receive().await, Err(ZmtpError::TooLarge)));
    });
}

#[test]
fn peer_with_another_protocol_is_refused() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(&[b'x'; 64]).await.unwrap();
            tokio::time::sleep(Duration::from_secs(5)).await;
        });
        assert!(matches!(
            Subscriber::connect(&endpoint, limits(100)).await,
            Err(ZmtpError::Handshake)
        ));
    });
}

#[test]
fn publisher_that_answers_no_ping_is_silent_at_the_deadline() {
    run(async {
        let endpoint = publisher(b"\x01\x02ab".to_vec()).await;
        let mut subscriber = Subscriber::connect(&endpoint, limits(100)).await.unwrap();
        assert!(matches!(subscriber.receive().await, Err(ZmtpError::Silent)));
        assert!(!subscriber.has_pong());
    });
}

#[test]
fn idle_publisher_that_answers_pings_stays_connected() {
    run(async {
        let (near, mut far) = tokio::io::duplex(4096);
        let peer = tokio::spawn(async move {
            let mut greeting = [0u8; 64];
            far.read_exact(&mut greeting).await.unwrap();
            far.write_all(&greeting).await.unwrap();
            far.write_all(b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03PUB")
                .await
                .unwrap();
            let mut pings = 0;
            let mut seen = Vec::new();
            while pings < 3 {
                let mut bytes = [0u8; 256];
                let read = far.read(&mut bytes).await.unwrap();
                seen.extend_from_slice(&bytes[..read]);
                while let Some(at) = seen.windows(4).position(|window| window == b"PING") {
                    seen.drain(..at + 4);
                    pings += 1;
                    far.write_all(b"\x04\x05\x04PONG").await.unwrap();
                }
            }
            far.write_all(b"\0\x01x").await.unwrap();
            far
        });
        let mut subscriber = Subscriber::greet(near, limits(100)).await.unwrap();
        assert_eq!(subscriber.receive().await.unwrap(), vec![b"x".to_vec()]);
        assert!(subscriber.has_pong());
        drop(peer.await.unwrap());
    });
}

/// Reads every message of `wire` after a valid handshake; the end of the bytes ends the connection.
async fn read_all(wire: &[u8], frame_bytes: usize) -> (usize, ZmtpError) {
    let mut bytes = vec![0; 64];
    bytes[0] = 0xff;
    bytes[9] = 0x7f;
    bytes[10] = 3;
    bytes[12..16].copy_from_slice(b"NULL");
    bytes.extend_from_slice(b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03PUB");
    bytes.extend_from_slice(wire);
    let stream = tokio::io::join(&bytes[..], tokio::io::sink());
    let mut subscriber = Subscriber::greet(stream, limits(frame_bytes)).await.unwrap();
    let mut messages = 0;
    loop {
        match subscriber.receive().await {
            Ok(frames) => {
                assert!(frames.len() <= MAX_FRAMES);
                assert!(frames.iter().map(Vec::len).sum::<usize>() <= frame_bytes);
                messages += 1;
            }
            Err(error) => return (messages, error),
        }
    }
}

/// A frame with its flags and length in the short or the long form.
fn frame(more: bool, long: bool, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![u8::from(more) | if long { FLAG_LONG } else { 0 }];
    if long {
        bytes.extend_from_slice(&(body.len() as u64).to_be_bytes());
    } else {
        bytes.push(body.len() as u8);
    }
    bytes.extend_from_slice(body);
    bytes
}

fn fuzz() -> ProptestConfig {
    let cases = std::env::var("FUZZ_CASES").map_or(500, |cases| cases.parse().expect("must be a number"));
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(cases)
    }
}

proptest! {
    #![proptest_config(fuzz())]

    #[test]
    fn any_bytes_after_the_handshake_end_in_an_error(wire in prop::collection::vec(any::<u8>(), 0..300)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (_, error) = runtime.block_on(read_all(&wire, 100));
        prop_assert!(!matches!(error, ZmtpError::Timeout | ZmtpError::Silent));
    }

    #[test]
    fn frames_come_back_however_the_bytes_arrive(
        messages in prop::collection::vec(prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..40)), 1..4), 1..5),
        step in 1_usize..80,
    ) {
        let mut wire = Vec::new();
        for message in &messages {
            for (at, (long, body)) in message.iter().enumerate() {
                wire.extend(frame(at + 1 < message.len(), *long, body));
            }
        }
        run(async {
            let (near, mut far) = tokio::io::duplex(step);
            let writer = tokio::spawn(async move {
                let mut opening = vec![0; 64];
                (opening[0], opening[9], opening[10]) = (0xff, 0x7f, 3);
                opening[12..16].copy_from_slice(b"NULL");
                opening.extend_from_slice(b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03PUB");
                let (mut read, mut write) = tokio::io::split(&mut far);
                let mut sent = tokio::io::sink();
                let both = tokio::join!(
                    tokio::io::copy(&mut read, &mut sent),
                    async {
                        write.write_all(&opening).await.unwrap();
                        write.write_all(&wire).await.unwrap();
                        write.shutdown().await.unwrap();
                    },
                );
                both.0.unwrap();
            });
            let mut subscriber = Subscriber::greet(near, limits(1 << 10)).await.unwrap();
            for message in &messages {
                let frames = subscriber.receive().await.unwrap();
                let sent: Vec<_> = message.iter().map(|(_, body)| body.clone()).collect();
                assert_eq!(frames, sent);
            }
            drop(subscriber);
            writer.await.unwrap();
        });
    }

    #[test]
    fn frames_come_back_until_the_first_changed_byte(
        messages in prop::collection::vec(prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..12)), 1..4), 0..5),
        change in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
    ) {
        let mut wire = Vec::new();
        for message in &messages {
            for (at, (long, body)) in message.iter().enumerate() {
                wire.extend(frame(at + 1 < message.len(), *long, body));
            }
        }
        let whole = wire.len();
        let is_changed = change.is_some() && whole > 0;
        if let Some((at, byte)) = change && whole > 0 {
            wire[at.index(whole)] = byte;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (read, _) = runtime.block_on(read_all(&wire, 100));
        prop_assert!(is_changed || read == messages.len());
    }
}
