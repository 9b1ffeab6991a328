//! What the gateway knows of models and their workers: one router per model and role, the workers' health and event streams.

mod booking;
mod cursor;
mod health;
mod index;
mod pool;
mod position;
mod registry;
mod saved;
mod waiting;

pub use booking::{Booking, Leg};
pub use index::AnarchyReport;
pub use pool::{Member, PoolCurves, Role, WorkerPool, WorkerReport, WorkerUpsert};
pub use registry::{Model, ModelSpec, Registry};
pub use saved::SavedFleet;
pub use waiting::NoWait;
