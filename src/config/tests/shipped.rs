//! The files in conf/ load.

use super::super::{Snapshot, candidates, file, plan};
use super::*;
use std::sync::Arc;

const REFERENCE: &str = include_str!("../../../conf/reference.yaml");
const CERT: &str = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n";
const TOKEN: &str = "b7c1f9d2e4a68035b7c9f1d2e4a68035";

/// A certificate and its key, in PEM.
fn certificate() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

fn everything() -> Fake {
    let (cert, key) = certificate();
    Fake::default()
        .var("TOLLBAR_ADMIN_TOKEN", TOKEN)
        .var("OPENAI_API_KEY", "sk-one")
        .var("ANTHROPIC_API_KEY", "sk-two")
        .var("HOOK_SECRET", "hook")
        .var("TOLLBAR_FIRST_KEY_HASH", &format!("sha256:{}", "ab".repeat(32)))
        .var("TOLLBAR_DEMO_ADDRESS", "127.0.0.1:8080")
        .var("TOLLBAR_DEMO_ADMIN_ADDRESS", "127.0.0.1:9090")
        .var("TOLLBAR_DEMO_STATE", "/tmp/tollbar-demo.db")
        .var("TOLLBAR_DEMO_PROVIDER", "127.0.0.1:4010")
        .var("TOLLBAR_DEMO_ADMIN_TOKEN", TOKEN)
        .var("TOLLBAR_DEMO_KEY_HASH", &"cd".repeat(32))
        .file("/etc/tollbar/tls.crt", &cert)
        .file("/etc/tollbar/tls.key", &key)
        .file("/etc/tollbar/roots.pem", &cert)
        .file("/etc/tollbar/anthropic.key", "sk-three\n")
        .file(
            "/etc/tollbar/prices.yaml",
            "openai/gpt-4o-mini: { input: 0.14, output: 0.55, context_window: 64000 }\nlocal/llama-3: free\n",
        )
}

#[test]
fn the_reference_loads_without_a_warning() {
    let loaded = load(REFERENCE, &everything()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(loaded.warnings, []);
    let snapshot = loaded.snapshot;
    assert_eq!(snapshot.listeners.len(), 2);
    assert_eq!(snapshot.hash.len(), 16);
    let own = snapshot.catalog.own("openai", "gpt-4o-mini").unwrap();
    assert_eq!((own.price.input, own.context_window), (140_000, Some(64_000)));
    assert!(own.price.version.starts_with("prices-"), "{}", own.price.version);
    assert!(snapshot.catalog.own("local", "llama-3").unwrap().price.free);
    let key = snapshot.keys.iter().next().unwrap();
    assert_eq!(key.metadata, r#"{"app":"storefront"}"#);
    assert!(key.models.allows("small") && !key.models.allows("large"));
}

#[test]
fn every_root_of_a_ca_file_can_be_used() {
    let (root, other) = (certificate().0, certificate().0);
    let bad = [
        ("", "has no certificate"),
        ("BEGIN CERTIFICATE", "has no certificate"),
        (&root[..root.len() / 2], "at its certificate 1"),
        (CERT, "that can't be read, its number 1"),
        (&format!("{root}{CERT}{root}"), "that can't be read, its number 2"),
        (&format!("{root}{}", other.replace('\n', "\n!")), "at its certificate 2"),
    ];
    for (content, part) in bad {
        let error = load(REFERENCE, &everything().file("/etc/tollbar/roots.pem", content));
        let problems = error.unwrap_err().problems;
        assert_eq!(problems.len(), 1, "{part}: {problems:?}");
        assert_eq!(problems[0].path, "providers.openai.ca_file");
        assert!(problems[0].message.contains("/etc/tollbar/roots.pem"), "{}", problems[0]);
        assert!(problems[0].message.contains(part), "{}", problems[0]);
    }
}

#[test]
fn one_ca_file_is_one_set_of_roots() {
    let old = "base_url: \"http://127.0.0.1:11434/v1\" }";
    assert!(REFERENCE.contains(old));
    let two = REFERENCE.replace(old, &old.replace(" }", ", ca_file: roots.pem }"));
    let (pem, other) = (certificate().0, certificate().0);
    let reload = |pem: &str, old: Option<&Snapshot>| {
        let files = everything().file("/etc/tollbar/roots.pem", pem);
        let loaded = load_text(&two, "tollbar.yaml", Path::new("/etc/tollbar"), &files, old);
        loaded.unwrap_or_else(|e| panic!("{e}")).snapshot
    };
    let roots = |snapshot: &Snapshot, name: &str| snapshot.providers[name].roots.clone().unwrap();
    let first = reload(&pem, None);
    let shared = roots(&first, "openai");
    assert_eq!(shared.certificates.len(), 1);
    assert!(Arc::ptr_eq(&shared, &roots(&first, "local")));
    assert!(Arc::ptr_eq(&shared, &roots(&reload(&pem, Some(&first)), "local")), "read again");
    // Other roots in the same place are others.
    assert_ne!(shared.hash, roots(&reload(&other, Some(&first)), "local").hash);
}

/// A renewal that was seen half done: no reload may take it for good.
#[test]
fn a_certificate_comes_with_its_own_key() {
    let (_, other) = certificate();
    let error = load(REFERENCE, &everything().file("/etc/tollbar/tls.key", &other));
    let error = error.err().unwrap().to_string();
    assert!(error.contains("listeners[1].tls: /etc/tollbar/tls.crt and"), "{error}");
    assert!(error.contains("the key is not the certificate's"), "{error}");
    let error = load(REFERENCE, &everything().file("/etc/tollbar/tls.crt", CERT));
    assert!(error.err().unwrap().to_string().contains("tls.crt"));
}

#[test]
fn the_reference_shows_every_key() {
    for key in file::SCHEMA.iter().copied().flatten().filter(|key| **key != "key") {
        let there = REFERENCE.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        assert!(there.into_iter().any(|word| word == *key), "{key}");
        assert!(REFERENCE.contains(&format!("{key}:")), "{key}");
    }
}

/// A default written in the reference is the default.
#[test]
fn defaults_are_what_the_reference_says() {
    let base = good(BASE).snapshot;
    let shown = load(REFERENCE, &everything()).unwrap().snapshot;
    assert_eq!(base.attempts, shown.attempts);
    assert_eq!(base.breaker, shown.breaker);
    assert_eq!(base.admission_wait, shown.admission_wait);
    assert_eq!(base.tiers, shown.tiers);
    assert_eq!(format!("{:?}", base.server), format!("{:?}", shown.server));
    assert_eq!(base.alerts.budget_at, shown.alerts.budget_at);
    assert_eq!(base.alerts.fallback_rate, shown.alerts.fallback_rate);
    assert_eq!(base.alerts.spend_velocity, shown.alerts.spend_velocity);
    assert_eq!((base.timezone, base.state_path), (shown.timezone, shown.state_path));
    assert_eq!(base.admin.address, shown.admin.address);
    let (a, b) = (&base.providers["openai"], &shown.providers["openai"]);
    assert_eq!((a.connect_timeout, a.read_timeout), (b.connect_timeout, b.read_timeout));
    assert_eq!((a.http2, a.on_disconnect), (b.http2, b.on_disconnect));
}

#[test]
fn the_smallest_and_the_demo_load_without_a_warning() {
    for text in
        [include_str!("../../../conf/tollbar.yaml"), include_str!("../../../conf/demo.yaml")]
    {
        let loaded = load(text, &everything()).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(loaded.warnings, []);
    }
    let demo = load(include_str!("../../../conf/demo.yaml"), &everything()).unwrap().snapshot;
    let provider = &demo.providers["sim-openai"];
    assert_eq!((provider.host.as_str(), provider.port, provider.tls), ("127.0.0.1", 4010, false));
    assert_eq!(provider.base_path, "/v1");
    let order: Vec<_> = candidates(&demo, &demo.models["demo-small"])
        .iter()
        .map(|(_, target)| target.id.clone())
        .collect();
    assert_eq!(order, ["sim-openai/sim-small", "sim-openai/sim-backup"]);
    assert!(plan(&demo).contains("worst price multiple of a fallback: 0.7x"), "{}", plan(&demo));
}
