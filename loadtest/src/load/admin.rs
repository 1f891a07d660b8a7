//! A plain HTTP client for the admin listener and the provider's counters.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

use super::error::{LoadError, system};

const TIMEOUT: Duration = Duration::from_secs(30);

/// Status and body of `GET path`, with a bearer token if there is one.
pub(crate) fn get(at: SocketAddr, path: &str, token: &str) -> Result<(u16, String), LoadError> {
    let failed = system("asking over HTTP");
    let mut stream = TcpStream::connect_timeout(&at, TIMEOUT).map_err(&failed)?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(&failed)?;
    let head = format!(
        "GET {path} HTTP/1.1\r\nhost: {at}\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).map_err(&failed)?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).map_err(&failed)?;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    Ok((status, if chunked { unchunked(body) } else { body.to_owned() }))
}

/// The JSON of `GET path`.
pub(crate) fn json(at: SocketAddr, path: &str, token: &str) -> Result<Value, LoadError> {
    let (status, body) = get(at, path, token)?;
    serde_json::from_str(&body).map_err(|error| {
        LoadError::new(
            format!("{path} answered {status}, and no JSON: {error}"),
            "read the gateway's log",
        )
    })
}

/// The sum of a metric over its labels. One that isn't there is `None`: it is not zero.
pub(crate) fn metric(text: &str, name: &str) -> Option<f64> {
    metric_with(text, name, "")
}

/// The same over those with this label only, written `name="value"`.
pub(crate) fn metric_with(text: &str, name: &str, label: &str) -> Option<f64> {
    let of = |line: &str| {
        let rest = line.strip_prefix(name).filter(|rest| rest.starts_with([' ', '{']))?;
        let (labels, value) = rest.rsplit_once(' ')?;
        labels.contains(label).then(|| value.parse::<f64>().ok())?
    };
    text.lines().filter_map(of).reduce(|sum, value| sum + value)
}

fn unchunked(body: &str) -> String {
    let mut out = String::new();
    let mut rest = body;
    while let Some((size, more)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        let Some(chunk) = more.get(..size).filter(|_| size > 0) else { break };
        out += chunk;
        rest = more.get(size + 2..).unwrap_or_default();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_summed_over_its_labels_only() {
        let text = "# HELP a_b x\na_b{c=\"1\"} 2\na_b{c=\"2\"} 3.5\na_b_total 9\na_b 1\n";
        assert_eq!(metric(text, "a_b"), Some(6.5));
        assert_eq!(metric_with(text, "a_b", "c=\"2\""), Some(3.5));
        assert_eq!((metric(text, "a"), metric_with(text, "a_b", "c=\"3\"")), (None, None));
        assert_eq!(unchunked("3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"), "abcde");
    }
}
