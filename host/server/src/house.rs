//! Everything a request may need, wired once at the start and shared by all of them.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use homeostat_cascade::Cascade;
use homeostat_hooks::Snapshot;
use homeostat_policy::PolicyRoom;
use homeostat_telemetry::Telemetry;
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::budgets::Budgets;
use crate::config::ServerConfig;
use crate::energy::Energy;
use crate::metrics::Metrics;
use crate::openai::error::ApiError;
use crate::openai::request::SamplingDefaults;
use crate::tiers::{Embedder, LocalTier};

/// The newest snapshot of the machine.
pub type Snapshots = Arc<dyn Fn() -> Arc<Snapshot> + Send + Sync>;

/// What handlers share.
pub struct House {
    pub cascade: Arc<Cascade>,
    /// The local ones among the cascade's tiers.
    pub local_tiers: Vec<Arc<LocalTier>>,
    pub encoder: Option<Arc<dyn Embedder>>,
    pub policies: Arc<PolicyRoom>,
    /// Largest component that is taken in.
    pub max_component_bytes: usize,
    pub snapshots: Snapshots,
    pub telemetry: Arc<Telemetry>,
    pub metrics: Arc<Metrics>,
    pub energy: Arc<Energy>,
    pub budgets: Arc<Budgets>,
    pub sampling: SamplingDefaults,
    pub door: Door,
    /// Seconds since 1970.
    pub started: u64,
    pub draining: AtomicBool,
}

impl House {
    /// Names that `model` may have: `auto`, the tiers, the encoder.
    pub fn model_names(&self) -> Vec<String> {
        let tiers = self.cascade.tiers().iter().map(|t| t.id().to_string());
        let encoder = self.encoder.iter().map(|e| e.id().to_string());
        ["auto".to_string()]
            .into_iter()
            .chain(tiers)
            .chain(encoder)
            .collect()
    }

    /// From now on this host is not ready.
    pub fn begin_drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

/// Seconds since 1970.
pub fn unix_seconds() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |d| d.as_secs())
}

/// Who may come in, and how many at once.
pub struct Door {
    pub max_body_bytes: usize,
    max_concurrent: usize,
    permits: Arc<Semaphore>,
    /// Digest of a key → tenant. Keys are looked up by digest, so the time of a lookup
    /// says nothing about them.
    keys: HashMap<[u8; 32], String>,
    admin: AdminDoor,
}

/// Whether the admin API is served.
#[derive(Debug, Clone, PartialEq, Eq)]
enum AdminDoor {
    /// The address that is listened at.
    Loopback(IpAddr),
    LoopbackWithToken([u8; 32]),
    /// Behind another address a proxy may make every peer look like loopback.
    Closed,
}

impl Door {
    pub fn new(config: &ServerConfig) -> Self {
        let keys = config.api_keys.iter();
        Self {
            max_body_bytes: config.max_body_bytes,
            max_concurrent: config.max_concurrent_requests,
            permits: Arc::new(Semaphore::new(config.max_concurrent_requests)),
            keys: keys
                .map(|(k, tenant)| (digest(k), tenant.clone()))
                .collect(),
            admin: match &config.admin_token {
                Some(token) => AdminDoor::LoopbackWithToken(digest(token)),
                None if config.listen.ip().is_loopback() => AdminDoor::Loopback(config.listen.ip()),
                None => AdminDoor::Closed,
            },
        }
    }

    pub fn admin_is_closed(&self) -> bool {
        self.admin == AdminDoor::Closed
    }

    /// One of the places of running requests, or a refusal. It is free again when the
    /// permit is dropped.
    pub fn enter(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        self.permits.clone().try_acquire_owned().map_err(|_| {
            let status = axum::http::StatusCode::SERVICE_UNAVAILABLE;
            let what = format!(
                "{} requests are being served, which is the limit; try again shortly",
                self.max_concurrent
            );
            ApiError::new(status, "overloaded_error", what)
                .code("too_many_requests")
                .retry_after(1000)
        })
    }

    /// The tenant behind a bearer token; `None` when this host has no keys.
    pub fn tenant(&self, bearer: Option<&str>) -> Result<Option<&str>, ApiError> {
        if self.keys.is_empty() {
            return Ok(None);
        }
        let refused = |what: &str| {
            let status = axum::http::StatusCode::UNAUTHORIZED;
            Err(ApiError::new(status, "authentication_error", what).code("invalid_api_key"))
        };
        match bearer {
            None => {
                refused("this host asks for an API key: send it as Authorization: Bearer <key>")
            }
            Some(key) => match self.keys.get(&digest(key)) {
                Some(tenant) => Ok(Some(tenant)),
                None => refused("this API key is not known here"),
            },
        }
    }

    /// Whether a peer may use the admin API; `host` is whom it takes this host for, which
    /// every browser tells.
    pub fn admin(
        &self,
        peer_is_loopback: bool,
        bearer: Option<&str>,
        host: Option<&str>,
    ) -> Result<(), ApiError> {
        let refused =
            |status, kind, what: &str| Err(ApiError::new(status, kind, what).code("admin_denied"));
        let forbidden = |what| refused(axum::http::StatusCode::FORBIDDEN, "permission_error", what);
        if !peer_is_loopback {
            return forbidden("the admin API answers on the loopback interface only");
        }
        match &self.admin {
            AdminDoor::Loopback(own) => match host {
                Some(host) if !is_here(host, *own) => forbidden(
                    "without server.admin_token the admin API answers who calls this host \
                     localhost, 127.0.0.1, [::1] or what it listens at, and the Host header is \
                     another name; set a token, or use one of these",
                ),
                _ => Ok(()),
            },
            AdminDoor::Closed => forbidden(
                "the admin API is closed: this host listens beyond loopback and has no \
                 server.admin_token",
            ),
            AdminDoor::LoopbackWithToken(expected) => match bearer {
                Some(token) if digest(token) == *expected => Ok(()),
                _ => refused(
                    axum::http::StatusCode::UNAUTHORIZED,
                    "authentication_error",
                    "the admin API asks for its token: Authorization: Bearer <token>",
                ),
            },
        }
    }
}

/// Whether a `Host` header names this machine, by a name that nobody can point elsewhere.
fn is_here(host: &str, own: IpAddr) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next(),
        None => host.split(':').next(),
    };
    let name = name.unwrap_or_default();
    let address: Option<IpAddr> = name.parse().ok();
    name.eq_ignore_ascii_case("localhost")
        || address
            .is_some_and(|ip| ip == own || ip == Ipv4Addr::LOCALHOST || ip == Ipv6Addr::LOCALHOST)
}

pub fn digest(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn door(change: impl FnOnce(&mut ServerConfig)) -> Door {
        let mut config = ServerConfig::default();
        change(&mut config);
        Door::new(&config)
    }

    #[test]
    fn without_keys_everybody_may_ask_and_with_keys_only_their_owners() {
        assert_eq!(door(|_| {}).tenant(None), Ok(None));
        let door = door(|c| {
            c.api_keys.insert("sk-1".into(), "acme".into());
        });
        assert_eq!(door.tenant(Some("sk-1")), Ok(Some("acme")));
        for bearer in [None, Some("sk-2"), Some("")] {
            assert_eq!(door.tenant(bearer).unwrap_err().status, 401);
        }
    }

    #[test]
    fn the_admin_api_is_for_loopback_and_for_the_token_if_there_is_one() {
        let plain = door(|_| {});
        assert_eq!(plain.admin(true, None, None), Ok(()));
        assert_eq!(plain.admin(false, None, None).unwrap_err().status, 403);
        let guarded = door(|c| c.admin_token = Some("t".into()));
        assert_eq!(guarded.admin(true, Some("t"), None), Ok(()));
        assert!(guarded.admin(true, Some("u"), None).is_err());
        assert!(guarded.admin(true, None, None).is_err());
        assert!(guarded.admin(false, Some("t"), None).is_err());
    }

    #[test]
    fn without_a_token_a_name_that_was_pointed_here_does_not_open_the_admin_api() {
        let plain = door(|_| {});
        for host in [
            "localhost",
            "LOCALHOST:80",
            "127.0.0.1:8080",
            "[::1]:8080",
            "[::1]",
        ] {
            assert_eq!(plain.admin(true, None, Some(host)), Ok(()), "{host}");
        }
        for host in [
            "evil.example",
            "127.0.0.1.evil.example:80",
            "127.0.0.2",
            "",
            "[",
            "?",
        ] {
            let refused = plain.admin(true, None, Some(host)).unwrap_err();
            assert_eq!(refused.status, 403, "{host}");
            assert!(refused.message.contains("Host"), "{}", refused.message);
        }
        let elsewhere = door(|c| c.listen = "127.0.0.2:80".parse().unwrap());
        assert_eq!(elsewhere.admin(true, None, Some("127.0.0.2")), Ok(()));
        // Pages do not know the token.
        let guarded = door(|c| c.admin_token = Some("t".into()));
        assert_eq!(
            guarded.admin(true, Some("t"), Some("house.example")),
            Ok(())
        );
    }

    #[test]
    fn a_host_that_listens_beyond_loopback_without_a_token_has_no_admin_api() {
        let open = |token: Option<&str>| {
            door(|c| {
                c.listen = "0.0.0.0:80".parse().unwrap();
                c.admin_token = token.map(str::to_string);
            })
        };
        assert!(open(None).admin_is_closed());
        assert!(open(None).admin(true, None, None).is_err());
        assert_eq!(open(Some("t")).admin(true, Some("t"), None), Ok(()));
    }

    #[test]
    fn one_request_too_many_is_told_when_to_come_back_and_a_place_becomes_free() {
        let door = door(|c| c.max_concurrent_requests = 1);
        let permit = door.enter().unwrap();
        let refused = door.enter().unwrap_err();
        assert_eq!(refused.status, 503);
        assert!(refused.retry_after_ms.is_some());
        drop(permit);
        assert!(door.enter().is_ok());
    }
}
