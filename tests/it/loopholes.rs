//! Ways to have more than is held or booked: each was one once.

use crate::raw::Raw;
use crate::support::*;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::net::TcpListener;
use tollbar_loadtest::provider::{Cut, Gate, Provider, Script};

/// A million nano-dollars a token, each way, and units of a cent, at providers of all dialects.
fn config(provider: &Provider) -> String {
    let base = provider.base();
    let price = "price: { input: 1000, output: 1000 }";
    let target = |p: &str, more: &str| {
        format!("{{ targets: [ {{ provider: {p}, model: sim, {price} }} ]{more} }}")
    };
    let bounded = ", max_output_tokens: 1000, context_window: 500000";
    let unit = |what: &str| {
        format!(
            "{{ context_window: 1000, max_output_tokens: 1000, targets: [ {{ provider: p, model: {what}, price: {{ {what}: 0.01 }} }} ] }}"
        )
    };
    format!(
        "{}attempts: {{ max: 2 }}\nproviders:\n  \
           p: {{ dialect: openai, base_url: \"{base}/v1\" }}\n  \
           a: {{ dialect: anthropic, base_url: \"{base}\" }}\n  \
           g: {{ dialect: gemini, base_url: \"{base}\" }}\n\
         breaker: {{ failures: 10000 }}\nmodels:\n  gpt: {}\n  claude: {}\n  gemini: {}\n  \
         whisper: {}\n  speech: {}\n  pictures: {}\n",
        head().replace("unlimited: true", "budgets: [ { usd: 5000, per: total } ]"),
        target("p", bounded),
        target("a", bounded),
        target("g", bounded),
        unit("per_second"),
        unit("per_character"),
        unit("per_image"),
    )
}

/// Tokens held while the provider is asked.
async fn held(server: &Server, provider: &Provider, path: &str, body: Value) -> u64 {
    let gate = Gate::new();
    provider.clear();
    provider.set_default("*", Script { gate: Some(gate.clone()), ..Script::default() });
    let sent = tokio::spawn(post_to(server.url(path), body));
    assert!(provider.wait_for(1, Duration::from_secs(10)).await, "{path}");
    let account = &admin(server, "/budgets").await["data"][0];
    let held = nano(&account["held_usd"].to_string());
    gate.open();
    sent.await.unwrap();
    held / 1_000_000
}

async fn post_to(url: String, body: Value) -> reqwest::Response {
    post(&client(), url, body.to_string()).await
}

/// The row of a request that got this answer.
async fn booked(
    server: &Server,
    provider: &Provider,
    path: &str,
    body: Value,
    script: Script,
) -> Value {
    provider.clear();
    provider.set_default("*", script);
    let answer = post_to(server.url(path), body).await;
    let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    let _ = answer.bytes().await;
    row(server, &id).await
}

fn plain(body: &Value) -> Script {
    Script { body: Some(body.to_string()), ..Script::default() }
}

/// A provider that takes each request over a connection that was used before, and hangs up, has
/// it twice at most, and the second time over a new one.
#[tokio::test]
async fn a_connection_that_breaks_is_not_an_endless_second_chance() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let calls = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = calls.clone();
    tokio::spawn(async move {
        for connection in 0_u32.. {
            let (stream, _) = listener.accept().await.unwrap();
            let seen = seen.clone();
            tokio::spawn(async move {
                let mut raw = Raw::over(stream);
                while let Some((_, body)) = raw.request().await {
                    seen.lock().unwrap().push(connection);
                    if String::from_utf8_lossy(&body).contains("hang up") {
                        return;
                    }
                    // All of them at once, each over a connection of its own.
                    tokio::time::sleep(Duration::from_millis(300)).await;
                    let answer = json!({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}).to_string();
                    let head = format!(
                        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                        answer.len()
                    );
                    raw.send((head + &answer).as_bytes()).await;
                }
            });
        }
    });
    let provider = provider();
    let config = config(&provider).replace(&provider.base(), &format!("http://127.0.0.1:{port}"));
    let server = Server::start(&config.replace("max: 2", "max: 3, same_target: 0"));
    let good =
        (0..12).map(|_| tokio::spawn(post_to(server.url("/v1/chat/completions"), chat("gpt"))));
    for answer in good.collect::<Vec<_>>() {
        assert_eq!(answer.await.unwrap().status(), 200);
    }
    server.log(12).await;
    let before = std::mem::take(&mut *calls.lock().unwrap());
    assert_eq!(before.len(), 12);
    let mut body = chat("gpt");
    body["messages"][0]["content"] = "hang up".into();
    let answer = post_to(server.url("/v1/chat/completions"), body).await;
    assert_eq!(answer.status(), 502);
    let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    let made = calls.lock().unwrap().clone();
    assert_eq!(made.len(), 2, "{made:?}");
    assert!(before.contains(&made[0]) && !before.contains(&made[1]), "{made:?} after {before:?}");
    let row = row(&server, &id).await;
    assert_eq!(row["outcome"], "read_error");
    assert!(cost(&row) > 0, "the second may have been read: {row}");
}

#[tokio::test]
async fn a_broken_connection_counts_among_the_attempts() {
    let provider = provider();
    let server = Server::start(&config(&provider).replace("max: 2", "max: 1"));
    let ask = || post_to(server.url("/v1/chat/completions"), chat("gpt"));
    assert_eq!(ask().await.status(), 200);
    server.log(1).await;
    provider.clear();
    provider.set_default("sim", Script { cut: Some(Cut::Headers), ..Script::default() });
    let answer = ask().await;
    assert_eq!((answer.status().as_u16(), provider.requests().len()), (502, 1));
    let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    let row = row(&server, &id).await;
    assert_eq!(
        (&row["outcome"], &row["usage_source"]),
        (&json!("stale_connection"), &json!("estimated"))
    );
}

#[tokio::test]
async fn every_prompt_of_a_list_has_an_answer_of_its_own() {
    let provider = provider();
    let server = Server::start(&config(&provider));
    let ask = |prompt: Value| json!({"model": "gpt", "prompt": prompt, "max_tokens": 100});
    for (prompt, answers) in [
        (json!("a"), 1),
        (json!(["a"]), 1),
        (json!(["a", "b", "c"]), 3),
        (json!([[1, 2], [3]]), 2),
        (json!([1, 2, 3]), 1),
        (json!(["a", "b", 3]), 3),
    ] {
        let body = ask(prompt);
        let bytes = body.to_string().len() as u64;
        let held = held(&server, &provider, "/v1/completions", body.clone()).await;
        assert!((100 * answers..100 * answers + bytes + 10).contains(&held), "{held}: {body}");
    }
}

#[tokio::test]
async fn input_that_is_only_referred_to_is_held_as_a_full_window() {
    let provider = provider();
    let server = Server::start(&config(&provider));
    let (chat, responses) = ("/v1/chat/completions", "/v1/responses");
    let (claude, gemini) = ("/v1/messages", "/v1beta/models/gemini:generateContent");
    let messages = |part: Value| json!({"model": "claude", "max_tokens": 9, "messages": [{"role": "user", "content": [part]}]});
    let contents = json!([{"role": "user", "parts": [{"text": "Hello"}]}]);
    let video = json!([{"parts": [{"fileData": {"fileUri": "https://example.com/v"}}]}]);
    for (path, body) in [
        (gemini, json!({"contents": contents, "cachedContent": "cachedContents/abc"})),
        (gemini, json!({"contents": contents, "tools": [{"googleSearch": {}}]})),
        (gemini, json!({"contents": contents, "tools": [{"url_context": {}}]})),
        (gemini, json!({"contents": video})),
        (
            responses,
            json!({"model": "gpt", "max_output_tokens": 9, "input": [{"role": "user", "content": [
            {"type": "input_file", "file_url": "https://example.com/f"}]}]}),
        ),
        (
            claude,
            messages(
                json!({"type": "document", "source": {"type": "url", "url": "https://example.com/d"}}),
            ),
        ),
    ] {
        let held = held(&server, &provider, path, body.clone()).await;
        assert!((500_000..510_000).contains(&held), "{held}: {body}");
    }
    // Names of one's own tools, and what is said about them, are none of that.
    let schema = json!({"type": "object", "properties": {"document": {"type": "string"}}});
    let tool =
        json!({"type": "function", "function": {"name": "mcp__web_search", "parameters": schema}});
    let text = "web_search in the \"document\"";
    let own = json!({"model": "gpt", "max_tokens": 9, "tools": [tool], "messages": [{"role": "user", "content": text}]});
    let most = held(&server, &provider, chat, own).await;
    assert!(most < 400, "{most}");
    // What a model wrote is text, even where it says that it is a picture.
    let long = "AbCdEfGh1".repeat(4_000);
    let call =
        json!({"type": "tool_use", "id": "t", "name": "n", "input": {"type": "image", "x": long}});
    let most = held(&server, &provider, claude, messages(call)).await;
    assert!((36_000..50_000).contains(&most), "{most}");
    let most = held(&server, &provider, chat, json!({"model": "gpt", "max_tokens": 9, "messages": [{"role": "user", "content": "Hello"}]})).await;
    assert!(most < 200, "{most}");
}

/// Tools that a provider runs make the model read all of its input again, each time.
#[tokio::test]
async fn each_round_of_a_providers_tools_may_fill_the_window() {
    let provider = provider();
    let agreed = config(&provider)
        .replace("models:\n", 
            "models:\n  agreed: { targets: [ { provider: a, model: sim-agreed, price: { input: 1000, output: 1000 } } ], \
             max_output_tokens: 1000, context_window: 500000, unseen_input_tokens: 70000 }\n  \
             listed: { targets: [ { provider: anthropic, model: claude-haiku-4-5, price: { input: 1000, output: 1000 } } ], \
             max_output_tokens: 1000 }\n  \
             study: { targets: [ { provider: p, model: sim-deep-research, price: { input: 1000, output: 1000 } } ], \
             max_output_tokens: 1000, context_window: 500000 }\n");
    let listed = format!(
        "providers:\n  anthropic: {{ dialect: anthropic, base_url: \"{}\" }}",
        provider.base()
    );
    let agreed = agreed.replace("usd: 5000", "usd: 20000").replace("providers:", &listed);
    let server = Server::start(&agreed);
    let search = |uses: Value| json!([{"type": "web_search_20250305", "name": "web_search", "max_uses": uses}]);
    let ask = |model: &str, tools: Value| json!({"model": model, "max_tokens": 9, "tools": tools, "messages": [{"role": "user", "content": "Hello"}]});
    let past = json!({"model": "claude", "max_tokens": 9, "messages": [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": [{"type": "web_search_tool_result", "tool_use_id": "t", "content": []}]},
        {"role": "user", "content": "And?"}]});
    let responses = |tools: Value, calls: Value| json!({"model": "gpt", "max_output_tokens": 9, "input": "Hello", "tools": tools, "max_tool_calls": calls});
    let (claude, open) = ("/v1/messages", "/v1/responses");
    for (path, body, windows) in [
        (claude, ask("claude", search(json!(null))), 10),
        // Only Anthropic itself is known to heed that.
        (claude, ask("claude", search(json!(3))), 10),
        (claude, past, 1),
        // What a server other than OpenAI's may overlook bounds nothing.
        (open, responses(json!([{"type": "web_search"}]), json!(2)), 10),
        (
            open,
            responses(json!([{"type": "file_search", "vector_store_ids": ["v"]}]), json!(null)),
            10,
        ),
        // A prompt that is stored there may have any tools.
        (open, json!({"model": "gpt", "max_output_tokens": 9, "prompt": {"id": "pmpt_1"}}), 10),
        (
            open,
            json!({"model": "gpt", "max_output_tokens": 9, "previous_response_id": "resp_1", "input": "Hello"}),
            1,
        ),
    ] {
        let held = held(&server, &provider, path, body.clone()).await;
        assert!((windows * 500_000..windows * 500_000 + 10_000).contains(&held), "{held}: {body}");
    }
    for (uses, windows) in [(3, 4), (50, 10)] {
        let body = ask("listed", search(json!(uses)));
        let held = held(&server, &provider, claude, body).await;
        assert!((windows * 200_000..windows * 200_000 + 10_000).contains(&held), "{uses}: {held}");
    }
    let held = held(&server, &provider, claude, ask("agreed", search(json!(8)))).await;
    assert!((70_000..71_000).contains(&held), "what the operator agreed to: {held}");
    let study = json!({"model": "study", "max_output_tokens": 9, "input": "Hello"});
    let answer = post_to(server.url(open), study).await;
    assert_eq!(answer.status(), 400);
    let text = answer.text().await.unwrap();
    assert!(text.contains("unseen_input_tokens"), "{text}");
}

/// Who has asked for it reads in the refusal what would bound it.
#[tokio::test]
async fn a_refusal_names_what_bounds_added_input() {
    let provider = provider();
    let server = Server::start(&config(&provider));
    let tools = json!([{"type": "web_search_20250305", "name": "web_search"}]);
    let body = json!({"model": "claude", "max_tokens": 9, "tools": tools, "messages": [{"role": "user", "content": "Hello"}]});
    // Ten windows cost $5,000 and what is asked for.
    let answer = post_to(server.url("/v1/messages"), body).await;
    assert_eq!(answer.status(), 429);
    let text = answer.text().await.unwrap();
    assert!(text.contains("max_uses") && text.contains("unseen_input_tokens"), "{text}");
    assert!(provider.requests().is_empty());
}

#[tokio::test]
async fn what_would_bill_elsewhere_or_choose_by_itself_is_refused() {
    let provider = provider();
    let server = Server::start(&config(&provider));
    for (path, model, field, value) in [
        ("/v1/responses", "gpt", "background", json!(true)),
        // A lax server takes these for true, too.
        ("/v1/responses", "gpt", "background", json!(1)),
        ("/v1/responses", "gpt", "background", json!("true")),
        // A picture's, where there is none.
        ("/v1/responses", "gpt", "background", json!("auto")),
        ("/v1/chat/completions", "gpt", "deferred", json!("true")),
        ("/v1/chat/completions", "gpt", "deferred", json!(true)),
        ("/v1/chat/completions", "gpt", "Deferred", json!(true)),
        ("/v1/chat/completions", "gpt", "models", json!(["dearer"])),
        ("/v1/chat/completions", "gpt", "Models", json!(["dearer"])),
        ("/v1/chat/completions", "gpt", "fallbacks", json!(["dearer"])),
        ("/v1/messages", "claude", "speed", json!("fast")),
    ] {
        provider.clear();
        let mut body = chat(model);
        body[field] = value;
        body["max_tokens"] = 9.into();
        let answer = post_to(server.url(path), body).await;
        assert_eq!(answer.status(), 400, "{field}");
        let error = answer.text().await.unwrap();
        assert!(error.contains(&field.to_lowercase()), "{error}");
        assert_eq!(provider.requests().len(), 0, "{field}");
    }
    let mut body = chat("gpt");
    for (field, value) in
        [("background", json!(false)), ("models", Value::Null), ("speed", json!(1.25))]
    {
        body[field] = value;
    }
    assert_eq!(post_to(server.url("/v1/chat/completions"), body).await.status(), 200);
    for backdrop in ["transparent", "opaque", "auto"] {
        let body = json!({"model": "gpt", "prompt": "a tree", "background": backdrop});
        let answer = post_to(server.url("/v1/images/generations"), body).await;
        assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
    }
}

/// The pictures of a tool aren't in the answer's usage: nobody would know what was spent.
#[tokio::test]
async fn pictures_on_the_way_to_an_answer_have_no_bound() {
    let provider = provider();
    let server = Server::start(&config(&provider));
    let mut body = json!({"model": "gpt", "max_output_tokens": 9, "input": "A tree.",
        "tools": [{"type": "image_generation"}]});
    let answer = post_to(server.url("/v1/responses"), body.clone()).await;
    assert_eq!(answer.status(), 400);
    let error = answer.text().await.unwrap();
    assert!(error.contains("image_generation") && error.contains("\"tools\""), "{error}");
    assert_eq!(provider.requests().len(), 0);
    body["tools"] = json!([{"type": "function", "name": "image_generation", "parameters": {}}]);
    assert_eq!(post_to(server.url("/v1/responses"), body).await.status(), 200);
}

/// What an answer is called says little about what it is.
#[tokio::test]
async fn a_wrong_label_hides_no_usage() {
    let provider = provider();
    let server = Server::start(&config(&provider));
    let usage = json!({"prompt_tokens": 20, "completion_tokens": 30_000});
    let whole = json!({"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}], "usage": usage});
    let events = format!("data: {}\n\ndata: [DONE]\n\n", json!({"choices": [], "usage": usage}));
    for (body, kind, ask) in [
        (whole.to_string(), "text/plain", chat("gpt")),
        (whole.to_string(), "application/octet-stream", chat("gpt")),
        (events.clone(), "application/json", chat_stream("gpt")),
        (events, "text/plain", chat_stream("gpt")),
    ] {
        let script =
            Script { body: Some(body), content_type: Some(kind.into()), ..Script::default() };
        let row = booked(&server, &provider, "/v1/chat/completions", ask, script).await;
        assert_eq!(
            (cost(&row), &row["usage_source"]),
            (30_020_000_000, &json!("reported")),
            "{kind}: {row}"
        );
    }
}

/// A provider that says what it bills is believed where that is more than the catalogue says. The
/// operator's own price stands.
#[tokio::test]
async fn what_a_provider_says_it_bills_is_booked() {
    let provider = provider();
    let listed =
        format!("  xai: {{ dialect: openai, base_url: \"{}/v1\" }}\nbreaker:", provider.base());
    let text = config(&provider).replacen("breaker:", &listed, 1)
        + "  grok: { targets: [ { provider: xai, model: grok-4.20 } ], max_output_tokens: 1000 }\n";
    let server = Server::start(&text);
    let base = json!({"prompt_tokens": 2, "completion_tokens": 3});
    for (more, nano) in [
        (json!({"cost": 0.95}), 950_000_000),
        (json!({"cost": {"total_cost": 0.0064, "request_cost": 0.005}}), 6_400_000),
        (json!({"cost_in_usd_ticks": 377_560_000}), 37_756_000),
        // 2 × $1.25 and 3 × $2.50 a million.
        (json!({"cost": 0.000001}), 10_000),
        (json!({"cost": -1}), 10_000),
    ] {
        let mut usage = base.clone();
        usage.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let body = json!({"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}], "usage": usage});
        for (model, nano) in [("grok", nano), ("gpt", 5_000_000)] {
            let path = "/v1/chat/completions";
            let row = booked(&server, &provider, path, chat(model), plain(&body)).await;
            assert_eq!(cost(&row), nano, "{row}");
        }
    }
    // One that says nothing later takes nothing back.
    let said = json!({"choices": [{"delta": {"content": "Hi"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 2, "completion_tokens": 3_000}});
    let empty = json!({"choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": 0}});
    let chunks =
        [format!("data: {said}\n\n"), format!("data: {empty}\n\n"), "data: [DONE]\n\n".to_owned()];
    let row =
        booked(&server, &provider, "/v1/chat/completions", chat_stream("gpt"), Script::raw(chunks))
            .await;
    assert_eq!(cost(&row), 3_002_000_000, "{row}");
}

/// Some models search for every request and never say so.
#[tokio::test]
async fn a_search_that_nobody_tells_of_is_booked() {
    let provider = provider();
    let base = provider.base();
    let listed = format!(
        "  perplexity: {{ dialect: openai, base_url: \"{base}/v1\" }}\n  \
           openai: {{ dialect: openai, base_url: \"{base}/v1\" }}\nbreaker:"
    );
    let text = config(&provider).replacen("breaker:", &listed, 1)
        + "  sonar: { targets: [ { provider: perplexity, model: sonar } ], max_output_tokens: 1000 }\n  \
             preview: { targets: [ { provider: openai, model: gpt-4o-search-preview } ], max_output_tokens: 1000 }\n";
    let server = Server::start(&text);
    let path = "/v1/chat/completions";
    for (model, more, nano) in [
        // 2 and 3 at $1 a million, and $14 for a thousand searches at most.
        ("sonar", json!({}), 14_005_000),
        ("sonar", json!({"cost": {"total_cost": 0.0064}}), 6_400_000),
        // 2 at $2.50 and 3 at $10 a million, and $25 for a thousand searches.
        ("preview", json!({}), 25_035_000),
    ] {
        let held = held(&server, &provider, path, chat(model)).await;
        assert!(held >= 14, "{held} thousandths of a dollar");
        let mut usage = json!({"prompt_tokens": 2, "completion_tokens": 3});
        usage.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let body = json!({"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}], "usage": usage});
        let row = booked(&server, &provider, path, chat(model), plain(&body)).await;
        assert_eq!(cost(&row), nano, "{row}");
    }
}

/// Some providers bill what failed, and say so in the error.
#[tokio::test]
async fn an_error_that_says_what_it_used_is_booked() {
    let provider = provider();
    let server = Server::start(&config(&provider));
    let error =
        json!({"error": {"message": "the tool call is no JSON", "code": "tool_use_failed"}});
    let mut said = error.clone();
    said["usage"] = json!({"prompt_tokens": 20, "completion_tokens": 30});
    for (body, cost_of) in [(&error, 0), (&said, 50_000_000)] {
        let script = Script { status: Some(400), ..plain(body) };
        let row = booked(&server, &provider, "/v1/chat/completions", chat("gpt"), script).await;
        assert_eq!((cost(&row), &row["outcome"]), (cost_of, &json!("relayed_error")), "{row}");
    }
}

#[tokio::test]
async fn a_byte_order_mark_hides_nothing() {
    let provider = provider();
    let server = Server::start(&config(&provider));
    let body = json!({"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 20, "completion_tokens": 30}});
    let script = Script { body: Some(format!("\u{feff}{body}")), ..Script::default() };
    let row = booked(&server, &provider, "/v1/chat/completions", chat("gpt"), script).await;
    assert_eq!(
        (cost(&row), &row["usage_source"], &row["outcome"]),
        (50_000_000, &json!("reported"), &json!("ok"))
    );
}

/// What is guessed can't pass what was held: a budget would end above its cap by a guess.
#[tokio::test]
async fn a_guess_is_never_more_than_what_was_held() {
    let provider = provider();
    let text = config(&provider).replace("max_output_tokens: 1000", "max_output_tokens: 50");
    let server = Server::start(&text);
    let words = " international".repeat(50);
    for (body, script) in [
        (
            chat_stream("gpt"),
            Script { text: Some(words.clone()), omit_usage: true, ..Script::default() },
        ),
        (chat("gpt"), Script { text: Some(words.clone()), omit_usage: true, ..Script::default() }),
        (
            chat_stream("gpt"),
            Script {
                text: Some(words),
                tokens: Some(50),
                omit_usage: true,
                cut: Some(Cut::After(45)),
                ..Script::default()
            },
        ),
    ] {
        let row = booked(&server, &provider, "/v1/chat/completions", body, script).await;
        assert_eq!(row["usage_source"], "estimated", "{row}");
        assert_eq!(row["output_tokens"], 50, "{row}");
    }
    // The input, where a tokenizer had said that it is less.
    let tight = text.replace("usd: 5000", "usd: 1.8");
    let server = Server::start(&tight);
    let mut body = chat("gpt");
    body["messages"][0]["content"] = " international".repeat(1_000).into();
    let script = Script { omit_usage: true, ..Script::default() };
    let row = booked(&server, &provider, "/v1/chat/completions", body, script).await;
    assert!(cost(&row) <= 1_800_000_000, "{row}");
}

/// Several caps, of which one parser takes the first and another the last.
#[tokio::test]
async fn a_cap_that_may_not_count_bounds_nothing() {
    let provider = provider();
    let server = Server::start(&config(&provider).replace("max_output_tokens: 1000, ", ""));
    let (chat_path, gemini) = ("/v1/chat/completions", "/v1beta/models/gemini:generateContent");
    for (path, body) in [
        (chat_path, r#"{"model":"gpt","messages":[],"max_tokens":9,"max_tokens":null}"#),
        (chat_path, r#"{"model":"gpt","messages":[],"max_tokens":0}"#),
        (
            gemini,
            r#"{"contents":[],"generationConfig":{"maxOutputTokens":9},"generation_config":{}}"#,
        ),
    ] {
        let gate = Gate::new();
        provider.clear();
        provider.set_default("*", Script { gate: Some(gate.clone()), ..Script::default() });
        let sent = tokio::spawn(post_raw(server.url(path), body.to_owned()));
        assert!(provider.wait_for(1, Duration::from_secs(10)).await, "{path}");
        let account = &admin(&server, "/budgets").await["data"][0];
        assert!(nano(&account["held_usd"].to_string()) >= 500_000 * 1_000_000, "{body}: {account}");
        gate.open();
        sent.await.unwrap();
    }
}

/// DeepSeek and others take no notice of the newer name of a cap: it reaches them by the older, and
/// counts only where it does.
#[tokio::test]
async fn a_cap_has_the_name_that_its_target_knows() {
    let provider = provider();
    let listed = format!(
        "  deepseek: {{ dialect: openai, base_url: \"{}/v1\" }}\nbreaker:",
        provider.base()
    );
    let text = config(&provider).replacen("breaker:", &listed, 1)
        + "  deep: { targets: [ { provider: deepseek, model: deepseek-v4-flash } ] }\n";
    let server = Server::start(&text);
    let url = server.url("/v1/chat/completions");
    let mut held = Vec::new();
    for caps in [
        r#""max_completion_tokens":5"#,
        r#""max_tokens":5"#,
        r#""max_tokens":null,"max_completion_tokens":5"#,
        r#""max_tokens":null,"max_completion_tokens":5,"max_tokens":5"#,
    ] {
        let gate = Gate::new();
        provider.clear();
        provider.set_default("*", Script { gate: Some(gate.clone()), ..Script::default() });
        let body = format!(r#"{{"model":"deep","messages":[],{caps}}}"#);
        let sent = tokio::spawn(post_raw(url.clone(), body));
        assert!(provider.wait_for(1, Duration::from_secs(10)).await);
        let account = &admin(&server, "/budgets").await["data"][0];
        held.push(nano(&account["held_usd"].to_string()));
        gate.open();
        sent.await.unwrap();
        let got: Value = serde_json::from_slice(&provider.requests()[0].body).unwrap();
        assert_eq!(got["max_tokens"], 5, "{caps}");
    }
    assert!(held[0] < held[1] + 50_000 && held[2] < held[1] + 50_000, "{held:?}");
    assert!(held[3] > 100 * held[1], "{held:?}");
}

/// Who serves at an address of its own can't be known. Ollama, for one, has no `max_completion_tokens`:
/// that alone would be no cap. OpenAI's reasoning models refuse the older name.
#[tokio::test]
async fn a_newer_name_of_a_cap_reaches_only_who_is_known_to_obey_it() {
    let provider = provider();
    let price = "price: { input: 1, output: 1 }";
    let models = format!(
        "  reasons: {{ targets: [ {{ provider: p, model: gpt-5-mini, {price} }} ] }}\n  \
           fast: {{ targets: [ {{ provider: groq, model: openai/gpt-oss-120b, {price} }} ] }}\n"
    );
    let groq =
        format!("  groq: {{ dialect: openai, base_url: \"{}/v1\" }}\nbreaker:", provider.base());
    let text = config(&provider).replacen("breaker:", &groq, 1) + &models;
    let server = Server::start(&text);
    for (model, older) in [("gpt", true), ("reasons", false), ("fast", false)] {
        provider.clear();
        let body = json!({"model": model, "messages": [], "max_completion_tokens": 5});
        post_to(server.url("/v1/chat/completions"), body).await;
        let got: Value = serde_json::from_slice(&provider.requests()[0].body).unwrap();
        let (old, new) = (&got["max_tokens"], &got["max_completion_tokens"]);
        let five = json!(5);
        assert_eq!((old, new), if older { (&five, &Value::Null) } else { (&Value::Null, &five) });
    }
}

async fn post_raw(url: String, body: String) -> reqwest::Response {
    post(&client(), url, body).await
}

#[tokio::test]
async fn another_models_tools_are_refused() {
    let provider = provider();
    let server = Server::start(&config(&provider));
    for kind in ["advisor_20260301", "advisor_\\u003220260301", "\\u0061dvisor_20260301"] {
        let tool = format!(r#"{{"type":"{kind}","name":"advisor","model":"dear"}}"#);
        let body = chat("claude").to_string();
        let body = format!(r#"{{"max_tokens":9,"tools":[{tool}],{}"#, &body[1..]);
        let answer = post_raw(server.url("/v1/messages"), body).await;
        assert_eq!(answer.status(), 400, "{}", answer.text().await.unwrap());
        assert_eq!(provider.requests().len(), 0);
    }
}

/// Counting tokens is free at every provider that has it.
#[tokio::test]
async fn counting_tokens_is_free() {
    let provider = provider();
    let server = Server::start(&config(&provider));
    let row = booked(
        &server,
        &provider,
        "/v1/messages/count_tokens",
        chat("claude"),
        plain(&json!({"input_tokens": 5_000})),
    )
    .await;
    assert_eq!(cost(&row), 0, "{row}");
}

#[tokio::test]
async fn a_region_is_dearer() {
    let provider = provider();
    let server = Server::start(&config(&provider));
    let mut costs = Vec::new();
    for place in ["global", "us"] {
        let mut body = chat("claude");
        body["max_tokens"] = 9.into();
        body["inference_geo"] = place.into();
        let script = Script { input: Some(50), output: Some(50), ..Script::default() };
        costs.push(cost(&booked(&server, &provider, "/v1/messages", body, script).await));
    }
    assert_eq!(costs, [100_000_000, 110_000_000]);
}

/// By the list prices of claude-sonnet-4-6: $3 and $15, and a cent a search.
#[tokio::test]
async fn a_region_makes_searches_no_dearer() {
    let provider = provider();
    let server = Server::start(&config(&provider).replace(
        "models:\n",
        "models:\n  listed: { targets: [ { provider: anthropic, model: claude-sonnet-4-6 } ] }\n",
    ).replace("providers:\n", &format!(
        "providers:\n  anthropic: {{ dialect: anthropic, base_url: \"{}\" }}\n", provider.base())));
    let answer = json!({"type": "message", "content": [], "usage": {"input_tokens": 100,
        "output_tokens": 50, "server_tool_use": {"web_search_requests": 2}}});
    let mut body = chat("listed");
    body["max_tokens"] = 90.into();
    body["inference_geo"] = "us".into();
    body["tools"] = json!([{"type": "web_search_20250305", "name": "web_search", "max_uses": 2}]);
    let row = booked(&server, &provider, "/v1/messages", body, plain(&answer)).await;
    let tokens = 100 * 3_000 + 50 * 15_000;
    assert_eq!(cost(&row), tokens + tokens / 10 + 2 * 10_000_000, "{row}");
}

/// Tools of Anthropic's own have prompts that are in no body.
#[tokio::test]
async fn tools_hold_what_explains_them() {
    let provider = provider();
    let server = Server::start(&config(&provider));
    let mut body = chat("claude");
    body["max_tokens"] = 9.into();
    let without = held(&server, &provider, "/v1/messages", body.clone()).await;
    body["tools"] = json!([{"type": "bash_20250124", "name": "bash"}]);
    let with = held(&server, &provider, "/v1/messages", body).await;
    assert!(with > without + 3_000, "{without} {with}");
}

/// Headers and parameters that make another call of a request, or take the usage out of its
/// answer, end at the gateway.
#[tokio::test]
async fn nothing_changes_the_call_behind_the_gateway() {
    let provider = provider();
    let server = Server::start(&config(&provider));
    let url = server.url(
        "/passthrough/g/v1beta/models/sim?%6Bey=tb-secret&k=v&%24fields=a&fields=b&access_token=c&$httpMethod=POST",
    );
    let request = client().get(url).bearer_auth(KEY);
    let request = request
        .header("x-http-method-override", "POST")
        .header("x-http-method", "POST")
        .header("x-method-override", "POST")
        .header("x-goog-fieldmask", "responseId")
        .header("x-vertex-ai-llm-shared-request-type", "priority")
        .header("x-kept", "yes");
    request.send().await.unwrap();
    let made = provider.requests();
    assert_eq!(made.len(), 1);
    assert_eq!(made[0].path_and_query, "/v1beta/models/sim?k=v");
    let names: Vec<&str> = made[0].headers.iter().map(|(name, _)| name.as_str()).collect();
    assert!(names.contains(&"x-kept"));
    assert!(
        !names
            .iter()
            .any(|name| ["method", "fieldmask", "vertex"].iter().any(|w| name.contains(w))),
        "{names:?}"
    );
}

#[tokio::test]
async fn an_output_that_is_not_said_is_not_nothing() {
    let provider = provider();
    let server = Server::start(&config(&provider));
    let chat_path = "/v1/chat/completions";
    let text = "x".repeat(300);
    for output in [Value::Null, json!(-100), json!("abc"), json!(1e30)] {
        let body = json!({"choices": [{"message": {"content": text}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 10, "completion_tokens": output}});
        let row = booked(&server, &provider, chat_path, chat("gpt"), plain(&body)).await;
        assert_eq!(row["usage_source"], "estimated", "{row}");
        assert!(row["output_tokens"].as_u64().unwrap() >= 100, "{row}");
        assert_eq!(row["input_tokens"], 10);
    }
    // Nothing said in good order is nothing.
    let body = json!({"choices": [{"message": {"content": ""}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 0}});
    let row = booked(&server, &provider, chat_path, chat("gpt"), plain(&body)).await;
    assert_eq!((&row["usage_source"], &row["output_tokens"]), (&json!("reported"), &json!(0)));
    // But what was streamed is something.
    let script = Script { text: Some(text), output: Some(0), ..Script::default() };
    let row = booked(&server, &provider, chat_path, chat_stream("gpt"), script).await;
    assert_eq!((&row["usage_source"], &row["output_tokens"]), (&json!("estimated"), &json!(100)));
    // Vectors have no output to say.
    let body = json!({"data": [], "usage": {"prompt_tokens": 10, "total_tokens": 10}});
    let ask = json!({"model": "gpt", "input": "Hello"});
    let row = booked(&server, &provider, "/v1/embeddings", ask, plain(&body)).await;
    assert_eq!((&row["usage_source"], cost(&row)), (&json!("reported"), 10_000_000));
}

/// A number that no answer can have is none: what it cost is estimated, and no more than was held.
#[tokio::test]
async fn absurd_usage_is_booked_alike_everywhere() {
    let provider = provider();
    let server = Server::start(&config(&provider));
    let used = |tokens: u64| {
        plain(&json!({"choices": [],
            "usage": {"prompt_tokens": tokens, "completion_tokens": tokens}}))
    };
    let path = "/v1/chat/completions";
    let row = booked(&server, &provider, path, chat("gpt"), used(u64::MAX)).await;
    assert_eq!(row["usage_source"], "estimated", "{row}");
    let estimate = cost(&row);
    assert!(estimate < 2_000 * 1_000_000, "{row}");
    let most = 1 << 30;
    let row = booked(&server, &provider, path, chat("gpt"), used(most)).await;
    assert_eq!((&row["usage_source"], cost(&row)), (&json!("reported"), 2 * most * 1_000_000));
    let metrics = client().get(server.admin_url("/metrics")).bearer_auth(ADMIN_TOKEN).send().await;
    let metrics = metrics.unwrap().text().await.unwrap();
    let line = metrics.lines().find(|line| line.starts_with("tollbar_cost_usd_total{")).unwrap();
    let total = 2 * most * 1_000_000 + estimate;
    assert_eq!(nano(line.rsplit(' ').next().unwrap()), total, "{line}");
    server.log(2).await;
    assert!(!server.stderr().iter().any(|line| line.contains("panicked")));
}

/// What is made by the piece has been asked for, and may have been made, when nobody answers.
#[tokio::test]
async fn pieces_that_were_asked_for_are_booked_without_an_answer() {
    let provider = provider();
    let server = Server::start(&config(&provider));
    let cut = || Script { delay_ms: 300, cut: Some(Cut::Headers), ..Script::default() };
    let speech = json!({"model": "speech", "voice": "v", "input": "é".repeat(40)});
    let row = booked(&server, &provider, "/v1/audio/speech", speech, cut()).await;
    assert_eq!((cost(&row), &row["usage_source"]), (400_000_000, &json!("estimated")));
    let pictures = json!({"model": "pictures", "prompt": "p", "n": 3});
    let row = booked(&server, &provider, "/v1/images/generations", pictures, cut()).await;
    assert_eq!((cost(&row), &row["usage_source"]), (30_000_000, &json!("estimated")));
}

/// Subtitles say no seconds: they are booked as they were held.
#[tokio::test]
async fn sound_whose_length_is_not_told_is_booked_as_held() {
    let provider = provider();
    let server = Server::start(&config(&provider));
    for (body, kind, seconds) in [
        ("hello world", "text/plain", None),
        ("{\"text\":\"hello\"}", "application/json", None),
        (
            "{\"text\":\"hello\",\"usage\":{\"type\":\"duration\",\"seconds\":7}}",
            "application/json",
            Some(7),
        ),
        // Mistral's; and tokens alone, which cost nothing here.
        (
            "{\"text\":\"hello\",\"usage\":{\"prompt_audio_seconds\":7,\"prompt_tokens\":4,\"completion_tokens\":6}}",
            "application/json",
            Some(7),
        ),
        (
            "{\"text\":\"hello\",\"usage\":{\"prompt_tokens\":4,\"completion_tokens\":6}}",
            "application/json",
            None,
        ),
    ] {
        provider.clear();
        let script = Script {
            body: Some(body.into()),
            content_type: Some(kind.into()),
            ..Script::default()
        };
        provider.set_default("*", script);
        let form = format!(
            "--x\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\nwhisper\r\n--x\r\n\
             content-disposition: form-data; name=\"file\"; filename=\"a.mp3\"\r\n\r\n{}\r\n--x--\r\n",
            "s".repeat(5_000)
        );
        let request = client().post(server.url("/v1/audio/transcriptions")).bearer_auth(KEY);
        let request = request.header("content-type", "multipart/form-data; boundary=x").body(form);
        let answer = request.send().await.unwrap();
        let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
        answer.bytes().await.unwrap();
        let sent = provider.requests()[0].body.len() as u64;
        let row = row(&server, &id).await;
        assert_eq!(cost(&row), seconds.unwrap_or(sent / 500 + 1) * 10_000_000, "{row}");
    }
}

/// An answer before the answer is the provider's affair, and a switch of protocols is none.
#[tokio::test]
async fn informational_answers_end_at_the_gateway() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut raw = Raw::over(stream);
                while let Some((_, body)) = raw.request().await {
                    let early = "HTTP/1.1 103 Early Hints\r\nset-cookie: a=b\r\nx-tollbar-target: evil\r\n\r\n";
                    let switch = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n";
                    let answer = json!({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}).to_string();
                    let head = format!(
                        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                        answer.len()
                    );
                    let switches = String::from_utf8_lossy(&body).contains("switch");
                    let all = if switches {
                        switch.to_owned()
                    } else {
                        early.to_owned() + &head + &answer
                    };
                    raw.send(all.as_bytes()).await;
                }
            });
        }
    });
    let provider = provider();
    let config = config(&provider).replace(&provider.base(), &format!("http://127.0.0.1:{port}"));
    let server = Server::start(&config);
    let mut entries = 0;
    for (content, upgrade, status) in [
        ("Hello", "", 200),
        ("Hello", "upgrade: websocket\r\n", 200),
        ("switch", "", 502),
        ("switch", "upgrade: websocket\r\n", 502),
    ] {
        let mut body = chat("gpt");
        body["messages"][0]["content"] = content.into();
        let body = body.to_string();
        let mut raw =
            Raw::connect(server.url("").trim_start_matches("http://").parse().unwrap()).await;
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: t\r\nauthorization: Bearer {KEY}\r\n{upgrade}\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        raw.send((head + &body).as_bytes()).await;
        let (got, head, _) = raw.answer().await.unwrap();
        assert_eq!(got, status, "{content} {upgrade}: {head}");
        assert!(!head.contains("evil") && !head.contains("set-cookie"), "{head}");
        assert_eq!(head.contains("x-tollbar-cost-usd"), status == 200, "{head}");
        entries += 1;
        server.log(entries).await;
    }
}
