//! The rules and the dashboard in conf/ read what the real binary exports: names, labels, values.

use crate::descriptors;
use crate::promql::{self, matches};
use crate::support::*;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::process::Command;
use std::time::Duration;
use tollbar_loadtest::provider::{Gate, Provider, Script};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const SOON: Duration = Duration::from_secs(20);

/// A webhook that nobody answers at.
const GONE_HOOK: &str = ", { url: \"http://127.0.0.1:1/\" }";

/// Labels that Prometheus puts on what it scrapes.
const OF_THE_SCRAPE: [&str; 2] = ["instance", "job"];

/// Metric to label to values.
type Exported = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

fn exported(text: &str) -> Exported {
    let mut found = Exported::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (series, _) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let metric = found.entry(name.to_owned()).or_default();
        let mut rest = labels.trim_end_matches('}');
        while let Some((label, more)) = rest.split_once("=\"") {
            let (value, more) = more.split_once('"').unwrap();
            metric
                .entry(label.trim_start_matches(',').to_owned())
                .or_default()
                .insert(value.into());
            rest = more;
        }
    }
    found
}

/// A key with a budget or a limit of its own, for each refusal that a metric counts.
fn everything(provider: &Provider) -> String {
    let base = provider.base();
    let key = |id: &str, more: &str| {
        format!(
            "  - {{ id: {id}, hash: \"{}\", models: [\"*\"], {more} }}\n",
            hash(&format!("tb-{id}"))
        )
    };
    let keys = key(
        "rich",
        "team: web, budgets: [ { usd: 900, per: day }, { usd: 800, per: hour }, { usd: 700, per: minute } ]",
    ) + &key("slow", "unlimited: true, limits: { rpm: 1 }")
        + &key("poor", "budgets: [ { usd: 0.000000001, per: day } ]")
        + &key("short", "budgets: [ { usd: 0.0005, per: total } ], low_budget: clamp");
    let price = "price: { input: 1, output: 2, cached_input: 0.5, cache_write: 1, reasoning: 2 }";
    let target = |provider: &str, model: &str, more: &str| {
        format!("{{ provider: {provider}, model: \"{model}\", {price}{more} }}")
    };
    let model = |name: &str, targets: &str, more: &str| {
        format!("  {name}: {{ targets: [ {targets} ]{more} }}\n")
    };
    let ok = "sim-ok+input=400+cached=100+cachewrite=50+output=90+reasoning=30";
    let models = model("ok", &target("p", ok, ""), ", max_output_tokens: 400")
        + &model(
            "broken",
            &target("p", "sim-broken+status=500", ""),
            ", max_output_tokens: 400, fallbacks: [ok]",
        )
        + &model("dead", &target("p", "sim-dead+status=500", ""), "")
        + &model("wrong", &target("p", "sim-wrong+status=400", ""), "")
        + &model("far", &target("r", "sim-far", ""), "")
        + &model("locked", &target("q", "sim-locked+status=401", ""), "")
        + &model(
            "trial",
            &(target("p", "sim-a", ", weight: 1")
                + ", "
                + &target(
                    "p",
                    "sim-b+status=500",
                    ", weight: 99%, rollback_on: { error_rate: 0.1 }",
                )),
            "",
        )
        + &model("gated", &target("p", "sim-gated", ""), "");
    format!(
        "{}providers:\n  p: {{ dialect: openai, base_url: \"{base}/v1\", api_key: sk-provider }}\n  \
         q: {{ dialect: openai, base_url: \"{base}/v1\", api_key: sk-other }}\n  \
         r: {{ dialect: openai, base_url: \"http://127.0.0.1:9/v1\" }}\n\
         breaker: {{ failures: 1000 }}\nteams: {{ web: {{}} }}\n\
         alerts: {{ webhooks: [ {{ url: \"{base}/no-such-hook\" }}{GONE_HOOK} ] }}\nmodels:\n{models}",
        head_with("threads: 2, max_memory: 16GiB", &keys)
    )
}

async fn ask(server: &Server, key: &str, model: &str) -> u16 {
    let request = client().post(server.url("/v1/chat/completions")).bearer_auth(key);
    request.body(chat(model).to_string()).send().await.unwrap().status().as_u16()
}

/// Traffic in which everything that is counted happens at least once.
async fn make_everything_happen(server: &Server, provider: &Provider) {
    assert_eq!(ask(server, "tb-rich", "ok").await, 200);
    assert_eq!(ask(server, "tb-rich", "broken").await, 200);
    assert_eq!(ask(server, KEY, "dead").await, 502);
    assert_eq!(ask(server, KEY, "wrong").await, 400);
    assert_eq!(ask(server, KEY, "locked").await, 502);
    ask(server, "tb-slow", "ok").await;
    assert_eq!(ask(server, "tb-slow", "ok").await, 429);
    assert_eq!(ask(server, "tb-poor", "ok").await, 429);
    assert_eq!(ask(server, "tb-short", "ok").await, 200);
    assert_eq!(descriptors::ask_without(server, "far").await.0, 503);
    for _ in 0..60 {
        ask(server, KEY, "trial").await;
    }
    // A client that leaves in the middle of a stream.
    let gate = Gate::new();
    let script = Script { gate: Some(gate.clone()), chunks: Some(9), ..Script::default() };
    provider.script("sim-gated", vec![script]);
    gate.release(2);
    let body = chat_stream("gated").to_string();
    let mut leaving = post(&client(), server.url("/v1/chat/completions"), body).await;
    assert!(leaving.chunk().await.unwrap().is_some());
    drop(leaving);
    eventually(SOON, || server.stdout().iter().any(|line| line.contains("client_gone"))).await;
    // A reload that is refused, told to a webhook that is not there.
    let good = fs::read_to_string(server.config_file()).unwrap();
    fs::write(server.config_file(), "listeners: 1").unwrap();
    let reload = || client().post(server.admin_url("/reload")).bearer_auth(ADMIN_TOKEN).send();
    assert_eq!(reload().await.unwrap().status(), 400);
    // The other webhook goes away with what it has not taken.
    fs::write(server.config_file(), good.replace(GONE_HOOK, "")).unwrap();
    assert_eq!(reload().await.unwrap().status(), 200);
}

async fn metrics(server: &Server) -> String {
    client().get(server.admin_url("/metrics")).send().await.unwrap().text().await.unwrap()
}

struct Rule {
    name: String,
    recorded: bool,
    expr: String,
    texts: Vec<String>,
}

fn rules() -> Vec<Rule> {
    let text = fs::read_to_string(format!("{ROOT}/conf/prometheus-rules.yaml")).unwrap();
    let file: Value = serde_yaml::from_str(&text).unwrap();
    let groups = file["groups"].as_array().unwrap();
    let rules = groups.iter().flat_map(|group| group["rules"].as_array().unwrap());
    rules
        .map(|rule| {
            let name = rule["record"].as_str().or(rule["alert"].as_str()).unwrap().to_owned();
            let recorded = rule.get("record").is_some();
            if !recorded {
                let severity = rule["labels"]["severity"].as_str().unwrap();
                assert!(["critical", "warning"].contains(&severity), "{name}: {severity}");
                assert!(rule["for"].is_string(), "{name} has no `for`");
                for text in ["summary", "action"] {
                    assert!(rule["annotations"][text].is_string(), "{name} has no {text}");
                }
            }
            let texts = rule["annotations"].as_object().into_iter().flat_map(|a| a.values());
            let texts = texts.map(|text| text.as_str().unwrap().to_owned()).collect();
            Rule { name, recorded, expr: rule["expr"].as_str().unwrap().to_owned(), texts }
        })
        .collect()
}

/// Every expression of the dashboard with its legend, wherever it stands.
fn dashboard(node: &Value, found: &mut Vec<(String, String)>) {
    match node {
        Value::Object(map) => {
            if let Some(expr) = map.get("expr").and_then(Value::as_str) {
                let legend = map.get("legendFormat").and_then(Value::as_str).unwrap_or("");
                found.push((expr.to_owned(), legend.to_owned()));
            }
            map.values().for_each(|value| dashboard(value, found));
        }
        Value::Array(items) => items.iter().for_each(|item| dashboard(item, found)),
        _ => {}
    }
}

/// The names in `{{ name }}` or `{{ $labels.name }}` of a template.
fn shown(text: &str) -> Vec<String> {
    let parts = text.split("{{").skip(1).map(|part| part.split("}}").next().unwrap().trim());
    parts
        .filter(|part| !part.starts_with("$value"))
        .map(|part| part.trim_start_matches("$labels.").to_owned())
        .collect()
}

/// Everything that is wrong with an expression and the texts around it.
fn wrong(expr: &str, texts: &[String], exported: &Exported) -> Vec<String> {
    let read = promql::read(expr);
    let mut wrong = Vec::new();
    let mut labels: BTreeSet<&str> = OF_THE_SCRAPE.into();
    // Prometheus's own, one for each thing that it scrapes.
    let own = |metric: &str| metric == "up";
    for selector in read.selectors.iter().filter(|selector| !own(&selector.metric)) {
        let Some(metric) = exported.get(&selector.metric) else {
            wrong.push(format!("there is no {}", selector.metric));
            continue;
        };
        labels.extend(metric.keys().map(String::as_str));
        for (label, operator, value) in &selector.matchers {
            if OF_THE_SCRAPE.contains(&label.as_str()) {
                continue;
            }
            let Some(values) = metric.get(label) else {
                wrong.push(format!("{} has no label {label}", selector.metric));
                continue;
            };
            // What is excluded has to exist, too: each alternative, or the rule excludes nothing.
            for part in value.split('|') {
                if !values.iter().any(|known| matches(part, known)) {
                    wrong.push(format!("{}: {label}{operator}{part}: {values:?}", selector.metric));
                }
            }
        }
    }
    let unknown = |label: &&String| !labels.contains(label.as_str());
    wrong.extend(read.grouped.iter().filter(unknown).map(|label| format!("by {label}")));
    // What is aggregated away can't be shown.
    let kept: BTreeSet<&str> = match read.grouped.is_empty() {
        true => labels,
        false => read.grouped.iter().map(String::as_str).collect(),
    };
    let shown = texts.iter().flat_map(|text| shown(text));
    wrong.extend(
        shown.filter(|name| !kept.contains(name.as_str())).map(|name| format!("shows {name}")),
    );
    wrong
}

#[tokio::test]
async fn rules_and_dashboard_read_what_is_exported() {
    let provider = provider();
    let server = Server::start(&everything(&provider));
    make_everything_happen(&server, &provider).await;
    let failed = "tollbar_alerts_total{kind=\"reload_refused\",result=\"failed\"}";
    let until = std::time::Instant::now() + SOON;
    while server.metric(failed).await == 0.0 {
        assert!(std::time::Instant::now() < until, "{}", server.stderr().join("\n"));
    }
    let mut exported = exported(&metrics(&server).await);

    let rules = rules();
    assert!(rules.len() > 25, "{}", rules.len());
    let mut problems = Vec::new();
    let mut used: BTreeSet<String> = BTreeSet::new();
    let mut check = |what: &str, expr: &str, texts: &[String], exported: &Exported| {
        used.extend(promql::read(expr).selectors.into_iter().map(|s| s.metric));
        let found = wrong(expr, texts, exported);
        problems.extend(found.into_iter().map(|problem| format!("{what}: {problem}")));
    };
    for rule in &rules {
        check(&rule.name, &rule.expr, &rule.texts, &exported);
        if rule.recorded {
            // Its labels are those it groups by; their values are those of what it reads.
            let read = promql::read(&rule.expr);
            let mut labels: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
            for label in read.grouped.iter().filter(|label| *label != "le") {
                let values = read.selectors.iter().filter_map(|s| exported[&s.metric].get(label));
                labels.insert(label.clone(), values.flatten().cloned().collect());
            }
            exported.insert(rule.name.clone(), labels);
        }
    }
    let text = fs::read_to_string(format!("{ROOT}/conf/grafana-dashboard.json")).unwrap();
    let board: Value = serde_json::from_str(&text).unwrap();
    let mut panels = Vec::new();
    dashboard(&board, &mut panels);
    assert!(panels.len() > 40, "{}", panels.len());
    for (expr, legend) in &panels {
        check(&format!("dashboard: {expr}"), expr, std::slice::from_ref(legend), &exported);
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    nothing_is_left_out(&exported, &used);
}

/// Every metric is looked at by a rule or a panel, and the traffic of this test makes each appear.
fn nothing_is_left_out(exported: &Exported, used: &BTreeSet<String>) {
    let source = fs::read_to_string(format!("{ROOT}/README.md")).unwrap();
    let section = source.split("\n## Metrics").nth(1).unwrap().split("\n## ").next().unwrap();
    let is_name = |c: char| c.is_ascii_lowercase() || c == '_';
    let documented: BTreeSet<&str> =
        section.split(|c| !is_name(c)).filter(|word| word.starts_with("tollbar_")).collect();
    let mut bases: BTreeSet<&str> = BTreeSet::new();
    for name in exported.keys().filter(|name| !name.contains(':')) {
        let cut = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        bases.insert(cut.unwrap_or(name));
    }
    assert_eq!(bases, documented, "README.md's table and what is exported");
    let read = |base: &&&str| !used.iter().any(|name| name.starts_with(**base));
    let unread: Vec<_> = bases.iter().filter(read).collect();
    assert!(unread.is_empty(), "in no rule and no panel: {unread:?}");
}

/// The runbook has every alert, by its name.
#[test]
fn every_alert_is_in_the_guide() {
    let guide = fs::read_to_string(format!("{ROOT}/docs/operating.md")).unwrap();
    for rule in rules().iter().filter(|rule| !rule.recorded) {
        assert!(guide.contains(&format!("| `{}` |", rule.name)), "{}", rule.name);
    }
}

/// Prometheus's own tool, where it is installed: its parser, and what the rules make of series.
#[test]
fn promtool_agrees() {
    let rules = format!("{ROOT}/conf/prometheus-rules.yaml");
    let tests = format!("{ROOT}/tests/fixtures/prometheus-rules.test.yaml");
    for (what, file) in [("check", rules), ("test", tests)] {
        let Ok(run) = Command::new("promtool").args([what, "rules", &file]).output() else {
            eprintln!("promtool is not installed: the rules are checked against the binary only");
            return;
        };
        let said = String::from_utf8_lossy(&run.stdout) + String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success(), "{said}");
    }
}

/// What Grafana refuses, or shows wrongly, although it is JSON.
#[test]
fn the_dashboard_can_be_imported() {
    let text = fs::read_to_string(format!("{ROOT}/conf/grafana-dashboard.json")).unwrap();
    let board: Value = serde_json::from_str(&text).unwrap();
    assert!(board["schemaVersion"].as_u64().unwrap() >= 39);
    assert_eq!(board["id"], Value::Null, "an id of somebody's own Grafana");
    let variables = board["templating"]["list"].as_array().unwrap();
    assert!(variables.iter().any(|v| v["name"] == "datasource" && v["type"] == "datasource"));
    let panels = board["panels"].as_array().unwrap();
    let mut ids = HashMap::new();
    let mut taken: BTreeSet<(u64, u64)> = BTreeSet::new();
    for panel in panels {
        let title = &panel["title"];
        assert_eq!(ids.insert(panel["id"].as_u64().unwrap(), title), None, "{title}: its id");
        let at = |side: &str| panel["gridPos"][side].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24, "{title}: too wide");
        for cell in (at("x")..at("x") + at("w"))
            .flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y)))
        {
            assert!(taken.insert(cell), "{title}: on top of another");
        }
        if panel["type"] != "row" {
            assert_eq!(panel["datasource"], json!({"type": "prometheus", "uid": "${datasource}"}));
            assert!(!panel["targets"].as_array().unwrap().is_empty(), "{title}");
        }
    }
}

/// A chargeback that asks for one team must not get everybody's sum.
#[tokio::test]
async fn spending_is_reported_of_whom_it_is_asked_for() {
    let provider = provider();
    let server = Server::start(&config(&provider));
    let answer = post(&client(), server.url("/v1/chat/completions"), chat("gpt").to_string()).await;
    assert_eq!(answer.status(), 200);
    let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    row(&server, &id).await;
    for (query, attempts) in [("", 1), ("?key=test", 1), ("?key=nobody", 0), ("?team=web", 0)] {
        let spend = admin(&server, &format!("/spend{query}")).await;
        assert_eq!(spend["data"][0]["attempts"], attempts, "{query}: {spend}");
    }
    for query in ["limit=0", "group_by=team&group_by=key", "from=2026-11-02&to=2026-11-01"] {
        let answer = admin(&server, &format!("/spend?{query}")).await;
        assert_eq!(answer["error"]["code"], "invalid_request", "{query}: {answer}");
    }
    // Who only reads the report needs no secrets.
    let text = std::fs::read_to_string(server.config_file()).unwrap();
    let secret = text.replace("${PROVIDER_KEY:-sk-provider}", "${NOT_SET_ANYWHERE}");
    assert_ne!(secret, text);
    let other = server.scratch.0.join("accountant.yaml");
    // Defaults are defaults, though.
    let secret = secret + "timezone: \"${NOT_SET_EITHER:-Europe/Berlin}\"\n";
    std::fs::write(&other, secret).unwrap();
    let output = tollbar(&["spend", "-c", other.to_str().unwrap(), "--csv"], &server.scratch.0);
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(told.contains("gpt,1,1,"), "{told}");
}

/// Gauges whose series come and go are emptied and filled again: a scrape sees all of it or
/// none.
#[tokio::test]
async fn scrapes_at_the_same_time_and_reloads_take_nothing_from_each_other() {
    let provider = provider();
    let key = |n: usize| {
        let hash = hash(&format!("tb-{n}"));
        format!(
            "  - {{ id: k{n}, hash: \"{hash}\", models: [\"*\"], budgets: [ {{ usd: 1, per: day }} ] }}\n"
        )
    };
    let keys: String = (0..50).map(key).collect();
    let price = "price: { input: 1, output: 2 }";
    let models: String = (0..20)
        .map(|n| format!("  m{n}: {{ targets: [ {{ provider: p, model: m{n}, {price} }} ], max_output_tokens: 400 }}\n"))
        .collect();
    let server = Server::start(&format!(
        "listeners: [{{ address: 127.0.0.1:0 }}]\nadmin: {{ address: 127.0.0.1:0, token: {ADMIN_TOKEN} }}\n\
         server: {{ threads: 4 }}\nstate: {{ path: state.db }}\nkeys:\n{keys}\
         providers:\n  p: {{ dialect: openai, base_url: \"{}/v1\", api_key: sk-provider }}\nmodels:\n{models}",
        provider.base()
    ));
    // Accounts are shown once somebody has spent of them.
    for n in 0..50 {
        let request = client().post(server.url("/v1/chat/completions"));
        let request = request.bearer_auth(format!("tb-{n}")).json(&chat("m0"));
        assert_eq!(request.send().await.unwrap().status(), 200);
    }
    let expected = [
        ("tollbar_budget_spent_usd{", 50),
        ("tollbar_budget_held_usd{", 50),
        ("tollbar_budget_cap_usd{", 50),
        ("tollbar_breaker_open{", 20),
        ("tollbar_config_info{", 1),
        ("tollbar_credential_info{", 1),
    ];
    let scrapers: Vec<_> = (0..4)
        .map(|_| {
            let url = server.admin_url("/metrics");
            tokio::spawn(async move {
                let client = client();
                for _ in 0..100 {
                    let text = client.get(&url).send().await.unwrap().text().await.unwrap();
                    for (name, n) in expected {
                        let found = text.lines().filter(|line| line.starts_with(name)).count();
                        assert_eq!(found, n, "{name}");
                    }
                }
            })
        })
        .collect();
    while !scrapers.iter().all(|scraper| scraper.is_finished()) {
        let reload = client().post(server.admin_url("/reload")).bearer_auth(ADMIN_TOKEN);
        assert_eq!(reload.send().await.unwrap().status(), 200);
    }
    for scraper in scrapers {
        scraper.await.unwrap();
    }
}
