//! For tests alone: inputs that are nearly right, made from examples by random changes.
//!
//! A parser of outside bytes is shown changed examples: flipped bits, cut ends, repeated parts, parts of other examples, and
//! words that formats treat in a special way. The variable `FUZZ_CASES` sets the number of inputs. A panic prints the input
//! that caused it, and equal numbers give equal inputs. O(bytes of an input) per case.

use std::time::Instant;

/// Inputs of a run without `FUZZ_CASES`: enough to notice a broken target in the ordinary tests.
const DEFAULT_CASES: u64 = 2_000;
/// Largest input, in bytes.
const MAX_INPUT_BYTES: usize = 4_096;
/// Most changes of one example.
const MAX_CHANGES: usize = 6;

/// Byte strings that parsers of JSON, HTTP, event streams, `MessagePack` and binary counts treat in a special way.
const WORDS: &[&[u8]] = &[
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b"\\",
    b",",
    b":",
    b"\\u0000",
    b"\\ud800",
    b"null",
    b"true",
    b"-1",
    b"1e999",
    b"0",
    b"18446744073709551616",
    b"9223372036854775807",
    b"\r\n",
    b"\n\n",
    b"\r",
    b"\0",
    b"\xff",
    b"\xf0\x9f\x98\x80",
    b"data: ",
    b"event: error\n",
    b"[DONE]",
    b"0\r\n\r\n",
    b"ffffffffffffffff",
    b"content-length: 0\r\n",
    b"transfer-encoding: chunked\r\n",
    b"\"nvext\":",
    b"\"model\":",
    b"\xc0",
    b"\xdf\xff\xff\xff\xff",
    b"\xdd\xff\xff\xff\xff",
    b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\xff\xff\xff\xff",
    b"\0\0\0\0",
    b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
];

/// A source of choices with a fixed seed (splitmix64).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// The source with this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below 2**64.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`; 0 where `end` is 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.roll() % (end.max(1) as u64)) as usize
    }
}

/// Prints the input when a check panics.
struct Shown<'a> {
    target: &'a str,
    case: u64,
    input: &'a [u8],
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!(
                "{}: case {}, input {:?}",
                self.target,
                self.case,
                self.input.escape_ascii().to_string()
            );
        }
    }
}

/// Shows a check changed examples, `FUZZ_CASES` of them, and prints their number and the time.
///
/// # Arguments
/// * `target` - name of the parser, for the report.
/// * `examples` - inputs that the parser accepts.
/// * `check` - panics where the parser is wrong. The dice are for choices of its own, such as where to cut an input.
///
/// # Panics
/// Where the check panics, or `FUZZ_CASES` is no number.
pub fn run(target: &str, examples: &[Vec<u8>], mut check: impl FnMut(&[u8], &mut Dice)) {
    let cases = std::env::var("FUZZ_CASES").map_or(DEFAULT_CASES, |text| {
        text.parse().expect("FUZZ_CASES must be a number of inputs")
    });
    let started = Instant::now();
    let mut input = Vec::new();
    for case in 0..cases {
        let mut dice = Dice::new(case.wrapping_mul(0xd134_2543_de82_ef95));
        change(&mut input, examples, &mut dice);
        let shown = Shown {
            target,
            case,
            input: &input,
        };
        check(shown.input, &mut dice);
    }
    println!(
        "{target}: {cases} cases in {:.1} s",
        started.elapsed().as_secs_f64()
    );
}

/// Puts a changed example into `input`.
fn change(input: &mut Vec<u8>, examples: &[Vec<u8>], dice: &mut Dice) {
    input.clear();
    input.extend_from_slice(&examples[dice.below(examples.len())]);
    for _ in 0..dice.below(MAX_CHANGES + 1) {
        let at = dice.below(input.len() + 1);
        let length = dice.below((input.len() - at).min(64) + 1);
        match dice.below(8) {
            0 if !input.is_empty() => {
                let at = dice.below(input.len());
                input[at] ^= 1 << dice.below(8);
            }
            1 if !input.is_empty() => {
                let at = dice.below(input.len());
                input[at] = dice.roll() as u8;
            }
            2 => {
                input.drain(at..at + length);
            }
            3 => {
                let part = input[at..at + length].to_vec();
                let to = dice.below(input.len() + 1);
                input.splice(to..to, part);
            }
            4 => input.truncate(at),
            5 => {
                let other = &examples[dice.below(examples.len())];
                let from = dice.below(other.len());
                let to = from + dice.below(other.len() - from + 1);
                input.splice(at..at + length, other[from..to].iter().copied());
            }
            6 => {
                let number = dice.roll() >> dice.below(64);
                let text = number.to_string();
                input.splice(at..at, text.into_bytes());
            }
            _ => {
                let word = WORDS[dice.below(WORDS.len())];
                input.splice(at..at, word.iter().copied());
            }
        }
    }
    input.truncate(MAX_INPUT_BYTES);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_planted_fault_is_found() {
        let found = std::panic::catch_unwind(|| {
            run("planted", &[b"{\"a\":1}".to_vec()], |input, _| {
                assert!(!input.windows(2).any(|pair| pair == b"{{"), "planted");
            });
        });
        assert!(found.is_err());
    }
}
