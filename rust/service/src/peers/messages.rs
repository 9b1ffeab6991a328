//! Bookings and changes as messages of a stream.

use super::outbox::{Change, Open, OwnBooking};
use super::proto::change::Kind;
use super::proto::{Booked, Change as Message, Role as RoleMessage};
use crate::pool::Role;

/// A change as a message.
pub(super) fn change(change: &Change) -> Message {
    let kind = match change {
        Change::Booked(id, booking) => Kind::Booked(booked(*id, booking, false)),
        Change::PrefillDone(id) => Kind::PrefillDone(*id),
        Change::Renewed(id) => Kind::Renewed(*id),
        Change::Released(id) => Kind::Released(*id),
    };
    Message { kind: Some(kind) }
}

/// An open booking of a snapshot as a message.
pub(super) fn open((id, open): &(u64, Open)) -> Message {
    let booked = booked(*id, &open.booking, open.is_prefill_done);
    Message {
        kind: Some(Kind::Booked(booked)),
    }
}

fn booked(id: u64, booking: &OwnBooking, is_prefill_done: bool) -> Booked {
    let role = match booking.role {
        Role::Aggregated => RoleMessage::Aggregated,
        Role::Prefill => RoleMessage::Prefill,
        Role::Decode => RoleMessage::Decode,
    };
    Booked {
        id,
        model: booking.model.to_string(),
        role: role.into(),
        worker_id: booking.worker.instance,
        dp_rank: booking.worker.dp_rank,
        new_tokens: u32::try_from(booking.work.new_tokens).unwrap_or(u32::MAX),
        cached_tokens: u32::try_from(booking.work.cached_tokens).unwrap_or(u32::MAX),
        local_hashes: booking.hashes.clone(),
        further_blocks: booking.further_blocks,
        is_unstreamed: booking.is_unstreamed,
        is_prefill_done,
    }
}

/// The role of a received booking; `None` for a role that this version does not know.
pub(super) fn role(booked: &Booked) -> Option<Role> {
    match booked.role() {
        RoleMessage::Unspecified => None,
        RoleMessage::Aggregated => Some(Role::Aggregated),
        RoleMessage::Prefill => Some(Role::Prefill),
        RoleMessage::Decode => Some(Role::Decode),
    }
}
