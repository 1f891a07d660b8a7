//! Chat requests of any size, for models `gpt-4o-mini`, streamed.

// Each benchmark uses its part of it.
#![allow(dead_code)]

use bytes::Bytes;

/// What a chat is made of: some text with line ends and quotes, as code and Markdown have them.
const LINE: &str =
    r#"The gateway holds what a request can cost at most.\nIt says \"no\" early, in words: "#;

/// A tool, as agents send dozens of them.
const TOOL: &str = r#"{"type":"function","function":{"name":"get_weather","description":"Current weather at a place.","parameters":{"type":"object","properties":{"city":{"type":"string","description":"The city, in its own language."},"unit":{"type":"string","enum":["celsius","fahrenheit"]},"days":{"type":"integer","minimum":1,"maximum":10}},"required":["city"],"additionalProperties":false},"strict":true}}"#;

fn chat(messages: &str, more: &str) -> Bytes {
    let body = format!(
        r#"{{"model":"gpt-4o-mini","messages":[{{"role":"system","content":"You are brief."}},{messages}],"temperature":0.7,"max_tokens":4096,"stream":true{more}}}"#
    );
    Bytes::from(body)
}

/// One long message.
pub fn text(bytes: usize) -> Bytes {
    let room = bytes.saturating_sub(chat("", "").len() + 32);
    let mut content = LINE.repeat(room / LINE.len());
    content.extend(std::iter::repeat_n('x', room % LINE.len()));
    chat(&format!(r#"{{"role":"user","content":"{content}"}}"#), "")
}

/// Many messages with calls of tools between them, and forty tools.
pub fn agent(bytes: usize) -> Bytes {
    let tools = format!(r#","tools":[{}]"#, [TOOL; 40].join(","));
    let turn = format!(
        r#"{{"role":"user","content":"{}"}},{{"role":"assistant","content":null,"tool_calls":[{{"id":"call_8Fx","type":"function","function":{{"name":"get_weather","arguments":"{{\"city\":\"Köln\",\"days\":3}}"}}}}]}},{{"role":"tool","tool_call_id":"call_8Fx","content":"{}"}}"#,
        LINE.repeat(4),
        LINE.repeat(6)
    );
    let turns = bytes.saturating_sub(tools.len()) / turn.len();
    chat(&vec![turn; turns].join(","), &tools)
}

/// A picture in base64.
pub fn picture(bytes: usize) -> Bytes {
    let data =
        "iVBORw0KGgoAAAANSUhEUgAAB4AAAAQ4CAYAAADo08FDAAAgAElEQVR4nOzdd3wU1frH".repeat(bytes / 68);
    chat(
        &format!(
            r#"{{"role":"user","content":[{{"type":"text","text":"What is this?"}},{{"type":"image_url","image_url":{{"url":"data:image/png;base64,{data}"}}}}]}}"#
        ),
        "",
    )
}
