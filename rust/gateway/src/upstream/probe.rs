//! Probes of the frontends. A frontend that does not answer, or that knows no model, takes no part in the round robin.
//!
//! A stopped process still accepts connections, so only an answer proves that it lives. A frontend that has just started answers
//! 404 to every model until it has read discovery. Only a list of models proves that it is useful. With a single frontend there
//! is no choice, and nothing is probed.
//!
//! Cost: one short connection per frontend and interval. An answer is read up to 64 KiB, and up to
//! the first model.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::set::{Upstream, UpstreamSet};
use super::tls::Tls;

/// Time for the whole answer to a probe.
const TIMEOUT: Duration = Duration::from_millis(700);
/// Probes in a row, without a pause, that must all fail before an upstream is distrusted. A busy upstream may miss one.
const ATTEMPTS: u32 = 2;
/// Largest part of an answer that is read, in bytes.
const MAX_ANSWER_BYTES: usize = 64 << 10;

/// Probes all upstreams at an interval, without end.
///
/// Probes of one round run at the same time, so a silent frontend does not delay the verdict on
/// another.
pub async fn probe_upstreams(set: Arc<UpstreamSet>, every: Duration) {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let list = set.list();
        // The control plane probes workers itself, and knows a busy worker from a dead one.
        if list.len() < 2 || set.are_workers() {
            list.iter().for_each(|upstream| upstream.probed(true));
            continue;
        }
        let probes: Vec<_> = list
            .iter()
            .map(|upstream| {
                let upstream = upstream.clone();
                let set = set.clone();
                tokio::spawn(async move { is_useful(&upstream, set.tls()).await })
            })
            .collect();
        for (upstream, probe) in list.iter().zip(probes) {
            let answers = probe.await.unwrap_or(false);
            upstream.probed(answers);
        }
    }
}

/// Whether one of [`ATTEMPTS`] probes finds a useful answer.
async fn is_useful(upstream: &Upstream, tls: &Tls) -> bool {
    for _ in 0..ATTEMPTS {
        if matches!(
            tokio::time::timeout(TIMEOUT, lists_models(upstream, tls)).await,
            Ok(Ok(true))
        ) {
            return true;
        }
    }
    false
}

/// Whether the upstream lists at least one model.
async fn lists_models(upstream: &Upstream, tls: &Tls) -> std::io::Result<bool> {
    let mut stream = upstream.open(tls, TIMEOUT).await?;
    let request = format!(
        "GET /v1/models HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n",
        upstream.authority()
    );
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut answer = Vec::new();
    while answer.len() < MAX_ANSWER_BYTES && stream.read_buf(&mut answer).await? > 0 {
        let is_ok = answer.starts_with(b"HTTP/1.1 200");
        if answer.len() >= 12 && (!is_ok || memchr::memmem::find(&answer, b"\"id\"").is_some()) {
            return Ok(is_ok);
        }
    }
    Ok(false)
}
