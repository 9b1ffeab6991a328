//! SipHash-2-4: the keyed function that derives every secret of [`super::keyed`].
//!
//! It hashes keys and names once per hasher or scope, never blocks, so its speed does not matter. What
//! matters is that its output reveals nothing of the key: the bound of [`super::keyed`] rests on it.
//!
//! Source: Aumasson and Bernstein, "`SipHash`: a fast short-input PRF" (2012), whose test vectors the tests
//! use.

/// SipHash-2-4 of `bytes` under a 128-bit key. O(bytes).
pub(super) fn siphash(key: &[u8; 16], bytes: &[u8]) -> u64 {
    let half = |at: usize| u64::from_le_bytes(key[at..at + 8].try_into().expect("half a key has 8 bytes"));
    let (k0, k1) = (half(0), half(8));
    let mut state = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ];
    let words = bytes.chunks_exact(8);
    let mut last = [0; 8];
    last[..words.remainder().len()].copy_from_slice(words.remainder());
    last[7] = bytes.len() as u8; // the length modulo 256, as the paper defines it
    for word in words {
        absorb(
            &mut state,
            u64::from_le_bytes(word.try_into().expect("a word has 8 bytes")),
        );
    }
    absorb(&mut state, u64::from_le_bytes(last));
    state[2] ^= 0xff;
    (0..4).for_each(|_| round(&mut state));
    state[0] ^ state[1] ^ state[2] ^ state[3]
}

/// Compression: two rounds per word, the 2 of SipHash-2-4. The end has four.
fn absorb(state: &mut [u64; 4], word: u64) {
    state[3] ^= word;
    round(state);
    round(state);
    state[0] ^= word;
}

/// One round: additions, rotations and exclusive ors, as the paper's figure has them.
fn round([v0, v1, v2, v3]: &mut [u64; 4]) {
    *v0 = v0.wrapping_add(*v1);
    *v1 = v1.rotate_left(13) ^ *v0;
    *v0 = v0.rotate_left(32);
    *v2 = v2.wrapping_add(*v3);
    *v3 = v3.rotate_left(16) ^ *v2;
    *v0 = v0.wrapping_add(*v3);
    *v3 = v3.rotate_left(21) ^ *v0;
    *v2 = v2.wrapping_add(*v1);
    *v1 = v1.rotate_left(17) ^ *v2;
    *v2 = v2.rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::siphash;

    #[test]
    fn siphash_equals_the_papers_test_vectors() {
        let key = std::array::from_fn(|at| at as u8);
        let input: Vec<u8> = (0..15).collect();
        assert_eq!(siphash(&key, &input), 0xa129_ca61_49be_45e5);
        assert_eq!(siphash(&key, &[]), 0x726f_db47_dd0e_0e31);
    }
}
