//! Kinds of prompts, as sets: each kind is compared with Dynamo's own token ids before ids are handed over.
//!
//! [`super::chat`] finds the shape of a request, [`super::handover`] proves shapes, and
//! [`super::prepare`] compares both. A set is one byte, so the proven set fits one atomic word.

use std::ops::{BitOr, BitOrAssign};

/// Kinds of content in one prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shape(u8);

impl Shape {
    /// Text of the completions endpoint: the tokeniser alone.
    pub const TEXT: Self = Self(1);
    /// System, user and assistant messages with text.
    pub const PLAIN: Self = Self(2);
    /// Content as a list of text parts.
    pub const PARTS: Self = Self(4);
    /// Tool definitions.
    pub const TOOLS: Self = Self(8);
    /// Tool calls and their results in the conversation.
    pub const TOOL_CALLS: Self = Self(16);
    /// Fields beside the conversation that a template can read.
    pub const OPTIONS: Self = Self(32);
    /// A conversion that Dynamo's published crates do not contain, so the ids serve to find the prefix only.
    ///
    /// No sample covers it, so it is never in a proven set.
    pub const UNPROVEN: Self = Self(128);

    /// The kinds that samples cover, with their names.
    pub const CHECKED: [(Self, &'static str); 6] = [
        (Self::TEXT, "text"),
        (Self::PLAIN, "plain"),
        (Self::PARTS, "parts"),
        (Self::TOOLS, "tools"),
        (Self::TOOL_CALLS, "tool_calls"),
        (Self::OPTIONS, "options"),
    ];

    /// A set from its bits.
    pub fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// The bits of the set.
    pub fn bits(self) -> u8 {
        self.0
    }

    /// Whether every kind in `other` is in `self`.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Shape {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Shape {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}
