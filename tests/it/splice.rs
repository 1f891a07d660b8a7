//! What a provider receives differs from what the client sent in the spliced fields only.

use crate::support::*;
use tollbar_loadtest::provider::{Provider, Script};

/// A template: `⟦a|b⟧` is `a` as the client sends it, and `b` as the provider receives it.
fn both(template: &str) -> (String, String) {
    let (mut client, mut provider) = (String::new(), String::new());
    let mut rest = template;
    while let Some((plain, more)) = rest.split_once('⟦') {
        let (pair, after) = more.split_once('⟧').unwrap();
        let (a, b) = pair.split_once('|').unwrap();
        client.push_str(plain);
        client.push_str(a);
        provider.push_str(plain);
        provider.push_str(b);
        rest = after;
    }
    (client + rest, provider + rest)
}

/// `gpt`, `capped` (100 output tokens) and the other dialects' `claude`, `gem`.
fn config(provider: &Provider) -> String {
    let base = provider.base();
    let price = "price: { input: 1, output: 2 }";
    let more = format!(
        "  claude: {{ targets: [ {{ provider: a, model: sim-claude, {price} }} ], max_output_tokens: 100 }}\n  \
         gem: {{ targets: [ {{ provider: g, model: sim-gem, {price} }} ], max_output_tokens: 100 }}\n"
    );
    let models = model("gpt", "sim-gpt", "")
        + &model("capped", "sim-capped", ", max_output_tokens: 100")
        + &more;
    let text = config_of(&head(), provider, "", &models);
    let others = format!(
        "providers:\n  a: {{ dialect: anthropic, base_url: \"{base}\", api_key: sk-provider }}\n  \
         g: {{ dialect: gemini, base_url: \"{base}\", api_key: sk-provider }}\n"
    );
    text.replacen("providers:\n", &others, 1)
}

async fn check(path: &str, templates: &[&str]) {
    let provider = provider();
    let ok = r#"{"id":"x","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}"#;
    provider.set_default("*", Script { body: Some(ok.to_owned()), ..Script::default() });
    let server = Server::start(&config(&provider));
    for (template, http) in templates.iter().zip([client(), h2_client()].iter().cycle()) {
        let (sent, wanted) = both(template);
        let answer = post(http, server.url(path), sent.clone()).await;
        assert_eq!(answer.status(), 200, "{sent}: {}", answer.text().await.unwrap());
        let received = provider.requests();
        assert_eq!(received.len(), 1, "{sent}");
        assert_eq!(String::from_utf8_lossy(&received[0].body), wanted, "{path} {template}");
        provider.clear();
    }
}

#[tokio::test]
async fn the_model_alone_is_changed() {
    check(
        "/v1/chat/completions",
        &[
            // Pretty-printed, with odd white space.
            "\n{\n\t\"messages\" : [ ] ,\r\n  \"model\"  :\t⟦\"gpt\"|\"sim-gpt\"⟧  ,\n  \"user\": \"u\"\n}\n ",
            // First, last, alone.
            r#"{"model":⟦"gpt"|"sim-gpt"⟧,"messages":[]}"#,
            r#"{"messages":[],"model":⟦"gpt"|"sim-gpt"⟧}"#,
            r#"{"model":⟦"gpt"|"sim-gpt"⟧}"#,
            // Escapes in key and value.
            r#"{"mod\u0065l":⟦"g\u0070t"|"sim-gpt"⟧,"messages":[]}"#,
            r#"{"\u006D\u006f\u0064\u0065\u006c":⟦"gpt"|"sim-gpt"⟧}"#,
            // Written twice: providers differ in which one counts, so none may slip through.
            r#"{"model":⟦"dear-model"|"sim-gpt"⟧,"messages":[],"model":⟦"gpt"|"sim-gpt"⟧}"#,
            r#"{"mod\u0065l":⟦"dear-model"|"sim-gpt"⟧,"model":⟦"gpt"|"sim-gpt"⟧}"#,
            // Look-alikes: nested, in text, with a space.
            r#"{"messages":[{"role":"user","content":"{\"model\":\"gpt\"}","model":"gpt"}],"metadata":{"model":"gpt","max_tokens":99999,"stream_options":null,"stream":true},"model ":"gpt","model":⟦"gpt"|"sim-gpt"⟧}"#,
            // Numbers that a parser would rewrite.
            r#"{"model":⟦"gpt"|"sim-gpt"⟧,"seed":123456789012345678901234567890,"temperature":1.0e-7,"top_p":1E+2,"x":-0.0,"y":0.10000000000000000000000000001,"z":1.50}"#,
            // Text that a parser would rewrite.
            r#"{"model":⟦"gpt"|"sim-gpt"⟧,"messages":[{"role":"user","content":"Zürich ☂️ 👩🏽‍🔬 \ud83d\ude00 \u00e9 \/ \u2028   \u0000 \b\f"}],"ключ":"значение","":null}"#,
            // Order, repetition and emptiness of other members.
            r#"{"b":1,"a":2,"b":3,"model":⟦"gpt"|"sim-gpt"⟧,"tools":[],"c":{},"d":[[],{}]}"#,
            // Not streamed: the options are the client's business.
            r#"{"model":⟦"gpt"|"sim-gpt"⟧,"stream":false,"stream_options":null}"#,
            r#"{"model":⟦"gpt"|"sim-gpt"⟧,"max_tokens":123456,"max_completion_tokens":null}"#,
        ],
    )
    .await;
}

#[tokio::test]
async fn usage_is_asked_for_in_streams() {
    const ASK: &str = r#""stream_options":{"include_usage":true}"#;
    let inserted = |body: &str| body.replace("{+", &format!("{{⟦|{ASK},⟧"));
    let bodies = [
        inserted(r#"{+"model":⟦"gpt"|"sim-gpt"⟧,"stream":true}"#),
        inserted("{+\n  \"stream\" : true,\n  \"model\": ⟦\"gpt\"|\"sim-gpt\"⟧\n}"),
        inserted(r#"{+"stream":false,"model":⟦"gpt"|"sim-gpt"⟧,"stream":true}"#),
        r#"{"model":⟦"gpt"|"sim-gpt"⟧,"stream":true,"stream_options":{"include_usage":true}}"#.to_owned(),
        r#"{"model":⟦"gpt"|"sim-gpt"⟧,"stream":true,"stream_options":{"include_usage": ⟦false|true⟧ }}"#.to_owned(),
        r#"{"model":⟦"gpt"|"sim-gpt"⟧,"stream":true,"stream_options":⟦null|{"include_usage":true}⟧}"#.to_owned(),
        r#"{"model":⟦"gpt"|"sim-gpt"⟧,"stream":true,"stream_options":{⟦|"include_usage":true⟧}}"#.to_owned(),
        r#"{"model":⟦"gpt"|"sim-gpt"⟧,"stream":true,"stream_options":{⟦|"include_usage":true,⟧ "x" : 1}}"#.to_owned(),
        r#"{"stream_options":{"include_usage":⟦null|true⟧,"x":[1]},"model":⟦"gpt"|"sim-gpt"⟧,"stream":true}"#.to_owned(),
        r#"{"stream_options":{"include_us\u0061ge":⟦false|true⟧},"model":⟦"gpt"|"sim-gpt"⟧,"stream":true}"#.to_owned(),
    ];
    let bodies: Vec<&str> = bodies.iter().map(String::as_str).collect();
    check("/v1/chat/completions", &bodies).await;
    check("/v1/completions", &bodies[..5]).await;
    // These two report usage unasked.
    check("/v1/responses", &[r#"{"model":⟦"gpt"|"sim-gpt"⟧,"input":"x","stream":true}"#]).await;
}

#[tokio::test]
async fn output_is_capped() {
    check(
        "/v1/chat/completions",
        &[
            r#"{⟦|"max_tokens":100,⟧"model":⟦"capped"|"sim-capped"⟧,"messages":[]}"#,
            r#"{⟦|"max_tokens":100,"stream_options":{"include_usage":true},⟧"model":⟦"capped"|"sim-capped"⟧,"stream":true}"#,
            r#"{"max_tokens":⟦101|100⟧,"model":⟦"capped"|"sim-capped"⟧}"#,
            r#"{"max_tokens":100,"model":⟦"capped"|"sim-capped"⟧}"#,
            r#"{"max_tokens":7,"model":⟦"capped"|"sim-capped"⟧}"#,
            r#"{"max_tokens":⟦null|100⟧,"model":⟦"capped"|"sim-capped"⟧}"#,
            r#"{⟦"max_completion_tokens"|"max_tokens"⟧:⟦9007199254740993|100⟧,"model":⟦"capped"|"sim-capped"⟧}"#,
            r#"{"max_completion_tokens":50,"max_tokens":⟦5000|100⟧,"model":⟦"capped"|"sim-capped"⟧}"#,
            r#"{"max_t\u006fkens":⟦5000|100⟧,"max_tokens":10,"model":⟦"capped"|"sim-capped"⟧}"#,
        ],
    )
    .await;
    check(
        "/v1/responses",
        &[
            r#"{⟦|"max_output_tokens":100,⟧"input":"x","model":⟦"capped"|"sim-capped"⟧}"#,
            r#"{"input":"x","max_output_tokens":⟦200|100⟧,"model":⟦"capped"|"sim-capped"⟧}"#,
        ],
    )
    .await;
    check(
        "/v1/messages",
        &[
            r#"{"model":⟦"claude"|"sim-claude"⟧,"max_tokens":⟦4096|100⟧,"messages":[{"role":"user","content":"max_tokens"}]}"#,
            r#"{"model":⟦"claude"|"sim-claude"⟧,"max_tokens":64,"messages":[]}"#,
            // It warms a cache.
            r#"{"model":⟦"claude"|"sim-claude"⟧,"max_tokens":0,"messages":[]}"#,
        ],
    )
    .await;
    check(
        "/v1beta/models/gem:generateContent",
        &[
            r#"{⟦|"generationConfig":{"maxOutputTokens":100},⟧"contents":[]}"#,
            r#"{"contents":[],"generationConfig":{⟦|"maxOutputTokens":100,⟧"temperature":0.5}}"#,
            r#"{"contents":[],"generationConfig":{"temperature":0.5,"maxOutputTokens":⟦800|100⟧}}"#,
        ],
    )
    .await;
}

#[tokio::test]
async fn azure_style_paths_carry_the_model() {
    check(
        "/openai/deployments/gpt/chat/completions?api-version=2024-10-21",
        &[
            r#"{⟦|"model":"sim-gpt",⟧"messages":[]}"#,
            r#"{"messages":[],"model":⟦"whatever"|"sim-gpt"⟧}"#,
        ],
    )
    .await;
}

#[tokio::test]
async fn an_audio_form_keeps_its_file() {
    let provider = provider();
    let ok = r#"{"text":"x","usage":{"type":"duration","seconds":1}}"#;
    provider.set_default("*", Script { body: Some(ok.to_owned()), ..Script::default() });
    let server = Server::start(&config(&provider));
    let mut file: Vec<u8> = (0..=255u8).cycle().take(150_000).collect();
    file.extend_from_slice(
        b"\r\n--other\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\ngpt\r\n",
    );
    let part = |name: &str, value: &str| {
        format!("--b0undary\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
            .into_bytes()
    };
    let upload = [
        b"--b0undary\r\nContent-Disposition: form-data; name=\"file\"; filename=\"model.mp3\"\r\nContent-Type: audio/mpeg\r\n\r\n",
        &file[..],
        b"\r\n",
    ]
    .concat();
    type Order = fn(Vec<u8>, Vec<u8>, Vec<u8>) -> Vec<Vec<u8>>;
    let orders: [Order; 2] =
        [|model, file, more| vec![model, file, more], |model, file, more| vec![file, more, model]];
    for order in orders {
        let form = |name: &str| {
            let parts = order(part("model", name), upload.clone(), part("language", "de"));
            [parts.concat(), b"--b0undary--\r\n".to_vec()].concat()
        };
        for http in [client(), h2_client()] {
            let request = http.post(server.url("/v1/audio/transcriptions")).header("api-key", KEY);
            let request = request.header("content-type", "multipart/form-data; boundary=b0undary");
            let answer = request.body(form("gpt")).send().await.unwrap();
            assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
            let received = provider.requests();
            assert_eq!(received.len(), 1);
            assert!(received[0].body == form("sim-gpt"), "the form was changed beyond its model");
            assert_eq!(
                received[0].header("content-type"),
                Some("multipart/form-data; boundary=b0undary")
            );
            provider.clear();
        }
    }
}
