//! `tollbar demo`: the real gateway in front of a simulated provider, in one process.

use crate::config::{Environment, ProcessEnvironment};
use crate::keygen;
use crate::logging::{self, Log};
use crate::reload::Source;
use crate::server::{self, Options, Ready, StartError};
use crate::terminal;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use tollbar_loadtest::provider::Provider;

const CONFIG: &str = include_str!("../conf/demo.yaml");

/// The process's environment, with the demo's own values in front.
struct DemoEnvironment(Vec<(&'static str, String)>);

impl Environment for DemoEnvironment {
    fn var(&self, name: &str) -> Option<String> {
        let own = self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone());
        own.or_else(|| ProcessEnvironment.var(name))
    }

    fn read(&self, path: &Path) -> std::io::Result<String> {
        ProcessEnvironment.read(path)
    }
}

/// Runs the demo until it is interrupted.
pub fn main() -> ExitCode {
    let log = match logging::start() {
        Ok(log) => log,
        Err(error) => return no_log(&error),
    };
    let Ok(runtime) =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()
    else {
        log.last_word("no thread for the simulated provider.\ncheck the process's limits.");
        return ExitCode::FAILURE;
    };
    let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let provider = match runtime.block_on(async { Provider::start(local, None) }) {
        Ok(provider) => provider,
        Err(error) => {
            log.last_word(format_args!(
                "the simulated provider can't listen: {error}\nis there a loopback interface?"
            ));
            return ExitCode::FAILURE;
        }
    };
    let key = keygen::generate(&mut rand::rng());
    let admin_token = keygen::generate(&mut rand::rng()).plain;
    let state = std::env::temp_dir().join(format!("tollbar-demo-{}", std::process::id()));
    if let Err(error) = std::fs::create_dir_all(&state) {
        log.last_word(format_args!(
            "{}: {error}\nset TMPDIR to a folder that can be written.",
            state.display()
        ));
        return ExitCode::FAILURE;
    }
    let listen = |name, port: u16| {
        let wanted = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        // A port in use is no reason to fail a first try.
        let free = std::net::TcpListener::bind(wanted).is_ok();
        (name, if free { wanted } else { local }.to_string())
    };
    let environment = DemoEnvironment(vec![
        listen("TOLLBAR_DEMO_ADDRESS", 8080),
        listen("TOLLBAR_DEMO_ADMIN_ADDRESS", 9090),
        ("TOLLBAR_DEMO_PROVIDER", provider.addr().to_string()),
        ("TOLLBAR_DEMO_ADMIN_TOKEN", admin_token.expose().to_owned()),
        ("TOLLBAR_DEMO_KEY_HASH", hex::encode(key.hash)),
        ("TOLLBAR_DEMO_STATE", state.join("demo.db").display().to_string()),
    ]);
    let options = Options {
        source: Source::Embedded(CONFIG),
        environment: Box::new(environment),
        upgrade: false,
        on_ready: Box::new(move |ready| {
            terminal::print(&welcome(ready, key.plain.expose(), admin_token.expose()))
        }),
    };
    let result = match server::run(options) {
        // Who was to read the addresses and the key has gone.
        Err(StartError::Output(why)) if why.is_closed() => Ok(()),
        result => result,
    };
    let code = finish(result, &log);
    drop(provider);
    // A demo remembers nothing; what can't be removed is left to the system's own cleaning.
    let _ = std::fs::remove_dir_all(&state);
    runtime.shutdown_background();
    code
}

/// Turns the end of a server into an exit code.
pub fn finish(result: Result<(), StartError>, log: &Log) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log.last_word(error);
            ExitCode::FAILURE
        }
    }
}

/// The exit code where there is not even a log.
pub fn no_log(error: &std::io::Error) -> ExitCode {
    terminal::complain(format_args!(
        "tollbar: no thread for the log: {error}\ncheck the process's limits."
    ));
    ExitCode::FAILURE
}

fn welcome(ready: &Ready, key: &str, admin_token: &str) -> String {
    let address = ready.data.first().map_or_else(String::new, |(address, _)| address.to_string());
    let admin = ready.admin;
    format!(
        r#"
Tollbar is serving on http://{address} (simulated provider; no key, no network).

  a virtual key:  {key}

A plain request:

  curl http://{address}/v1/chat/completions -H "Authorization: Bearer {key}" -H "Content-Type: application/json" -d '{{"model":"demo-small","messages":[{{"role":"user","content":"Hello"}}]}}'

A streamed one:

  curl -N http://{address}/v1/chat/completions -H "Authorization: Bearer {key}" -H "Content-Type: application/json" -d '{{"model":"demo-small","stream":true,"messages":[{{"role":"user","content":"Hello"}}]}}'

What it did:

  curl http://{admin}/metrics
  curl http://{admin}/status -H "Authorization: Bearer {admin_token}"

Ctrl-C stops it. Each request prints one JSON line below.

"#
    )
}
