//! Histograms of times: the stages of a decision, and the answers of one model.
//!
//! An observation is one search of the buckets and two atomic additions.

use prometheus::{Histogram, HistogramVec};

/// Upper bounds of the histogram of a decision's stages, in seconds: 1 µs for a hash, 10 s for a blocked tokeniser.
pub(super) const STAGE_BUCKETS_S: &[f64] = &[
    1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 5e-2, 0.1, 1.0, 10.0,
];
/// Upper bounds of histograms of the time to first token and of the time in the queue, in seconds.
pub(super) const TTFT_BUCKETS_S: &[f64] = &[
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0,
    60.0,
];
/// Upper bounds of the histogram of the inter-token latency, in seconds. Tokens of one packet are microseconds apart.
pub(super) const ITL_BUCKETS_S: &[f64] = &[
    1e-5, 1e-4, 5e-4, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
];

/// The histograms of a decision's stages. The series are looked up once, so a decision makes no map access for them.
pub(crate) struct Stages {
    /// Template and tokeniser.
    pub tokenise: Histogram,
    /// Block hashes.
    pub hash: Histogram,
    /// Overlap of the prompt with each candidate, with the wait for the router's lock.
    pub matching: Histogram,
    /// Cost of each candidate.
    pub price: Histogram,
    /// Choice and booking.
    pub pick: Histogram,
    /// From the whole body to the pin.
    pub total: Histogram,
}

impl Stages {
    /// Looks the series of every stage up.
    pub(super) fn new(all: &HistogramVec) -> Self {
        let stage = |name: &str| all.with_label_values(&[name]);
        Self {
            tokenise: stage("tokenise"),
            hash: stage("hash"),
            matching: stage("match"),
            price: stage("price"),
            pick: stage("pick"),
            total: stage("total"),
        }
    }
}

/// The histograms of one model's answers, looked up once per request.
#[derive(Clone)]
pub(crate) struct StreamHistograms {
    /// Time to first token, in seconds.
    pub ttft: Histogram,
    /// Inter-token latency, in seconds.
    pub itl: Histogram,
}
