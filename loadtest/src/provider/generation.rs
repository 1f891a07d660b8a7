//! What is generated for a request: text or tool call, chunks, true usage.

use super::ask::Ask;
use super::script::Script;
use super::text;

/// Unix time of everything the provider creates: answers are to be reproducible.
pub(crate) const CREATED: u64 = 1_795_219_200;

const DEFAULT_TOKENS: u64 = 16;
const DEFAULT_CHUNKS: usize = 8;
const TOOL_CHUNKS: usize = 3;
const TOOL_ARGUMENTS: &str = r#"{"city":"Zürich","unit":"c","note":"lorem \u00e9 ipsum"}"#;

/// Token counts as they are reported; input includes the cached and the
/// cache-written ones, output includes reasoning.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) input: u64,
    pub(crate) output: u64,
    pub(crate) cached: u64,
    pub(crate) cache_write: u64,
    pub(crate) reasoning: u64,
}

/// Why the generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finish {
    Stop,
    Length,
    Tool,
}

/// One generated answer, in no dialect.
pub(crate) struct Generation {
    /// Number of the request, used for ids.
    pub(crate) seq: u64,
    pub(crate) model: String,
    /// Text of one choice in chunks, or the arguments of the tool call.
    pub(crate) chunks: Vec<String>,
    /// Name of the called tool.
    pub(crate) tool: Option<String>,
    pub(crate) choices: usize,
    pub(crate) finish: Finish,
    pub(crate) usage: Usage,
    /// False when no usage is to be reported.
    pub(crate) report: bool,
}

impl Generation {
    pub(crate) fn new(ask: &Ask, script: &Script, seq: u64) -> Self {
        let tool = ask.tool.clone().filter(|_| script.tool);
        let (chunks, tokens, finish) = match tool {
            Some(_) => call(script),
            None => prose(ask, script),
        };
        let output = (tokens + script.reasoning) * ask.n as u64;
        let usage = Usage {
            input: script.input.unwrap_or(ask.input_tokens),
            output: script.output.unwrap_or(output),
            cached: script.cached,
            cache_write: script.cache_write,
            reasoning: script.reasoning,
        };
        Self {
            seq,
            model: ask.model.clone(),
            chunks,
            tool,
            choices: ask.n,
            finish,
            usage,
            report: !script.omit_usage,
        }
    }

    /// The text of one choice, or the arguments of the tool call.
    pub(crate) fn whole(&self) -> String {
        self.chunks.concat()
    }

    /// Output tokens of content chunk `at` of all choices; together they are the usage.
    pub(crate) fn tokens_of(&self, at: usize) -> u64 {
        text::share(self.usage.output, at, self.chunks.len() * self.choices)
    }

    /// Content chunks in the order they are sent, choices taking turns:
    /// (choice, chunk, output tokens).
    pub(crate) fn turns(&self) -> impl Iterator<Item = (usize, &str, u64)> {
        let chunks = self.chunks.iter().enumerate();
        chunks.flat_map(move |(k, chunk)| {
            (0..self.choices)
                .map(move |c| (c, chunk.as_str(), self.tokens_of(k * self.choices + c)))
        })
    }
}

fn call(script: &Script) -> (Vec<String>, u64, Finish) {
    let arguments = script.tool_arguments.as_deref().unwrap_or(TOOL_ARGUMENTS);
    let count = script.chunks.unwrap_or(TOOL_CHUNKS);
    // Split between characters only: a call's pieces end anywhere.
    let chars: Vec<char> = arguments.chars().collect();
    let at = |k: usize| chars.len() * k / count.max(1);
    let chunks: Vec<String> =
        (0..count).map(|k| chars[at(k)..at(k + 1)].iter().collect()).collect();
    (chunks, script.tokens.unwrap_or(count as u64), Finish::Tool)
}

fn prose(ask: &Ask, script: &Script) -> (Vec<String>, u64, Finish) {
    if let Some(text) = given_text(ask, script) {
        let count = script.chunks.unwrap_or(DEFAULT_CHUNKS);
        let tokens = script.tokens.unwrap_or_else(|| (text.len() as u64).div_ceil(4));
        return (text::pieces(&text, count), tokens, Finish::Stop);
    }
    let asked = script.tokens.or(script.chunks.map(|n| n as u64)).unwrap_or(DEFAULT_TOKENS);
    let limit = ask.max_tokens.map_or(u64::MAX, |max| max.saturating_sub(script.reasoning));
    let tokens = asked.min(limit);
    let finish = if asked > limit { Finish::Length } else { Finish::Stop };
    let most = usize::try_from(tokens).unwrap_or(usize::MAX);
    let count = match script.chunks {
        // A limit below the script's words also limits the chunks.
        Some(chunks) if finish == Finish::Length => chunks.min(most),
        Some(chunks) => chunks,
        None => most,
    };
    (text::pieces(&text::words(tokens), count), tokens, finish)
}

fn given_text(ask: &Ask, script: &Script) -> Option<String> {
    if let Some(text) = &script.text {
        return Some(text.clone());
    }
    if script.echo {
        return Some(String::from_utf8_lossy(&ask.body).into_owned());
    }
    script.size.map(text::sized)
}
