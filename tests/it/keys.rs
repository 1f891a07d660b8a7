//! Keys as a service: made, changed, rotated and revoked while running, each for the next request.

use crate::support::*;
use reqwest::Method;
use serde_json::{Value, json};
use std::time::Duration;
use tollbar_loadtest::provider::Provider;

fn config_with(provider: &Provider, teams: &str) -> String {
    let head = head().replace("server:", "state: { path: state.db }\nserver:");
    let models = model("gpt", "sim-gpt", CAPPED) + &model("gpt-mini", "sim-mini", CAPPED);
    config_of(&head, provider, "", &models) + teams
}

const CAPPED: &str = ", max_output_tokens: 50";
const TEAMS: &str = "teams: { web: { budgets: [ { usd: 100, per: day } ] } }\n";

async fn admin(server: &Server, method: Method, path: &str, body: Value) -> (u16, Value) {
    let request = client().request(method, server.admin_url(path)).bearer_auth(ADMIN_TOKEN);
    let answer = request.json(&body).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

async fn call(server: &Server, key: &str, model: &str) -> (u16, Value) {
    let request = client().post(server.url("/v1/chat/completions")).bearer_auth(key);
    let answer = request.json(&chat(model)).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

fn code(answer: &(u16, Value)) -> (u16, &str) {
    (answer.0, answer.1["error"]["code"].as_str().unwrap_or("none"))
}

async fn make(server: &Server, body: Value) -> (String, Value) {
    let (status, made) = admin(server, Method::POST, "/keys", body).await;
    assert_eq!(status, 201, "{made}");
    (made["key"].as_str().unwrap().to_owned(), made)
}

fn audit(server: &Server) -> Vec<(String, String, String)> {
    let db = rusqlite::Connection::open(server.scratch.0.join("state.db")).unwrap();
    let mut rows = db.prepare("SELECT action, key_id, detail FROM audit ORDER BY rowid").unwrap();
    let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_change_holds_for_the_next_request_and_is_in_the_audit() {
    let provider = provider();
    let server = Server::start(&config_with(&provider, TEAMS));
    let (key, made) = make(
        &server,
        json!({"id": "app", "team": "web", "models": ["gpt"], "limits": {"rpm": 1000},
               "budgets": [{"usd": 2.5, "per": "day"}], "metadata": {"n": 3, "tag": "a:b \"c\""}}),
    )
    .await;
    assert!(key.starts_with("tb-") && key.len() == 46);
    assert_eq!(
        (&made["id"], &made["state"], &made["source"]),
        (&json!("app"), &json!("active"), &json!("api"))
    );
    assert_eq!(made["metadata"], json!({"n": 3, "tag": "a:b \"c\""}));
    assert_eq!(made["budgets"][0]["usd"], json!(2.5));

    assert_eq!(call(&server, &key, "gpt").await.0, 200);
    assert_eq!(code(&call(&server, &key, "gpt-mini").await), (403, "model_not_allowed"));
    let changed = admin(&server, Method::PATCH, "/keys/app", json!({"models": ["gpt*"]})).await;
    assert_eq!((changed.0, &changed.1["models"]), (200, &json!(["gpt*"])));
    assert_eq!(changed.1["limits"], json!({"rpm": 1000}), "what was not named stays");
    assert_eq!(call(&server, &key, "gpt-mini").await.0, 200);

    admin(&server, Method::PATCH, "/keys/app", json!({"blocked": true})).await;
    assert_eq!(code(&call(&server, &key, "gpt").await), (401, "key_revoked"));
    admin(&server, Method::PATCH, "/keys/app", json!({"blocked": false})).await;
    assert_eq!(call(&server, &key, "gpt").await.0, 200);

    let (status, rotated) = admin(&server, Method::POST, "/keys/app/rotate", json!({})).await;
    assert_eq!(status, 200);
    let second = rotated["key"].as_str().unwrap().to_owned();
    assert_eq!(code(&call(&server, &key, "gpt").await), (401, "key_revoked"));
    assert_eq!(call(&server, &second, "gpt").await.0, 200);
    let grace = json!({"grace": "1h"});
    let (_, rotated) = admin(&server, Method::POST, "/keys/app/rotate", grace).await;
    let third = rotated["key"].as_str().unwrap().to_owned();
    for key in [&second, &third] {
        assert_eq!(call(&server, key, "gpt").await.0, 200);
    }

    // Another process has the same keys, and no plain text is anywhere.
    let actions = ["create", "update", "block", "unblock", "rotate", "rotate"];
    let rows = audit(&server);
    assert_eq!(rows.iter().map(|row| row.0.as_str()).collect::<Vec<_>>(), actions);
    assert!(rows.iter().all(|row| row.1 == "app"));
    assert!(
        rows[1].2.contains(r#""models":["gpt"]"#) && rows[1].2.contains(r#""models":["gpt*"]"#)
    );
    let mut server = server;
    server.signal("TERM");
    assert!(server.wait_exit(Duration::from_secs(20)).unwrap().success());
    for file in std::fs::read_dir(&server.scratch.0).unwrap() {
        let text = std::fs::read(file.unwrap().path()).unwrap();
        for key in [&key, &second, &third] {
            assert!(!text.windows(key.len()).any(|w| w == key.as_bytes()), "a key is on the disk");
        }
    }
    let server = server.again();
    assert_eq!(code(&call(&server, &key, "gpt").await), (401, "invalid_api_key"), "long forgotten");
    for key in [&second, &third] {
        assert_eq!(call(&server, key, "gpt-mini").await.0, 200);
    }
    let (status, gone) = admin(&server, Method::DELETE, "/keys/app", json!({})).await;
    assert_eq!((status, &gone["state"]), (200, &json!("revoked")));
    for key in [&second, &third] {
        assert_eq!(code(&call(&server, key, "gpt").await), (401, "key_revoked"));
    }
    assert_eq!(admin(&server, Method::DELETE, "/keys/app", json!({})).await.0, 200);
    let late = admin(&server, Method::PATCH, "/keys/app", json!({"blocked": false})).await;
    assert_eq!(code(&late), (409, "key_revoked"));
    assert_eq!(audit(&server).len(), actions.len() + 1, "what changed nothing is not in the audit");

    // The hash is not a key, and a key of an app opens nothing here.
    let (again, _) = make(&server, json!({"id": "app", "team": "web", "models": ["*"]})).await;
    let hashed = hash(&again);
    for text in [hashed.as_str(), hashed.trim_start_matches("sha256:")] {
        assert_eq!(code(&call(&server, text, "gpt").await), (401, "invalid_api_key"));
    }
    for path in ["/keys", "/keys/app", "/keys/app/rotate", "/key/generate", "/key/info", "/status"]
    {
        let refused = client().get(server.admin_url(path)).bearer_auth(&again).send().await;
        assert_eq!(refused.unwrap().status(), 403, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_said_and_changes_nothing() {
    let provider = provider();
    let server = Server::start(&config_with(&provider, TEAMS));
    let (key, _) = make(&server, json!({"id": "app", "team": "web", "models": ["gpt"]})).await;
    let covered = |more: Value| {
        let mut body = json!({"id": "other", "models": ["gpt"], "team": "web"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let cases = [
        (json!({"id": "x", "models": ["gpt"]}), 400, "no budget covers this key"),
        (covered(json!({"team": "wbe"})), 400, "Did you mean `web`?"),
        (covered(json!({"models": ["gtp"]})), 400, "Did you mean `gpt`?"),
        (covered(json!({"models": []})), 400, "the list is empty"),
        (covered(json!({"bugdets": []})), 400, "Did you mean `budgets`?"),
        (covered(json!({"budgets": [{"usd": -1, "per": "day"}]})), 400, "budgets[0].usd"),
        (covered(json!({"budgets": [{"usd": 1, "per": "fortnight"}]})), 400, "budgets[0].per"),
        (covered(json!({"limits": {"rpm": 0}})), 400, "limits.rpm"),
        (covered(json!({"expires": "soon"})), 400, "expires"),
        (covered(json!({"expires": "${PATH}"})), 400, "PATH"),
        (covered(json!({"metadata": [1]})), 400, "metadata"),
        (covered(json!({"hash": "sha256:12"})), 400, "hash"),
        (covered(json!({"key": "tb-own"})), 400, "plain text"),
        (covered(json!({"id": "a/b"})), 400, "`id`"),
        (covered(json!({"id": "app"})), 409, "already"),
        (covered(json!({"id": "test"})), 409, "already"),
        (covered(json!({"hash": hash(&key)})), 409, "already"),
        (covered(json!({"hash": hash(KEY)})), 409, "already"),
    ];
    for (body, status, says) in cases {
        let answer = admin(&server, Method::POST, "/keys", body.clone()).await;
        let message = answer.1["error"]["message"].as_str().unwrap();
        assert!(answer.0 == status && message.contains(says), "{body}: {answer:?}");
    }
    for (method, path, body, status) in [
        (Method::PATCH, "/keys/test", json!({"blocked": true}), 409),
        (Method::DELETE, "/keys/test", json!({}), 409),
        (Method::POST, "/keys/test/rotate", json!({}), 409),
        (Method::GET, "/keys/none", json!({}), 404),
        (Method::PATCH, "/keys/none", json!({"blocked": true}), 404),
        (Method::PATCH, "/keys/app", json!({"id": "b"}), 400),
        (Method::PATCH, "/keys/app", json!({"hash": hash("x")}), 400),
        (Method::PATCH, "/keys/app", json!({"models": null}), 400),
        (Method::PATCH, "/keys/app", json!({"blocked": "yes"}), 400),
        (Method::POST, "/keys/app/rotate", json!({"grace": 5}), 400),
        (Method::POST, "/keys/app/rotate", json!({"grace": "31d"}), 400),
        (Method::PUT, "/keys/app", json!({}), 405),
        (Method::DELETE, "/keys", json!({}), 405),
        (Method::GET, "/keys/a/b", json!({}), 404),
        (Method::GET, "/keys?limit=0", json!({}), 400),
    ] {
        let answer = admin(&server, method.clone(), path, body).await;
        assert_eq!(answer.0, status, "{method} {path}: {answer:?}");
    }
    for body in ["[]", "{", "\"tb-secret\"", "{\"id\": \"tb-secret}"] {
        let request = client().post(server.admin_url("/keys")).bearer_auth(ADMIN_TOKEN);
        let answer = request.body(body).send().await.unwrap();
        assert_eq!(answer.status(), 400);
        assert!(!answer.text().await.unwrap().contains("tb-secret"));
    }
    assert_eq!(audit(&server).len(), 1);
    let (_, listed) = admin(&server, Method::GET, "/keys", json!({})).await;
    let ids: Vec<_> = listed["data"].as_array().unwrap().iter().map(|key| &key["id"]).collect();
    assert_eq!(ids, ["app", "test"]);
    assert_eq!(call(&server, &key, "gpt").await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_made_while_running_binds_and_outlives_its_key() {
    let provider = provider();
    let server = Server::start(&config_with(&provider, ""));
    // Each call costs $0.000016 or so.
    let body =
        json!({"id": "small", "models": ["gpt"], "budgets": [{"usd": 0.0001, "per": "total"}]});
    let (key, _) = make(&server, body.clone()).await;
    let small = |key: String| {
        let server = &server;
        async move {
            let body = json!({"model": "gpt", "max_tokens": 10, "messages": [{"role": "user", "content": "Hi"}]});
            let request = client().post(server.url("/v1/chat/completions")).bearer_auth(key);
            let answer = request.json(&body).send().await.unwrap();
            (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
        }
    };
    let mut served = 0;
    let refused = loop {
        let answer = small(key.clone()).await;
        if answer.0 != 200 {
            break answer;
        }
        served += 1;
        assert!(served < 100, "the budget never binds");
    };
    assert!(served > 0);
    assert_eq!(code(&refused), (429, "budget_exceeded"));
    let (_, shown) = admin(&server, Method::GET, "/keys/small", json!({})).await;
    let spent = shown["budgets"][0]["spent_usd"].as_f64().unwrap();
    assert!(spent > 0.0 && spent <= 0.0001, "{shown}");

    // A new key of the same name doesn't get the money again.
    admin(&server, Method::DELETE, "/keys/small", json!({})).await;
    let (key, _) = make(&server, body).await;
    assert_eq!(code(&small(key.clone()).await), (429, "budget_exceeded"));
    let more = json!({"budgets": [{"usd": 1, "per": "total"}]});
    admin(&server, Method::PATCH, "/keys/small", more).await;
    assert_eq!(small(key).await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_whose_team_is_gone_is_refused_until_it_is_back() {
    let provider = provider();
    let server = Server::start(&config_with(&provider, TEAMS));
    let (key, _) = make(&server, json!({"id": "app", "team": "web", "models": ["gpt"]})).await;
    assert_eq!(call(&server, &key, "gpt").await.0, 200);
    std::fs::write(server.config_file(), config_with(&provider, "")).unwrap();
    assert_eq!(admin(&server, Method::POST, "/reload", json!({})).await.0, 200);
    let refused = call(&server, &key, "gpt").await;
    assert_eq!(code(&refused), (401, "key_revoked"));
    assert!(refused.1["error"]["message"].as_str().unwrap().contains("team `web`"), "{refused:?}");
    let (_, shown) = admin(&server, Method::GET, "/keys/app", json!({})).await;
    assert_eq!(shown["state"], json!("unusable"));
    std::fs::write(server.config_file(), config_with(&provider, TEAMS)).unwrap();
    admin(&server, Method::POST, "/reload", json!({})).await;
    assert_eq!(call(&server, &key, "gpt").await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_second_attempt_starts_with_a_key_that_was_revoked() {
    let provider = provider();
    let slow = "sim-a+status=500+delay=1500ms";
    let target = |model: &str| {
        format!("{{ provider: p, model: \"{model}\", price: {{ input: 1, output: 2 }} }}")
    };
    let models = format!(
        "  gpt: {{ targets: [ {} ], fallbacks: [next]{CAPPED} }}\n  next: {{ targets: [ {} ]{CAPPED} }}\n",
        target(slow),
        target("sim-b")
    );
    let head = head()
        .replace("server:", "state: { path: state.db }\nattempts: { same_target: 0 }\nserver:");
    let server = Server::start(&(config_of(&head, &provider, "", &models) + TEAMS));
    let (key, _) = make(&server, json!({"id": "app", "team": "web", "models": ["*"]})).await;
    let (answer, ()) = tokio::join!(call(&server, &key, "gpt"), async {
        eventually(Duration::from_secs(10), || provider.requests().len() == 1).await;
        assert_eq!(admin(&server, Method::DELETE, "/keys/app", json!({})).await.0, 200);
    });
    assert_eq!(code(&answer), (401, "key_revoked"));
    assert_eq!(provider.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_on_the_same_state_file_follows() {
    let provider = provider();
    let one = Server::start(&config_with(&provider, TEAMS));
    let state = one.scratch.0.join("state.db");
    let shared = config_with(&provider, TEAMS)
        .replace("path: state.db", &format!("path: {}", state.display()));
    let two = Server::start(&shared);
    let (key, _) = make(&one, json!({"id": "app", "team": "web", "models": ["gpt"]})).await;
    let within = std::time::Instant::now() + Duration::from_secs(20);
    while call(&two, &key, "gpt").await.0 != 200 {
        assert!(std::time::Instant::now() < within, "it never learns of the key");
    }
    assert_eq!(admin(&two, Method::DELETE, "/keys/app", json!({})).await.0, 200);
    assert_eq!(code(&call(&two, &key, "gpt").await), (401, "key_revoked"));
    while call(&one, &key, "gpt").await.0 != 401 {
        assert!(std::time::Instant::now() < within, "it never learns of the revocation");
    }
}

/// As during an upgrade: both serve, and an admin changes keys at either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_holds_whatever_another_process_changes_meanwhile() {
    let provider = provider();
    let one = Server::start(&config_with(&provider, TEAMS));
    let state = one.scratch.0.join("state.db");
    let two = config_with(&provider, TEAMS)
        .replace("path: state.db", &format!("path: {}", state.display()));
    let two = Server::start(&two);
    let mut keys = Vec::new();
    for n in 0..12 {
        let id = format!("k{n}");
        let (key, _) = make(&one, json!({"id": id, "team": "web", "models": ["gpt"]})).await;
        let path = format!("/keys/{id}");
        let litellm = json!({"keys": [id]});
        let (changed, also, revoked, deleted) = tokio::join!(
            admin(&one, Method::PATCH, &path, json!({"limits": {"rpm": 100 + n}})),
            admin(&two, Method::POST, "/key/update", json!({"key": id, "tpm_limit": 1_000_000})),
            admin(&two, Method::DELETE, &path, json!({})),
            admin(&one, Method::POST, "/key/delete", litellm),
        );
        for answer in [changed, also] {
            assert!(answer.0 == 200 || code(&answer) == (409, "key_revoked"), "{answer:?}");
        }
        assert_eq!((revoked.0, deleted.0), (200, 200), "{revoked:?} {deleted:?}");
        for server in [&one, &two] {
            let (_, shown) = admin(server, Method::GET, &path, json!({})).await;
            assert_eq!(shown["state"], "revoked", "{shown}");
        }
        keys.push(key);
    }
    let within = std::time::Instant::now() + Duration::from_secs(20);
    for (key, server) in keys.iter().flat_map(|key| [(key, &one), (key, &two)]) {
        while code(&call(server, key, "gpt").await) != (401, "key_revoked") {
            assert!(std::time::Instant::now() < within, "it never learns of the revocation");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn litellm_scripts_work_by_their_own_names() {
    let provider = provider();
    let server = Server::start(&config_with(&provider, TEAMS));
    let generate = json!({
        "key_alias": "batch", "team_id": "web", "user_id": "ana@example.com", "models": ["gpt"],
        "max_budget": 10.5, "budget_duration": "30d", "rpm_limit": 60, "tpm_limit": 100_000,
        "max_parallel_requests": 4, "duration": "30d", "metadata": {"owner": "ana"},
        "aliases": {}, "permissions": {},
    });
    let (status, made) = admin(&server, Method::POST, "/key/generate", generate).await;
    assert_eq!(status, 200, "{made}");
    let key = made["key"].as_str().unwrap();
    for (name, value) in [
        ("key_alias", json!("batch")),
        ("team_id", json!("web")),
        ("user_id", json!("ana@example.com")),
        ("models", json!(["gpt"])),
        ("max_budget", json!(10.5)),
        ("budget_duration", json!("1mo")),
        ("rpm_limit", json!(60)),
        ("tpm_limit", json!(100_000)),
        ("max_parallel_requests", json!(4)),
        ("metadata", json!({"owner": "ana"})),
        ("spend", json!(0.0)),
    ] {
        assert_eq!(made[name], value, "{name}");
    }
    assert!(made["expires"].is_string());
    let token = hash(key).trim_start_matches("sha256:").to_owned();
    assert_eq!(made["token"], json!(token));
    assert_eq!(call(&server, key, "gpt").await.0, 200);

    for word in [key, &token, "batch"] {
        let path = format!("/key/info?key={word}");
        let (status, info) = admin(&server, Method::GET, &path, json!({})).await;
        assert_eq!((status, &info["info"]["key_alias"]), (200, &json!("batch")));
        assert!(info["info"]["spend"].as_f64().unwrap() > 0.0);
        assert!(!info.to_string().contains(key), "the key is not shown again");
    }
    let change = json!({"key": key, "max_budget": 20, "rpm_limit": 90, "models": []});
    let (status, changed) = admin(&server, Method::POST, "/key/update", change).await;
    assert_eq!(status, 200, "{changed}");
    assert_eq!(
        (
            &changed["max_budget"],
            &changed["budget_duration"],
            &changed["rpm_limit"],
            &changed["tpm_limit"]
        ),
        (&json!(20.0), &json!("1mo"), &json!(90), &json!(100_000))
    );
    assert_eq!(call(&server, key, "gpt-mini").await.0, 200, "no list is every model");
    for (path, status) in [("/key/block", 401), ("/key/unblock", 200)] {
        assert_eq!(admin(&server, Method::POST, path, json!({"key": key})).await.0, 200);
        assert_eq!(call(&server, key, "gpt").await.0, status, "{path}");
    }
    for (path, body) in [
        ("/key/generate", json!({"team_id": "web", "soft_budget": 5})),
        ("/key/generate", json!({"team_id": "web", "max_budget": 5, "budget_duration": "3d"})),
        ("/key/generate", json!({"models": ["gpt"]})),
        ("/key/update", json!({"max_budget": 5})),
        ("/key/delete", json!({"keys": [key, "unknown"]})),
        ("/key/delete", json!({"keys": [KEY]})),
    ] {
        let answer = admin(&server, Method::POST, path, body.clone()).await;
        assert!((400..500).contains(&answer.0), "{path} {body}: {answer:?}");
    }
    assert_eq!(call(&server, key, "gpt").await.0, 200);
    let gone = admin(&server, Method::POST, "/key/delete", json!({"keys": [key]})).await;
    assert_eq!(gone, (200, json!({"deleted_keys": [token]})));
    assert_eq!(code(&call(&server, key, "gpt").await), (401, "key_revoked"));
}

/// A value of another type than LiteLLM's is not the same as none, which may mean everything.
#[tokio::test]
async fn a_litellm_field_of_the_wrong_type_opens_nothing() {
    let provider = provider();
    let server = Server::start(&config_with(&provider, TEAMS));
    let (status, made) = admin(
        &server,
        Method::POST,
        "/key/generate",
        json!({"team_id": "web", "models": ["gpt"], "duration": "30d", "key_alias": "k", "key": "sk-0123456789abcdefghijkl"}),
    )
    .await;
    assert_eq!(status, 200, "{made}");
    for (path, more) in [
        ("/key/generate", json!({"models": "gpt"})),
        ("/key/generate", json!({"models": {"a": 1}})),
        ("/key/generate", json!({"duration": 3600})),
        ("/key/generate", json!({"duration": ["1h"]})),
        ("/key/generate", json!({"blocked": "true"})),
        ("/key/generate", json!({"key": "sk-short"})),
        ("/key/update", json!({"key": "k", "models": null})),
        ("/key/update", json!({"key": "k", "models": "*"})),
        ("/key/update", json!({"key": "k", "duration": 7200})),
        ("/key/update", json!({"key": "k", "blocked": 1})),
        ("/key/update", json!({"key": "k", "spend": 0})),
    ] {
        let mut body = json!({"team_id": "web"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (status, answer) = admin(&server, Method::POST, path, body).await;
        assert_eq!(status, 400, "{path} {more}: {answer}");
    }
    let (_, info) = admin(&server, Method::GET, "/key/info?key=k", json!({})).await;
    assert_eq!(info["info"]["models"], json!(["gpt"]));
    assert_eq!(info["info"]["expires"], made["expires"]);
    // What says that there is none of something asks for nothing; a third of something is a float.
    let body = json!({"team_id": "web", "spend": 0, "auto_rotate": false, "blocked": true, "max_budget": 100.0 / 3.0, "key_alias": "b"});
    let (status, made) = admin(&server, Method::POST, "/key/generate", body).await;
    assert_eq!((status, &made["blocked"]), (200, &json!(true)), "{made}");
    assert_eq!(made["max_budget"], json!(33.333_333_333));
    let key = made["key"].as_str().unwrap();
    assert_eq!(call(&server, key, "gpt").await.0, 401, "it never worked");
}

/// Each changes what it names, and nothing that another changes at the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_at_the_same_time_lose_nothing() {
    let provider = provider();
    let server = Server::start(&config_with(&provider, TEAMS));
    let body = json!({"team_id": "web", "key_alias": "k", "max_budget": 5});
    assert_eq!(admin(&server, Method::POST, "/key/generate", body).await.0, 200);
    let change = |body: Value| admin(&server, Method::POST, "/key/update", body);
    for n in 1..=20 {
        let all = tokio::join!(
            change(json!({"key": "k", "rpm_limit": n})),
            change(json!({"key": "k", "tpm_limit": 1000 * n})),
            change(json!({"key": "k", "max_parallel_requests": n})),
            change(json!({"key": "k", "budget_duration": if n % 2 == 0 { "1d" } else { "1mo" }})),
            change(json!({"key": "k", "max_budget": n})),
        );
        for (status, answer) in [all.0, all.1, all.2, all.3, all.4] {
            assert_eq!(status, 200, "{answer}");
        }
        let (_, info) = admin(&server, Method::GET, "/key/info?key=k", json!({})).await;
        let info = &info["info"];
        assert_eq!(
            (&info["rpm_limit"], &info["tpm_limit"], &info["max_parallel_requests"]),
            (&json!(n), &json!(1000 * n), &json!(n)),
        );
        assert_eq!(info["max_budget"], json!(f64::from(n)), "{info}");
    }
    // `PATCH` changes limits one by one, too, and reports show a new cap at once.
    let patch = |body: Value| admin(&server, Method::PATCH, "/keys/k", body);
    let (status, key) = patch(json!({"limits": {"rpm": 7, "parallel": null}})).await;
    assert_eq!((status, &key["limits"]), (200, &json!({"rpm": 7, "tpm": 20_000})), "{key}");
    let key = admin(&server, Method::POST, "/keys/k/rotate", json!({})).await.1;
    assert_eq!(call(&server, key["key"].as_str().unwrap(), "gpt").await.0, 200);
    assert_eq!(patch(json!({"budgets": [{"usd": 3, "per": "day"}]})).await.0, 200);
    let budgets = admin(&server, Method::GET, "/budgets", json!({})).await.1;
    let shown = budgets["data"].as_array().unwrap().iter().find(|row| row["id"] == "k").unwrap();
    assert_eq!((&shown["per"], &shown["cap_usd"]), (&json!("day"), &json!(3.0)));
    assert_eq!(patch(json!({"budgets": null})).await.0, 200);
    let budgets = admin(&server, Method::GET, "/budgets", json!({})).await.1;
    assert!(!budgets.to_string().contains("\"id\":\"k\""), "{budgets}");
}

/// Who finds a leaked key may have the one that was rotated away.
#[tokio::test]
async fn a_key_in_its_grace_is_found_by_its_text() {
    let provider = provider();
    let server = Server::start(&config_with(&provider, TEAMS));
    let body = json!({"team_id": "web", "key_alias": "k"});
    let made = admin(&server, Method::POST, "/key/generate", body).await.1;
    let old = made["key"].as_str().unwrap();
    let rotated = admin(&server, Method::POST, "/keys/k/rotate", json!({"grace": "1h"})).await.1;
    let new = rotated["key"].as_str().unwrap();
    assert_eq!(call(&server, old, "gpt").await.0, 200);
    let (status, info) =
        admin(&server, Method::GET, &format!("/key/info?key={old}"), json!({})).await;
    assert_eq!((status, &info["info"]["key_alias"]), (200, &json!("k")), "{info}");
    assert!(!info.to_string().contains(old), "the key is not shown again");
    assert_eq!(admin(&server, Method::POST, "/key/block", json!({"key": old})).await.0, 200);
    for key in [old, new] {
        assert_eq!(call(&server, key, "gpt").await.0, 401);
    }
}

/// Metadata is in every row of the ledger.
#[tokio::test]
async fn metadata_has_a_bound() {
    let provider = provider();
    let server = Server::start(&config_with(&provider, TEAMS));
    for (bytes, status) in [(4_000, 201), (5_000, 400)] {
        let body = json!({"team": "web", "models": ["*"], "metadata": {"a": "x".repeat(bytes)}});
        assert_eq!(admin(&server, Method::POST, "/keys", body).await.0, status, "{bytes}");
    }
    for id in [".", ".."] {
        let body = json!({"id": id, "team": "web", "models": ["*"]});
        assert_eq!(admin(&server, Method::POST, "/keys", body).await.0, 400, "{id}");
    }
}

/// The file gets a key of the same id: the one that was made here can still be stopped here.
#[tokio::test]
async fn a_key_of_the_file_protects_no_other_of_its_id() {
    let provider = provider();
    let server = Server::start(&config_with(&provider, TEAMS));
    let (key, _) = make(&server, json!({"id": "app", "team": "web", "models": ["gpt"]})).await;
    let file = std::fs::read_to_string(server.config_file()).unwrap();
    let more = format!(
        "keys:\n  - {{ id: app, hash: \"{}\", models: [gpt], team: web }}\n",
        hash("tb-file")
    );
    std::fs::write(server.config_file(), file.replace("keys:\n", &more)).unwrap();
    assert_eq!(admin(&server, Method::POST, "/reload", json!({})).await.0, 200);
    logs(&server, &["`app`", "two keys"]).await;
    for key in [&*key, "tb-file"] {
        assert_eq!(call(&server, key, "gpt").await.0, 200);
    }
    assert_eq!(admin(&server, Method::PATCH, "/keys/app", json!({"blocked": true})).await.0, 200);
    assert_eq!(code(&call(&server, &key, "gpt").await), (401, "key_revoked"));
    assert_eq!(admin(&server, Method::DELETE, "/keys/app", json!({})).await.0, 200);
    assert_eq!(call(&server, "tb-file", "gpt").await.0, 200);
    let again = admin(&server, Method::DELETE, "/keys/app", json!({})).await;
    assert_eq!(code(&again), (409, "key_in_file"));
}

/// The id of a key that was revoked may be used again: the new key's budgets know of all that ran.
#[tokio::test]
async fn a_key_made_again_under_its_old_id_knows_what_runs() {
    let provider = provider();
    let models = model("gpt", "sim-gpt", ", max_output_tokens: 1000");
    let server = Server::start(&config_of(&head(), &provider, "", &models));
    let budgets = |caps: &[(&str, f64)]| -> Value {
        caps.iter().map(|(per, usd)| json!({"usd": usd, "per": per})).collect()
    };
    let (day, month) = (("day", 0.003), ("month", 10.0));
    let (first, _) =
        make(&server, json!({"id": "app", "models": ["*"], "budgets": budgets(&[day])})).await;
    assert_eq!(call(&server, &first, "gpt").await.0, 200);
    assert_eq!(admin(&server, Method::DELETE, "/keys/app", json!({})).await.0, 200);
    let (key, _) =
        make(&server, json!({"id": "app", "models": ["*"], "budgets": budgets(&[month])})).await;
    let gate = tollbar_loadtest::provider::Gate::new();
    let script =
        tollbar_loadtest::provider::Script { gate: Some(gate.clone()), ..Default::default() };
    provider.clear();
    provider.script("sim-gpt", vec![script]);
    let (url, again) = (server.url("/v1/chat/completions"), key.clone());
    let runs = tokio::spawn(async move {
        let request = client().post(url).bearer_auth(again);
        request.json(&chat("gpt")).send().await.unwrap().status()
    });
    assert!(provider.wait_for(1, Duration::from_secs(10)).await);
    let both = json!({"budgets": budgets(&[day, month])});
    assert_eq!(admin(&server, Method::PATCH, "/keys/app", both).await.0, 200);
    let refused = call(&server, &key, "gpt").await;
    assert_eq!(code(&refused), (429, "budget_exceeded"), "{refused:?}");
    gate.open();
    assert_eq!(runs.await.unwrap(), 200);
}

/// A key that is in the file too, by its id or by its text, is the one that was meant, or none is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twins_are_told_apart() {
    let provider = provider();
    let config = config_with(&provider, TEAMS);
    let server = Server::start(&config);
    let all = |id: &str| json!({"id": id, "models": ["*"], "unlimited": true});
    let in_file = |config: &str, id: &str, text: &str| {
        let hash = hash(text);
        let key = format!("{{ id: {id}, hash: \"{hash}\", models: [\"*\"], unlimited: true }}");
        let with = config.replace("keys:\n", &format!("keys:\n  - {key}\n"));
        std::fs::write(server.config_file(), &with).unwrap();
        with
    };
    let (made, _) = make(&server, all("app")).await;
    let config = in_file(&config, "app", "tb-file");
    assert_eq!(admin(&server, Method::POST, "/reload", json!({})).await.0, 200);
    // LiteLLM's commands name keys by their text: this is the file's.
    for (path, body) in [
        ("/key/block", json!({"key": "tb-file"})),
        ("/key/update", json!({"key": "tb-file", "models": []})),
        ("/key/delete", json!({"keys": ["tb-file"]})),
    ] {
        let answer = admin(&server, Method::POST, path, body).await;
        assert_eq!(answer.0, 409, "{path}: {answer:?}");
        assert_eq!(call(&server, &made, "gpt").await.0, 200, "{path}: the other one");
    }
    // The file gets a key by its text that is revoked later.
    let (text, _) = make(&server, all("gone")).await;
    in_file(&config, "back", &text);
    assert_eq!(admin(&server, Method::POST, "/reload", json!({})).await.0, 200);
    assert_eq!(call(&server, &text, "gpt").await.0, 200);
    assert_eq!(admin(&server, Method::DELETE, "/keys/gone", json!({})).await.0, 200);
    assert_eq!(code(&call(&server, &text, "gpt").await), (401, "key_revoked"));
    // As long as it is there, the id isn't used again: that would let the old text in.
    assert_eq!(
        code(&admin(&server, Method::POST, "/keys", all("gone")).await),
        (409, "key_in_file")
    );
    let told = "`back` in the file is the key `gone`, which was made while running";
    logs(&server, &[told]).await;
}
