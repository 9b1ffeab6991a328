//! Local hashes under a secret key: for feeds that carry token ids, so that nobody has to agree with Dynamo's hash.
//!
//! ```text
//! w_j     = token_2j + 2³²·token_2j+1                      the block as 64-bit words, padded with 0 to 2m words
//! N       = Σ_i (w_2i + k_2i mod 2⁶⁴)·(w_2i+1 + k_2i+1 mod 2⁶⁴)   mod 2¹²⁸            NH
//! local   = high half of (a·N_low + b·N_high + c_scope mod 2¹²⁸)                       strongly universal
//! ```
//!
//! `k`, `a`, `b` come from the key and the block size, `c` from the key, the adapter and the namespace, all through
//! SipHash-2-4.
//!
//! **Bound.** For two blocks that were chosen without knowledge of the key, NH collides with probability ≤ 2⁻⁶⁴ (Black et
//! al., UMAC, 1999, theorem 1) and the last step with ≤ 2⁻⁶⁴ (Dietzfelbinger 1996), so two different blocks, or the same
//! block in two scopes, share a hash with probability ≤ 2⁻⁶³ plus the advantage against `SipHash`. Among n blocks: below
//! n²/2⁶⁴, 5·10⁻⁵ for 3·10⁷ of them. The hashes never leave the process; who watches where requests go learns less than them, but
//! the bound is not proved against that. A collision costs a placement, never an answer.
//!
//! 4 multiplications per 16 tokens and 4 at the end: as fast as XXH3-64 of such a block.

use std::fmt;

use super::siphash::siphash;
use super::{HashScope, LocalHash};

/// A secret of 128 bits. It is never shown: `Debug` prints no byte of it.
#[derive(Clone, PartialEq, Eq)]
pub struct HashKey([u8; 16]);

impl HashKey {
    /// From random bytes. They must be secret and of the whole 128 bits: the bound stands on them.
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// 64 bits that name the key without revealing it: to tell whether stored hashes are under this key.
    pub fn fingerprint(&self) -> u64 {
        siphash(&self.0, b"wardrop key fingerprint")
    }
}

impl fmt::Debug for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashKey(secret)")
    }
}

/// Words of the block in pairs, with their keys.
#[derive(Clone, Debug)]
pub struct BlockKeys {
    words: Box<[[u64; 2]]>,
    low: u128,
    high: u128,
}

impl BlockKeys {
    /// The keys of blocks of so many tokens.
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

    /// The hash of one block in the scope of `constant`.
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

    /// Four independent products at a time; the usual sizes are all of this kind.
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

    #[inline(never)]
    fn sum_of_any(&self, block: &[u32]) -> u128 {
        let (quads, rest) = block.as_chunks::<4>();
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        let padded = quads.iter().chain(std::iter::once(&last));
        // Without a rest there is no key for the padding, and the pairs end before it.
        padded
            .zip(&self.words)
            .fold(0u128, |sum, (&quad, &keys)| sum.wrapping_add(product(quad, keys)))
    }
}

#[inline]
fn product(quad: [u32; 4], [first, second]: [u64; 2]) -> u128 {
    let [low, high] = words(quad);
    u128::from(low.wrapping_add(first)) * u128::from(high.wrapping_add(second))
}

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

/// `c` of a scope: an own one for every (adapter, namespace).
pub fn scope_constant(key: &HashKey, scope: &HashScope<'_>) -> u128 {
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
