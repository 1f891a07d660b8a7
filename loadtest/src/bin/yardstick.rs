//! The yardstick: the smallest proxy that Pingora makes.
//!
//! It sends every request to one address and does nothing else, so that what a gateway costs can
//! be told from what Pingora and the kernel cost. Allocator, profile and the size of the pool of
//! upstream connections are the gateway's.

use std::net::SocketAddr;

use async_trait::async_trait;
use clap::Parser;
use pingora_core::Result;
use pingora_core::apps::HttpServerOptions;
use pingora_core::server::Server;
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A bare Pingora proxy to one upstream. HTTP/1.1 and, by prior knowledge, HTTP/2.
#[derive(Parser)]
struct Arguments {
    /// Where to listen.
    #[arg(long)]
    listen: SocketAddr,
    /// Where all requests go, without TLS.
    #[arg(long)]
    upstream: SocketAddr,
    /// Worker threads.
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

struct Yardstick {
    upstream: SocketAddr,
}

#[async_trait]
impl ProxyHttp for Yardstick {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _: &mut Session, (): &mut ()) -> Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.upstream, false, String::new())))
    }
}

fn main() {
    let arguments = Arguments::parse();
    let conf = ServerConf {
        threads: arguments.threads,
        upstream_keepalive_pool_size: 512,
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(1),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let proxy = Yardstick { upstream: arguments.upstream };
    let mut service = http_proxy_service(&server.configuration, proxy);
    if let Some(app) = service.app_logic_mut() {
        let mut options = HttpServerOptions::default();
        options.h2c = true;
        app.server_options = Some(options);
    }
    service.add_tcp(&arguments.listen.to_string());
    server.add_service(service);
    server.run_forever();
}
