//! Least times of an engine: of prompt passes for one prompt, and of decode steps for one sequence, in any company.
//!
//! A pass takes at least `α + β·tokens` for every line below the prefill curve. A step takes at least
//! `a·sequences + b·KV tokens` for every plane below the step curve. Both hold regardless of what else the
//! worker computes, so they add up over the requests of a pass.

use super::share::{LoadCurve, Segment};
use crate::error::{SimError, out_of_range};
use crate::spec::EngineSpec;
use crate::timing::{Cursor, DecodeStep, Timing};

/// Further points of a step curve, between which a line lies below it.
const MORE_POINTS: u64 = 16;

/// A line below the prefill curve.
#[derive(Clone, Copy, Debug)]
struct Line {
    /// Milliseconds per pass, at least 0.
    base_ms: f64,
    /// Milliseconds per token, at least 0.
    per_token_ms: f64,
}

/// The prefill curve from below.
pub(super) struct PrefillFloor {
    /// `c0 + c1·n + c2·n²`, or `None` for a table.
    quadratic: Option<[f64; 3]>,
    /// Sides of the lower convex hull of a table, by rising slope.
    hull: Vec<Line>,
    /// Least milliseconds per token that any pass reaches.
    pub per_token_ms: f64,
    /// Most tokens of one prompt in a pass.
    most_tokens: f64,
    /// Most tokens of a pass, as the engine counts them.
    most_pass_tokens: f64,
}

impl PrefillFloor {
    /// The floor for prompts of up to `longest` tokens.
    pub fn new(engine: &EngineSpec, longest: u32) -> Result<Self, SimError> {
        let most_tokens = f64::from(engine.max_num_batched_tokens);
        // The engine rounds the means of a pass, so a pass may count up to twice its tokens.
        let highest = u64::from(engine.max_num_batched_tokens) * 2;
        let quadratic = match &engine.timing {
            Timing::Polynomial => Some([16.501_42, 1.518_344e-2, 4.209_989e-7]),
            Timing::Affine {
                prefill_base_ms,
                prefill_per_token_ms,
                ..
            } => Some([*prefill_base_ms, *prefill_per_token_ms, 0.0]),
            // Without cached tokens, because a pass with other prompts counts only their mean.
            Timing::Learned(prior) => Some([
                1e3 * prior.prefill[0],
                1e3 * prior.prefill[1],
                0.5e3 * prior.prefill[2],
            ]),
            Timing::Table(_) => None,
        };
        if let Some(curve) = quadratic {
            if curve.iter().any(|coefficient| *coefficient < 0.0) {
                return Err(out_of_range(
                    "timing",
                    format!("{curve:?}"),
                    "a prefill curve without a negative coefficient",
                ));
            }
            let best = tangent(&curve, f64::INFINITY).0.min(highest as f64);
            let per_token_ms = curve[0] / best + curve[1] + curve[2] * best;
            return Ok(Self {
                quadratic,
                hull: Vec::new(),
                per_token_ms,
                most_tokens,
                most_pass_tokens: highest as f64,
            });
        }
        let (news, cached) = engine.timing.prefill_breakpoints(highest, u64::from(longest));
        let points: Vec<(f64, f64)> = news
            .iter()
            .map(|n| {
                let least = cached.iter().map(|c| engine.timing.prefill_ms(*n, *c));
                (*n as f64, least.fold(f64::INFINITY, f64::min))
            })
            .collect();
        let per_token_ms = points.iter().map(|(n, ms)| ms / n).fold(f64::INFINITY, f64::min);
        let mut hull = lower_hull(&points);
        hull.push(Line {
            base_ms: 0.0,
            per_token_ms,
        });
        hull.retain(|line| line.base_ms >= 0.0 && line.per_token_ms >= 0.0);
        Ok(Self {
            quadratic,
            hull,
            per_token_ms,
            most_tokens,
            most_pass_tokens: highest as f64,
        })
    }

    /// Least milliseconds of all passes that together compute `tokens` of one prompt.
    pub fn at_least_ms(&self, tokens: u32) -> f64 {
        if tokens == 0 {
            return 0.0;
        }
        let n = f64::from(tokens);
        let passes = (n / self.most_tokens).ceil().max(1.0);
        let on = |line: &Line| line.base_ms * passes + line.per_token_ms * n;
        match &self.quadratic {
            Some(curve) => on(&tangent(curve, n / passes).1),
            None => self.hull.iter().map(on).fold(0.0, f64::max),
        }
    }

    /// Least latency and worker time, at a price of worker time, of the passes that compute `tokens` of one prompt.
    ///
    /// For a line, the cost of several passes is at least that of one pass with all their tokens.
    pub fn priced_ms(&self, price: f64, tokens: f64) -> f64 {
        let from = tokens.max(1.0);
        let on = |line: &Line| {
            let pass = LoadCurve(vec![Segment {
                from,
                to: self.most_pass_tokens.max(from),
                base_ms: line.base_ms,
                per_load_ms: line.per_token_ms,
            }]);
            pass.least_ms(price, tokens, from)
        };
        match &self.quadratic {
            Some(curve) => {
                let touches = [from, 2.0 * from, 4.0 * from, f64::INFINITY];
                let lines = touches.map(|at| on(&tangent(curve, at.min(self.most_pass_tokens)).1));
                lines.into_iter().fold(0.0, f64::max)
            }
            None => self.hull.iter().map(on).fold(0.0, f64::max),
        }
    }
}

/// The tangent of a rising convex curve at `at`, or further left at the last point where its base is at least 0.
fn tangent(curve: &[f64; 3], at: f64) -> (f64, Line) {
    let [c0, c1, c2] = *curve;
    let most = if c2 > 0.0 { (c0 / c2).sqrt() } else { f64::INFINITY };
    let at = at.min(most);
    let line = if c2 > 0.0 {
        Line {
            base_ms: (c0 - c2 * at * at).max(0.0),
            per_token_ms: c1 + 2.0 * c2 * at,
        }
    } else {
        Line {
            base_ms: c0,
            per_token_ms: c1,
        }
    };
    (at, line)
}

/// The lines through the sides of the lower convex hull of `points`, which rise in their first coordinate.
fn lower_hull(points: &[(f64, f64)]) -> Vec<Line> {
    let slope = |a: (f64, f64), b: (f64, f64)| (b.1 - a.1) / (b.0 - a.0);
    let mut hull: Vec<(f64, f64)> = Vec::new();
    for point in points {
        while let [.., before, last] = hull.as_slice()
            && slope(*before, *last) >= slope(*last, *point)
        {
            hull.pop();
        }
        hull.push(*point);
    }
    let line = |pair: &[(f64, f64)]| {
        let per_token_ms = slope(pair[0], pair[1]);
        Line {
            base_ms: pair[0].1 - per_token_ms * pair[0].0,
            per_token_ms,
        }
    };
    hull.windows(2).map(line).collect()
}

/// A plane below the step curve: what a step costs at least per sequence and per KV token.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::struct_field_names, reason = "the unit is the same")]
pub(super) struct StepPrice {
    /// Milliseconds per sequence that decodes.
    pub sequence_ms: f64,
    /// Milliseconds per token of the contexts of these sequences, shared or not.
    pub context_token_ms: f64,
    /// Milliseconds per token of device memory that these sequences hold.
    pub held_token_ms: f64,
}

/// The load that sequences bring to a step, and the step's least time by the sum of the loads.
#[derive(Clone, Debug)]
pub(super) struct StepLoad {
    /// Load of any sequence.
    pub per_sequence: f64,
    /// Load per token of the context.
    pub per_context_token: f64,
    /// Load per held token.
    pub per_held_token: f64,
    /// Least time of a step by its load.
    pub curve: LoadCurve,
}

impl StepLoad {
    /// Load of one sequence.
    pub fn of(&self, context_tokens: f64, held_tokens: f64) -> f64 {
        self.per_sequence + self.per_context_token * context_tokens + self.per_held_token * held_tokens
    }

    /// A plane: each sequence brings the milliseconds by which it makes the step longer.
    fn plane(base_ms: f64, sequence: StepPrice, most: (f64, f64)) -> Self {
        let StepPrice {
            sequence_ms,
            context_token_ms,
            held_token_ms,
        } = sequence;
        let (sequences, tokens) = most;
        let most_ms =
            sequence_ms * sequences + context_token_ms * sequences * tokens + held_token_ms * tokens;
        if most_ms <= 0.0 {
            return Self::held(vec![Segment {
                from: 1.0,
                to: tokens,
                base_ms,
                per_load_ms: 0.0,
            }]);
        }
        Self {
            per_sequence: sequence_ms,
            per_context_token: context_token_ms,
            per_held_token: held_token_ms,
            curve: LoadCurve(vec![Segment {
                from: f64::MIN_POSITIVE,
                to: most_ms,
                base_ms,
                per_load_ms: 1.0,
            }]),
        }
    }

    /// A curve by the held tokens.
    fn held(segments: Vec<Segment>) -> Self {
        Self {
            per_sequence: 0.0,
            per_context_token: 0.0,
            per_held_token: 1.0,
            curve: LoadCurve(segments),
        }
    }
}

/// The step curve from below.
pub(super) struct StepFloor {
    /// Least step time of a sequence that holds so many blocks, in milliseconds, in any company.
    by_blocks_ms: Vec<f64>,
    /// Sum of the step times over all tokens of the first blocks.
    sum_ms: Vec<f64>,
    block_size: u32,
    /// Planes below the curve.
    pub prices: Vec<StepPrice>,
    /// The curve by the load of a step.
    pub load: StepLoad,
    /// Whether a prompt's last pass also counts as a decode step of the prompt.
    pub has_first_step: bool,
}

impl StepFloor {
    /// The floor for sequences of up to `longest` tokens.
    pub fn new(engine: &EngineSpec, longest: u32) -> Result<Self, SimError> {
        let size = engine.block_size;
        let blocks = longest.div_ceil(size).min(engine.num_blocks) as usize;
        let sequences = f64::from(engine.max_num_seqs);
        let capacity = f64::from(engine.num_blocks) * f64::from(size);
        let mut floor = Self {
            by_blocks_ms: Vec::with_capacity(blocks + 1),
            sum_ms: Vec::with_capacity(blocks + 1),
            block_size: size,
            prices: Vec::new(),
            load: StepLoad::held(Vec::new()),
            has_first_step: !engine.timing.is_learned(),
        };
        let spread = |base: f64, per_sequence: f64, per_context: f64, per_held: f64| {
            [0.0, 0.5, 1.0].map(|share| StepPrice {
                sequence_ms: per_sequence + share * base / sequences,
                context_token_ms: per_context,
                held_token_ms: per_held + (1.0 - share) * base / capacity,
            })
        };
        let least: Box<dyn Fn(u64) -> f64> = match &engine.timing {
            Timing::Learned(prior) => {
                let [base, per_sequence, per_token] = prior.step.map(|d| 1e3 * d);
                check_rising(&[base, per_sequence, per_token])?;
                floor.prices.extend(spread(base, per_sequence, per_token, 0.0));
                let sequence = StepPrice {
                    sequence_ms: per_sequence,
                    context_token_ms: per_token,
                    held_token_ms: 0.0,
                };
                floor.load = StepLoad::plane(base, sequence, (sequences, capacity));
                // The shortest context that fills so many blocks.
                Box::new(move |kv| {
                    let context = kv.saturating_sub(u64::from(size) - 1);
                    base + per_sequence + per_token * context as f64
                })
            }
            Timing::Affine {
                decode_base_ms,
                decode_per_kv_token_ms,
                decode_per_sequence_ms,
                ..
            } => {
                let (base, per_token, per_sequence) =
                    (*decode_base_ms, *decode_per_kv_token_ms, *decode_per_sequence_ms);
                check_rising(&[base, per_token, per_sequence])?;
                floor.prices.extend(spread(base, per_sequence, 0.0, per_token));
                let sequence = StepPrice {
                    sequence_ms: per_sequence,
                    context_token_ms: 0.0,
                    held_token_ms: per_token,
                };
                floor.load = StepLoad::plane(base, sequence, (sequences, capacity));
                Box::new(move |kv| base + per_sequence + per_token * kv as f64)
            }
            Timing::Polynomial | Timing::Table(_) => {
                let curve = Curve::new(engine, longest);
                let base = curve.least_from(0);
                let rise = curve.ratio(base);
                floor.load = StepLoad::held(curve.segments());
                floor.prices.extend(spread(base, 0.0, 0.0, rise));
                floor.prices.push(StepPrice {
                    sequence_ms: 0.0,
                    context_token_ms: 0.0,
                    held_token_ms: curve.ratio(0.0),
                });
                Box::new(move |kv| curve.at(kv).min(curve.least_from(kv)))
            }
        };
        let mut sum = 0.0;
        for blocks in 0..=blocks as u64 {
            let ms = least(blocks * u64::from(size));
            sum += if blocks == 0 { 0.0 } else { ms * f64::from(size) };
            floor.by_blocks_ms.push(ms);
            floor.sum_ms.push(sum);
        }
        Ok(floor)
    }

    /// Least milliseconds of one step of a sequence of `tokens` tokens.
    pub fn step_ms(&self, tokens: u32) -> f64 {
        self.by_blocks_ms[self.blocks(tokens)]
    }

    /// Least milliseconds of the steps at the lengths `first..=last`. 0 if there are none.
    pub fn steps_ms(&self, first: u32, last: u32) -> f64 {
        if first > last {
            return 0.0;
        }
        self.up_to_ms(last) - self.up_to_ms(first - 1)
    }

    /// Entry of the table for a sequence of `tokens` tokens.
    fn blocks(&self, tokens: u32) -> usize {
        (tokens.div_ceil(self.block_size) as usize).min(self.by_blocks_ms.len() - 1)
    }

    /// Sum of the least step times at the lengths 1 to `tokens`.
    fn up_to_ms(&self, tokens: u32) -> f64 {
        let whole = (tokens / self.block_size) as usize;
        if whole + 1 >= self.sum_ms.len() {
            let rest = tokens - (self.sum_ms.len() as u32 - 1) * self.block_size;
            return self.sum_ms[self.sum_ms.len() - 1]
                + f64::from(rest) * self.by_blocks_ms[self.sum_ms.len() - 1];
        }
        let rest = tokens % self.block_size;
        self.sum_ms[whole] + f64::from(rest) * self.by_blocks_ms[whole + 1]
    }
}

/// Refuses a step curve with a negative coefficient: the bound does not hold for it.
fn check_rising(coefficients: &[f64]) -> Result<(), SimError> {
    if coefficients.iter().any(|coefficient| *coefficient < 0.0) {
        return Err(out_of_range(
            "timing",
            format!("{coefficients:?}"),
            "a step curve without a negative coefficient",
        ));
    }
    Ok(())
}

/// The least step time over all mean contexts, as a function of the active KV tokens.
///
/// Between two neighbours of `points`, the time is linear in the KV tokens for a table, and concave for the polynomial.
/// A minimum over an interval, and of a ratio to the KV tokens, is therefore at an end of it.
struct Curve {
    timing: Timing,
    contexts: Vec<u64>,
    /// KV tokens that the timing counts as a full memory.
    total_kv_tokens: u64,
    /// KV tokens of the memory.
    capacity_tokens: u64,
    /// KV tokens and least milliseconds, by rising KV tokens.
    points: Vec<(u64, f64)>,
}

impl Curve {
    fn new(engine: &EngineSpec, longest: u32) -> Self {
        let capacity_tokens = u64::from(engine.num_blocks) * u64::from(engine.block_size);
        let (kv, contexts) = engine.timing.decode_breakpoints(
            u64::from(engine.block_size),
            capacity_tokens,
            u64::from(longest),
        );
        let mut curve = Self {
            timing: engine.timing.clone(),
            contexts,
            total_kv_tokens: engine.curve_tokens(),
            capacity_tokens,
            points: Vec::new(),
        };
        curve.points = kv.iter().map(|kv| (*kv, curve.at(*kv))).collect();
        curve
    }

    fn at(&self, kv: u64) -> f64 {
        let step = |context_tokens: &u64| DecodeStep {
            batch: 1,
            active_kv_tokens: kv.min(self.capacity_tokens),
            context_tokens: *context_tokens,
            total_kv_tokens: self.total_kv_tokens,
        };
        let times = self
            .contexts
            .iter()
            .map(|context| self.timing.decode_ms(step(context), &mut Cursor::default()));
        times.fold(f64::INFINITY, f64::min)
    }

    /// Lines below the curve, by rising KV tokens.
    fn segments(&self) -> Vec<Segment> {
        let capacity = self.capacity_tokens;
        if self.is_raised() {
            return vec![Segment {
                from: 1.0,
                to: capacity as f64,
                base_ms: self.least_from(0),
                per_load_ms: 0.0,
            }];
        }
        let least = self.points[0].0;
        let between = (1..MORE_POINTS).map(|part| capacity * part / MORE_POINTS);
        let mut loads: Vec<u64> = self.points.iter().map(|(kv, _)| *kv).collect();
        loads.extend(between.filter(|kv| *kv > least));
        loads.sort_unstable();
        loads.dedup();
        let points: Vec<(f64, f64)> = loads.iter().map(|kv| (*kv as f64, self.at(*kv))).collect();
        points
            .windows(2)
            .map(|pair| Segment::between(pair[0], pair[1]))
            .collect()
    }

    /// Whether some step is raised to the shortest step. Between points, the curve is then neither linear nor concave.
    fn is_raised(&self) -> bool {
        self.points
            .iter()
            .any(|(_, ms)| *ms <= crate::timing::MIN_DECODE_MS)
    }

    /// Least time at `kv` or more tokens, as far as the points say.
    fn least_from(&self, kv: u64) -> f64 {
        let first = self.points.partition_point(|(tokens, _)| *tokens < kv);
        let rest = self.points[first.min(self.points.len() - 1)..].iter();
        rest.map(|(_, ms)| *ms).fold(f64::INFINITY, f64::min)
    }

    /// Largest slope of a line through (0, `base`) that stays below the curve; at least 0.
    fn ratio(&self, base: f64) -> f64 {
        if self.is_raised() {
            return 0.0;
        }
        let slopes = self.points.iter().map(|(kv, ms)| (ms - base) / *kv as f64);
        slopes.fold(f64::INFINITY, f64::min).max(0.0)
    }
}
