//! One HTTP request, one answer: all that asking a node how it is takes.
//!
//! The admin endpoint is ours and speaks plain HTTP, so a request in HTTP/1.0 (RFC 1945) over a
//! socket, with a deadline and a limit of size, does what a client library would, without one.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};
use thiserror::Error;

/// The largest answer taken.
const ANSWER_MAX: usize = 16 << 20;

/// What came back.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub code: u16,
    /// The body.
    pub body: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum HttpError {
    /// The name has no address.
    #[error("cannot resolve {server}")]
    Resolve {
        /// The server as it was named.
        server: String,
        /// What the system said.
        source: io::Error,
    },
    /// Nobody listens, or the network is in the way.
    #[error("cannot reach {server}")]
    Connect {
        /// The server as it was named.
        server: String,
        /// What the system said.
        source: io::Error,
    },
    /// The connection broke or the deadline passed.
    #[error("no whole answer from {server}")]
    Broken {
        /// The server as it was named.
        server: String,
        /// What the system said.
        source: io::Error,
    },
    /// What came back is not HTTP.
    #[error("{server} answers, but not in HTTP; is it an admin endpoint?")]
    NotHttp {
        /// The server as it was named.
        server: String,
    },
}

/// Asks `server` (`host:port`) for `path`.
pub fn get(server: &str, path: &str, timeout: Duration) -> Result<Answer, HttpError> {
    ask(server, ("GET", ""), path, timeout)
}

/// Tells `server` to do what `path` stands for; nothing else is said.
pub fn post(server: &str, path: &str, timeout: Duration) -> Result<Answer, HttpError> {
    ask(server, ("POST", "Content-Length: 0\r\n"), path, timeout)
}

fn ask(
    server: &str,
    (method, more): (&str, &str),
    path: &str,
    timeout: Duration,
) -> Result<Answer, HttpError> {
    let deadline = Instant::now() + timeout;
    let name = || server.to_owned();
    let mut stream = connect(server, deadline)?;
    let broken = |source| HttpError::Broken { server: name(), source };
    let accept = "Accept: application/json";
    let request = format!("{method} {path} HTTP/1.0\r\nHost: {server}\r\n{accept}\r\n{more}\r\n");
    stream.set_write_timeout(Some(left(deadline).map_err(broken)?)).map_err(broken)?;
    stream.write_all(request.as_bytes()).map_err(broken)?;
    let bytes = read_all(&mut stream, deadline).map_err(broken)?;
    parse(&bytes).map_err(|fault| match fault {
        Fault::NotHttp => HttpError::NotHttp { server: name() },
        Fault::CutOff => broken(io::ErrorKind::UnexpectedEof.into()),
    })
}

fn connect(server: &str, deadline: Instant) -> Result<TcpStream, HttpError> {
    let name = || server.to_owned();
    let addresses: Vec<SocketAddr> = server
        .to_socket_addrs()
        .map_err(|source| HttpError::Resolve { server: name(), source })?
        .collect();
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in addresses {
        let attempt =
            left(deadline).and_then(|timeout| TcpStream::connect_timeout(&address, timeout));
        match attempt {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(HttpError::Connect { server: name(), source: last })
}

/// The time until the deadline; an error when there is none, for a socket takes zero as "forever".
fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

fn read_all(stream: &mut TcpStream, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut piece = [0; 16 << 10];
    loop {
        stream.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(&mut piece) {
            Ok(0) => return Ok(bytes),
            Ok(n) => bytes.extend_from_slice(&piece[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A socket's timeout shows as "would block"; people know it as a timeout.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(error) => return Err(error),
        }
        if bytes.len() > ANSWER_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Fault {
    NotHttp,
    CutOff,
}

fn parse(bytes: &[u8]) -> Result<Answer, Fault> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").ok_or(Fault::NotHttp)?;
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| Fault::NotHttp)?;
    let body = &bytes[end + 4..];
    let mut lines = head.split("\r\n");
    let mut status = lines.next().unwrap_or_default().splitn(3, ' ');
    let version = status.next().unwrap_or_default();
    let code = status.next().and_then(|code| code.parse().ok());
    let Some(code) = code.filter(|_| version.starts_with("HTTP/1.")) else {
        return Err(Fault::NotHttp);
    };
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse::<usize>().ok());
    if length.is_some_and(|length| length != body.len()) {
        return Err(Fault::CutOff);
    }
    Ok(Answer { code, body: body.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn answers_are_parsed() {
        let answer = |code, body: &[u8]| Ok(Answer { code, body: body.to_owned() });
        let table: [(&[u8], Result<Answer, Fault>); 7] = [
            (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", answer(200, b"ok")),
            (b"HTTP/1.1 503 Service Unavailable\r\n\r\nno", answer(503, b"no")),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok", Err(Fault::CutOff)),
            (b"HTTP/1.1 200 OK\r\nX: y\r\n", Err(Fault::NotHttp)),
            (b"MKV1\x01\r\n\r\n", Err(Fault::NotHttp)),
            (b"HTTP/1.1 abc\r\n\r\n", Err(Fault::NotHttp)),
            (b"", Err(Fault::NotHttp)),
        ];
        for (bytes, expected) in table {
            assert_eq!(parse(bytes), expected, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn faults_of_the_network_name_the_server() {
        let (server, second) = ("127.0.0.1:1", Duration::from_secs(1));
        let error = get(server, "/", second).expect_err("nobody listens");
        assert!(matches!(error, HttpError::Connect { .. }), "{error:?}");
        assert!(error.to_string().contains(server));
        let error = get("no port here", "/", second).expect_err("no address");
        assert!(matches!(error, HttpError::Resolve { .. }), "{error:?}");

        // A listener that never accepts: the kernel connects, nothing comes back.
        let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let server = silent.local_addr().expect("a bound socket").to_string();
        let error = get(&server, "/", Duration::from_millis(50)).expect_err("nothing comes back");
        let HttpError::Broken { source, .. } = error else { panic!("{error:?}") };
        assert_eq!(source.kind(), io::ErrorKind::TimedOut);
    }
}
