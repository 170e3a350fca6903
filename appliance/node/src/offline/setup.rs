//! `memkv setup`: from drives to a node's configuration.
//!
//! 1. Every drive is looked at, and all that stands against any of them is said at once; then
//!    nothing was changed.
//! 2. All drives are claimed, before the first is written to.
//! 3. Each is cleared at both ends, so that nobody finds there what was there before, and formatted.
//!    A drive whose format does not finish is an unformatted one.
//! 4. The configuration is printed, and has been read back before.

use std::path::PathBuf;
use std::rc::Rc;

use memkv_journal::probe::Owner;
use memkv_journal::{FormatOptions, Superblock, UNIT};
use memkv_poller::Local;
use memkv_wire::SharedKey;

use super::look::{Holds, Kind, Sight};
use super::yaml::Plan;
use super::{Bench, OfflineError, SetupArgs, in_use, look_at, look_to_take, say, wipe};
use crate::cli::Exit;
use crate::config::{AUTH_KEY_VARIABLE, Config, Overrides};
use crate::drives::{self, Opened};
use crate::hugepages::Reserved;
use crate::paths::{Machine, ThisMachine};

/// The largest extent when `--shard-size` asks for none.
const EXTENT: u64 = 4 << 20;
/// Where `--shard-size` begins to name the largest extent.
const EXTENT_FROM_KB: u32 = 1024;

pub(super) fn run(args: &SetupArgs) -> Result<Exit, OfflineError> {
    // 1.
    let key = key_of_environment()?;
    let sights = if args.idempotent { look_at(&args.drives) } else { look_to_take(&args.drives) }?;
    let keep = judge(&sights, args)?;
    let superblocks = match keep {
        Some(kept) => {
            tracing::info!("the drives are formatted already and are left as they are");
            kept
        }
        None => format(&sights, args)?,
    };
    let key = key.unwrap_or_else(|| SharedKey::from_secret(&superblocks[0].identity.secret));
    let text = configuration(args, &sights, &superblocks, &key)?;
    say(&text)?;
    Ok(Exit::Done)
}

/// The key that the servers of a cluster share, where it is set.
fn key_of_environment() -> Result<Option<SharedKey>, OfflineError> {
    let text = ThisMachine.variable(AUTH_KEY_VARIABLE).unwrap_or_default();
    if text.trim().is_empty() {
        return Ok(None);
    }
    let wrong = |error| OfflineError::Usage(format!("{AUTH_KEY_VARIABLE}: {error}"));
    SharedKey::from_hex(text.trim()).map(Some).map_err(wrong)
}

/// Whether the drives may be formatted. When all of them are and shall stay so, their superblocks.
fn judge(sights: &[Sight], args: &SetupArgs) -> Result<Option<Vec<Superblock>>, OfflineError> {
    let mut refused = Vec::new();
    for sight in sights {
        let kept = args.idempotent && sight.holds() == Holds::Memkv;
        // A drive that is left alone may be at work.
        if !kept {
            refused.extend(in_use(sight));
            refused.extend(held(sight, args));
        }
        if sight.path.to_str().is_none() {
            refused.push(format!("{}: its name is not UTF-8", sight.path.display()));
        }
    }
    let kept = |sight: &&Sight| args.idempotent && sight.holds() == Holds::Memkv;
    let (old, new) = (sights.iter().find(kept), sights.iter().find(|sight| !kept(sight)));
    if let (Some(old), Some(new)) = (old, new) {
        refused.push(format!(
            "{} holds a node already and {} does not; a node's drives are set up together: wipe \
             the first (memkv drive wipe), or leave it out",
            old.path.display(),
            new.path.display()
        ));
    }
    if !refused.is_empty() {
        return Err(OfflineError::Refused(refused));
    }
    if new.is_some() {
        return Ok(None);
    }
    let superblocks: Vec<Superblock> = sights
        .iter()
        .filter_map(|sight| sight.inspection.superblock.as_ref().ok().cloned())
        .collect();
    drives::check_node(&superblocks)?;
    Ok(Some(superblocks))
}

/// What stands against formatting over what a drive holds.
fn held(sight: &Sight, args: &SetupArgs) -> Vec<String> {
    let name = sight.path.display();
    let lost = "with --force it is formatted all the same, and what is there is lost";
    match sight.holds() {
        // What is not known is in use.
        Holds::Blank | Holds::Unknown => Vec::new(),
        _ if args.force => Vec::new(),
        Holds::Memkv => {
            let superblock = sight.inspection.superblock.as_ref().expect("it holds blocks");
            let node = superblock.identity.node;
            vec![format!(
                "{name}: it is formatted already, for node {node}; --idempotent leaves it as it \
                 is; {lost}"
            )]
        }
        Holds::Damaged => {
            let error = sight.inspection.superblock.as_ref().expect_err("it is damaged");
            vec![format!("{name}: it was formatted by memkv, but {error}; {lost}")]
        }
        Holds::Foreign => {
            let there = |owner: Owner| match owner {
                Owner::Unknown => "there is",
                _ => "it holds",
            };
            let signatures = sight.signatures.iter();
            let say = |s: &memkv_journal::probe::Signature| {
                format!("{name}: {} {} (byte {}); {lost}", there(s.owner), s.what, s.offset)
            };
            signatures.map(say).collect()
        }
    }
}

/// Formats all drives as one new node.
fn format(sights: &[Sight], args: &SetupArgs) -> Result<Vec<Superblock>, OfflineError> {
    let mut bench = Bench::new(sights.len())?;
    // 2.
    let opened = bench.open_all(sights)?;
    for drive in &opened {
        let geometry = drive.device.geometry();
        let options = options(args, geometry.capacity);
        if let Err(error) = memkv_journal::Layout::plan(&geometry, &options) {
            return Err(OfflineError::Refused(vec![format!("{}: {error}", drive.name)]));
        }
    }
    // 3.
    let (local, pool, args) = (bench.local(), bench.pool.clone(), args.clone());
    let opened: Rc<[Opened]> = opened.into();
    bench.run(async move {
        clear_all(&local, &opened, &pool).await?;
        let options = move |capacity| options(&args, capacity);
        let superblocks = drives::format_node(&local, &opened, &pool, options).await?;
        Ok(superblocks)
    })
}

async fn clear_all(
    local: &Local,
    opened: &Rc<[Opened]>,
    pool: &memkv_dma::Pool,
) -> Result<(), OfflineError> {
    let clearing: Vec<_> = (0..opened.len())
        .map(|at| {
            let (opened, pool) = (opened.clone(), pool.clone());
            local.spawn_join(async move { wipe::clear(&opened[at], &pool).await })
        })
        .collect();
    for cleared in clearing {
        cleared.await?;
    }
    Ok(())
}

/// How a drive of `capacity` bytes is formatted.
fn options(args: &SetupArgs, capacity: u64) -> FormatOptions {
    let smallest = u64::from(args.shard_size) << 10;
    let named = args.shard_size != 64 && args.shard_size < EXTENT_FROM_KB;
    FormatOptions {
        block_limit: named.then(|| (capacity / smallest).max(1)),
        extent_units: Some((extent(args) / UNIT as u64) as u16),
        ..FormatOptions::default()
    }
}

/// Bytes of the largest extent.
fn extent(args: &SetupArgs) -> u64 {
    match args.shard_size {
        kb if kb >= EXTENT_FROM_KB => u64::from(kb) << 10,
        _ => EXTENT,
    }
}

/// The configuration that serves these drives, as this machine can.
fn configuration(
    args: &SetupArgs,
    sights: &[Sight],
    superblocks: &[Superblock],
    key: &SharedKey,
) -> Result<String, OfflineError> {
    let identity = &superblocks[0].identity;
    let direct = sights.iter().any(|sight| sight.kind != Kind::File);
    // The machine decides how large a pool is by default: asked by an empty configuration.
    let pool = Config::parse("storage: {mode: memory}", &Overrides::default(), &ThisMachine)?
        .memory
        .max_size;
    let few = direct.then(Reserved::of_this_system).flatten().map(|found| found.suffice(pool));
    if let Some(Err(few)) = few {
        tracing::warn!("hugepages are short, and drives slower without them: {few}");
    }
    let media = sights.iter().map(|sight| match sight.kind {
        Kind::Nvme => Ok(sight.path.clone()),
        Kind::Device | Kind::File => std::path::absolute(&sight.path),
    });
    let media: Result<Vec<PathBuf>, _> = media.collect();
    let media = media.map_err(|error| OfflineError::Usage(error.to_string()))?;
    let recorded = u64::from(superblocks[0].layout.extent_units) * UNIT as u64;
    let text = Plan {
        node: identity.node.to_string(),
        address: args.address,
        key,
        pool,
        few_hugepages: direct && !matches!(few, Some(Ok(()))),
        mode: if direct { "direct" } else { "file" },
        block_size: if recorded == 0 { extent(args) } else { recorded },
        drives: &media,
        rdma: args.rdma.as_deref(),
    }
    .text();
    if let Some(device) = &args.rdma {
        tracing::warn!(device, "RDMA comes with a later release; it is noted as a comment");
    }
    // 4.
    Config::parse(&text, &Overrides::default(), &ThisMachine)?;
    tracing::info!(node = %identity.node, drives = sights.len(), "set up");
    Ok(text)
}
