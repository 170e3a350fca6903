//! `memkv drive list` and `memkv drive inspect`: what drives hold, in a line or in full.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use comfy_table::{ContentArrangement, Table, presets};
use memkv_admin_api::size::{exact_size, short_size};
use memkv_journal::{Superblock, UNIT};
use memkv_nvme::PciAddress;
use serde::Serialize;

use super::controllers::{self, Controller, State};
use super::look::{Holds, Kind, Sight};
use super::{OfflineError, Which, look_at, named, named_at_least_one, say, say_json};
use crate::cli::Exit;

/// A drive, as JSON shows it.
#[derive(Debug, Serialize)]
struct Row {
    path: String,
    kind: Kind,
    bytes: u64,
    holds: Holds,
    /// A server has its lock.
    in_use: bool,
    /// Who else claims it.
    claims: Vec<String>,
    /// Who else signed it.
    signatures: Vec<String>,
    /// Why its superblock cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    superblock: Option<SuperblockRow>,
    /// Its controller, of an NVMe drive.
    #[serde(skip_serializing_if = "Option::is_none")]
    controller: Option<Controller>,
}

/// A superblock, without its secret.
#[derive(Debug, Serialize)]
struct SuperblockRow {
    /// What each copy is worth.
    copies: Vec<&'static str>,
    revision: u64,
    node: String,
    drive: String,
    epoch: u64,
    members: Vec<String>,
    /// It was left in order, and every block on it was trusted.
    clean: bool,
    incarnation: u64,
    /// Bytes when it was formatted.
    capacity: u64,
    sector: u32,
    /// Bytes for blocks.
    usable_bytes: u64,
    data_offset: u64,
    ring_offset: u64,
    ring_bytes: u64,
    checkpoint_offsets: [u64; 2],
    checkpoint_bytes: u64,
    /// Number of the checkpoint in force, and where it is.
    checkpoint: u64,
    checkpoint_in_force: &'static str,
    /// Most blocks it can remember.
    block_limit: u64,
    /// Bytes of the largest extent; none when it was never recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    block_size: Option<u64>,
}

impl Row {
    fn of(sight: &Sight) -> Self {
        let superblock = sight.inspection.superblock.as_ref();
        let holds = sight.holds();
        let error = superblock.err().filter(|_| holds == Holds::Damaged);
        Self {
            path: sight.path.display().to_string(),
            kind: sight.kind,
            bytes: sight.bytes,
            holds,
            in_use: sight.locked,
            claims: sight.claims.iter().map(ToString::to_string).collect(),
            signatures: sight.signatures.iter().map(|s| s.what.to_owned()).collect(),
            error: error.map(ToString::to_string),
            superblock: superblock.ok().map(|superblock| SuperblockRow::of(sight, superblock)),
            controller: None,
        }
    }

    /// The same, with the controller that it is, or is made of.
    fn with(sight: &Sight, controllers: &[Controller]) -> Self {
        let found = controllers.iter().find(|controller| controller.is(&sight.path)).cloned();
        let controller = found.map(|mut controller| {
            if let Some((model, serial)) = &sight.names {
                controller.model = Some(model.clone());
                controller.serial = Some(serial.clone());
            }
            controller
        });
        Self { controller, ..Self::of(sight) }
    }

    fn notes(&self) -> String {
        let mut notes = Vec::new();
        if self.in_use {
            notes.push("a server has it".to_owned());
        }
        notes.extend(self.error.clone());
        notes.extend(self.signatures.clone());
        notes.extend(self.claims.clone());
        if let Some(superblock) = &self.superblock
            && superblock.copies.iter().any(|copy| *copy != "current")
        {
            notes.push(format!("superblock copies: {}", superblock.copies.join(", ")));
        }
        notes.join("; ")
    }
}

impl SuperblockRow {
    fn of(sight: &Sight, superblock: &Superblock) -> Self {
        let (identity, layout) = (&superblock.identity, &superblock.layout);
        let extent = u64::from(layout.extent_units) * UNIT as u64;
        Self {
            copies: sight.inspection.copies.iter().map(|copy| copy.word()).collect(),
            revision: superblock.revision,
            node: identity.node.to_string(),
            drive: identity.drive.to_string(),
            epoch: identity.epoch,
            members: identity.members.iter().map(ToString::to_string).collect(),
            clean: superblock.clean,
            incarnation: superblock.incarnation,
            capacity: layout.capacity,
            sector: layout.sector,
            usable_bytes: u64::from(layout.units) * UNIT as u64,
            data_offset: layout.data_offset,
            ring_offset: layout.ring_offset,
            ring_bytes: layout.ring_bytes,
            checkpoint_offsets: layout.checkpoint_offset,
            checkpoint_bytes: layout.checkpoint_bytes,
            checkpoint: superblock.active_checkpoint().number,
            checkpoint_in_force: if superblock.active == 0 { "A" } else { "B" },
            block_limit: layout.limits.rows,
            block_size: (extent > 0).then_some(extent),
        }
    }
}

pub(super) fn list(which: &Which) -> Result<Exit, OfflineError> {
    let controllers = Controller::all(Path::new("/"));
    let named = named(which)?;
    let sights = match named.is_empty() {
        true => all(&controllers),
        false => look_at(&readable(named, &controllers))?,
    };
    let rows: Vec<Row> = sights.iter().map(|sight| Row::with(sight, &controllers)).collect();
    if which.json {
        say_json(&rows)?;
        return Ok(Exit::Done);
    }
    let mut text = table(&rows);
    if rows.iter().any(|row| row.controller.is_some()) {
        let shown = rows.iter().filter_map(|row| row.controller.as_ref());
        write!(text, "\n\n{}", controllers::table(shown)).expect("writing to a string");
    }
    say(&text)?;
    Ok(Exit::Done)
}

/// What is on all drives of the machine. What cannot be looked at (an empty card reader) is left out, but
/// for controllers.
fn all(controllers: &[Controller]) -> Vec<Sight> {
    let look = |drive: &PathBuf| look_at(std::slice::from_ref(drive)).ok()?.pop();
    let mut sights: Vec<Sight> = block_devices().iter().filter_map(look).collect();
    let others = controllers.iter().filter(|controller| controller.state != State::Kernel);
    sights.extend(others.filter_map(|controller| {
        let address = PciAddress::of(Path::new(&controller.address))?;
        Some(look(&controller.path()).unwrap_or_else(|| super::nvme::unread(address)))
    }));
    sights
}

/// Drives as they can be read: those with PCI addresses that the kernel has by their block devices.
fn readable(drives: Vec<PathBuf>, controllers: &[Controller]) -> Vec<PathBuf> {
    let by_block_device = |drive: PathBuf| match PciAddress::of(&drive) {
        Some(_) => controllers.iter().find(|c| c.is(&drive)).map_or(drive, Controller::path),
        None => drive,
    };
    drives.into_iter().map(by_block_device).collect()
}

/// The block devices of this machine that have bytes, partitions left out.
fn block_devices() -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let has_bytes = |entry: &std::fs::DirEntry| {
        let size = std::fs::read_to_string(entry.path().join("size")).unwrap_or_default();
        size.trim().parse::<u64>().is_ok_and(|sectors| sectors > 0)
    };
    let devices =
        entries.filter(has_bytes).map(|entry| PathBuf::from("/dev").join(entry.file_name()));
    let mut devices: Vec<PathBuf> = devices.filter(|device| device.exists()).collect();
    devices.sort();
    devices
}

fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["drive", "size", "holds", "node", "drive uuid", "of", "ended", "notes"]);
    for row in rows {
        let superblock = row.superblock.as_ref();
        let field = |of: &dyn Fn(&SuperblockRow) -> String| superblock.map(of).unwrap_or_default();
        table.add_row([
            row.path.clone(),
            short_size(row.bytes),
            row.holds.word().to_owned(),
            field(&|s| s.node.clone()),
            field(&|s| s.drive.clone()),
            field(&|s| s.members.len().to_string()),
            field(&|s| if s.clean { "clean" } else { "unclean" }.to_owned()),
            row.notes(),
        ]);
    }
    table.trim_fmt()
}

pub(super) fn inspect(which: &Which) -> Result<Exit, OfflineError> {
    let controllers = Controller::all(Path::new("/"));
    let sights = look_at(&readable(named_at_least_one(which)?, &controllers))?;
    let rows: Vec<Row> = sights.iter().map(|sight| Row::with(sight, &controllers)).collect();
    if which.json {
        say_json(&rows)?;
    } else {
        let texts: Vec<String> = rows.iter().map(in_full).collect();
        say(&texts.join("\n"))?;
    }
    Ok(Exit::Done)
}

fn in_full(row: &Row) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        writeln!(text, "{name:<18} {value}").expect("writing to a string");
    };
    let kind = match row.kind {
        Kind::Device => "block device",
        Kind::File => "file",
        Kind::Nvme => "NVMe controller",
    };
    line(&row.path, format!("{kind}, {}, holds: {}", short_size(row.bytes), row.holds.word()));
    let notes = row.notes();
    if !notes.is_empty() {
        line("  notes", notes);
    }
    if let Some(controller) = &row.controller {
        let Controller { address, model, serial, .. } = controller;
        let [model, serial] = [model, serial].map(|name| name.as_deref().unwrap_or("not told"));
        line("  controller", format!("{address}, {model}, serial {serial}"));
    }
    if let Some(s) = &row.superblock {
        line("  node", s.node.clone());
        line("  drive", s.drive.clone());
        line("  epoch", format!("{}, {} members", s.epoch, s.members.len()));
        for member in &s.members {
            line("    member", member.clone());
        }
        let end = if s.clean { "clean" } else { "unclean" };
        line("  last end", format!("{end}, incarnation {}", s.incarnation));
        line("  superblock", format!("revision {}, copies {}", s.revision, s.copies.join(", ")));
        line("  formatted for", format!("{}, sectors of {} B", exact_size(s.capacity), s.sector));
        line(
            "  blocks",
            format!("{} usable, at most {}", short_size(s.usable_bytes), s.block_limit),
        );
        let extent = s.block_size.map_or_else(|| "not recorded".to_owned(), exact_size);
        line("  block_size", extent);
        line("  ring", format!("{} at {}", exact_size(s.ring_bytes), s.ring_offset));
        let [a, b] = s.checkpoint_offsets;
        let bytes = exact_size(s.checkpoint_bytes);
        line("  checkpoints", format!("A at {a}, B at {b}, {bytes} each"));
        line("  in force", format!("{}, number {}", s.checkpoint_in_force, s.checkpoint));
        line("  data", format!("at {}", s.data_offset));
    }
    text
}
