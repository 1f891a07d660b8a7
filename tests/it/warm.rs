//! What was spent is shown before anybody spends more; what is not named any more is forgotten.

use crate::support::*;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tollbar_loadtest::provider::{Gate, Provider, Script};

/// Ten tokens of output are one cent; input costs nothing.
const CENT: u64 = 10_000_000;

fn config(provider: &Provider, key: &str, teams: &str, more_keys: &str) -> String {
    let base = provider.base();
    let head = head_with("threads: 2", more_keys)
        .replace("unlimited: true", &format!("team: red, unlimited: true, {key}"));
    format!(
        "{head}state: {{ path: state.db }}\nteams: {{ {teams} }}\n\
         providers:\n  p: {{ dialect: openai, base_url: \"{base}/v1\", budgets: [ {{ usd: 70, per: month }} ] }}\n\
         models:\n  gpt: {{ targets: [ {{ provider: p, model: sim-gpt, price: {{ input: 0, output: 1000 }} }} ] }}\n"
    )
}

const DAY: &str = "budgets: [ { usd: 50, per: day } ]";
const MONTH: &str = "budgets: [ { usd: 60, per: month } ]";

async fn ask(server: &Server) -> u16 {
    let body = json!({"model": "gpt", "max_tokens": 10, "messages": []});
    let request = client().post(server.url("/v1/chat/completions")).bearer_auth(KEY).json(&body);
    request.send().await.unwrap().status().as_u16()
}

/// What /budgets says, once it says this of scope, id and window: cap and spent in nano-dollars.
async fn budgets(server: &Server, wanted: &[(&str, &str, &str, u64, u64)]) -> Value {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let answer = admin(server, "/budgets").await;
        let text = |row: &Value, name: &str| row[name].as_str().unwrap().to_owned();
        let mut found: Vec<(String, String, String, u64, u64)> = answer["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| {
                let usd = |name: &str| nano(&row[name].to_string());
                let (cap, spent) = (usd("cap_usd"), usd("spent_usd"));
                (text(row, "scope"), text(row, "id"), text(row, "per"), cap, spent)
            })
            .collect();
        found.sort();
        let mut all: Vec<_> = wanted
            .iter()
            .map(|(scope, id, per, cap, spent)| {
                let usd = 1_000_000_000;
                ((*scope).into(), (*id).into(), (*per).into(), cap * usd, spent * CENT)
            })
            .collect();
        all.sort();
        if found == all {
            return answer;
        }
        assert!(Instant::now() < until, "found {found:?}, wanted {all:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_start_shows_what_was_spent_before_the_first_request() {
    let provider = provider();
    let mut server = Server::start(&config(&provider, DAY, &format!("red: {{ {MONTH} }}"), ""));
    let wanted = |spent: u64| {
        [
            ("key", "test", "day", 50, spent),
            ("team", "red", "month", 60, spent),
            ("provider", "p", "month", 70, spent),
        ]
    };
    budgets(&server, &wanted(0)).await;
    for (signal, spent) in [("TERM", 3), ("KILL", 6)] {
        for _ in 0..3 {
            assert_eq!(ask(&server).await, 200);
        }
        budgets(&server, &wanted(spent)).await;
        server.signal(signal);
        assert!(server.wait_exit(Duration::from_secs(10)).is_some());
        server = server.again();
        budgets(&server, &wanted(spent)).await;
        let metric = server.metric("tollbar_budget_spent_usd{id=\"test\",per=\"day\"").await;
        assert_eq!((metric * 1e9).round() as u64, spent * CENT);
    }
    assert_eq!(provider.requests().len(), 6, "nobody was asked for it");
}

async fn reload(server: &Server, config: &str) {
    std::fs::write(server.config_file(), config).unwrap();
    let request = client().post(server.admin_url("/reload")).bearer_auth(ADMIN_TOKEN);
    assert_eq!(request.send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_reload_forgets_budgets_that_are_gone_and_shows_those_that_are_new() {
    let provider = provider();
    let both = config(&provider, DAY, &format!("red: {{ {MONTH} }}"), "");
    let server = Server::start(&both);
    for _ in 0..2 {
        assert_eq!(ask(&server).await, 200);
    }
    let rest = ("provider", "p", "month", 70, 2);
    // Another window for the key, none for the team. The new one counts what was spent in it.
    reload(&server, &config(&provider, MONTH, "red: {}", "")).await;
    budgets(&server, &[("key", "test", "month", 60, 2), rest]).await;
    // What comes back finds what it had spent.
    reload(&server, &both).await;
    let all = [("key", "test", "day", 50, 2), ("team", "red", "month", 60, 2), rest];
    budgets(&server, &all).await;

    // What something is held on stays until that has settled, and settles right.
    let gate = Gate::new();
    provider.set_default("sim-gpt", Script { gate: Some(gate.clone()), ..Script::default() });
    provider.clear();
    let body = json!({"model": "gpt", "max_tokens": 10, "messages": []});
    let request = client().post(server.url("/v1/chat/completions")).bearer_auth(KEY).json(&body);
    let held = tokio::spawn(request.send());
    assert!(provider.wait_for(1, Duration::from_secs(10)).await);
    let none = config(&provider, MONTH, "red: {}", "");
    reload(&server, &none).await;
    let new = ("key", "test", "month", 60, 2);
    let answer = budgets(&server, &[all[0], new, all[1], rest]).await;
    let holds = answer["data"].as_array().unwrap().iter();
    let holds: u64 = holds.map(|row| nano(&row["held_usd"].to_string())).sum();
    assert_eq!(holds, 4 * CENT, "the key's old and new one, team and provider: {answer}");
    gate.open();
    assert_eq!(held.await.unwrap().unwrap().status(), 200);
    let counted = |(scope, id, per, cap, _)| (scope, id, per, cap, 3);
    budgets(&server, &[all[0], all[1], rest, new].map(counted)).await;
    reload(&server, &none).await;
    budgets(&server, &[rest, new].map(counted)).await;
}

/// A minute's limit can't be renewed by taking them out of the file and putting them back.
#[tokio::test]
async fn limits_survive_reloads() {
    let provider = provider();
    let limited = config(&provider, DAY, "red: { limits: { rpm: 1 } }", "");
    let server = Server::start(&limited);
    assert_eq!(ask(&server).await, 200);
    assert_eq!(ask(&server).await, 429);
    reload(&server, &config(&provider, DAY, "red: {}", "")).await;
    assert_eq!(ask(&server).await, 200);
    reload(&server, &limited).await;
    assert_eq!(ask(&server).await, 429);
}

/// Where there are many keys, only those that have spent something are read ahead.
#[tokio::test]
async fn of_many_keys_only_those_that_spent_are_read_ahead() {
    let provider = provider();
    let more: String = (0..2_000)
        .map(|n| {
            let hash = hash(&format!("k{n}"));
            format!("  - {{ id: k{n}, hash: \"{hash}\", models: [\"*\"], {MONTH} }}\n")
        })
        .collect();
    let mut server = Server::start(&config(&provider, DAY, "red: {}", &more));
    assert_eq!(ask(&server).await, 200);
    let wanted = [("key", "test", "day", 50, 1), ("provider", "p", "month", 70, 1)];
    budgets(&server, &wanted).await;
    server.signal("TERM");
    assert!(server.wait_exit(Duration::from_secs(10)).is_some());
    let server = server.again();
    budgets(&server, &wanted).await;
}
