//! Why a request gets no answer from a model: ONE table from reason to status, code and
//! what the client should do about it.

use std::time::Duration;

/// The reasons, by their public codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the table below is the documentation
pub enum Reason {
    InvalidJson,
    MissingModel,
    InvalidRequest,
    ContextLengthExceeded,
    UnpricedModel,
    InvalidApiKey,
    KeyExpired,
    KeyRevoked,
    ModelNotAllowed,
    UnmeteredPath,
    ModelNotFound,
    UnknownPath,
    MethodNotAllowed,
    RequestTimeout,
    LengthRequired,
    RequestTooLarge,
    HeadersTooLarge,
    UnsupportedEncoding,
    RateLimitExceeded,
    ConcurrencyLimitExceeded,
    BudgetExceeded,
    UpstreamRateLimited,
    UpstreamError,
    UpstreamAuthFailed,
    NoHealthyTarget,
    Overloaded,
    StateUnavailable,
    Draining,
    UpstreamTimeout,
    FirstTokenTimeout,
    StreamInterrupted,
    InternalError,
}

impl Reason {
    /// `(HTTP status, code, x-should-retry)`. `None` leaves the decision to the client.
    fn row(self) -> (u16, &'static str, Option<bool>) {
        use Reason::*;
        match self {
            InvalidJson => (400, "invalid_json", None),
            MissingModel => (400, "missing_model", None),
            InvalidRequest => (400, "invalid_request", None),
            ContextLengthExceeded => (400, "context_length_exceeded", None),
            UnpricedModel => (400, "unpriced_model", None),
            InvalidApiKey => (401, "invalid_api_key", None),
            KeyExpired => (401, "key_expired", None),
            KeyRevoked => (401, "key_revoked", None),
            ModelNotAllowed => (403, "model_not_allowed", None),
            UnmeteredPath => (403, "unmetered_path", None),
            ModelNotFound => (404, "model_not_found", None),
            UnknownPath => (404, "unknown_path", None),
            MethodNotAllowed => (405, "method_not_allowed", None),
            // The SDKs repeat a 408 on their own; a body that stalled once will again.
            RequestTimeout => (408, "request_timeout", Some(false)),
            LengthRequired => (411, "length_required", None),
            RequestTooLarge => (413, "request_too_large", None),
            HeadersTooLarge => (431, "headers_too_large", None),
            UnsupportedEncoding => (415, "unsupported_content_encoding", None),
            RateLimitExceeded => (429, "rate_limit_exceeded", None),
            ConcurrencyLimitExceeded => (429, "concurrency_limit_exceeded", None),
            BudgetExceeded => (429, "budget_exceeded", Some(false)),
            UpstreamRateLimited => (429, "upstream_rate_limited", None),
            // Every attempt that may be made has been made: a repeat multiplies them.
            UpstreamError => (502, "upstream_error", Some(false)),
            UpstreamAuthFailed => (502, "upstream_auth_failed", Some(false)),
            NoHealthyTarget => (503, "no_healthy_target", None),
            Overloaded => (503, "overloaded", None),
            StateUnavailable => (503, "state_unavailable", None),
            Draining => (503, "draining", None),
            UpstreamTimeout => (504, "upstream_timeout", Some(false)),
            FirstTokenTimeout => (504, "first_token_timeout", Some(false)),
            StreamInterrupted => (502, "stream_interrupted", Some(false)),
            InternalError => (500, "internal_error", Some(false)),
        }
    }

    /// The HTTP status.
    pub fn status(self) -> u16 {
        self.row().0
    }

    /// The code in the body, in metrics and in the log.
    pub fn code(self) -> &'static str {
        self.row().1
    }

    /// What `x-should-retry` says, where it must be said.
    pub fn should_retry(self) -> Option<bool> {
        self.row().2
    }
}

/// A refusal, as a value: facts, and no bytes yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    /// Which row of the table.
    pub reason: Reason,
    /// What happened, whose rule it is, and what to do.
    pub message: String,
    /// The request field at fault.
    pub param: Option<&'static str>,
    /// When it is worth coming back.
    pub retry_after: Option<Duration>,
    /// More headers of the answer (`allow`, `x-ratelimit-*`).
    pub headers: Vec<(&'static str, String)>,
}

impl Reject {
    /// A refusal with no more than its message.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Reject {
            reason,
            message: message.into(),
            param: None,
            retry_after: None,
            headers: Vec::new(),
        }
    }

    /// Names the field at fault.
    pub fn param(mut self, param: &'static str) -> Self {
        self.param = Some(param);
        self
    }

    /// Says when it is worth coming back.
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// Adds a header.
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}
