//! Native data plane: HTTP in, decision, HTTP out.
pub mod drive;
