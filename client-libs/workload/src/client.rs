//! The client engine as a store that workloads use.

use std::time::Duration;

use memkv_client::{
    Client, ClientError, GetItem, GetOutcome, PutItem, PutMode, PutOptions, PutOutcome, StatId,
    Status,
};

use crate::store::{
    BlockStore, Failure, FailureKind, Fetched, GetBlock, Present, PutBlock, Stored,
};

impl BlockStore for Client {
    fn match_prefix(&self, keys: &[&[u8]]) -> Result<usize, Failure> {
        Ok(Client::match_prefix(self, keys)?)
    }

    fn exists(&self, keys: &[&[u8]]) -> Result<Vec<bool>, Failure> {
        Ok(Client::exists(self, keys)?)
    }

    fn put(&self, blocks: &[PutBlock<'_>], present: Present) -> Vec<Result<Stored, Failure>> {
        let mode = match present {
            Present::Keep => PutMode::Absent,
            Present::Replace => PutMode::Replace,
        };
        let options = PutOptions { mode, ..PutOptions::default() };
        let blocks = blocks.iter();
        let items: Vec<PutItem<'_>> = blocks
            .map(|block| PutItem { key: block.key, value: block.value, options, parent: None })
            .collect();
        let outcome = |outcome| match outcome {
            PutOutcome::Stored { .. } => Stored::New,
            PutOutcome::Present { .. } => Stored::Present,
        };
        self.put_batch(&items).into_iter().map(|result| Ok(result.map(outcome)?)).collect()
    }

    fn get(&self, blocks: &mut [GetBlock<'_>]) -> Vec<Result<Fetched, Failure>> {
        let mut items: Vec<GetItem<'_>> = blocks
            .iter_mut()
            .map(|block| GetItem { key: block.key, offset: 0, buf: block.into })
            .collect();
        let outcome = |outcome| match outcome {
            GetOutcome::Hit { length, .. } => Fetched::Hit(length),
            GetOutcome::Miss(reason) => Fetched::Miss(reason.name()),
        };
        self.get_batch(&mut items).into_iter().map(|result| Ok(result.map(outcome)?)).collect()
    }

    fn delete(&self, key: &[u8]) -> Result<bool, Failure> {
        Ok(Client::delete(self, key, None)?)
    }

    fn server_cpu(&self) -> Result<Option<Duration>, Failure> {
        let mut sum = Some(Duration::ZERO);
        for (_, stats) in self.server_stats() {
            let micros = stats?.get(StatId::CpuMicros).map(Duration::from_micros);
            sum = sum.zip(micros).map(|(sum, one)| sum + one);
        }
        Ok(sum)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        let kind = match &error {
            ClientError::Busy { .. } => FailureKind::Busy,
            ClientError::Full { .. } => FailureKind::Full,
            ClientError::Conflict { .. } => FailureKind::Conflict,
            ClientError::Timeout { .. } => FailureKind::Timeout,
            ClientError::Broken { .. } => FailureKind::Broken,
            ClientError::Unavailable { .. } => FailureKind::Unavailable,
            ClientError::Corrupt { .. } => FailureKind::Corrupt,
            ClientError::Refused { status: Status::ShuttingDown, .. } => FailureKind::Unavailable,
            _ => FailureKind::Other,
        };
        Failure { kind, source: Box::new(error) }
    }
}

#[cfg(test)]
mod tests {
    use memkv_client::{Config, Transport};

    use super::*;

    /// A client whose only server refuses connections: the port was bound and let go.
    fn lonely() -> Client {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let servers = vec![listener.local_addr().unwrap().to_string()];
        Client::new(Config { servers, transport: Transport::Tcp, ..Config::default() }).unwrap()
    }

    #[test]
    fn a_server_that_is_gone_is_unavailable_to_puts_and_gets_and_absent_to_questions() {
        let client = lonely();
        let store: &dyn BlockStore = &client;
        let put = store.put(&[PutBlock { key: b"k", value: b"v" }], Present::Keep);
        assert_eq!(put[0].as_ref().unwrap_err().kind, FailureKind::Unavailable);
        let get = store.get(&mut [GetBlock { key: b"k", into: &mut [0; 1] }]);
        assert_eq!(get[0].as_ref().unwrap_err().kind, FailureKind::Unavailable);
        assert_eq!(store.delete(b"k").unwrap_err().kind, FailureKind::Unavailable);
        assert_eq!(store.server_cpu().unwrap_err().kind, FailureKind::Unavailable);
        assert_eq!(store.match_prefix(&[b"k"]).unwrap(), 0);
        assert_eq!(store.exists(&[b"k"]).unwrap(), [false]);
    }

    #[test]
    fn requests_that_make_no_sense_are_other_failures() {
        let client = lonely();
        let store: &dyn BlockStore = &client;
        let failure = store.put(&[PutBlock { key: b"", value: b"v" }], Present::Keep);
        assert_eq!(failure[0].as_ref().unwrap_err().kind, FailureKind::Other);
    }
}
