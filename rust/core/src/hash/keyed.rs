//! Local hashes under a secret key, for feeds that carry token ids and so need not agree with Dynamo's hash.
//!
//! ```text
//! w_j     = token_2j + 2³²·token_2j+1                      the block as 64-bit words, padded with 0 to 2m words
//! N       = Σ_i (w_2i + k_2i mod 2⁶⁴)·(w_2i+1 + k_2i+1 mod 2⁶⁴)   mod 2¹²⁸            NH
//! local   = high half of (a·N_low + b·N_high + c_scope mod 2¹²⁸)                       strongly universal
//! ```
//!
//! SipHash-2-4 derives `k`, `a` and `b` from the key and the block size, and `c` from the key, the adapter
//! and the namespace.
//!
//! **Bound.** Take two blocks that were chosen without knowledge of the key. NH collides with probability ≤
//! 2⁻⁶⁴ (Black et al., UMAC, 1999, theorem 1), and the last step with ≤ 2⁻⁶⁴ (Dietzfelbinger, 1996). So two
//! different blocks, or one block in two scopes, share a hash with probability ≤ 2⁻⁶³ plus the advantage
//! against `SipHash`. Among n blocks the probability of a collision is below n²/2⁶⁴: 5·10⁻⁵ for n = 3·10⁷.
//!
//! The hashes never leave the process. An observer of the placements learns less than the hashes, but the
//! bound is not proved against such an observer. A collision costs a placement, never a wrong answer.
//!
//! Cost: 4 multiplications per 16 tokens and 4 at the end, as fast as XXH3-64 of the same block.

use std::fmt;

use super::siphash::siphash;
use super::{HashScope, LocalHash};

/// Secret of 128 bits. `Debug` prints none of its bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct HashKey([u8; 16]);

impl HashKey {
    /// Key of secret random bytes. All 128 bits must be random, because the bound depends on it.
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// 64 bits that identify the key without revealing it, to tell whether stored hashes use this key.
    ///
    /// A saved index carries it, so that an index hashed under another key is refused and not believed.
    pub fn fingerprint(&self) -> u64 {
        siphash(&self.0, b"wardrop key fingerprint")
    }

    /// Independent key for one purpose, so that names under the two keys cannot be compared.
    #[must_use]
    pub fn derive(&self, purpose: &str) -> Self {
        let half = |at: u8| {
            siphash(
                &self.0,
                &[b"wardrop purpose ", &[at][..], purpose.as_bytes()].concat(),
            )
        };
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&half(0).to_le_bytes());
        bytes[8..].copy_from_slice(&half(1).to_le_bytes());
        Self(bytes)
    }

    /// Name of `bytes` under the key. Equal bytes have equal names; without the key no guess of the bytes can be checked.
    pub fn pseudonym(&self, bytes: &[u8]) -> u64 {
        siphash(&self.0, bytes)
    }
}

impl fmt::Debug for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashKey(secret)")
    }
}

/// Keys for blocks of one size.
#[derive(Clone, Debug)]
pub struct BlockKeys {
    /// Key words `k`, in pairs.
    words: Box<[[u64; 2]]>,
    /// Factor `a` of the last step.
    low: u128,
    /// Factor `b` of the last step.
    high: u128,
}

impl BlockKeys {
    /// Keys for blocks of `block_size` tokens.
    pub fn new(key: &HashKey, block_size: u32) -> Self {
        let derived = |at: u64| {
            let mut input = [0; 24];
            input[..8].copy_from_slice(b"wardropk");
            input[8..16].copy_from_slice(&u64::from(block_size).to_le_bytes());
            input[16..].copy_from_slice(&at.to_le_bytes());
            siphash(&key.0, &input)
        };
        let wide = |at| u128::from(derived(at)) << 64 | u128::from(derived(at + 1));
        let pairs = u64::from(block_size).div_ceil(4);
        Self {
            words: (0..pairs)
                .map(|pair| [derived(4 + 2 * pair), derived(5 + 2 * pair)])
                .collect(),
            low: wide(0),
            high: wide(2),
        }
    }

    /// Hash of one block, with the constant of its scope.
    #[inline]
    pub fn hash(&self, block: &[u32], constant: u128) -> LocalHash {
        let sum = if block.len().is_multiple_of(16) {
            self.sum_of_sixteens(block)
        } else {
            self.sum_of_any(block)
        };
        let mixed = self
            .low
            .wrapping_mul(sum & u128::from(u64::MAX))
            .wrapping_add(self.high.wrapping_mul(sum >> 64))
            .wrapping_add(constant);
        LocalHash((mixed >> 64) as u64)
    }

    /// NH of a block whose size is a multiple of 16, as the usual sizes are: four independent products per
    /// step.
    #[inline]
    fn sum_of_sixteens(&self, block: &[u32]) -> u128 {
        let (fours, _) = block.as_chunks::<4>().0.as_chunks::<4>();
        let (keys, _) = self.words.as_chunks::<4>();
        fours.iter().zip(keys).fold(0u128, |sum, (quads, keys)| {
            let low = product(quads[0], keys[0]).wrapping_add(product(quads[1], keys[1]));
            let high = product(quads[2], keys[2]).wrapping_add(product(quads[3], keys[3]));
            sum.wrapping_add(low.wrapping_add(high))
        })
    }

    /// NH of a block of any size.
    ///
    /// Never inlined, so that the loop over usual block sizes stays small.
    #[inline(never)]
    fn sum_of_any(&self, block: &[u32]) -> u128 {
        let (quads, rest) = block.as_chunks::<4>();
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        let padded = quads.iter().chain(std::iter::once(&last));
        // A block without a remainder has no key for the padding, so `zip` ends before it.
        padded
            .zip(&self.words)
            .fold(0u128, |sum, (&quad, &keys)| sum.wrapping_add(product(quad, keys)))
    }
}

/// Product of one pair of words, each added to its key.
#[inline]
fn product(quad: [u32; 4], [first, second]: [u64; 2]) -> u128 {
    let [low, high] = words(quad);
    u128::from(low.wrapping_add(first)) * u128::from(high.wrapping_add(second))
}

/// The four tokens as two words.
#[cfg(target_endian = "little")]
fn words(quad: [u32; 4]) -> [u64; 2] {
    bytemuck::cast(quad)
}

#[cfg(not(target_endian = "little"))]
fn words([a, b, c, d]: [u32; 4]) -> [u64; 2] {
    [
        u64::from(a) | u64::from(b) << 32,
        u64::from(c) | u64::from(d) << 32,
    ]
}

/// Constant `c` of a scope, different for every (adapter, namespace).
pub(crate) fn scope_constant(key: &HashKey, scope: &HashScope<'_>) -> u128 {
    let lora_name = scope.lora_name.unwrap_or_default();
    let namespace = scope.cache_namespace.unwrap_or_default();
    let mut input = Vec::with_capacity(17 + lora_name.len() + namespace.len());
    input.extend_from_slice(b"wardrops\0");
    input.extend_from_slice(&(lora_name.len() as u64).to_le_bytes());
    input.extend_from_slice(lora_name.as_bytes());
    input.extend_from_slice(namespace.as_bytes());
    let low = siphash(&key.0, &input);
    input[8] = 1;
    u128::from(siphash(&key.0, &input)) << 64 | u128::from(low)
}
