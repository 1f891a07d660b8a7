//! A provider's own API through the gateway, and requests that don't fit a model.

use crate::support::*;
use serde_json::{Value, json};
use tollbar_loadtest::provider::Provider;

fn config_with(provider: &Provider, models: &str) -> String {
    config(provider)
        .replace("models: [\"*\"]", &format!("models: [{models}]"))
        .replace("api_key:", "passthrough: { unmetered: [\"/files*\"] }, api_key:")
}

async fn post(server: &Server, path: &str, body: &Value) -> (u16, Value) {
    let answer = client().post(server.url(path)).bearer_auth(KEY).json(body).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap_or(Value::Null))
}

#[tokio::test]
async fn a_known_path_is_metered_like_any_other() {
    let provider = provider();
    let server = Server::start(&config_with(&provider, "\"p/sim-*\", \"a/sim-*\""));
    for path in ["/passthrough/p/v1/chat/completions", "/passthrough/p/chat/completions"] {
        let (status, body) = post(&server, path, &chat("sim-gpt")).await;
        assert_eq!(status, 200, "{body}");
    }
    let (status, _) = post(
        &server,
        "/passthrough/a/v1/messages?beta=true&key=leak",
        &json!({"model": "sim-claude", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]}),
    )
    .await;
    assert_eq!(status, 200);
    let asked: Vec<String> = provider.requests().into_iter().map(|r| r.path_and_query).collect();
    assert_eq!(asked, ["/v1/chat/completions", "/v1/chat/completions", "/v1/messages?beta=true"]);
    for line in server.log(3).await {
        assert_eq!(line["usage_source"], "reported", "{line}");
        assert_ne!(line["cost_usd"], "0.000000000", "{line}");
    }
}

#[tokio::test]
async fn what_cant_be_metered_or_priced_is_refused() {
    let provider = provider();
    let server = Server::start(&config_with(&provider, "\"p/*\""));
    let cases = [
        ("/passthrough/p/v1/chat/completions", chat("no-price"), 400, "unpriced_model"),
        ("/passthrough/a/v1/messages", chat("sim-claude"), 403, "model_not_allowed"),
        ("/passthrough/p/v1/fine_tuning/jobs", json!({}), 403, "unmetered_path"),
        ("/passthrough/nobody/v1/chat/completions", chat("x"), 404, "unknown_path"),
        ("/passthrough/p/v1%2f..%2fadmin", json!({}), 400, "invalid_request"),
    ];
    for (path, body, status, code) in cases {
        let (got, answer) = post(&server, path, &body).await;
        let told =
            answer["error"]["code"].as_str().or(answer["error"]["details"]["error_code"].as_str());
        assert_eq!((got, told), (status, Some(code)), "{path}: {answer}");
    }
    assert!(provider.requests().is_empty());
    let listed = client()
        .get(server.url("/passthrough/p/v1/files?limit=3"))
        .bearer_auth(KEY)
        .send()
        .await
        .unwrap();
    assert_eq!(listed.status(), 404, "the provider's own answer: it has no files");
    let seen = provider.requests().into_iter().next().unwrap();
    assert_eq!((seen.method.as_str(), seen.path_and_query.as_str()), ("GET", "/v1/files?limit=3"));
    assert_eq!(seen.header("authorization"), Some("Bearer sk-provider"));
}

/// Another form of answer has no usage that can be read; of what isn't metered it is the file.
#[tokio::test]
async fn the_form_of_an_answer_is_the_clients_where_nothing_is_metered() {
    let provider = provider();
    let models = format!(
        "providers:\n  gemini: {{ dialect: gemini, base_url: \"{}\", passthrough: {{ unmetered: [\"/v1beta/files*\"] }} }}\n",
        provider.base()
    );
    let config = config_with(&provider, "\"gemini/*\"").replacen("providers:\n", &models, 1);
    let server = Server::start(&config);
    for (path, wanted) in [
        ("/v1beta/files/x:download?alt=media", "/v1beta/files/x:download?alt=media"),
        (
            "/v1beta/models/gemini-2.5-flash:generateContent?alt=proto&callback=f",
            "/v1beta/models/gemini-2.5-flash:generateContent",
        ),
        (
            "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse",
            "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse",
        ),
    ] {
        provider.clear();
        let url = server.url(&format!("/passthrough/gemini{path}"));
        let request = if path.contains("files") {
            client().get(url)
        } else {
            client().post(url).json(&json!({"contents": []}))
        };
        let _ = request.bearer_auth(KEY).send().await.unwrap();
        let made = provider.requests();
        assert_eq!(made[0].path_and_query, wanted);
    }
}

/// Who speaks to Anthropic reads Anthropic's errors, whatever has been found out by then.
#[tokio::test]
async fn refusals_have_the_shape_of_the_providers_dialect() {
    let provider = provider();
    let gemini =
        format!("providers:\n  gemini: {{ dialect: gemini, base_url: \"{}\" }}\n", provider.base());
    let config = config_with(&provider, "\"*\"").replacen("providers:\n", &gemini, 1);
    let server = Server::start(&config);
    let ask = async |key: &str, provider: &str| {
        let url = server.url(&format!("/passthrough/{provider}/v1/batches"));
        let answer = client().post(url).bearer_auth(key).json(&json!({})).send().await.unwrap();
        answer.json::<Value>().await.unwrap()
    };
    for (key, anthropic, google, code) in [
        (KEY, "permission_error", "PERMISSION_DENIED", "unmetered_path"),
        ("tb-stranger", "authentication_error", "UNAUTHENTICATED", "invalid_api_key"),
    ] {
        let answer = ask(key, "a").await;
        assert_eq!(
            (&answer["type"], &answer["error"]["type"]),
            (&json!("error"), &json!(anthropic))
        );
        assert_eq!(ask(key, "gemini").await["error"]["status"], google);
        assert_eq!(ask(key, "p").await["error"]["code"], code);
    }
    // Which providers there are is not for strangers.
    let (there, nowhere) = (ask("tb-stranger", "p").await, ask("tb-stranger", "nowhere").await);
    assert_eq!(there, nowhere);
}

/// The event that ends a stream is one that its client reads, also where nothing is metered.
#[tokio::test]
async fn a_broken_stream_that_isnt_metered_ends_in_its_clients_dialect() {
    let begun = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n\
                 12\r\ndata: {}\n\ndata: {\"\r\n";
    let base = crate::raw::canned(begun.as_bytes().to_vec(), true).await;
    let of = |name: &str, dialect: &str| {
        format!(
            "  {name}: {{ dialect: {dialect}, base_url: \"{base}\", passthrough: {{ unmetered: [\"/x\"] }} }}\n"
        )
    };
    let server = Server::start(&format!(
        "{}providers:\n{}{}{}models:\n{}",
        head(),
        of("p", "openai"),
        of("a", "anthropic"),
        of("g", "gemini"),
        model("gpt", "sim-gpt", "")
    ));
    for (provider, name, path, wanted) in [
        ("p", "event: error\n", "/error/code", "stream_interrupted"),
        ("a", "event: error\n", "/error/type", "api_error"),
        ("g", "", "/error/status", "INTERNAL"),
    ] {
        let url = server.url(&format!("/passthrough/{provider}/x"));
        let answer = client().get(url).bearer_auth(KEY).send().await.unwrap();
        let text = answer.text().await.unwrap();
        // Half an event ends where it was cut.
        let last =
            text.strip_prefix("data: {}\n\ndata: {\"\n\n").unwrap_or_else(|| panic!("{text}"));
        let data = last.strip_prefix(name).and_then(|rest| rest.strip_prefix("data: "));
        let event: Value = serde_json::from_str(data.unwrap_or_else(|| panic!("{text}"))).unwrap();
        assert_eq!(event.pointer(path), Some(&json!(wanted)), "{provider}: {text}");
        // Flat is only what the Responses API says.
        assert_eq!(event.get("sequence_number").is_some(), provider == "p", "{text}");
    }
}

/// A path that is written with the provider's base is the same call, and so is one of Google's other
/// versions.
#[tokio::test]
async fn what_can_be_metered_is_never_unmetered() {
    let provider = provider();
    let of = |name: &str, dialect: &str, base: &str| {
        format!(
            "  {name}: {{ dialect: {dialect}, base_url: \"{}{base}\", passthrough: {{ \
               unmetered: [\"/openai/*\", \"/base/*\", \"/v*\", \"/chat/*\", \"/models/*\", \"/deployments/*\"] }} }}\n",
            provider.base()
        )
    };
    let server = Server::start(&format!(
        "{}providers:\n{}{}{}models:\n  m: {{ targets: [ {{ provider: groq, model: m, price: free }} ] }}\n",
        head(),
        of("groq", "openai", "/openai/v1"),
        of("claude", "anthropic", "/base"),
        of("gemini", "gemini", "/v1beta")
            + &of("azure", "openai", "")
            + &of("below", "openai", "/openai")
    ));
    let asked = json!({"model": "no-price", "messages": [], "max_tokens": 1});
    for path in [
        "groq/chat/completions",
        "groq/v1/chat/completions",
        "groq/openai/v1/chat/completions",
        "groq/openai/v1/chat/completions/",
        "azure/openai/v1/chat/completions",
        "azure/openai/deployments/no-price/chat/completions",
        "below/deployments/no-price/chat/completions",
        "below/openai/deployments/no-price/chat/completions",
        "claude/v1/messages",
        "claude/base/v1/messages",
        "gemini/models/no-price:generateContent",
        "gemini/v1/models/no-price:generateContent",
        "gemini/v1alpha/models/no-price:generateContent",
        "gemini/v1beta/models/no-price:generateContent",
        "gemini/v1beta/v1beta/models/no-price:streamGenerateContent",
    ] {
        let (status, answer) = post(&server, &format!("/passthrough/{path}"), &asked).await;
        assert!(status == 400 && answer.to_string().contains("no known price"), "{path}: {answer}");
    }
    assert!(provider.requests().is_empty());
    let models = server.url("/passthrough/groq/openai/v1/models");
    assert_eq!(client().get(models).bearer_auth(KEY).send().await.unwrap().status(), 200);
    assert_eq!(provider.requests()[0].path_and_query, "/openai/v1/models");
}

/// A target that a model names has that model's bounds, by whichever way it is asked.
#[tokio::test]
async fn the_bounds_of_a_configured_target_hold() {
    let provider = provider();
    let target = "{ provider: p, model: own, price: { input: 1, output: 1 } }";
    let models = format!(
        "models:\n  wide: {{ targets: [ {target} ], max_output_tokens: 50, context_window: 1000 }}\n  \
           narrow: {{ targets: [ {target} ], max_output_tokens: 5, context_window: 1000 }}\n"
    );
    let config = config_with(&provider, "\"p/own\"").replace("models:\n", &models);
    let server = Server::start(&config);
    let path = "/passthrough/p/v1/chat/completions";
    let (status, answer) = post(&server, path, &chat("own")).await;
    assert_eq!(status, 200, "{answer}");
    let sent: Value = serde_json::from_slice(&provider.requests()[0].body).unwrap();
    assert_eq!(sent["max_completion_tokens"].as_u64().or(sent["max_tokens"].as_u64()), Some(50));
    let mut long = chat("own");
    long["messages"][0]["content"] = "word ".repeat(10_000).into();
    let (status, answer) = post(&server, path, &long).await;
    assert_eq!((status, &answer["error"]["code"]), (400, &json!("context_length_exceeded")));
}

/// A configured target is its model's, whatever path leads to it.
#[tokio::test]
async fn the_limits_and_budgets_of_a_configured_targets_model_hold() {
    let provider = provider();
    let models = [
        model("free", "sim-free", ", limits: { rpm: 1 }"),
        model("poor", "sim-poor", ", budgets: [ { usd: 0.000001, per: day } ]"),
    ];
    let server = Server::start(&config_of(&head(), &provider, "", &models.concat()));
    let pass = "/passthrough/p/v1/chat/completions";
    assert_eq!(post(&server, "/v1/chat/completions", &chat("free")).await.0, 200);
    let (status, body) = post(&server, pass, &chat("sim-free")).await;
    assert_eq!((status, &body["error"]["code"]), (429, &"rate_limit_exceeded".into()), "{body}");
    let mut capped = chat("sim-poor");
    capped["max_tokens"] = 10.into();
    let (status, body) = post(&server, pass, &capped).await;
    assert_eq!((status, &body["error"]["code"]), (429, &"budget_exceeded".into()), "{body}");
    assert!(body.to_string().contains("the model `poor`"), "{body}");
    assert_eq!(provider.requests().len(), 1);
    // Of several models that have the target one with budgets, in whatever order they are kept.
    let others: String =
        (0..8).map(|n| model(&format!("open{n}"), "sim-poor", "")).chain(models).collect();
    for _ in 0..3 {
        let server = Server::start(&config_of(&head(), &provider, "", &others));
        let (status, body) = post(&server, pass, &capped).await;
        assert_eq!((status, &body["error"]["code"]), (429, &"budget_exceeded".into()), "{body}");
    }
}

/// A client that has kept an earlier answer is told that it is still good; that is no failure.
#[tokio::test]
async fn an_answer_that_has_not_changed_passes_through() {
    let base =
        crate::raw::canned(b"HTTP/1.1 304 Not Modified\r\netag: \"a\"\r\n\r\n".to_vec(), false);
    let config = format!(
        "{}providers:\n  p: {{ dialect: openai, base_url: \"{}/v1\", api_key: sk-provider }}\nmodels:\n{}",
        head(),
        base.await,
        model("gpt", "sim-gpt", "")
    );
    let server = Server::start(&config);
    let request = client().get(server.url("/passthrough/p/models")).bearer_auth(KEY);
    let answer = request.header("if-none-match", "\"a\"").send().await.unwrap();
    assert_eq!(answer.status(), 304);
    let line = server.log(1).await.pop().unwrap();
    assert_eq!(line["attempts"].as_array().unwrap().len(), 1, "{line}");
}

/// A reload forgets nothing of a target that only passthrough has.
#[tokio::test]
async fn a_breaker_of_what_is_passed_through_survives_a_reload() {
    let base = crate::raw::canned(b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n".to_vec(), false);
    let server = Server::start(&format!(
        "{}breaker: {{ failures: 2, cooldown: 1h }}\nproviders:\n  \
           p: {{ dialect: openai, base_url: \"{}/v1\", api_key: sk-provider }}\nmodels:\n{}",
        head(),
        base.await,
        model("gpt", "sim-gpt", "")
    ));
    let list = || client().get(server.url("/passthrough/p/models")).bearer_auth(KEY).send();
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(list().await.unwrap().status().as_u16());
    }
    assert_eq!(statuses.last(), Some(&503), "{statuses:?}");
    let request = client().post(server.admin_url("/reload")).bearer_auth(ADMIN_TOKEN);
    assert_eq!(request.send().await.unwrap().status(), 200);
    assert_eq!(list().await.unwrap().status(), 503);
}

#[tokio::test]
async fn a_models_list_passes_through() {
    let provider = provider();
    let server = Server::start(&config_with(&provider, "\"*\""));
    let answer =
        client().get(server.url("/passthrough/p/models")).bearer_auth(KEY).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.json::<Value>().await.unwrap()["object"], "list");
}

#[tokio::test]
async fn what_certainly_doesnt_fit_is_refused_with_the_numbers() {
    let provider = provider();
    let small = config(&provider).replace("gpt: {", "gpt: { context_window: 1000, ");
    let server = Server::start(&small);
    let mut body = chat("gpt");
    body["messages"][0]["content"] = "word ".repeat(2000).into();
    let (status, answer) = post(&server, "/v1/chat/completions", &body).await;
    assert_eq!((status, answer["error"]["code"].as_str()), (400, Some("context_length_exceeded")));
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("1000 tokens") && message.contains("1253 tokens"), "{message}");
    assert!(provider.requests().is_empty());
    // 5,000 bytes are between 625 and 5,000 tokens: the tokenizer tells that it is 1,000 words.
    body["messages"][0]["content"] = "word ".repeat(1000).into();
    assert_eq!(post(&server, "/v1/chat/completions", &body).await.0, 200, "what may fit is sent");
    // Another vendor than OpenAI may count three tenths fewer.
    body["messages"][0]["content"] = "word ".repeat(1500).into();
    assert_eq!(post(&server, "/v1/chat/completions", &body).await.0, 400);
    let picture = format!("data:image/png;base64,{}", "A".repeat(100_000));
    body["messages"][0]["content"] = json!([{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": "what?"}]);
    let (status, _) = post(&server, "/v1/chat/completions", &body).await;
    assert_eq!(status, 200, "bytes of a picture are not tokens");
    body["max_tokens"] = 999.into();
    body["messages"][0]["content"] = "word ".repeat(100).into();
    assert_eq!(post(&server, "/v1/chat/completions", &body).await.0, 400);
}

/// A request without a body ends with its header, on HTTP/2 too.
#[tokio::test]
async fn a_request_without_a_body_goes_through() {
    for http2 in ["never", "always"] {
        let provider = provider();
        let more = format!(", http2: {http2}, passthrough: {{ unmetered: [\"/files*\"] }}");
        let server =
            Server::start(&config_of(&head(), &provider, &more, &model("gpt", "sim-gpt", "")));
        let url = server.url("/passthrough/p/files/7");
        for method in [http::Method::GET, http::Method::DELETE, http::Method::POST] {
            let asked = client().request(method.clone(), url.clone()).bearer_auth(KEY);
            let got = asked.send().await.unwrap();
            // The simulated provider knows no files.
            assert_eq!(got.status(), 404, "{http2} {method}: {}", got.text().await.unwrap());
        }
        assert_eq!(provider.requests().len(), 3, "{http2}: each once");
    }
}

/// The bytes of a file are no tokens: they are under no limit of tokens, and are counted nowhere.
#[tokio::test]
async fn what_isnt_metered_has_no_tokens() {
    let base = crate::raw::canned(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}".to_vec(), true);
    let limited = head().replace("unlimited: true", "unlimited: true, limits: { tpm: 100 }");
    let server = Server::start(&format!(
        "{limited}providers:\n  p: {{ dialect: openai, base_url: \"{}/v1\", passthrough: {{ unmetered: [\"/files*\"] }} }}\nmodels:\n{}",
        base.await,
        model("gpt", "sim-gpt", "")
    ));
    let upload = client().post(server.url("/passthrough/p/files")).bearer_auth(KEY);
    let answer = upload.body("x".repeat(30_000)).send().await.unwrap();
    let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
    let row = row(&server, &id).await;
    assert_eq!((&row["usage_source"], &row["input_tokens"]), (&"none".into(), &Value::Null));
    server.log(1).await;
    assert_eq!(server.metric("tollbar_tokens_total").await, 0.0);
}
