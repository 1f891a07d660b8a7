//! Answers, built once by the scripted provider's own code.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use hyper::Request;

use crate::provider::{Recipe, recipe};

/// Bytes of a request's body that are looked at.
pub(super) const LOOKED_AT: usize = 16 * 1024;

/// An answer as writes, each so long after the one before.
pub(super) struct Answer {
    pub(super) steps: Vec<(Duration, Vec<u8>)>,
}

impl Answer {
    /// A small JSON text.
    pub(super) fn json(text: &str) -> Rc<Self> {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length";
        let all = format!("{head}: {}\r\n\r\n{text}", text.len());
        Rc::new(Answer { steps: vec![(Duration::ZERO, all.into_bytes())] })
    }
}

/// The answers given so far.
#[derive(Default)]
pub(super) struct Answers {
    kept: HashMap<u64, Rc<Choice>>,
}

/// An answer, or another one in some of 100 cases.
struct Choice {
    usual: Rc<Answer>,
    sometimes: Option<(u64, Rc<Answer>)>,
    asked: std::cell::Cell<u64>,
}

impl Answers {
    /// The answer to a request: its path, its body's beginning and length.
    pub(super) fn find(&mut self, path: &str, body: &[u8], length: usize) -> Rc<Answer> {
        let mut hasher = DefaultHasher::new();
        (path, &body[..body.len().min(1024)], length).hash(&mut hasher);
        let choice =
            self.kept.entry(hasher.finish()).or_insert_with(|| Rc::new(choose(path, body, length)));
        let asked = choice.asked.get();
        choice.asked.set(asked + 1);
        match &choice.sometimes {
            // Evenly spread: exactly so many of any hundred.
            Some((percent, answer)) if (asked * percent) % 100 < *percent => answer.clone(),
            _ => choice.usual.clone(),
        }
    }
}

fn choose(path: &str, body: &[u8], length: usize) -> Choice {
    let model = text_after(body, r#""model":"#).unwrap_or_default();
    let percent = directive(&model, "percent").and_then(|value| value.parse().ok());
    let plain = without(&without(&model, "percent"), "status");
    let usual = Rc::new(build(path, body, length, &plain));
    let sometimes = percent
        .map(|percent| (percent, Rc::new(build(path, body, length, &without(&model, "percent")))));
    let usual = match sometimes {
        Some(_) => usual,
        None => Rc::new(build(path, body, length, &model)),
    };
    Choice { usual, sometimes, asked: std::cell::Cell::new(0) }
}

/// The writes of the answer to a request for this model.
fn build(path: &str, body: &[u8], length: usize, model: &str) -> Answer {
    let has = |text: &str| memchr::memmem::find(body, text.as_bytes()).is_some();
    // Only the beginning of a large body is at hand: ask for the same with less text.
    let asked = serde_json::json!({
        "model": model,
        "stream": has(r#""stream":true"#) || has(r#""stream": true"#),
        "input": "x",
        "messages": [],
    });
    let mut asked = asked;
    if has("include_usage") {
        asked["stream_options"] = serde_json::json!({ "include_usage": true });
    }
    let head =
        Request::builder().method("POST").uri(path).header("anthropic-version", "2023-06-01");
    let Ok(request) = head.body(()) else { return broken() };
    let (head, ()) = request.into_parts();
    let recipe = recipe(&head, Bytes::from(asked.to_string()), length as u64 / 4);
    writes(&recipe)
}

fn broken() -> Answer {
    let text = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
    Answer { steps: vec![(Duration::ZERO, text.to_vec())] }
}

fn writes(recipe: &Recipe) -> Answer {
    let mut head = format!("HTTP/1.1 {} Scripted\r\n", recipe.status);
    for (name, value) in &recipe.headers {
        head += &format!("{name}: {value}\r\n");
    }
    if recipe.streamed {
        head += "transfer-encoding: chunked\r\n";
    }
    head += "\r\n";
    let mut steps = vec![(Duration::ZERO, head.into_bytes())];
    for (wait, piece) in &recipe.pieces {
        let framed = match recipe.streamed {
            true => [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat(),
            false => piece.to_vec(),
        };
        match steps.last_mut() {
            // What need not wait goes out with what is before it.
            Some((_, last)) if wait.is_zero() => last.extend_from_slice(&framed),
            _ => steps.push((*wait, framed)),
        }
    }
    if let Some((_, last)) = steps.last_mut().filter(|_| recipe.streamed) {
        last.extend_from_slice(b"0\r\n\r\n");
    }
    Answer { steps }
}

/// The text value that follows `member` in a JSON text.
fn text_after(body: &[u8], member: &str) -> Option<String> {
    let at = memchr::memmem::find(body, member.as_bytes())? + member.len();
    let rest = &body[at..];
    let open = memchr::memchr(b'"', rest)? + 1;
    let close = memchr::memchr(b'"', &rest[open..])?;
    Some(String::from_utf8_lossy(&rest[open..open + close]).into_owned())
}

fn directive<'a>(model: &'a str, name: &str) -> Option<&'a str> {
    let mut all = model.split('+').skip(1).filter_map(|part| part.split_once('='));
    all.find(|(key, _)| *key == name).map(|(_, value)| value)
}

fn without(model: &str, name: &str) -> String {
    let is = |part: &&str| part.split_once('=').is_some_and(|(key, _)| key == name);
    model.split('+').filter(|part| !is(part)).collect::<Vec<_>>().join("+")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_the_requests_gets_the_status() {
        let body = br#"{"model":"sim-x+status=429+percent=30","messages":[]}"#;
        let mut answers = Answers::default();
        let refused = (0..1000).filter(|_| {
            let answer = answers.find("/v1/chat/completions", body, body.len());
            answer.steps[0].1.starts_with(b"HTTP/1.1 429")
        });
        assert_eq!(refused.count(), 300);
    }

    #[test]
    fn a_stream_is_a_row_of_writes() {
        let body = br#"{"model":"sim-x+chunks=3+gap=20ms","stream":true,"messages":[]}"#;
        let answer = Answers::default().find("/v1/chat/completions", body, body.len());
        let waits: Vec<u128> = answer.steps.iter().map(|(wait, _)| wait.as_millis()).collect();
        assert_eq!(waits, [0, 20, 20]);
        assert!(answer.steps[2].1.ends_with(b"0\r\n\r\n"));
    }
}
