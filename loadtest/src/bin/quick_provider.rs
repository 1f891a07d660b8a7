//! Runs the quick provider until it is killed, and prints where it listens.

use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;

use clap::Parser;

/// A provider that answers from memory, for load tests.
#[derive(Parser)]
struct Arguments {
    /// Where to listen; port 0 picks one.
    #[arg(long, default_value = "127.0.0.1:0")]
    address: SocketAddr,
    /// Threads that serve.
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quick-provider: cannot serve on {}: {error}", arguments.address);
            eprintln!("choose another --address, or raise the limit of open files");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> std::io::Result<()> {
    let listener = TcpListener::bind(arguments.address)?;
    // The standard library listens with a backlog of 128: too few for 10,000 at once.
    rustix::net::listen(&listener, 4096)?;
    println!("http://{}", listener.local_addr()?);
    tollbar_loadtest::load::quick::serve(listener, arguments.threads)
}
