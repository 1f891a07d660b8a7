//! Mistakes, and what is said about each.

use super::*;

/// Replaces, then expects one problem with this line, path and part of message or fix.
type Case = (&'static str, &'static str, usize, &'static str, &'static str);

const MINI: &str = "mini: { targets: [ { provider: openai, model: gpt-4o-mini } ] }";
const TARGET: &str = "{ provider: openai, model: gpt-4o-mini }";
const KEY_BUDGET: &str = "budgets: [ { usd: 1, per: day } ]";
const LISTENERS: &str = r#"listeners: [ { address: "127.0.0.1:8080" } ]"#;
const OPENAI: &str = r#"openai: { dialect: openai, base_url: "https://api.openai.com/v1" }"#;

#[rustfmt::skip]
const CASES: &[Case] = &[
    // Shape.
    ("keys:", "kyes:", 0, "keys", "missing. Make one with `tollbar keygen`"),
    (KEY_BUDGET, "bugdets: []", 8, "keys[0].bugdets", "unknown key. Did you mean `budgets`?"),
    (LISTENERS, "listeners: 8080", 1, "listeners", "expected a list, found a single value"),
    (LISTENERS, "listeners: []", 0, "listeners", "is empty"),
    (LISTENERS, "listeners: [ {} ]", 1, "listeners[0].address", "missing"),
    ("127.0.0.1:8080", "localhost:8080", 1, "listeners[0].address", "not an address. Write an IP address and a port"),
    (LISTENERS, r#"listeners: [ { address: "0.0.0.0:80" }, { address: "127.0.0.1:80" } ]"#, 1, "listeners[1].address", "already listened on"),
    ("127.0.0.1:8080", "127.0.0.1:9090", 0, "admin", "clashes with the listener"),
    (LISTENERS, r#"listeners: [ { address: "127.0.0.1:1", tls: { cert: c.pem } } ]"#, 1, "listeners[0].tls.cert", "cannot read /etc/tollbar/c.pem"),
    (LISTENERS, "listeners: [ { address: '127.0.0.1:1' } ]\nserver: { max_body_bytes: 64MB }", 2, "server.max_body_bytes", "expected a size, found `64MB`. Write one like 64KiB or 64MiB"),
    (LISTENERS, "listeners: [ { address: '127.0.0.1:1' } ]\nserver: { max_buffered_bytes: 1MiB }", 2, "server.max_buffered_bytes", "less than max_body_bytes"),
    (LISTENERS, "listeners: [ { address: '127.0.0.1:1' } ]\nserver: { max_memory: 80% }", 2, "server.max_memory", "expected `auto`, `none` or a size, found `80%`"),
    (LISTENERS, "listeners: [ { address: '127.0.0.1:1' } ]\nserver: { drain: 30 }", 2, "server.drain", "(the unit is missing)"),
    (LISTENERS, "listeners: [ { address: '127.0.0.1:1' } ]\nserver: { threads: 0 }", 2, "server.threads", "`auto` or a number"),
    (LISTENERS, "listeners: [ { address: '127.0.0.1:1' } ]\ntimezone: Europe/Berln", 2, "timezone", "Did you mean `Europe/Berlin`?"),
    (LISTENERS, "listeners: [ { address: '127.0.0.1:1' } ]\nattempts: { max: 0 }", 2, "attempts.max", "out of range"),
    (LISTENERS, "listeners: [ { address: '127.0.0.1:1' } ]\nbreaker: { failures: 0 }", 2, "breaker.failures", "more than zero"),
    (LISTENERS, "listeners: [ { address: '127.0.0.1:1' } ]\nstate: { on_failure: opne }", 2, "state.on_failure", "Did you mean `open`?"),
    (LISTENERS, "listeners: [ { address: '127.0.0.1:1' } ]\nalerts: { budget_at: [1.5] }", 2, "alerts.budget_at[0]", "a share between 0 and 1"),
    (LISTENERS, "listeners: [ { address: '127.0.0.1:1' } ]\nalerts: { spend_velocity: 1 }", 2, "alerts.spend_velocity", "a number above 1"),
    (LISTENERS, "listeners: [ { address: '127.0.0.1:1' } ]\nlisteners: []", 2, "", "duplicate key `listeners`"),
    // Providers.
    (OPENAI, "openai: { base_url: 'https://api.openai.com/v1' }", 3, "providers.openai.dialect", "missing"),
    (OPENAI, "openai: { dialect: opnai, base_url: 'https://api.openai.com/v1' }", 3, "providers.openai.dialect", "Did you mean `openai`?"),
    (OPENAI, "openai: { dialect: openai }", 3, "providers.openai.base_url", "missing"),
    (OPENAI, "openai: { dialect: openai, base_url: 'https://u:p@h/v1' }", 3, "providers.openai.base_url", "belong in api_key"),
    (OPENAI, "openai: { dialect: openai, base_url: 'https://h/v1?x=1' }", 3, "providers.openai.base_url", "with a query"),
    (OPENAI, "openai: { dialect: openai, base_url: 'ftp://h/v1' }", 3, "providers.openai.base_url", "neither http nor https"),
    (OPENAI, "openai: { dialect: openai, base_url: 'api.openai.com' }", 3, "providers.openai.base_url", "neither http nor https"),
    (OPENAI, "openai: { dialect: openai, base_url: 'https://h:99999/v1' }", 3, "providers.openai.base_url", "URL"),
    (OPENAI, "openai: { dialect: openai, base_url: 'https://api.openai.com/v1', http2: sometimes }", 3, "providers.openai.http2", "one of auto, never, always"),
    (OPENAI, "openai: { dialect: openai, base_url: 'https://api.openai.com/v1', ca_file: x.pem }", 3, "providers.openai.ca_file", "cannot read /etc/tollbar/x.pem"),
    (OPENAI, "openai: { dialect: openai, base_url: 'https://api.openai.com/v1', headers: { Host: x } }", 3, "providers.openai.headers.Host", "set by Tollbar itself"),
    (OPENAI, "openai: { dialect: openai, base_url: 'https://api.openai.com/v1', read_timeout: 0s }", 3, "providers.openai.read_timeout", "too short"),
    (OPENAI, "openai: { dialect: openai, base_url: 'https://api.openai.com/v1', passthrough: { unmetered: ['/*'] } }", 3, "providers.openai.passthrough.unmetered[0]", "every path"),
    // Models and prices.
    (MINI, "mini: { targets: [] }", 6, "models.mini.targets", "the list of targets is empty"),
    (MINI, "mini: {}", 6, "models.mini.targets", "missing"),
    (TARGET, "{ provider: opnai, model: gpt-4o-mini }", 6, "models.mini.targets[0].provider", "unknown provider `opnai`. Did you mean `openai`?"),
    (TARGET, "{ provider: openai, model: gpt-4o-mni }", 6, "models.mini.targets[0].price", "no price is known for `gpt-4o-mni` at `openai`. Did you mean `gpt-4o-mini`? Or write `price: {"),
    (TARGET, "{ provider: local, model: llama }", 6, "models.mini.targets[0].price", "`price: free` for a self-hosted model"),
    (TARGET, "{ provider: local, model: llama, price: cheap }", 6, "models.mini.targets[0].price", "a map of prices, or `free`"),
    (TARGET, "{ provider: local, model: llama, price: { input: 1 } }", 6, "models.mini.targets[0].price.output", "missing. Write `output: 0`"),
    (TARGET, "{ provider: local, model: llama, price: { input: 0, output: 0.0 } }", 6, "models.mini.targets[0].price", "the price is zero"),
    (TARGET, "{ provider: local, model: llama, price: { input: -1, output: 1 } }", 6, "models.mini.targets[0].price.input", "a negative number"),
    (TARGET, "{ provider: local, model: llama, price: { input: 1e-3, output: 1 } }", 6, "models.mini.targets[0].price.input", "not a plain decimal"),
    (TARGET, "{ provider: local, model: llama, price: { input: 0.00000015, output: 1 } }", 6, "models.mini.targets[0].price.input", "a price per token, as LiteLLM has it. Write it per million"),
    (TARGET, "{ provider: openai, model: '../x', price: free }", 6, "models.mini.targets[0].model", "not the id of a model"),
    (TARGET, "{ provider: openai, model: gpt-4o-mini, weight: 0 }", 6, "models.mini.targets", "all weights are zero"),
    (TARGET, "{ provider: openai, model: gpt-4o-mini }, { provider: openai, model: gpt-4o-mini }", 6, "models.mini.targets[1]", "listed twice"),
    (TARGET, "{ provider: openai, model: gpt-4o-mini }, { provider: openai, model: gpt-4o }", 6, "models.mini.targets[1]",
        "`openai/gpt-4o` (tier standard, $2.50 in / $10.00 out per million tokens) is in a dearer tier than `openai/gpt-4o-mini` (tier cheap, $0.15 in / $0.60 out per million tokens): 16.7x the price"),
    (MINI, "mini: { targets: [ { provider: openai, model: gpt-4o-mini } ], fallbacks: [mini] }", 6, "models.mini.fallbacks[0]", "its own fallback"),
    (MINI, "mini: { targets: [ { provider: openai, model: gpt-4o-mini } ], fallbacks: [big] }\n  bigg: { targets: [ { provider: openai, model: gpt-4o } ] }", 6, "models.mini.fallbacks[0]", "unknown model `big`. Did you mean `bigg`?"),
    (MINI, "mini: { targets: [ { provider: openai, model: gpt-4o-mini } ], fallbacks: [big] }\n  big: { targets: [ { provider: openai, model: gpt-4o } ] }", 6, "models.mini.fallbacks[0]",
        "`mini` (tier cheap, $0.15 in / $0.60 out per million tokens) would fall back to `big` (tier standard, $2.50 in / $10.00 out per million tokens): 16.7x the price. List models of the same tier"),
    (MINI, "<<: { targets: [ { provider: openai, model: gpt-4o-mini } ] }\n  mini: { targets: [ { provider: openai, model: gpt-4o-mini } ] }", 6, "models.<<", "merge keys are not supported"),
    // Keys.
    ("{ id: a,", "{ id: tb-01234567890123456789,", 8, "keys[0].id", "the id is a key in plain text. Write a name"),
    (KEY_BUDGET, "limits: { rpm: 1 }", 8, "keys[0]", "no budget covers this key"),
    (KEY_BUDGET, "budgets: []", 8, "keys[0].budgets", "no budget covers this key"),
    (KEY_BUDGET, "budgets: [ { usd: 0.0000000001, per: day } ]", 8, "keys[0].budgets[0].usd", "more than 9 digits after the point"),
    (KEY_BUDGET, "budgets: [ { usd: 0, per: day } ]", 8, "keys[0].budgets[0].usd", "more than zero"),
    (KEY_BUDGET, "budgets: [ { usd: 5 } ]", 8, "keys[0].budgets[0].per", "missing"),
    (KEY_BUDGET, "budgets: [ { usd: 5, per: year } ]", 8, "keys[0].budgets[0].per", "one of minute, hour, day, week, month, total"),
    (KEY_BUDGET, "budgets: [ { usd: 5, per: day }, { usd: 6, per: day } ]", 8, "keys[0].budgets[1]", "a second budget per day"),
    (KEY_BUDGET, "budgets: [ { usd: 5, per: day } ], limits: { rpm: 0 }", 8, "keys[0].limits.rpm", "more than zero"),
    (KEY_BUDGET, "budgets: [ { usd: 5, per: day } ], limits: { rpm: 1.5 }", 8, "keys[0].limits.rpm", "expected a whole number, found `1.5`"),
    (KEY_BUDGET, "budgets: [ { usd: 5, per: day } ], team: web", 8, "keys[0].team", "unknown team `web`. Write `teams: { web:"),
    (KEY_BUDGET, "budgets: [ { usd: 5, per: day } ], expires: tomorrow", 8, "keys[0].expires", "2027-06-30T00:00:00Z"),
    (KEY_BUDGET, "budgets: [ { usd: 5, per: day } ], low_budget: clip", 8, "keys[0].low_budget", "one of refuse, clamp"),
    (r#"models: ["*"]"#, "models: []", 8, "keys[0].models", "the list is empty"),
    (r#"models: ["*"]"#, "models: [minni]", 8, "keys[0].models[0]", "unknown model `minni`. Did you mean `mini`?"),
    ("sha256:00", "sha256:zz", 8, "keys[0].hash", "not 64 hex digits"),
    ("sha256:00", "00", 8, "keys[0].hash", "not a hash"),
    ("hash:", "key: tb-plain, hash:", 8, "keys[0].key", "a key in plain text. Remove it"),
];

#[test]
fn every_mistake_has_its_line_path_and_remedy() {
    for (from, to, line, path, part) in CASES {
        let invalid = bad(&with(from, to));
        let expected = (Some(*line).filter(|n| *n > 0), *path);
        let found = invalid.problems.iter().find(|p| (p.line, p.path.as_str()) == expected);
        let found = found.unwrap_or_else(|| panic!("{to}\n{expected:?} not in\n{invalid}"));
        assert!(found.to_string().contains(part), "{to}\n{found}\nhas no\n{part}");
        // A mistyped section is unknown as well as missing; everything else is said once.
        let most = if *to == "kyes:" || *to == "bugdets: []" { 2 } else { 1 };
        let rest: Vec<_> = invalid.problems.iter().map(ToString::to_string).collect();
        assert!(rest.len() <= most || to.contains("cert: c.pem"), "{to}\n{rest:#?}");
    }
}

#[test]
fn one_run_reports_all_ten() {
    let text = r#"listeners:
  - addres: 127.0.0.1:8080
admin: { token: short }
server: { drain: soon }
providers:
  openai: { dialect: openai, base_url: "https://api.openai.com/v1", api_key: "${NOT_SET}" }
models:
  mini:
    targets:
      - { provider: openai, model: gpt-4o-mini }
    fallbacks: [big]
  big: { targets: [ { provider: opanai, model: gpt-4o } ] }
  large: { targets: [ { provider: openai, model: no-such } ] }
keys:
  - id: a
    hash: sha256:12
    models: ["mini"]
    budgets: [ { usd: 1.0000000001, per: day } ]
  - id: a
    hash: sha256:0000000000000000000000000000000000000000000000000000000000000001
    models: ["mini"]
    models: ["*"]
"#;
    let invalid = bad(text);
    let found: Vec<_> =
        invalid.problems.iter().map(|p| (p.line.unwrap_or(0), p.path.as_str())).collect();
    let expected = [
        (2, "listeners[0].addres"),
        (2, "listeners[0].address"),
        (3, "admin.token"),
        (4, "server.drain"),
        (6, "providers.openai.api_key"),
        (12, "models.big.targets[0].provider"),
        (13, "models.large.targets[0].price"),
        (16, "keys[0].hash"),
        (18, "keys[0].budgets[0].usd"),
        (19, "keys[1].id"),
        (19, "keys[1]"),
        (22, ""),
    ];
    assert_eq!(found, expected, "{invalid}");
    let first = invalid.to_string().lines().next().unwrap().to_owned();
    assert_eq!(first, "tollbar.yaml:2: listeners[0].addres: unknown key. Did you mean `address`?");
}

#[test]
fn text_that_is_no_configuration() {
    let cases = [
        ("", "tollbar.yaml:1: the file is empty. Start from"),
        ("# only this\n", "tollbar.yaml:1: the file is empty"),
        ("a: [1,\nb: {", "tollbar.yaml:"),
        ("- a\n- b\n", "tollbar.yaml:1: expected a map, found a list"),
        ("a: 1\n---\nb: 2\n", "a second YAML document"),
        ("a:\n  b: 1\n\tc: 2\n", "not valid YAML"),
    ];
    for (text, start) in cases {
        let shown = bad(text).to_string();
        assert!(shown.contains(start), "{text:?}\n{shown}");
        assert_eq!(shown.lines().count(), 1, "{text:?}\n{shown}");
    }
    let missing =
        super::super::load(Path::new("/no/such.yaml"), &Fake::default(), None).unwrap_err();
    assert!(missing.to_string().starts_with("/no/such.yaml: cannot be read: "), "{missing}");
}

#[test]
fn a_bomb_of_aliases_is_refused_quickly() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..12 {
        let last = n - 1;
        let list = vec![format!("*a{last}"); 10].join(", ");
        text += &format!("a{n}: &a{n} [{list}]\n");
    }
    assert!(!bad(&text).problems.is_empty());
}
