//! `memkv drive wipe`: from a drive with blocks to a blank one.

use memkv_dma::{Class, Pool};
use memkv_journal::probe::{HEAD, TAIL};
use memkv_journal::{Record, Superblock};
use serde::Serialize;

use super::look::{Holds, Sight};
use super::{
    Bench, OfflineError, WipeArgs, in_use, look_to_take, named_at_least_one, say, say_json,
};
use crate::cli::Exit;
use crate::drives::{DrivesError, Opened};

/// Bytes zeroed at a time.
const STEP: usize = 1 << 20;

/// What is lost, or was, with one drive.
#[derive(Debug, Serialize)]
struct Loss {
    path: String,
    drive: Option<String>,
    node: Option<String>,
    /// Other drives of the node, which cannot start without this one.
    others: usize,
    /// Blocks, and parts of blocks, on the drive; none when it cannot be read.
    blocks: Option<u64>,
    bytes: Option<u64>,
    wiped: bool,
}

impl Loss {
    fn text(&self) -> String {
        let did = if self.wiped { "wiped" } else { "would be wiped" };
        let unknown = || "unknown".to_owned();
        let id = self.drive.clone().unwrap_or_else(unknown);
        let node = self.node.clone().unwrap_or_else(unknown);
        let held = match (self.blocks, self.bytes) {
            (Some(blocks), Some(bytes)) => {
                format!("{blocks} blocks, {}", memkv_admin_api::size::short_size(bytes))
            }
            _ => "its blocks cannot be counted".to_owned(),
        };
        let mut text = format!("{} {did}: drive {id} of node {node}, {held}", self.path);
        if self.others > 0 {
            text += &format!("; the node has {} more, and does not start without it", self.others);
        }
        text
    }
}

pub(super) fn run(args: &WipeArgs) -> Result<Exit, OfflineError> {
    let sights = look_to_take(&named_at_least_one(&args.which)?)?;
    let refused: Vec<String> = sights.iter().flat_map(|sight| against(sight, args.force)).collect();
    if !refused.is_empty() {
        return Err(OfflineError::Refused(refused));
    }
    let mut bench = Bench::new(1)?;
    let opened = bench.open_all(&sights)?;
    let sure = args.yes || args.force;
    let mut losses = Vec::with_capacity(opened.len());
    for (sight, drive) in sights.iter().zip(opened) {
        let mut loss = loss(&mut bench, sight, &drive);
        if sure {
            let pool = bench.pool.clone();
            bench.run(async move { clear(&drive, &pool).await })?;
            loss.wiped = true;
        }
        losses.push(loss);
    }
    if args.which.json {
        say_json(&losses)?;
    } else {
        let lines: Vec<String> = losses.iter().map(Loss::text).collect();
        say(&lines.join("\n"))?;
    }
    if sure {
        return Ok(Exit::Done);
    }
    Err(OfflineError::Refused(vec!["what is lost is said above; --yes does it".to_owned()]))
}

/// What stands against wiping a drive.
fn against(sight: &Sight, force: bool) -> Vec<String> {
    let mut reasons = in_use(sight);
    let name = sight.path.display();
    match sight.holds() {
        // What is not known is in use.
        Holds::Memkv | Holds::Blank | Holds::Unknown => {}
        Holds::Damaged if force => {}
        Holds::Damaged => {
            let error = sight.inspection.superblock.as_ref().expect_err("it is damaged");
            reasons.push(format!("{name}: {error}; --force wipes it all the same"));
        }
        Holds::Foreign => {
            let what = sight.signatures.first().map_or("data", |signature| signature.what);
            reasons.push(format!("{name}: it is no drive of memkv but holds {what}: wipefs --all"));
        }
    }
    reasons
}

fn loss(bench: &mut Bench, sight: &Sight, drive: &Opened) -> Loss {
    let superblock = sight.inspection.superblock.as_ref().ok();
    let held = superblock.and_then(|superblock| count(bench, drive, superblock.clone()));
    let identity = superblock.map(|superblock| &superblock.identity);
    Loss {
        path: sight.path.display().to_string(),
        drive: identity.map(|identity| identity.drive.to_string()),
        node: identity.map(|identity| identity.node.to_string()),
        others: identity.map_or(0, |identity| identity.members.len().saturating_sub(1)),
        blocks: held.as_ref().map(|held| held.blocks),
        bytes: held.as_ref().map(|held| held.bytes),
        wiped: false,
    }
}

/// What a drive holds.
#[derive(Default)]
pub(super) struct Held {
    /// Blocks, and parts of blocks.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// No generation above this one was recorded there.
    pub generation_high: u64,
}

/// Counts what is on a drive; none when it cannot be read.
pub(super) fn count(bench: &mut Bench, drive: &Opened, superblock: Superblock) -> Option<Held> {
    let (queue, local, pool) = (drive.queue.clone(), bench.local(), bench.pool.clone());
    let contents = bench.run(async move {
        memkv_journal::read_contents(&*queue, &local, &pool, &superblock).await
    });
    let contents = contents.ok()?;
    let bytes = contents.live.iter().map(|record| match record {
        Record::Put { length, .. } | Record::Part { length, .. } => Some(u64::from(*length)),
        Record::Head { .. } | Record::Remove { .. } => None,
    });
    let bytes: Vec<u64> = bytes.flatten().collect();
    let (blocks, generation_high) = (bytes.len() as u64, contents.generation_high);
    Some(Held { blocks, bytes: bytes.iter().sum(), generation_high })
}

/// Makes a drive blank: first the superblocks, durably, so that a wipe that does not finish leaves
/// an unformatted drive; then both its ends, where owners sign.
pub(super) async fn clear(drive: &Opened, pool: &Pool) -> Result<(), OfflineError> {
    let failed = |source| DrivesError::Io { name: drive.name.clone(), source };
    let queue = &*drive.queue;
    let capacity = drive.device.geometry().capacity;
    let zero = |from: u64, until: u64| async move {
        let mut at = from;
        while at < until {
            let len = (STEP as u64).min(until - at) as usize;
            let mut buf = pool.allocate_wait(Class::Checkpoint, STEP).await;
            buf.as_mut_slice().fill(0);
            memkv_block::write(queue, at, len, buf).await.0?;
            at += len as u64;
        }
        Ok(())
    };
    let head = (HEAD as u64).min(capacity);
    if capacity >= memkv_journal::RING_MIN {
        memkv_journal::erase_superblock(queue, pool).await.map_err(failed)?;
    }
    zero(0, head).await.map_err(failed)?;
    zero(capacity.saturating_sub(TAIL as u64).max(head), capacity).await.map_err(failed)?;
    memkv_block::flush(queue).await.map_err(failed)?;
    Ok(())
}
