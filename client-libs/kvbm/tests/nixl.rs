//! Host memory of KVBM through NIXL and our plug-in of it, made as Dynamo makes it: by a variable.
//!
//! That wants the real NIXL and the plug-in. `MEMKV_NIXL_LIBS` names the folder with `libnixl_capi.so`,
//! `MEMKV_NIXL_PLUGINS` the one with `libplugin_MEMKV.so`. Without them nothing is tested here, and that is
//! said, unless `MEMKV_NIXL_REQUIRED` is set. NIXL is looked for when a process starts, so the test is a
//! process of its own.

mod common;

use std::process::Command;

use anyhow::{Context, Result, ensure};
use common::{PATIENCE, chain, client, node};
use dynamo_memory::StorageKind;
use dynamo_memory::nixl::{
    MemType, NixlAgent, NixlBackendConfig, NixlDescriptor, OptArgs, XferDescList, XferOp,
};
use kvbm_common::SequenceHash;
use kvbm_physical::layout::PhysicalLayout;
use kvbm_physical::testing::{TransferChecksums, create_fc_layout, create_lw_layout};
use kvbm_physical::transfer::FillPattern;

const BLOCKS: usize = 8;

/// Set for the process in which NIXL is.
const INSIDE: &str = "MEMKV_KVBM_INSIDE";

#[test]
fn blocks_travel_through_nixl_and_the_plug_in() {
    if std::env::var_os(INSIDE).is_some() {
        return in_a_process_with_nixl();
    }
    let named = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let (Some(libs), Some(plugins)) = (named("MEMKV_NIXL_LIBS"), named("MEMKV_NIXL_PLUGINS"))
    else {
        let text = "MEMKV_NIXL_LIBS and MEMKV_NIXL_PLUGINS do not name NIXL and the plug-in";
        assert!(named("MEMKV_NIXL_REQUIRED").is_none(), "{text}");
        eprintln!("SKIPPED: {text}");
        return;
    };
    let node = node();
    let mut process = Command::new(std::env::current_exe().expect("a path"));
    process.args(["--exact", "blocks_travel_through_nixl_and_the_plug_in", "--nocapture"]);
    process.env(INSIDE, "yes");
    process.env("LD_LIBRARY_PATH", libs).env("NIXL_PLUGIN_DIR", plugins);
    process.env("DYN_KVBM_NIXL_BACKEND_MEMKV", "true");
    process.env("MEMKV_SERVERS", node.address().to_string());
    process.env("MEMKV_NAMESPACE", "kvbm-tests");
    process.env("MEMKV_REQUEST_TIMEOUT_MS", PATIENCE.as_millis().to_string());
    let output = process.output().expect("it runs");
    let said =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let [out, errors] = said;
    assert!(output.status.success() && out.contains("1 passed"), "{out}\n{errors}");

    // What NIXL wrote is there for everybody, under the device id as a number.
    let keys: Vec<String> = hashes().iter().map(|hash| device(hash).to_string()).collect();
    let keys: Vec<&[u8]> = keys.iter().map(String::as_bytes).collect();
    let lengths = client(node.address()).lengths(&keys);
    let lengths: Vec<Option<u64>> =
        lengths.into_iter().map(|length| length.expect("a node")).collect();
    assert_eq!(lengths, [Some(16 << 10); BLOCKS]);
    node.stop().expect("it stops");
}

fn in_a_process_with_nixl() {
    assert!(common::nixl::is_real(), "the loader does not find NIXL");
    let config = NixlBackendConfig::from_env().expect("variables");
    assert_eq!(config.backends(), ["MEMKV"]);
    let agent = NixlAgent::from_nixl_backend_config("memkv-kvbm", config).expect("the plug-in");
    // All of it is registered in one call, with every backend that takes memory.
    let host = create_fc_layout(agent.clone(), StorageKind::System, BLOCKS);
    let back = create_lw_layout(agent.clone(), StorageKind::System, BLOCKS);
    let (ids, hashes): (Vec<usize>, _) = ((0..BLOCKS).collect(), hashes());
    let sums = TransferChecksums::fill_and_capture(&host, &ids, FillPattern::Sequential)
        .expect("host memory");
    let mover = Mover { agent };
    for (block, hash) in hashes.iter().enumerate() {
        mover.move_block(XferOp::Read, hash, &back, block).expect_err("nothing is there yet");
        mover.move_block(XferOp::Write, hash, &host, block).expect("it is written");
    }
    let reversed: Vec<usize> = ids.into_iter().rev().collect();
    for (block, hash) in reversed.iter().zip(&hashes) {
        mover.move_block(XferOp::Read, hash, &back, *block).expect("it is read");
    }
    sums.verify_against(&back, &reversed).expect("the same bytes");
}

fn hashes() -> Vec<SequenceHash> {
    chain(5, BLOCKS as u64)
}

/// NIXL's Rust interface has room for 64 bits of a name.
fn device(hash: &SequenceHash) -> u64 {
    hash.current_sequence_hash()
}

/// Moves blocks as an object tier over NIXL would.
struct Mover {
    agent: NixlAgent,
}

impl Mover {
    fn move_block(
        &self,
        operation: XferOp,
        hash: &SequenceHash,
        layout: &PhysicalLayout,
        block: usize,
    ) -> Result<()> {
        let config = layout.layout().config();
        let mut options = OptArgs::new()?;
        options.add_backend(&self.agent.get_backend("MEMKV").context("no such backend")?)?;
        let (size, device_id) = (config.bytes_per_block(), device(hash));
        let object = NixlDescriptor { addr: 0, size, mem_type: MemType::Object, device_id };
        let _registered = self.agent.register_memory(&object, Some(&options))?;
        let mut memory = XferDescList::new(MemType::Dram)?;
        let mut objects = XferDescList::new(MemType::Object)?;
        let mut offset = 0;
        for layer in 0..config.num_layers {
            for outer in 0..config.outer_dim {
                let region = layout.memory_region(block, layer, outer)?;
                memory.add_desc(region.addr(), region.size(), 0);
                objects.add_desc(offset, region.size(), device_id);
                offset += region.size();
            }
        }
        let options = Some(&options);
        let name = self.agent.name();
        let request = self.agent.create_xfer_req(operation, &memory, &objects, &name, options)?;
        let mut pending = self.agent.post_xfer_req(&request, options)?;
        let end = std::time::Instant::now() + common::LIMIT;
        while pending {
            ensure!(std::time::Instant::now() < end, "it takes too long");
            pending = !self.agent.get_xfer_status(&request)?.is_success();
        }
        Ok(())
    }
}
