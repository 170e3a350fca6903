//! What went wrong, as lines under a table.

use memkv_workload::tally::Faults;

/// Lines that begin with a newline; nothing when nothing went wrong.
pub fn lines(what: &str, faults: &Faults) -> String {
    let mut text = String::new();
    if faults.wrong_blocks > 0 {
        text += &format!(
            "\n{what}: WRONG BYTES in {} blocks, {} bytes",
            faults.wrong_blocks, faults.wrong_bytes
        );
        if let Some(wrong) = &faults.first_wrong {
            text += &format!("; first: block {} at byte {}", wrong.block.0, wrong.first);
        }
    }
    if !faults.failures.is_empty() {
        let kinds: Vec<String> =
            faults.failures.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        text += &format!("\n{what}: failed: {}", kinds.join(", "));
        if let Some(first) = &faults.first_failure {
            text += &format!("; first: {first}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use memkv_workload::block::BlockHash;
    use memkv_workload::store::FailureKind;
    use memkv_workload::tally::WrongBlock;

    #[test]
    fn faults_are_told_with_their_first_example() {
        assert_eq!(lines("replay", &Faults::default()), "");
        let faults = Faults {
            failures: [(FailureKind::Busy, 2), (FailureKind::Full, 1)].into(),
            first_failure: Some("busy: a:1 is busy".into()),
            wrong_blocks: 1,
            wrong_bytes: 7,
            first_wrong: Some(WrongBlock { block: BlockHash(5), first: 12 }),
        };
        assert_eq!(
            lines("replay", &faults),
            "\nreplay: WRONG BYTES in 1 blocks, 7 bytes; first: block 5 at byte 12\nreplay: failed: \
             2 busy, 1 full; first: busy: a:1 is busy"
        );
    }
}
