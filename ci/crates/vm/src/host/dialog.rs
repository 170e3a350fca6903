//! What host and guest say to each other while a plan is run: each line is a [`Word`] of the guest, some
//! of which are answered.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use thiserror::Error;

use super::machine::{Machine, MachineError};
use crate::plan::{Plan, Word};

/// How often it is looked whether QEMU still lives.
const LOOK: Duration = Duration::from_millis(200);

/// Looks for which the guest may say nothing, three minutes: many times what any check takes. Counted in
/// looks, for by the clock all is late after a pause of the whole machine.
const SILENCE: u32 = 900;

/// After so many silent looks, five seconds, it is asked whether the guest can still say something.
const ASK: u32 = 25;

/// Why a plan did not come to its end.
#[derive(Debug, Error)]
pub enum DialogError {
    /// The machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The socket.
    #[error("the line to the guest")]
    Io(#[from] io::Error),
    /// The guest's words cannot be read.
    #[error("the guest says {0:?}")]
    Words(String),
    /// It says nothing more.
    #[error("the guest has said nothing for {} s", (LOOK * SILENCE).as_secs())]
    Silent,
    /// It cannot say anything more.
    #[error("a processor of the guest is given no interrupt of its timer any more")]
    LostTimer,
}

/// What became of a plan.
#[derive(Debug, Default)]
pub struct Found {
    /// Each check that ended, and its complaint.
    pub checks: BTreeMap<String, Option<String>>,
    /// Whether the guest began at all.
    pub begun: bool,
}

/// How the guest ended.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// It is done, and switches itself off.
    Done,
    /// Its power is to be cut.
    Cut,
}

/// Serves the guest until it is done, printing what it has to say.
///
/// # Errors
/// When the machine or the guest ends before; `found` then has what was found until then.
pub fn serve(
    plan: &Plan,
    machine: &mut Machine,
    stream: &UnixStream,
    found: &mut Found,
) -> Result<End, DialogError> {
    stream.set_read_timeout(Some(LOOK))?;
    let mut lines = BufReader::new(stream.try_clone()?);
    let (mut line, mut silent) = (Vec::new(), 0);
    loop {
        match lines.read_until(b'\n', &mut line) {
            Ok(0) => return Err(end_of(machine)?),
            Ok(_) if line.ends_with(b"\n") => {
                let text = String::from_utf8_lossy(&line).into_owned();
                line.clear();
                silent = 0;
                let word = serde_json::from_str(&text).map_err(|_| DialogError::Words(text))?;
                if word == Word::Done {
                    return Ok(End::Done);
                }
                if let Word::CutPower(check) = word {
                    found.checks.insert(check, None);
                    return Ok(End::Cut);
                }
                if let Some(answer) = hear(plan, machine, word, found)? {
                    let mut stream = stream;
                    stream.write_all(format!("{answer}\n").as_bytes())?;
                }
            }
            // The next look goes on where this one ended.
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock) => {
                if let Some(status) = machine.ended()? {
                    return Err(machine.ended_by_itself(status).into());
                }
                silent += 1;
                if silent % ASK == 0 && machine.lost_a_timer() {
                    return Err(DialogError::LostTimer);
                }
                if silent > SILENCE {
                    return Err(DialogError::Silent);
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// The line is at its end, and so is QEMU.
fn end_of(machine: &mut Machine) -> Result<DialogError, DialogError> {
    machine.wait()?;
    Ok(DialogError::Words("nothing more before it was done".to_owned()))
}

/// What a word is answered, if it is.
fn hear(
    plan: &Plan,
    machine: &mut Machine,
    word: Word,
    found: &mut Found,
) -> Result<Option<String>, DialogError> {
    match word {
        Word::Hello { up_ms } => {
            found.begun = true;
            println!("{}: up {:.1} s after its kernel", plan.name, up_ms as f64 / 1000.0);
            return Ok(Some(plan.name.to_owned()));
        }
        Word::Say(text) => println!("{text}"),
        Word::Check { name, complaint, took_ms } => {
            let verdict = if complaint.is_some() { "FAILED" } else { "holds" };
            println!("{}: {name}: {verdict} ({took_ms} ms)", plan.name);
            if let Some(complaint) = &complaint {
                println!("{complaint}");
            }
            found.checks.insert(name, complaint);
        }
        Word::Allocated(drive) => return Ok(Some(machine.allocated(&drive)?.to_string())),
        Word::Throttle(commands) => {
            machine.throttle(commands)?;
            return Ok(Some(String::new()));
        }
        Word::Pull(drive) => {
            machine.pull(&drive)?;
            return Ok(Some(String::new()));
        }
        Word::Plug(drive) => {
            machine.plug(plan, &drive)?;
            return Ok(Some(String::new()));
        }
        Word::CutPower(_) | Word::Done => {}
    }
    Ok(None)
}
