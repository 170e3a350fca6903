//! The way to the host: a serial port of its own, so that nothing the kernel says gets between.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::plan::Word;

/// The port's name, as QEMU's command line has it.
const PORT: &str = "memkv";

struct Line {
    write: File,
    read: BufReader<File>,
}

static LINE: OnceLock<Mutex<Line>> = OnceLock::new();

/// Opens the port; once, before anything is said.
///
/// # Errors
/// When there is no such port.
pub fn open() -> io::Result<()> {
    // It can be opened once only.
    let file = File::options().read(true).write(true).open(port()?)?;
    let line = Line { write: file.try_clone()?, read: BufReader::new(file) };
    assert!(LINE.set(Mutex::new(line)).is_ok(), "opened twice");
    Ok(())
}

fn port() -> io::Result<PathBuf> {
    for port in fs::read_dir("/sys/class/virtio-ports")? {
        let port = port?;
        if fs::read_to_string(port.path().join("name"))?.trim() == PORT {
            return Ok(PathBuf::from("/dev").join(port.file_name()));
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

fn line() -> MutexGuard<'static, Line> {
    LINE.get().expect("open by now").lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says something that is not answered.
pub fn tell(word: &Word) {
    send(&mut line(), word);
}

/// Prints a line on the host.
pub fn say(text: impl Into<String>) {
    tell(&Word::Say(text.into()));
}

/// Says something and waits for the answer.
pub fn ask(word: &Word) -> String {
    let mut line = line();
    send(&mut line, word);
    let mut answer = String::new();
    line.read.read_line(&mut answer).expect("the host answers");
    answer.trim_end().to_owned()
}

/// Without a host nobody would hear of a failure either: it ends the guest.
fn send(line: &mut Line, word: &Word) {
    let text = serde_json::to_string(word).expect("words are plain");
    line.write.write_all(format!("{text}\n").as_bytes()).expect("the host listens");
}
