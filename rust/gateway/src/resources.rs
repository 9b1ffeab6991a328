//! The resources that the operating system gives to the process, and the configured limits lowered to fit them.
//!
//! A limit that the process cannot keep is worse than a lower limit: at the last file descriptor every part fails at once, also the
//! control plane. At start the gateway raises the descriptor limit as far as it may. Then it lowers its own limits until clients,
//! upstream connections and a reserve for the control plane fit together.
//!
//! Who calls: [`Gateway::new`](crate::Gateway::new), once, before any thread starts. Sources of the
//! limits: `getrlimit(2)`, control groups version 2, and `/proc/meminfo`.

use std::path::Path;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;

use crate::config::GatewayConfig;

/// Share of the descriptors that the data plane leaves to discovery, feeds, files and probes: one in four.
const RESERVED_DESCRIPTORS: u64 = 4;
/// Share of the memory that request bodies may take together: one in four. A prompt also exists as text and as token ids.
const BODY_MEMORY: u64 = 4;
/// Memory of a request in flight beside its body, bytes: the buffers of both connections.
const REQUEST_BYTES: u64 = 64 << 10;
/// Share of the memory that the buffers of requests in flight may take together: one in eight.
const REQUEST_MEMORY: u64 = 8;
/// Memory of an idle client connection, bytes.
const CONNECTION_BYTES: u64 = 16 << 10;
/// Share of the memory that idle connections may take together: one in eight.
const CONNECTION_MEMORY: u64 = 8;
/// Share of the threads that may serve HTTP: one in four. Tokenisers, feeds, shadows and Python take the rest.
const SERVING_THREADS: u64 = 4;
/// Fewest clients, requests and idle upstream connections for which a gateway can work.
const FEWEST: u64 = 4;

/// Resources of the process; `None` where the system names no limit.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Resources {
    /// File descriptors that the process may open.
    pub descriptors: Option<u64>,
    /// Bytes of memory: the limit of the control group, or the machine's memory.
    pub memory_bytes: Option<u64>,
    /// Threads that the user or the control group may run.
    pub threads: Option<u64>,
}

/// A configured limit that is lowered because the process lacks a resource.
#[derive(Debug, PartialEq, Eq)]
pub struct Lowered {
    /// Name of the setting.
    pub setting: &'static str,
    /// Configured value.
    pub from: u64,
    /// Value in force.
    pub to: u64,
    /// The resource, with its amount and how to get more of it.
    pub cause: String,
}

impl Resources {
    /// Raises the descriptor limit as far as the process may, and reads all limits.
    pub fn raise_and_read() -> Self {
        let descriptors = getrlimit(Resource::Nofile);
        // A process may raise its soft limit up to the hard limit without a privilege.
        if descriptors.current != descriptors.maximum {
            let raised = Rlimit {
                current: descriptors.maximum,
                maximum: descriptors.maximum,
            };
            // Without the right to raise it the limit stays, and the configuration is fitted to it.
            if let Err(error) = setrlimit(Resource::Nofile, raised) {
                tracing::warn!(%error, "the limit of file descriptors cannot be raised");
            }
        }
        let group = control_group();
        let read = |file: &str| read_number(&group.as_ref()?.join(file));
        let least = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).min();
        Self {
            descriptors: getrlimit(Resource::Nofile).current,
            // A container sees the machine's memory in `/proc`, but its control group ends it at a
            // lower limit.
            memory_bytes: least(read("memory.max"), machine_memory_bytes()),
            threads: least(read("pids.max"), getrlimit(Resource::Nproc).current),
        }
    }

    /// Lowers the limits of `config` that do not fit, and returns the lowered limits.
    ///
    /// A limit is never raised. No limit falls below a value with which a gateway can still work,
    /// even when the process then lacks the resource.
    pub fn fit(&self, config: &mut GatewayConfig) -> Vec<Lowered> {
        let mut lowered = Vec::new();
        if let Some(threads) = self.threads {
            let most = (threads / SERVING_THREADS).max(1);
            let cause = || format!("{threads} threads for this user or control group");
            lower(
                "worker_threads",
                &mut config.worker_threads,
                most,
                cause,
                &mut lowered,
            );
        }
        if let Some(memory) = self.memory_bytes {
            let cause = || format!("{memory} bytes of memory");
            let limits = &mut config.limits;
            let parts = [
                (
                    "limits.all_bodies_bytes",
                    &mut limits.all_bodies_bytes,
                    memory / BODY_MEMORY,
                ),
                (
                    "limits.concurrent_requests",
                    &mut limits.concurrent_requests,
                    memory / REQUEST_MEMORY / REQUEST_BYTES,
                ),
                (
                    "limits.connections",
                    &mut limits.connections,
                    memory / CONNECTION_MEMORY / CONNECTION_BYTES,
                ),
            ];
            for (name, value, most) in parts {
                lower(name, value, most.max(FEWEST), cause, &mut lowered);
            }
        }
        if let Some(descriptors) = self.descriptors {
            fit_descriptors(descriptors, config, &mut lowered);
        }
        lowered
    }
}

/// A client connection, a request in flight and an idle upstream connection take one descriptor each.
///
/// Limits that do not fit together shrink in proportion to their values.
fn fit_descriptors(descriptors: u64, config: &mut GatewayConfig, lowered: &mut Vec<Lowered>) {
    let serving = descriptors - descriptors / RESERVED_DESCRIPTORS;
    let limits = &mut config.limits;
    let parts = [
        ("limits.connections", &mut limits.connections),
        ("limits.concurrent_requests", &mut limits.concurrent_requests),
        (
            "upstream.all_idle_connections",
            &mut config.upstream.all_idle_connections,
        ),
    ];
    let wanted: u128 = parts.iter().map(|(_, value)| **value as u128).sum();
    if wanted <= u128::from(serving) {
        return;
    }
    let cause = || {
        format!(
            "{descriptors} file descriptors, of which the control plane keeps {}; raise the limit with `ulimit -n`",
            descriptors / RESERVED_DESCRIPTORS
        )
    };
    for (name, value) in parts {
        let share = (*value as u128 * u128::from(serving) / wanted) as u64;
        lower(name, value, share.max(FEWEST), cause, lowered);
    }
}

/// Lowers one setting to `most`, and notes it with its cause.
fn lower(
    setting: &'static str,
    value: &mut usize,
    most: u64,
    cause: impl Fn() -> String,
    lowered: &mut Vec<Lowered>,
) {
    let from = *value as u64;
    if from <= most {
        return;
    }
    *value = usize::try_from(most).unwrap_or(usize::MAX);
    lowered.push(Lowered {
        setting,
        from,
        to: most,
        cause: cause(),
    });
}

/// Folder of the process's control group (version 2).
fn control_group() -> Option<std::path::PathBuf> {
    let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(Path::new("/sys/fs/cgroup").join(path))
}

/// The number in a file; `None` for a missing file and for `max`.
fn read_number(file: &Path) -> Option<u64> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// Memory of the machine; `None` where `/proc` does not show it.
fn machine_memory_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = total.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(lowered: &[Lowered]) -> Vec<&str> {
        lowered.iter().map(|one| one.setting).collect()
    }

    #[test]
    fn defaults_fit_a_large_machine() {
        let resources = Resources {
            descriptors: Some(65_536),
            memory_bytes: Some(16 << 30),
            threads: Some(4_096),
        };
        assert_eq!(resources.fit(&mut GatewayConfig::default()), []);
        assert_eq!(Resources::default().fit(&mut GatewayConfig::default()), []);
    }

    #[test]
    fn few_descriptors_lower_their_users_in_proportion_and_keep_the_reserve() {
        let resources = Resources {
            descriptors: Some(1_024),
            ..Resources::default()
        };
        let mut config = GatewayConfig::default();
        let lowered = resources.fit(&mut config);
        assert_eq!(lowered.len(), 3);
        assert!(lowered[0].cause.contains("ulimit"), "{lowered:?}");
        let (limits, upstream) = (&config.limits, &config.upstream);
        let used = limits.connections + limits.concurrent_requests + upstream.all_idle_connections;
        assert!((760..=768).contains(&used), "{used} of 768 descriptors");
        assert!(limits.connections > limits.concurrent_requests);
    }

    #[test]
    fn a_setting_that_fits_stays_beside_one_that_does_not() {
        let resources = Resources {
            memory_bytes: Some(1 << 30),
            threads: Some(100),
            ..Resources::default()
        };
        let mut config = GatewayConfig::default();
        assert_eq!(
            names(&resources.fit(&mut config)),
            ["limits.all_bodies_bytes", "limits.concurrent_requests"]
        );
        assert_eq!(config.limits.all_bodies_bytes, 256 << 20);
        assert_eq!(config.worker_threads, 2);
    }

    #[test]
    fn hardly_any_resource_leaves_a_gateway_that_works() {
        let resources = Resources {
            descriptors: Some(1),
            memory_bytes: Some(1),
            threads: Some(1),
        };
        let mut config = GatewayConfig::default();
        resources.fit(&mut config);
        assert!(config.limits.connections >= 4 && config.worker_threads == 1);
    }
}
