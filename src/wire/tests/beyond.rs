//! What a request asks for beyond its body, in every dialect.

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::wire::beyond::{Beyond, of, words};
use crate::wire::loops::Loops;
use crate::wire::marks;

fn asked(body: &Value) -> (bool, bool, bool) {
    let found = of(body.to_string().as_bytes()).unwrap();
    assert!(!found.others, "{body}");
    (found.unseen, found.search, found.draws)
}

#[test]
fn a_container_is_made_where_a_tool_wants_one() {
    let tool =
        |container: Value| json!({"tools": [{"type": "code_interpreter", "container": container}]});
    for (body, gib) in [
        (tool(json!({"type": "auto"})), Some(1)),
        (tool(json!({"type": "auto", "memory_limit": null})), Some(1)),
        (tool(json!({"type": "auto", "memory_limit": "16g"})), Some(16)),
        (tool(json!({"type": "auto", "memory_limit": 4})), Some(64)),
        (tool(json!("cntr_1")), None),
        (json!({"tools": [{"type": "code_interpreter"}]}), Some(1)),
        (json!({"input": [{"type": "code_interpreter_call", "container_id": "cntr_1"}]}), None),
        (
            json!({"tools": [{"type": "shell", "environment": {"type": "container_auto", "memory_limit": "4g"}}]}),
            Some(4),
        ),
    ] {
        assert_eq!(of(body.to_string().as_bytes()).unwrap().container, gib, "{body}");
    }
}

#[test]
fn what_is_asked_for_is_found_in_every_dialect() {
    let part = |part: Value| json!({"messages": [{"role": "user", "content": [part]}]});
    for body in [
        json!({"previous_response_id": "resp_1"}),
        json!({"conversation": {"id": "conv_1"}}),
        json!({"input": [{"type": "item_reference", "id": "msg_1"}]}),
        json!({"input": [{"id": "msg_1"}]}),
        json!({"tools": [{"type": "shell", "environment": {"type": "container_auto"}}]}),
        json!({"container": "container_1"}),
        json!({"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]}),
        json!({"messages": [{"role": "system", "content": "fileid://file-fe-1"}]}),
        json!({"tools": [{"type": "mcp", "server_url": "https://example.com"}]}),
        json!({"mcp_servers": [{"type": "url", "url": "https://example.com"}]}),
        json!({"tools": [{"type": "code_execution_20250825", "name": "code_execution"}]}),
        json!({"tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}]}),
        json!({"tools": [{"fileSearch": {}}]}),
        json!({"tools": [{"type": "retrieval"}]}),
        json!({"compound_custom": {"tools": {"enabled_tools": ["code_interpreter"]}}}),
        json!({"data_sources": [{"type": "azure_search"}]}),
        json!({"cachedContent": "cachedContents/1"}),
        json!({"contents": [{"parts": [{"fileData": {"fileUri": "https://example.com"}}]}]}),
        json!({"contents": [{"parts": [{"inlineData": {"mimeType": "application/pdf"}}]}]}),
        json!({"contents": [{"parts": [{"inline_data": {"mime_type": "video/mp4"}}]}]}),
        part(json!({"type": "document"})),
        part(json!({"type": "document", "source": {"type": "url", "url": "https://example.com"}})),
        part(json!({"type": "document", "source": {"type": "text", "data": "x"},
            "citations": {"enabled": true}})),
        part(json!({"type": "document", "source": {"type": "text", "data": "x", "image": 0}})),
        part(json!({"type": "document", "source": {"type": "text", "data": "x"}, "image": 0})),
        part(json!({"type": "document", "source": {"type": "content", "content": [
            {"type": "document", "source": {"type": "file"}}]}})),
        part(json!({"type": "file", "file": {"file_data": "data:application/pdf;base64,A"}})),
        part(json!({"type": "image", "source": {"type": "file", "file_id": "file_1"}})),
        part(json!({"type": "video_url", "video_url": {"url": "https://example.com"}})),
        part(json!({"type": "tool_result", "content": [{"type": "document"}]})),
    ] {
        assert_eq!(asked(&body), (true, false, false), "{body}");
    }
    for body in [
        json!({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
        json!({"web_search_options": {}}),
        json!({"tools": [{"googleSearch": {}}]}),
        json!({"tools": [{"google_search_retrieval": {}}]}),
        json!({"tools": [{"enterpriseWebSearch": {}}]}),
        json!({"tools": [{"googleMaps": {}}]}),
        json!({"plugins": [{"id": "web"}]}),
        json!({"search_parameters": {"mode": "on"}}),
        json!({"enable_search": true}),
        json!({"tools": [{"type": "builtin_function", "function": {"name": "$web_search"}}]}),
        json!({"tools": [{"type": "openrouter:web_search"}]}),
        json!({"tools": [{"type": "x_search"}]}),
        json!({"tools": [{"type": "browser_search"}]}),
        json!({"Web_Search_Options": {}}),
        json!({"prompt": {"id": "pmpt_1"}}),
    ] {
        assert_eq!(asked(&body), (true, true, false), "{body}");
    }
    assert_eq!(asked(&json!({"tools": [{"type": "image_generation"}]})), (false, false, true));
}

/// Whether tools run in a loop, and how often at most by what each says and what all say.
#[test]
fn loops_are_tools_and_have_their_bounds() {
    let search = |uses: Value| json!({"type": "web_search_20250305", "name": "web_search", "max_uses": uses});
    let own = json!({"type": "function", "name": "web_search", "max_uses": 3});
    let past = json!({"messages": [{"role": "assistant", "content": [
        {"type": "server_tool_use", "name": "web_search"}, {"type": "web_search_tool_result"}]}]});
    for (body, any, uses, calls) in [
        (json!({"tools": [search(json!(3))]}), true, Some(3), None),
        (
            json!({"tools": [search(json!(3)), {"type": "web_fetch_20250910", "max_uses": 2}]}),
            true,
            Some(5),
            None,
        ),
        (json!({"tools": [search(json!(null))]}), true, None, None),
        (json!({"tools": [{"type": "web_search_20260209", "max_uses": 1}]}), true, None, None),
        (
            json!({"input": [{"type": "additional_tools", "tools": [{"type": "mcp"}]}]}),
            true,
            None,
            None,
        ),
        (json!({"prompt": {"id": "pmpt_1"}}), true, None, None),
        (
            json!({"tools": [search(json!(3)), {"type": "code_execution_20250825"}]}),
            true,
            None,
            None,
        ),
        (json!({"tools": [{"type": "web_search"}], "max_uses": 1}), true, None, None),
        (json!({"tools": [{"type": "web_search"}], "max_tool_calls": 4}), true, None, Some(4)),
        (json!({"tools": [{"type": "mcp", "server": {"max_tool_calls": 4}}]}), true, None, None),
        (json!({"mcp_servers": [{"type": "url", "url": "https://example.com"}]}), true, None, None),
        (
            json!({"compound_custom": {"tools": {"enabled_tools": ["web_search"]}}}),
            true,
            None,
            None,
        ),
        (json!({"tools": [own]}), false, Some(0), None),
        (json!({"web_search_options": {}}), false, Some(0), None),
        (json!({"previous_response_id": "resp_1"}), false, Some(0), None),
        (past, false, Some(0), None),
    ] {
        let loops = of(body.to_string().as_bytes()).unwrap().loops;
        assert_eq!((loops.any(), loops.uses(), loops.calls()), (any, uses, calls), "{body}");
    }
    // Twice: whichever the provider takes.
    for twice in [
        r#"{"tools":[{"type":"web_search_20250305","max_uses":1,"max_uses":9}],"max_tool_calls":2,"max_tool_calls":8}"#,
        r#"{"max_tool_calls":8,"tools":[{"max_uses":9,"type":"web_fetch_20250910","max_uses":1}],"max_tool_calls":1}"#,
    ] {
        let loops = of(twice.as_bytes()).unwrap().loops;
        assert_eq!((loops.uses(), loops.calls()), (Some(9), Some(8)), "{twice}");
    }
    let poisoned = br#"{"tools":[{"type":"mcp","max_uses":1,"max_uses":null}],"max_tool_calls":2,"max_tool_calls":null}"#;
    let loops = of(poisoned).unwrap().loops;
    assert_eq!((loops.any(), loops.uses(), loops.calls()), (true, None, None));
}

#[test]
fn other_models_are_named() {
    for kind in ["advisor_20260301", "openrouter:advisor"] {
        let body = json!({"tools": [{"type": kind, "name": "advisor", "model": "dear"}]});
        assert!(of(body.to_string().as_bytes()).unwrap().others, "{body}");
    }
}

#[test]
fn names_of_ones_own_and_texts_ask_for_nothing() {
    let schema = json!({"type": "object", "properties": {
        "document": {"type": "string"}, "file_id": {"enum": ["web_search"]}, "plugins": {}}});
    let part = |part: Value| json!({"messages": [{"role": "user", "content": [part]}]});
    let called = json!({"document": "d", "plugins": ["web_search"], "type": "mcp"});
    for body in [
        json!({"tools": [{"type": "function", "function":
            {"name": "web_search", "description": "mcp", "parameters": schema}}]}),
        json!({"tools": [{"type": "function", "name": "mcp__docs__find", "parameters": schema}]}),
        json!({"tools": [{"name": "web_fetch", "input_schema": schema,
            "input_examples": [called]}]}),
        json!({"tools": [{"functionDeclarations": [{"name": "google_search",
            "parameters": schema, "responseJsonSchema": schema}]}]}),
        json!({"tool_choice": {"type": "function", "function": {"name": "file_search"}}}),
        json!({"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}),
        json!({"text": {"format": {"type": "json_schema", "name": "n", "schema": schema}}}),
        json!({"generationConfig": {"responseMimeType": "application/json",
            "responseSchema": schema}}),
        json!({"metadata": {"conversation": "c", "file_id": "f"}}),
        json!({"messages": [{"role": "user", "content": "web_search"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t",
                "name": "mcp__docs__find", "input": called}]},
            {"role": "user", "content": [{"type": "text", "text": "file_search \"document\""}]}]}),
        json!({"messages": [{"role": "assistant", "tool_calls": [{"type": "function",
            "function": {"name": "web_search", "arguments": "{\"document\":1}"}}]}]}),
        json!({"contents": [{"parts": [{"functionCall": {"name": "mcp_x", "args": called}}]},
            {"parts": [{"functionResponse": {"name": "mcp_x", "response": called}}]}]}),
        json!({"input": ["web_search", "document"], "prompt": ["mcp"]}),
        part(json!({"type": "document", "title": "t", "citations": null,
            "source": {"type": "text", "media_type": "text/plain", "data": "x"}})),
        part(json!({"source": {"type": "content", "content": [{"type": "text", "text": "x"}]},
            "type": "document", "cache_control": {"type": "ephemeral"}})),
        json!({"previous_response_id": null, "conversation": null, "mcp_servers": [],
            "plugins": [], "enable_search": false, "cached_content": ""}),
        json!({"task_type": "RETRIEVAL_DOCUMENT", "documents": ["a"]}),
        json!({"messages": [{"role": "user", "content": [{"type": "tool_result",
            "tool_use_id": "web_search:0", "content": [{"type": "tool_reference",
            "tool_name": "mcp__docs__find"}]}]}]}),
        json!({"input": [{"type": "function_call", "id": "fc_1", "namespace": "mcp__docs"},
            {"type": "local_shell_call", "action": {"command": ["file", "document"]}},
            {"type": "image_generation_call", "id": "ig_1"}]}),
        json!({"include": ["file_search_call.results"], "stop_sequences": ["document"]}),
        json!({"messages": [{"content": [{"type": "thinking", "signature": "mcpA+b/"}]}]}),
        json!({"guided_json": {"type": "object", "properties": {"document": {}}}}),
    ] {
        assert_eq!(asked(&body), (false, false, false), "{body}");
    }
}

#[test]
fn a_name_is_read_as_the_provider_reads_it() {
    let hidden = br#"{"\u0066ile_id":"f"}"#;
    assert!(of(hidden).unwrap().unseen);
    assert!(of(br#"{"a":{"mimeType":"application\/pdf"}}"#).unwrap().unseen);
    for escaped in [r"fileid:\/\/x", r"\u0066ileid:x", r"FileID\u003ax"] {
        let body = format!(r#"{{"messages":[{{"content":"{escaped}"}}]}}"#);
        assert!(of(body.as_bytes()).unwrap().unseen, "{body}");
    }
    for text in [r"\file", r"\nfileid:", "fileid", r"\u2028fileid:", "", r"\ud83d\ude00"] {
        let body = format!(r#"{{"messages":[{{"content":"{text}"}}]}}"#).replace(r"\f", r"\\f");
        assert!(!of(body.as_bytes()).unwrap().unseen, "{body}");
    }
    // Twice: whichever the provider takes.
    assert!(of(br#"{"file_id":"f","file_id":null}"#).unwrap().unseen);
    for broken in ["{\"a\":", "x", "{} {}"] {
        assert_eq!(of(broken.as_bytes()), None);
    }
    let deep = format!("{}{}", "[".repeat(300), "]".repeat(300));
    assert_eq!(of(deep.as_bytes()), None);
}

/// Requests of names and values that mean something somewhere, nested at random.
fn request() -> impl Strategy<Value = Value> {
    const PLACES: &[&str] = &[
        "id",
        "input",
        "audio",
        "type",
        "role",
        "content",
        "messages",
        "tools",
        "max_uses",
        "max_tool_calls",
        "arguments",
        "text",
        "name",
        "x",
    ];
    let places = prop::sample::select(PLACES).prop_map(str::to_owned);
    let word = words().map(|word| word.trim_matches('"').to_owned());
    let words = prop::sample::select(word.collect::<Vec<_>>());
    let name = prop_oneof![9 => places, 1 => words.clone()];
    let leaf = prop_oneof![
        1 => prop::sample::select(vec![json!(null), json!(""), json!(3), json!(false)]),
        2 => Just(json!("a")),
        1 => words.prop_map(Value::from),
    ];
    let member = leaf.prop_recursive(6, 24, 4, move |inner| {
        let named = (name.clone(), inner.clone());
        prop_oneof![
            1 => prop::collection::vec(inner, 0..3).prop_map(Value::from),
            3 => prop::collection::vec(named, 0..4).prop_map(|all| Value::Object(all.into_iter().collect())),
        ]
    });
    prop::collection::vec((prop::sample::select(PLACES), member), 0..4)
        .prop_map(|all| all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

proptest! {
    #![proptest_config(super::fixtures::random(2_000))]

    /// The pass that looks for words overlooks nothing that the one that understands them finds.
    #[test]
    fn what_is_asked_for_is_never_overlooked(request in request(), pretty in any::<bool>()) {
        let body = if pretty { format!("{request:#}") } else { request.to_string() };
        // Limits of tools are none of it where there are no tools.
        let asks = |mut of: Beyond| {
            if of.loops.tools == 0 {
                of.loops = Loops::default();
            }
            of
        };
        let understood = of(body.as_bytes()).unwrap_or(Beyond::ALL);
        prop_assert_eq!(asks(marks::of(body.as_bytes()).beyond), asks(understood), "{}", body);
    }
}

/// What was summed up before is no wish to have it done again.
#[test]
fn a_summary_is_made_where_it_is_asked_for() {
    let compacts = |body: Value| of(body.to_string().as_bytes()).unwrap().compacts;
    assert!(compacts(json!({"context_management": [{"type": "compaction"}]})));
    assert!(compacts(json!({"context_management": {"edits": [{"type": "compact_20260112"}]}})));
    assert!(!compacts(json!({"context_management": {"edits": [{"type": "clear_tool_uses"}]}})));
    assert!(!compacts(json!({"input": [{"type": "compaction", "encrypted_content": "A"}]})));
    assert!(!compacts(
        json!({"messages": [{"content": [{"type": "compaction", "content": "A"}]}]})
    ));
}
