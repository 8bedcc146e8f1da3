//! `--health-check`: asks a running program how it is, for a container image without a shell or curl.

use std::{
    io::{self, Read, Write},
    net::{TcpStream, ToSocketAddrs},
    time::{Duration, Instant},
};

/// Whether `GET {url}{path}` is answered with success within `limit`.
///
/// A port that speaks TLS counts as healthy once it accepts connections: the check has no certificate to
/// show, and the answer would say no more about the program.
pub fn is_healthy(url: &str, path: &str, limit: Duration) -> bool {
    get(url, path, Instant::now() + limit).is_ok_and(|status| (200..300).contains(&status))
}

/// The status of the answer; 200 for any TLS port.
fn get(url: &str, path: &str, deadline: Instant) -> io::Result<u16> {
    let Target { host, address, base, tls } = target(url);
    let mut stream = connect(&address, deadline)?;
    if tls {
        return Ok(200);
    }
    stream.set_write_timeout(Some(left(deadline)?))?;
    let request = format!("GET {base}{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut head = [0; "HTTP/1.1 200".len()];
    let mut filled = 0;
    while filled < head.len() {
        stream.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(&mut head[filled..])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => filled += read,
        }
    }
    let status = head.strip_prefix(b"HTTP/1.").and_then(|rest| str::from_utf8(rest.get(2..)?).ok());
    status.and_then(|status| status.parse().ok()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

struct Target<'a> {
    /// As in the URL, for the `Host` header.
    host: &'a str,
    /// With a port.
    address: String,
    /// Path that the URL begins with, without a slash at its end.
    base: &'a str,
    tls: bool,
}

fn target(url: &str) -> Target<'_> {
    let (rest, tls) = match url.strip_prefix("https://") {
        Some(rest) => (rest, true),
        None => (url.strip_prefix("http://").unwrap_or(url), false),
    };
    let rest = rest.trim_end_matches('/');
    let (host, base) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    // The colons of an IPv6 address stand in brackets.
    let has_port = host.rsplit(']').next().is_some_and(|tail| tail.contains(':'));
    let address = match has_port {
        true => host.to_owned(),
        false => format!("{host}:{}", if tls { 443 } else { 80 }),
    };
    Target { host, address, base, tls }
}

fn connect(address: &str, deadline: Instant) -> io::Result<TcpStream> {
    let mut last = io::ErrorKind::NotFound.into();
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, left(deadline)?) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn left(deadline: Instant) -> io::Result<Duration> {
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
        left => Ok(left),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{net::TcpListener, thread};

    const LIMIT: Duration = Duration::from_secs(10);

    /// Answers one connection with `answer`; gives the URL, and the request once it has come.
    fn answering(answer: &'static str) -> (String, thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let request = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let read = stream.read(&mut request).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8_lossy(&request[..read]).into_owned()
        });
        (url, request)
    }

    #[test]
    fn success_is_healthy_and_nothing_else() {
        for (answer, healthy) in [
            ("HTTP/1.1 200 OK\r\n\r\n", true),
            ("HTTP/1.0 204 No Content\r\n\r\n", true),
            ("HTTP/1.1 503 Service Unavailable\r\n\r\n", false),
            ("HTTP/1.1 2", false),
            ("SSH-2.0-OpenSSH_9.2\r\n", false),
        ] {
            let (url, request) = answering(answer);
            assert_eq!(is_healthy(&format!("{url}/base/"), "/readyz", LIMIT), healthy, "{answer}");
            assert!(request.join().unwrap().starts_with("GET /base/readyz HTTP/1.1\r\n"));
        }
    }

    #[test]
    fn nobody_and_a_silent_port_are_not_healthy() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        assert!(!is_healthy(&url, "/readyz", Duration::from_millis(20)), "it never answers");
        assert!(is_healthy(&url.replace("http:", "https:"), "/readyz", LIMIT), "a TLS port accepts");
        drop(listener);
        assert!(!is_healthy(&url, "/readyz", LIMIT), "it is closed");
        assert!(!is_healthy("http://", "/readyz", LIMIT));
    }

    #[test]
    fn a_url_without_a_port_has_the_usual_one() {
        let address = |url| target(url).address;
        assert_eq!(address("http://master"), "master:80");
        assert_eq!(address("https://master/"), "master:443");
        assert_eq!(address("https://[::1]"), "[::1]:443");
        assert_eq!(address("http://[::1]:5000/x"), "[::1]:5000");
        assert_eq!(address("127.0.0.1:5000"), "127.0.0.1:5000");
    }
}
