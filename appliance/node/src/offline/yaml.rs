//! The configuration that `memkv setup` prints: what is needed, and a word on each line that an
//! operator will want to change.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use memkv_admin_api::size::exact_size;
use memkv_wire::SharedKey;

/// What a configuration says.
pub struct Plan<'a> {
    /// The node, by its uuid.
    pub node: String,
    /// The data address.
    pub address: SocketAddr,
    /// The key.
    pub key: &'a SharedKey,
    /// Bytes of the pool.
    pub pool: u64,
    /// Whether fewer hugepages are reserved than the pool takes.
    pub few_hugepages: bool,
    /// `direct` or `file`.
    pub mode: &'static str,
    /// Bytes of the largest extent.
    pub block_size: u64,
    /// The drives.
    pub drives: &'a [PathBuf],
    /// The RDMA device.
    pub rdma: Option<&'a str>,
}

impl Plan<'_> {
    /// The text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        self.write(&mut text).expect("writing to a string");
        text
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        writeln!(text, "# A memkv node, set up by memkv setup: {}", self.node)?;
        writeln!(text, "# It holds the key of clients: let nobody else read it.")?;
        writeln!(text, "network:")?;
        writeln!(
            text,
            "  # Clients. HTTP for health and status is on the next port and asks for no"
        )?;
        writeln!(text, "  # key: keep it off public networks.")?;
        writeln!(text, "  address: {}", quoted(&self.address.to_string()))?;
        writeln!(text, "  auth_key: {}", quoted(&self.key.to_hex()))?;
        writeln!(text, "memory:")?;
        writeln!(text, "  max_size: {}", exact_size(self.pool))?;
        if self.few_hugepages {
            writeln!(
                text,
                "  # Fewer hugepages than this takes were reserved when it was written."
            )?;
            writeln!(text, "  # Reserve them, and remove the next line: drives are faster then.")?;
            writeln!(text, "  hugepages: prefer")?;
        }
        if let Some(device) = self.rdma {
            writeln!(text, "# RDMA comes with a later release:")?;
            writeln!(text, "# rdma: {{device: {}}}", quoted(device))?;
        }
        writeln!(text, "storage:")?;
        writeln!(text, "  mode: {}", self.mode)?;
        writeln!(text, "  block_size: {}", exact_size(self.block_size))?;
        writeln!(text, "  drives:")?;
        for drive in self.drives {
            let path = drive.to_str().expect("setup refuses other paths");
            writeln!(text, "    - media: {}", quoted(path))?;
        }
        Ok(())
    }
}

/// A text as a scalar of YAML, with quotes where it needs them. A JSON string is one.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    let begins = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
    if begins && text.chars().all(plain) && !["true", "false", "null", "yes", "no"].contains(&text)
    {
        return text.to_owned();
    }
    serde_json::to_string(text).expect("a string is JSON")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Drive, HugepageUse, Overrides, StorageMode};
    use crate::paths::ThisMachine;

    #[test]
    fn what_is_printed_is_what_is_read() {
        let key = SharedKey::from_bytes([0x12; 32]);
        let drives = [PathBuf::from("/dev/disk/by-id/nvme: odd #1"), PathBuf::from("/dev/sdb")];
        let plan = Plan {
            node: "n".into(),
            address: "[::]:9900".parse().expect("an address"),
            key: &key,
            pool: 96 << 20,
            few_hugepages: true,
            mode: "direct",
            block_size: 1 << 20,
            drives: &drives,
            rdma: Some("mlx5_0"),
        };
        let text = plan.text();
        let config = Config::parse(&text, &Overrides::default(), &ThisMachine)
            .unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert_eq!(config.network.address.to_string(), "[::]:9900");
        assert_eq!(config.memory.max_size, 96 << 20);
        assert_eq!(config.memory.hugepages, HugepageUse::Prefer);
        assert_eq!(
            (config.storage.mode, config.storage.block_size),
            (StorageMode::Direct, 1 << 20)
        );
        let media = drives.map(|media| Drive::Device { media });
        assert_eq!(config.storage.drives, media);
        assert!(text.contains("# rdma: {device: mlx5_0}"), "{text}");
        assert!(text.contains(&"12".repeat(32)), "{text}");
    }
}
