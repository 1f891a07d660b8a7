//! Runs the scripted provider until it is killed, and prints where it listens.

use std::net::SocketAddr;
use std::process::ExitCode;

use tollbar_loadtest::provider::{Provider, TlsFiles};

const USAGE: &str = "\
usage: scripted-provider [--address 127.0.0.1:0] [--tls-cert FILE --tls-key FILE] [--keep N]

Prints its base URL. Control: POST /__control, GET|DELETE /__requests, GET /__stats.
  --address   where to listen; port 0 picks one
  --tls-cert  certificate chain, PEM
  --tls-key   private key, PEM
  --keep      how many of the last requests are recorded (default 1000)";

struct Options {
    address: SocketAddr,
    tls: Option<TlsFiles>,
    keep: usize,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("{message}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let provider = match Provider::start(options.address, options.tls) {
        Ok(provider) => provider,
        Err(error) => {
            eprintln!("scripted-provider: cannot start on {}: {error}", options.address);
            return ExitCode::FAILURE;
        }
    };
    provider.keep(options.keep);
    println!("{}", provider.base());
    std::future::pending().await
}

fn parse(args: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut address = SocketAddr::from(([127, 0, 0, 1], 0));
    let (mut cert, mut key, mut keep) = (None, None, 1000);
    let mut args = args;
    while let Some(flag) = args.next() {
        let mut value = || args.next().ok_or(format!("{flag} needs a value"));
        match flag.as_str() {
            "--address" => address = value()?.parse().map_err(|e| format!("--address: {e}"))?,
            "--tls-cert" => cert = Some(value()?.into()),
            "--tls-key" => key = Some(value()?.into()),
            "--keep" => keep = value()?.parse().map_err(|e| format!("--keep: {e}"))?,
            _ => return Err(format!("unknown argument {flag}")),
        }
    }
    let tls = match (cert, key) {
        (None, None) => None,
        (Some(cert), Some(key)) => Some(TlsFiles { cert, key }),
        _ => return Err("--tls-cert and --tls-key go together".to_owned()),
    };
    Ok(Options { address, tls, keep })
}
