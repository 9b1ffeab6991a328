//! The matrix of `bench/core`: one cell per process, JSON out.
//!
//! `wardrop-peer workers depth pattern blocks [repeats]`: an index with `blocks` blocks, prompts of `depth` blocks on `workers`
//! workers. Patterns: `one` worker holds each prompt, `all` do, `zipf` (worker of rank r holds depth / r), `miss`, `diverge`
//! (the prompt leaves what is held inside a run), `holes` (64 workers hold it with 2 % of its blocks gone at random).
//!
//! Every answer is compared with what was stored before the clock starts. Times are of one call each, in nanoseconds; `cpu_ns`
//! is the thread's processor time per call over a loop. `cold`: a buffer larger than the last cache is read between calls.

mod arm;
mod cell;
mod clock;

use serde_json::json;

use crate::cell::{Cell, Pattern};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: u64| {
        arguments
            .get(at)
            .map_or(default, |text| text.parse().expect("must be a number"))
    };
    let pattern = arguments.get(2).and_then(|name| Pattern::from_name(name));
    let (Some(pattern), true) = (pattern, arguments.len() >= 4) else {
        eprintln!("usage: wardrop-peer WORKERS DEPTH one|all|zipf|miss|diverge|holes BLOCKS [REPEATS]");
        std::process::exit(2);
    };
    let cell = Cell {
        workers: number(0, 64),
        depth: number(1, 1024) as usize,
        pattern,
        blocks: number(3, 100_000),
        repeats: number(4, 4000) as usize,
    };
    match cell.run() {
        Some(result) => println!("{result}"),
        None => println!(
            "{}",
            json!({"skipped": "more than 16 million holdings in the prompts alone"})
        ),
    }
}
