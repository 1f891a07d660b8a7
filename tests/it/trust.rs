//! The roots of trust that a provider's `ca_file` names: read with the configuration, and only then.

use crate::downstream::{certificate, tls_provider};
use crate::support::*;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::fs;
use tollbar_loadtest::provider::Provider;

/// Provider `p` on TLS with this `ca_file`, provider `q` without, and a model that falls back.
fn config(p: &Provider, q: &Provider, ca: &str) -> String {
    format!(
        "{}providers:\n  \
           p: {{ dialect: openai, base_url: \"https://localhost:{}/v1\", ca_file: {ca} }}\n  \
           q: {{ dialect: openai, base_url: \"{}/v1\" }}\nmodels:\n{}{}{}",
        head(),
        p.addr().port(),
        q.base(),
        model("gpt", "sim-p", ", fallbacks: [spare]"),
        model("alone", "sim-p", ""),
        model("spare", "sim-q", "").replace("provider: p,", "provider: q,"),
    )
}

async fn ask(server: &Server) -> (u16, String) {
    let answer = post(&client(), server.url("/v1/chat/completions"), chat("gpt").to_string()).await;
    let by = answer.headers().get("x-tollbar-target").map(|by| by.to_str().unwrap().to_owned());
    (answer.status().as_u16(), by.unwrap_or_default())
}

async fn reload(server: &Server) -> (u16, String) {
    let answer = client().post(server.admin_url("/reload")).bearer_auth(ADMIN_TOKEN).send().await;
    let answer = answer.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

#[tokio::test]
async fn roots_are_those_of_the_configuration_in_force() {
    let scratch = Scratch::new();
    let dir = scratch.0.clone();
    let right = certificate(&dir, "right", &["localhost"]);
    let wrong = certificate(&dir, "wrong", &["localhost"]);
    let (p, q) = (tls_provider(&dir, "right"), provider());
    fs::write(dir.join("ca.pem"), &right).unwrap();
    let server = Server::start_here(scratch, &config(&p, &q, "ca.pem"), &[]);
    let (by_p, by_q) = ((200, "p/sim-p".to_owned()), (200, "q/sim-q".to_owned()));
    assert_eq!(ask(&server).await, by_p);

    // Whoever renews it may have written half of it, or none: nothing changes, until it is told to.
    let half = &right[..right.len() / 2];
    for content in [Some(half), Some("nonsense"), Some(wrong.as_str()), None] {
        match content {
            Some(content) => fs::write(dir.join("ca.pem"), content).unwrap(),
            None => fs::remove_file(dir.join("ca.pem")).unwrap(),
        }
        assert_eq!(ask(&server).await, by_p, "{content:?}");
        if content != Some(wrong.as_str()) {
            let (status, why) = reload(&server).await;
            assert_eq!(status, 400, "{content:?}: {why}");
            assert!(why.contains("providers.p.ca_file"), "{why}");
            assert_eq!(ask(&server).await, by_p, "{content:?}");
        }
    }

    // From a reload on nobody else is trusted, on an open connection neither.
    fs::write(dir.join("ca.pem"), &wrong).unwrap();
    assert_eq!(reload(&server).await.0, 200);
    assert_eq!(ask(&server).await, by_q);
    fs::write(dir.join("ca.pem"), &right).unwrap();
    assert_eq!(reload(&server).await.0, 200);
    assert_eq!(ask(&server).await, by_p);
}

/// A certificate of version 1 whose time of validity is left out. What checks other certificates by
/// it takes no notice of that, but Pingora doesn't take it.
fn odd() -> String {
    fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        let value = parts.concat();
        [&[tag, u8::try_from(value.len()).unwrap()][..], &value].concat()
    }
    let none = tlv(0x30, &[]);
    let serial = tlv(0x02, &[&[1]]);
    let tbs = tlv(0x30, &[&serial, &none, &none, &none, &none, &none]);
    let der = tlv(0x30, &[&tbs, &none, &tlv(0x03, &[&[0]])]);
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", STANDARD.encode(der))
}

/// What one provider's settings are to blame for is no reason to refuse what others can do.
#[tokio::test]
async fn a_provider_that_cannot_be_connected_to_is_fallen_back_from() {
    let scratch = Scratch::new();
    let dir = scratch.0.clone();
    certificate(&dir, "right", &["localhost"]);
    let (p, q) = (tls_provider(&dir, "right"), provider());
    fs::write(dir.join("odd.pem"), odd()).unwrap();
    let server = Server::start_here(scratch, &config(&p, &q, "odd.pem"), &[]);
    assert_eq!(ask(&server).await, (200, "q/sim-q".to_owned()));
    // Where there is no other, the client is not told where files are.
    let url = server.url("/v1/chat/completions");
    let answer = post(&client(), url, chat("alone").to_string()).await;
    assert_eq!(answer.status(), 502);
    let said = answer.text().await.unwrap();
    assert!(said.contains("ca_file") && !said.contains("odd.pem"), "{said}");
}
