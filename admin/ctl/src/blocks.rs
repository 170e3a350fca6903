//! `put`, `get`, `exists`, `delete`, `hint`: one block at a time, by hand.

use crate::cli::{GetArgs, Global, HintArgs, KeysArgs, PutArgs, Saying};
use crate::connect::client;
use crate::error::{CtlError, Exit};
use memkv_admin_api::size::short_size;
use memkv_client::{Client, GetOutcome, Hint, PutMode, PutOptions, PutOutcome};
use serde_json::json;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

/// Prints a line to standard output.
pub fn say(text: &str) -> Result<(), CtlError> {
    writeln!(io::stdout().lock(), "{text}").map_err(CtlError::Output)
}

fn shown(key: &OsString) -> String {
    String::from_utf8_lossy(key.as_bytes()).into_owned()
}

/// Stores a file, or standard input.
pub fn put(global: &Global, args: &PutArgs) -> Result<Exit, CtlError> {
    let (client, _) = client(global, None)?;
    let value = read_value(&args.file)?;
    let mode = if args.replace { PutMode::Replace } else { PutMode::Absent };
    let ttl_seconds = args.ttl.map_or(0, whole_seconds);
    let durable = args.durable;
    let pin_seconds = args.pin.map_or(0, whole_seconds);
    let options = PutOptions { mode, ttl_seconds, durable, pin_seconds, ..PutOptions::default() };
    let outcome = match &args.parent {
        None => client.put(args.key.as_bytes(), &value, &options)?,
        Some(parent) => {
            client.put_after(parent.as_bytes(), args.key.as_bytes(), &value, &options)?
        }
    };
    let key = shown(&args.key);
    let (word, generation) = match outcome {
        PutOutcome::Stored { generation } => ("stored", generation),
        PutOutcome::Present { generation, .. } => ("present", generation),
    };
    let bytes = value.len() as u64;
    if global.json {
        let report = json!({"key": key, "outcome": word, "bytes": bytes, "generation": generation});
        say(&report.to_string())?;
    } else if word == "stored" {
        say(&format!("stored {key}: {}, generation {generation}", short_size(bytes)))?;
    } else {
        // As long as what was offered, but not necessarily the same bytes.
        say(&format!("{key} was there already, generation {generation}; --replace overwrites it"))?;
    }
    Ok(Exit::Done)
}

/// The wire counts whole seconds, and 0 there means never.
fn whole_seconds(time: Duration) -> u32 {
    u32::try_from(time.as_secs_f64().ceil() as u64).unwrap_or(u32::MAX).max(1)
}

fn read_value(path: &Path) -> Result<Vec<u8>, CtlError> {
    let file = |source| CtlError::File { path: path.to_owned(), source };
    let most = memkv_wire::MAX_VALUE + 1;
    let mut value = Vec::new();
    let read = if path == Path::new("-") {
        io::stdin().lock().take(most).read_to_end(&mut value)
    } else {
        File::open(path).map_err(file)?.take(most).read_to_end(&mut value)
    };
    read.map_err(file)?;
    if value.len() as u64 == most {
        return Err(CtlError::TooLarge { path: path.to_owned() });
    }
    Ok(value)
}

/// Fetches a block to a file or standard output.
pub fn get(global: &Global, args: &GetArgs) -> Result<Exit, CtlError> {
    let to_stdout = args.output.as_deref().is_none_or(|path| path == Path::new("-"));
    if args.output.is_none() && io::stdout().is_terminal() {
        return Err(CtlError::Terminal);
    }
    let (client, _) = client(global, None)?;
    let key = shown(&args.key);
    let mut value = Vec::new();
    let generation = match client.get(args.key.as_bytes(), &mut value)? {
        GetOutcome::Hit { generation, .. } => generation,
        GetOutcome::Miss(reason) => {
            if global.json {
                say(&json!({"key": key, "outcome": "miss", "reason": reason.name()}).to_string())?;
            }
            eprintln!("memkvctl: no block {key} ({reason})");
            return Ok(Exit::Failed);
        }
    };
    if to_stdout {
        let mut output = io::stdout().lock();
        output.write_all(&value).and_then(|()| output.flush()).map_err(CtlError::Output)?;
        return Ok(Exit::Done);
    }
    let path = args.output.clone().expect("standard output was handled");
    let bytes = value.len() as u64;
    std::fs::write(&path, &value)
        .map_err(|source| CtlError::File { path: path.clone(), source })?;
    if global.json {
        let report = json!({"key": key, "outcome": "hit", "bytes": bytes, "generation": generation,
                            "file": path.display().to_string()});
        say(&report.to_string())?;
    } else {
        let size = short_size(bytes);
        say(&format!("fetched {key}: {size}, generation {generation}, to {}", path.display()))?;
    }
    Ok(Exit::Done)
}

/// Asks whether keys are there.
pub fn exists(global: &Global, args: &KeysArgs) -> Result<Exit, CtlError> {
    let (client, _) = client(global, None)?;
    let keys: Vec<&[u8]> = args.keys.iter().map(|key| key.as_bytes()).collect();
    let mut there = Vec::with_capacity(keys.len());
    for some in keys.chunks(memkv_wire::MAX_ITEMS) {
        there.extend(client.exists(some)?);
    }
    refuse_guesses(&client, &keys, &there)?;
    answer_keys(global, &args.keys, &there, ["present", "missing"])
}

/// To an inference engine a lost server is a miss, and so the client answers; a person who asks
/// whether a key is there is told that nobody knows.
fn refuse_guesses(client: &Client, keys: &[&[u8]], there: &[bool]) -> Result<(), CtlError> {
    let missing = || keys.iter().zip(there).filter(|(_, there)| !**there).map(|(key, _)| key);
    if missing().next().is_none() {
        return Ok(());
    }
    for (server, stats) in client.server_stats() {
        if let Err(error) = stats
            && missing().any(|key| *client.server_of(key) == *server)
        {
            return Err(error.into());
        }
    }
    Ok(())
}

/// Forgets blocks.
pub fn delete(global: &Global, args: &KeysArgs) -> Result<Exit, CtlError> {
    let (client, _) = client(global, None)?;
    let mut were_there = Vec::with_capacity(args.keys.len());
    for key in &args.keys {
        were_there.push(client.delete(key.as_bytes(), None)?);
    }
    answer_keys(global, &args.keys, &were_there, ["deleted", "missing"])
}

/// Says what will become of a chain.
pub fn hint(global: &Global, args: &HintArgs) -> Result<Exit, CtlError> {
    let (client, _) = client(global, None)?;
    let (hint, word) = match (args.saying, args.time) {
        (Saying::Release, _) => (Hint::Release, "released"),
        (Saying::Retain, _) => (Hint::Retain, "retained"),
        (Saying::Pin, time) => (Hint::Pin(time.unwrap_or_default()), "pinned"),
    };
    let keys: Vec<&[u8]> = args.keys.iter().map(|key| key.as_bytes()).collect();
    let results = client.hint(&keys, hint).into_iter();
    let there = results.map(|result| Ok(result?.is_hit())).collect::<Result<Vec<_>, CtlError>>()?;
    answer_keys(global, &args.keys, &there, [word, "missing"])
}

/// One line per key; a failure when one of them was not there.
fn answer_keys(
    global: &Global,
    keys: &[OsString],
    yes: &[bool],
    words: [&str; 2],
) -> Result<Exit, CtlError> {
    let answers = keys.iter().zip(yes).map(|(key, yes)| (shown(key), words[usize::from(!yes)]));
    if global.json {
        let list: Vec<_> =
            answers.map(|(key, word)| json!({"key": key, "outcome": word})).collect();
        say(&json!(list).to_string())?;
    } else {
        for (key, word) in answers {
            say(&format!("{word} {key}"))?;
        }
    }
    Ok(if yes.iter().all(|yes| *yes) { Exit::Done } else { Exit::Failed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_to_live_are_whole_seconds_and_never_forever() {
        let table = [(0, 1), (1, 1), (1000, 1), (1001, 2), (86_400_000, 86_400)];
        for (ms, expected) in table {
            assert_eq!(whole_seconds(Duration::from_millis(ms)), expected, "{ms} ms");
        }
        assert_eq!(whole_seconds(Duration::MAX), u32::MAX);
    }

    #[test]
    fn files_are_read_up_to_the_largest_value() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("value");
        let file = File::create(&path).expect("room for a file");
        file.set_len(memkv_wire::MAX_VALUE).expect("a sparse file");
        assert_eq!(read_value(&path).expect("it fits").len() as u64, memkv_wire::MAX_VALUE);
        file.set_len(memkv_wire::MAX_VALUE + 1).expect("a sparse file");
        assert!(matches!(read_value(&path), Err(CtlError::TooLarge { .. })));
        let error = read_value(&directory.path().join("none")).expect_err("no such file");
        assert!(error.story().contains("none: No such file"), "{}", error.story());
    }
}
