//! What a path asks for.
//!
//! Paths are matched exactly as they are written: a path that only looks like one of ours
//! (`//`, a trailing slash, another case) is unknown. Only ids are percent-decoded, once.

use http::Method;

use crate::units::Dialect;

use super::route_path::{decode_id, encode_segment, is_name, passthrough_path};
use super::scan::CapName;

/// A call that reaches a model.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Endpoint {
    /// OpenAI `/chat/completions`.
    ChatCompletions,
    /// OpenAI `/completions`, the older text API.
    Completions,
    /// OpenAI `/embeddings`.
    Embeddings,
    /// OpenAI `/responses`.
    Responses,
    /// Anthropic `/v1/messages`.
    Messages,
    /// Anthropic `/v1/messages/count_tokens`.
    CountTokens,
    /// OpenAI `/moderations`.
    Moderations,
    /// OpenAI `/images/generations`.
    ImageGenerations,
    /// OpenAI `/audio/transcriptions`.
    AudioTranscriptions,
    /// OpenAI `/audio/translations`.
    AudioTranslations,
    /// OpenAI `/audio/speech`.
    AudioSpeech,
    /// Gemini `:generateContent`.
    GeminiGenerate,
    /// Gemini `:streamGenerateContent`.
    GeminiStream,
}

impl Endpoint {
    /// Every endpoint, in the order the contract lists them.
    pub const ALL: [Endpoint; 13] = [
        Endpoint::ChatCompletions,
        Endpoint::Completions,
        Endpoint::Embeddings,
        Endpoint::Responses,
        Endpoint::Messages,
        Endpoint::CountTokens,
        Endpoint::Moderations,
        Endpoint::ImageGenerations,
        Endpoint::AudioTranscriptions,
        Endpoint::AudioTranslations,
        Endpoint::AudioSpeech,
        Endpoint::GeminiGenerate,
        Endpoint::GeminiStream,
    ];

    /// The dialect that the client speaks.
    pub fn dialect(self) -> Dialect {
        match self {
            Endpoint::Messages | Endpoint::CountTokens => Dialect::Anthropic,
            Endpoint::GeminiGenerate | Endpoint::GeminiStream => Dialect::Gemini,
            _ => Dialect::OpenAi,
        }
    }

    /// The word used in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Endpoint::ChatCompletions => "chat_completions",
            Endpoint::Completions => "completions",
            Endpoint::Embeddings => "embeddings",
            Endpoint::Responses => "responses",
            Endpoint::Messages => "messages",
            Endpoint::CountTokens => "count_tokens",
            Endpoint::Moderations => "moderations",
            Endpoint::ImageGenerations => "image_generations",
            Endpoint::AudioTranscriptions => "audio_transcriptions",
            Endpoint::AudioTranslations => "audio_translations",
            Endpoint::AudioSpeech => "audio_speech",
            Endpoint::GeminiGenerate => "gemini_generate",
            Endpoint::GeminiStream => "gemini_stream",
        }
    }

    /// What is appended to a provider's base path.
    ///
    /// An OpenAI base ends in `/v1`, as its SDKs have it; the other two begin at the root.
    /// Gemini's `model` becomes one percent-encoded segment; the others have it in the body.
    pub fn upstream_path(self, model: &str) -> String {
        let fixed = match self {
            Endpoint::Messages => "/v1/messages",
            Endpoint::CountTokens => "/v1/messages/count_tokens",
            Endpoint::GeminiGenerate => {
                let model = encode_segment(model);
                return format!("/v1beta/models/{model}:generateContent");
            }
            Endpoint::GeminiStream => {
                let model = encode_segment(model);
                return format!("/v1beta/models/{model}:streamGenerateContent");
            }
            openai => openai.openai_path(),
        };
        fixed.to_owned()
    }

    /// The path under OpenAI's base; empty for the other dialects.
    fn openai_path(self) -> &'static str {
        match self {
            Endpoint::ChatCompletions => "/chat/completions",
            Endpoint::Completions => "/completions",
            Endpoint::Embeddings => "/embeddings",
            Endpoint::Responses => "/responses",
            Endpoint::Moderations => "/moderations",
            Endpoint::ImageGenerations => "/images/generations",
            Endpoint::AudioTranscriptions => "/audio/transcriptions",
            Endpoint::AudioTranslations => "/audio/translations",
            Endpoint::AudioSpeech => "/audio/speech",
            _ => "",
        }
    }

    /// The names of output caps that a server of this endpoint obeys. One that it doesn't know
    /// bounds nothing.
    pub fn caps(self) -> &'static [CapName] {
        match self {
            Endpoint::ChatCompletions => &[CapName::MaxTokens, CapName::MaxCompletionTokens],
            Endpoint::Completions | Endpoint::Messages => &[CapName::MaxTokens],
            Endpoint::Responses => &[CapName::MaxOutputTokens],
            Endpoint::GeminiGenerate | Endpoint::GeminiStream => &[CapName::GenerationConfig],
            _ => &[],
        }
    }

    /// Whether providers bill it. Counting tokens is free at all that have it.
    pub fn is_billed(self) -> bool {
        self != Endpoint::CountTokens
    }

    /// Whether the body is a multipart form with a file in it.
    pub fn multipart(self) -> bool {
        matches!(self, Endpoint::AudioTranscriptions | Endpoint::AudioTranslations)
    }

    /// Whether the model is in the path rather than in the body.
    pub fn model_in_path(self) -> bool {
        matches!(self, Endpoint::GeminiGenerate | Endpoint::GeminiStream)
    }
}

/// What a request is for.
#[derive(Debug, PartialEq, Eq)]
pub enum Route {
    /// A call to a model.
    Call {
        /// Which API.
        endpoint: Endpoint,
        /// The model that the path names (Azure, Gemini).
        model: Option<String>,
    },
    /// The list of models the key may use.
    Models,
    /// One of them.
    Model(String),
    /// Whether this process serves.
    Healthz,
    /// A provider's own API.
    Passthrough {
        /// The provider's name in the configuration.
        provider: String,
        /// The path there, normalised; starts with `/`.
        path: String,
    },
    /// The path is known, the method isn't.
    MethodNotAllowed {
        /// The value of the `allow` header.
        allow: &'static str,
    },
    /// A path that peers could read in different ways. It is refused, not repaired.
    BadPath,
    /// Not one of ours.
    Unknown,
}

/// What `method` on `path` asks for. `path` is as it came, without the query.
pub fn route(method: &Method, path: &str) -> Route {
    if path == "/healthz" {
        return only(method, Method::GET, Route::Healthz);
    }
    if let Some(rest) = path.strip_prefix("/passthrough/") {
        return passthrough(rest);
    }
    if let Some(rest) = path.strip_prefix("/v1beta/models/") {
        return gemini(method, rest);
    }
    if let Some(rest) = path.strip_prefix("/openai/deployments/") {
        return azure(method, rest);
    }
    // Azure's newer API has OpenAI's paths below a prefix.
    match path.strip_prefix("/openai").unwrap_or(path).strip_prefix("/v1") {
        Some(rest) => v1(method, rest),
        None => Route::Unknown,
    }
}

fn only(method: &Method, allowed: Method, route: Route) -> Route {
    // The header of what GET would answer (RFC 9110, section 9.3.2).
    let head = *method == Method::HEAD && allowed == Method::GET;
    if *method == allowed || head {
        return route;
    }
    let allow = if allowed == Method::GET { "GET" } else { "POST" };
    Route::MethodNotAllowed { allow }
}

fn call(method: &Method, endpoint: Endpoint, model: Option<String>) -> Route {
    only(method, Method::POST, Route::Call { endpoint, model })
}

fn v1(method: &Method, rest: &str) -> Route {
    match rest {
        "/models" => return only(method, Method::GET, Route::Models),
        "/messages" => return call(method, Endpoint::Messages, None),
        "/messages/count_tokens" => return call(method, Endpoint::CountTokens, None),
        _ => {}
    }
    if let Some(id) = rest.strip_prefix("/models/") {
        return match model_id(id) {
            Ok(id) => only(method, Method::GET, Route::Model(id)),
            Err(refusal) => refusal,
        };
    }
    let openai = |endpoint: &Endpoint| endpoint.openai_path() == rest && !rest.is_empty();
    match Endpoint::ALL.into_iter().find(openai) {
        Some(endpoint) => call(method, endpoint, None),
        None => Route::Unknown,
    }
}

/// `{model}/chat/completions` and its like. The SDKs leave a `/` in a model as it is.
fn azure(method: &Method, rest: &str) -> Route {
    // Longer paths first: `/completions` is also the end of `/chat/completions`.
    const SERVED: [Endpoint; 7] = [
        Endpoint::ChatCompletions,
        Endpoint::ImageGenerations,
        Endpoint::AudioTranscriptions,
        Endpoint::AudioTranslations,
        Endpoint::AudioSpeech,
        Endpoint::Completions,
        Endpoint::Embeddings,
    ];
    let found = SERVED
        .into_iter()
        .find_map(|endpoint| Some((endpoint, rest.strip_suffix(endpoint.openai_path())?)));
    let Some((endpoint, id)) = found else {
        return Route::Unknown;
    };
    match model_id(id) {
        Ok(id) => call(method, endpoint, Some(id)),
        Err(refusal) => refusal,
    }
}

/// `{model}:generateContent`. Some clients write the colon as `%3A`.
fn gemini(method: &Method, rest: &str) -> Route {
    let decoded = match model_id(rest) {
        Ok(decoded) => decoded,
        Err(refusal) => return refusal,
    };
    let (id, endpoint) = match decoded.rsplit_once(':') {
        Some((id, "generateContent")) => (id, Endpoint::GeminiGenerate),
        Some((id, "streamGenerateContent")) => (id, Endpoint::GeminiStream),
        _ => return Route::Unknown,
    };
    if id.is_empty() {
        return Route::Unknown;
    }
    if !is_name(id) {
        return Route::BadPath;
    }
    call(method, endpoint, Some(id.to_owned()))
}

/// A model's id out of a path; it may contain `/`, plain or encoded.
fn model_id(raw: &str) -> Result<String, Route> {
    if raw.split('/').any(str::is_empty) {
        return Err(Route::Unknown);
    }
    decode_id(raw).ok_or(Route::BadPath)
}

fn passthrough(rest: &str) -> Route {
    let (provider, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    if provider.is_empty() {
        return Route::Unknown;
    }
    // Names of providers need no escapes, so an escape here is somebody's trick.
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if !provider.bytes().all(plain) || provider.bytes().all(|byte| byte == b'.') {
        return Route::BadPath;
    }
    match passthrough_path(path) {
        Some(path) => Route::Passthrough { provider: provider.to_owned(), path },
        None => Route::BadPath,
    }
}
