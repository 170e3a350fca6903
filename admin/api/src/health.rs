//! Liveness and readiness: what probes and load balancers read.

use serde::{Deserialize, Serialize};

/// How well the node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    /// Every drive serves.
    Healthy,
    /// Some drives are offline; their keys are misses, everything else serves.
    Degraded,
    /// No drive serves, or the node cannot accept requests: restart or replace it.
    Unhealthy,
}

impl HealthStatus {
    /// The HTTP code of `/v1/health`. A degraded node answers 200: taking it out of service would
    /// turn the loss of one drive into the loss of all.
    pub fn http_code(self) -> u16 {
        match self {
            Self::Healthy | Self::Degraded => 200,
            Self::Unhealthy => 503,
        }
    }
}

/// The body of `/v1/health`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// How well the node is.
    pub status: HealthStatus,
    /// Whether an RDMA carrier is up.
    pub rdma_active: bool,
    /// Drives that serve.
    pub drives_online: u32,
    /// Drives that were configured and do not serve.
    pub drives_offline: u32,
    /// Drives configured.
    pub drives_total: u32,
}

impl Health {
    /// Health by the drives alone: all online is healthy, none is unhealthy, else degraded.
    pub fn by_drives(online: u32, total: u32, rdma_active: bool) -> Self {
        assert!(online <= total, "{online} drives online of {total}");
        let status = match online {
            0 => HealthStatus::Unhealthy,
            n if n == total => HealthStatus::Healthy,
            _ => HealthStatus::Degraded,
        };
        Self {
            status,
            rdma_active,
            drives_online: online,
            drives_offline: total - online,
            drives_total: total,
        }
    }
}

/// The answer of `/v1/ready`: 200 with `ok`, or 503 with the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Recovery is over, the listener accepts.
    Ready,
    /// Not yet, or no longer.
    NotReady {
        /// One sentence: what is being waited for.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_by_drives_covers_each_case() {
        let table = [
            (3, 3, HealthStatus::Healthy, 200),
            (2, 3, HealthStatus::Degraded, 200),
            (0, 3, HealthStatus::Unhealthy, 503),
            (0, 0, HealthStatus::Unhealthy, 503),
        ];
        for (online, total, status, code) in table {
            let health = Health::by_drives(online, total, false);
            assert_eq!(health.status, status, "{online} of {total}");
            assert_eq!(health.status.http_code(), code);
            assert_eq!(health.drives_offline, total - online);
        }
    }

    #[test]
    fn health_body_has_the_agreed_names() {
        let text = serde_json::to_string(&Health::by_drives(12, 12, false)).expect("plain data");
        assert_eq!(
            text,
            r#"{"status":"healthy","rdma_active":false,"drives_online":12,"drives_offline":0,"drives_total":12}"#
        );
        let back: Health = serde_json::from_str(&text).expect("reads what it wrote");
        assert_eq!(back, Health::by_drives(12, 12, false));
    }
}
