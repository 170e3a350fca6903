//! The configuration, read again while the node serves: on SIGHUP, and when the admin endpoint is
//! told to.
//!
//! ```text
//!   file ─► checked as a whole ─► checked where the node listens ─► log level
//!                │ something is wrong                            └► every reactor: keys, limits
//!                ▼                                               ├► the store's: eviction, leases
//!           nothing changes, the reason is told                  └► drives that are new: they join
//! ```
//!
//! Reactors are always told all of it, changed or not: a reload that a stuck reactor cut short is
//! made whole by the next one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use memkv_admin_api as api;
use memkv_store::DriveState;

use crate::config::{Changes, Config, ConfigError, Drive, Overrides, Warning};
use crate::logging::Level;
use crate::node::{Control, order};
use crate::paths::Machine;
use crate::status::{DONE, Shared};

/// Where the configuration is read from, and what a level of the log is set by.
pub struct Source {
    /// The command line: its file, and what overrides it.
    pub overrides: Overrides,
    /// The machine.
    pub machine: Box<dyn Machine + Send + Sync>,
    /// The level of this process's log, when the process logs.
    pub log: Option<Level>,
}

/// What reloading has come to so far.
#[derive(Default)]
pub(crate) struct Reloads {
    /// One at a time has the source.
    source: Mutex<Option<Source>>,
    seen: Mutex<Seen>,
}

/// How reloading stands.
#[derive(Clone, Default)]
pub(crate) struct Seen {
    pub(crate) done: u64,
    pub(crate) failed: u64,
    needs_restart: Vec<&'static str>,
    last_error: Option<String>,
}

impl Reloads {
    pub(crate) fn read_from(&self, source: Source) {
        *self.alone() = Some(source);
    }

    /// One changes the configuration or the drives at a time.
    pub(crate) fn alone(&self) -> MutexGuard<'_, Option<Source>> {
        self.source.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, note: impl FnOnce(&mut Seen)) {
        note(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Shared {
    /// See [`api::NodeAdmin::reload`].
    pub(crate) fn reload_config(&self) -> Result<api::Reloaded, api::ReloadError> {
        let source = self.reloads.alone();
        let source = source.as_ref().filter(|source| source.overrides.file.is_some());
        let reloaded = match source {
            Some(source) => self.read_again(source),
            None => Err(api::ReloadError::NoFile),
        };
        match &reloaded {
            Ok(api::Reloaded { generation, applied, needs_restart, sessions_ended, .. }) => {
                tracing::info!(generation, ?applied, sessions_ended, "configuration reloaded");
                if !needs_restart.is_empty() {
                    tracing::warn!(?needs_restart, "changes that wait for a restart");
                }
            }
            Err(error) => {
                tracing::error!(%error, "configuration not reloaded");
                self.reloads.note(|seen| {
                    seen.failed += 1;
                    seen.last_error = Some(error.to_string());
                });
            }
        }
        reloaded
    }

    fn read_again(&self, source: &Source) -> Result<api::Reloaded, api::ReloadError> {
        let mut now = (*self.config()).clone();
        let next = read(source, &now).map_err(|e| api::ReloadError::Refused(e.to_string()))?;
        let drives_dropped = self.dropped(&now, &next)?;
        now.storage.drives.retain(|drive| !drives_dropped.contains(&drive.name()));
        let newcomers = self.newcomers(&next).map_err(api::ReloadError::Refused)?;
        let readers = self.admit_keys(&now, &next).map_err(api::ReloadError::Refused)?;
        let (mut adopted, Changes { applied, needs_restart }) = now.adopt(next);
        let warnings = adopted.warnings.iter().map(Warning::to_string);
        let warnings: Vec<String> = warnings.chain(readers).collect();
        warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        if let Some(log) = &source.log {
            log.set(&adopted.log.filter).map_err(|e| api::ReloadError::Refused(e.to_string()))?;
        }
        let sessions_ended = self.tell_reactors(&Arc::new(adopted.clone()))?;
        drives_dropped.iter().for_each(|name| self.drop_drive(name));
        let (mut drives_joined, mut drives_failed) = (Vec::new(), Vec::new());
        for newcomer in newcomers {
            match self.join_drive(newcomer) {
                Ok((drive, uuid)) => {
                    drives_joined.push(uuid.to_string());
                    // One that was listed and blank at the start is there already.
                    if !adopted.storage.drives.contains(&drive) {
                        adopted.storage.drives.push(drive);
                    }
                }
                Err(why) => {
                    tracing::error!(%why, "drive did not join");
                    drives_failed.push(why);
                }
            }
        }
        self.set_config(Arc::new(adopted));
        self.reloads.note(|seen| {
            seen.done += 1;
            seen.needs_restart.clone_from(&needs_restart);
            seen.last_error = None;
        });
        let names = |keys: Vec<&str>| keys.into_iter().map(str::to_owned).collect();
        let status = self.config_row();
        Ok(api::Reloaded {
            file: status.file.unwrap_or_default(),
            generation: status.generation,
            applied: names(applied),
            needs_restart: names(needs_restart),
            sessions_ended,
            drives_joined,
            drives_failed,
            drives_dropped,
            warnings,
        })
    }

    /// Drives that are listed no more and do not serve: that takes no restart, for the node has lost
    /// them.
    fn dropped(&self, now: &Config, next: &Config) -> Result<Vec<String>, api::ReloadError> {
        let listed: Vec<String> = next.storage.drives.iter().map(Drive::name).collect();
        let names = now.storage.drives.iter().map(Drive::name);
        let mut unlisted: Vec<String> = names.filter(|name| !listed.contains(name)).collect();
        if unlisted.is_empty() {
            return Ok(unlisted);
        }
        let drives = self.drives().ok_or(api::ReloadError::NoAnswer(api::NoAnswer))?;
        let at_start = self.at_start();
        unlisted.retain(|name| {
            let number = at_start.number(name);
            number.is_none_or(|number| drives[number].state == DriveState::Offline)
        });
        Ok(unlisted)
    }

    /// Gives every reactor the settings, and waits until all have them.
    fn tell_reactors(&self, config: &Arc<Config>) -> Result<u64, api::ReloadError> {
        let told = |reactor| order(reactor, |done| Control::Reload(config.clone(), done));
        let answers: Vec<_> = self.reactor_inboxes().iter().map(told).collect();
        let mut ended = 0;
        for answer in answers {
            let answer = answer.recv_timeout(DONE);
            ended += answer.map_err(|_| api::ReloadError::NoAnswer(api::NoAnswer))?;
        }
        Ok(ended)
    }

    pub(crate) fn config_row(&self) -> api::ConfigStatus {
        let Seen { done, needs_restart, last_error, .. } = self.reloads.seen();
        api::ConfigStatus {
            file: self.config().file.as_ref().map(|file| file.display().to_string()),
            generation: done + 1,
            needs_restart: needs_restart.into_iter().map(str::to_owned).collect(),
            last_error,
        }
    }
}

/// Reads what `source` says now; it must also hold where the node listens, for that takes a restart
/// to change: what is said of keys depends on it.
pub(crate) fn read(source: &Source, now: &Config) -> Result<Config, ConfigError> {
    let next = Config::load(&source.overrides, &*source.machine)?;
    if next.network.address != now.network.address {
        let address = Some(now.network.address.to_string());
        let overrides = Overrides { address, ..source.overrides.clone() };
        Config::load(&overrides, &*source.machine)?;
    }
    Ok(next)
}
