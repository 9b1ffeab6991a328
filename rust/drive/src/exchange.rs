//! One request over a kept-alive connection, with its times.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::Response;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::CONTENT_TYPE;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::plan::Target;
use crate::record::{Outcome, Record, Tallies};
use crate::sse::Scanner;

/// An unstreamed answer longer than this is broken off.
const MAX_ANSWER_BYTES: usize = 64 << 20;
/// Bytes of the first failure's text that are kept for the report.
const KEPT_ERROR_BYTES: usize = 300;

/// State that all requests of a run share.
pub(super) struct Wire {
    pub(super) target: Target,
    pub(super) start: Instant,
    pub(super) timeout: Duration,
    pub(super) tallies: Mutex<Tallies>,
    pub(super) tokens: AtomicU64,
    pub(super) opened: AtomicU64,
    pub(super) first_error: Mutex<Option<String>>,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

impl Wire {
    pub(super) fn new(target: Target, timeout_s: f64) -> Self {
        Self {
            target,
            start: Instant::now(),
            timeout: Duration::from_secs_f64(timeout_s),
            tallies: Mutex::default(),
            tokens: AtomicU64::new(0),
            opened: AtomicU64::new(0),
            first_error: Mutex::new(None),
            idle: Mutex::default(),
        }
    }

    /// Seconds since the start of the run.
    pub(super) fn now_s(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    fn keep_error(&self, text: &str) {
        let mut first = self.first_error.lock();
        if first.is_none() {
            *first = Some(text.chars().take(KEPT_ERROR_BYTES).collect());
        }
    }

    /// An idle connection that still works, else a new one.
    async fn connection(&self) -> Result<SendRequest<Full<Bytes>>, String> {
        loop {
            let Some(mut sender) = self.idle.lock().pop() else {
                break;
            };
            if sender.ready().await.is_ok() {
                return Ok(sender);
            }
        }
        let stream = TcpStream::connect(&self.target.address)
            .await
            .map_err(|e| e.to_string())?;
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| e.to_string())?;
        tokio::spawn(connection);
        self.opened.fetch_add(1, Relaxed);
        Ok(sender)
    }

    /// Sends one body and reads its answer to the end, or to the timeout, or to the stop.
    pub(super) async fn exchange(
        &self,
        due_s: Option<f64>,
        body: Bytes,
        mut stop: watch::Receiver<bool>,
    ) -> Record {
        let sent_s = self.now_s();
        let mut record = Record {
            due_s,
            sent_s: Some(sent_s),
            ..Record::default()
        };
        if let Some(due_s) = due_s {
            self.tallies.lock().lateness.add(sent_s - due_s);
        }
        record.outcome = tokio::select! {
            ended = self.attempt(&body, &mut record) => ended.unwrap_or_else(|text| {
                self.keep_error(&text);
                Outcome::Broken
            }),
            () = tokio::time::sleep(self.timeout) => Outcome::Timeout,
            _ = stop.wait_for(|&stopped| stopped) => Outcome::Stopped,
        };
        record
    }

    async fn attempt(&self, body: &Bytes, record: &mut Record) -> Result<Outcome, String> {
        let mut sender = self.connection().await?;
        let response = sender
            .send_request(self.target.request(body))
            .await
            .map_err(|e| e.to_string())?;
        record.head_s = Some(self.now_s());
        record.status = Some(response.status().as_u16());
        let streamed = response
            .headers()
            .get(CONTENT_TYPE)
            .is_some_and(|v| v.as_bytes().starts_with(b"text/event-stream"));
        let outcome = if response.status().is_success() && streamed {
            self.read_stream(response, record).await?
        } else {
            self.read_whole(response, record).await?
        };
        self.idle.lock().push(sender);
        Ok(outcome)
    }

    async fn read_stream(
        &self,
        mut response: Response<Incoming>,
        record: &mut Record,
    ) -> Result<Outcome, String> {
        let mut scanner = Scanner::default();
        while let Some(frame) = response.frame().await {
            let Ok(data) = frame.map_err(|e| e.to_string())?.into_data() else {
                continue;
            };
            let now_s = self.now_s();
            let tokens = scanner
                .feed(&data)
                .map_err(|_| "got an event that is not JSON or is longer than 4 MiB".to_owned());
            record.facts = scanner.facts;
            let tokens = tokens?;
            if tokens > 0 {
                self.count_tokens(record, tokens, now_s);
            }
        }
        record.end_s = Some(self.now_s());
        if record.facts.failed {
            self.keep_error("an error event in the stream");
            return Ok(Outcome::Refused);
        }
        if record.facts.done {
            Ok(Outcome::Ok)
        } else {
            Err("the stream ended without [DONE]".into())
        }
    }

    /// Tokens that came in one read share its time: the first of them closes the gap, the others add gaps of zero.
    fn count_tokens(&self, record: &mut Record, tokens: u32, now_s: f64) {
        let mut tallies = self.tallies.lock();
        let mut together = tokens;
        match record.last_token_s {
            None => {
                record.first_token_s = Some(now_s);
                tallies.ttft.add(now_s - record.sent_s.unwrap_or(now_s));
            }
            Some(last_s) => {
                tallies.itl.add(now_s - last_s);
                record.gap_max_s = Some(record.gap_max_s.unwrap_or(0.0).max(now_s - last_s));
            }
        }
        while together > 1 {
            tallies.itl.add(0.0);
            together -= 1;
        }
        record.last_token_s = Some(now_s);
        record.chunks += tokens;
        self.tokens.fetch_add(u64::from(tokens), Relaxed);
    }

    async fn read_whole(&self, response: Response<Incoming>, record: &mut Record) -> Result<Outcome, String> {
        let success = response.status().is_success();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES)
            .collect()
            .await
            .map_err(|e| e.to_string())?
            .to_bytes();
        let now_s = self.now_s();
        record.end_s = Some(now_s);
        if !success {
            self.keep_error(&String::from_utf8_lossy(&body));
            return Ok(Outcome::Refused);
        }
        record
            .facts
            .chunk(&body)
            .map_err(|_| "got an answer that is not JSON".to_owned())?;
        if record.facts.failed {
            self.keep_error(&String::from_utf8_lossy(&body));
            return Ok(Outcome::Refused);
        }
        record.first_token_s = Some(now_s);
        record.last_token_s = Some(now_s);
        record.chunks = 1;
        self.tallies
            .lock()
            .ttft
            .add(now_s - record.sent_s.unwrap_or(now_s));
        self.tokens
            .fetch_add(u64::from(record.facts.completion_tokens.unwrap_or(1)), Relaxed);
        Ok(Outcome::Ok)
    }
}
