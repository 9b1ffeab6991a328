//! Forms that several payloads share: hashes of either sign, bounded lists, and bytes.
//!
//! Each deserialises what real senders write: a hash as a signed number, bytes as a list of numbers. None
//! reserves memory by an announced length.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};

/// 64-bit hash that some senders write as a signed number.
#[derive(Clone, Copy)]
pub(super) struct Hash64(pub u64);

impl<'de> Deserialize<'de> for Hash64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HashVisitor;
        impl Visitor<'_> for HashVisitor {
            type Value = Hash64;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a 64-bit integer")
            }
            fn visit_u64<E>(self, value: u64) -> Result<Hash64, E> {
                Ok(Hash64(value))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Hash64, E> {
                Ok(Hash64(value.cast_unsigned()))
            }
        }
        deserializer.deserialize_any(HashVisitor)
    }
}

/// List of at most `MOST` entries, regardless of the announced length.
pub(super) struct Bounded<T, const MOST: usize>(pub Vec<T>);

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for Bounded<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ListVisitor<T, const MOST: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for ListVisitor<T, MOST> {
            type Value = Bounded<T, MOST>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MOST}")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = list.next_element()? {
                    if values.len() == MOST {
                        return Err(A::Error::invalid_length(MOST + 1, &self));
                    }
                    values.push(value);
                }
                Ok(Bounded(values))
            }
        }
        deserializer.deserialize_seq(ListVisitor(PhantomData))
    }
}

/// Bytes, written as msgpack binary or as a list of numbers.
pub(super) struct Blob<'a>(pub Cow<'a, [u8]>);

impl<'de: 'a, 'a> Deserialize<'de> for Blob<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BlobVisitor;
        impl<'de> Visitor<'de> for BlobVisitor {
            type Value = Blob<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_borrowed_bytes<E>(self, value: &'de [u8]) -> Result<Blob<'de>, E> {
                Ok(Blob(Cow::Borrowed(value)))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Blob<'de>, A::Error> {
                // The announced length reserves nothing: a short frame may announce a long list.
                let mut bytes = Vec::new();
                while let Some(byte) = list.next_element::<u64>()? {
                    bytes.push(u8::try_from(byte).map_err(A::Error::custom)?);
                }
                Ok(Blob(Cow::Owned(bytes)))
            }
        }
        deserializer.deserialize_any(BlobVisitor)
    }
}
