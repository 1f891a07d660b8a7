//! What a request takes before any byte goes upstream: limits of every scope, all or nothing.

use super::exchange::BodyFields;
use crate::config::snapshot::{Model, Provider, Snapshot};
use crate::keys::Caller;
use crate::limits::{Demand, LimitName, Permit, Refusal};
use crate::reject::{Reason, Reject};
use crate::scope::{Scope, ScopeKind};
use crate::state::Gateway;
use crate::wire::route::Endpoint;
use crate::wire::scan::Fields;
use std::time::Instant;

/// Output that a request is taken to want where neither it nor the model's configuration says,
/// in tokens. Only `tpm` is estimated so, and corrected when the usage is known; money never is.
const UNTOLD_OUTPUT: u64 = 1024;

/// Takes the limits of the key, its user and team, the model and the whole gateway.
///
/// # Errors
/// `rate_limit_exceeded` or `concurrency_limit_exceeded`; nothing has been taken then.
pub fn request(
    gateway: &Gateway,
    snapshot: &Snapshot,
    caller: &Caller,
    model: &Model,
    tokens: u64,
) -> Result<Permit, Reject> {
    let mut demands = Vec::with_capacity(5);
    for (kind, id, scope) in scopes(snapshot, caller, model) {
        demands.push(Demand { kind, id, limits: scope.limits });
    }
    gateway.limiter.admit(&demands, tokens, Instant::now()).map_err(|refusal| {
        count(gateway, &refusal);
        refused(&refusal)
    })
}

/// The scopes of a request, narrowest first; the provider's comes with the attempt.
pub fn scopes<'a>(
    snapshot: &'a Snapshot,
    caller: &'a Caller,
    model: &'a Model,
) -> Vec<(ScopeKind, &'a str, &'a Scope)> {
    let mut scopes = vec![(ScopeKind::Key, &*caller.id, &caller.scope)];
    if let Some((name, user)) =
        caller.user.as_ref().and_then(|name| snapshot.users.get_key_value(name))
    {
        scopes.push((ScopeKind::User, name, user.as_ref()));
    }
    if let Some((name, team)) =
        caller.team.as_ref().and_then(|name| snapshot.teams.get_key_value(name))
    {
        scopes.push((ScopeKind::Team, name, team.as_ref()));
    }
    scopes.push((ScopeKind::Model, model.name.as_str(), &model.scope));
    scopes.push((ScopeKind::Global, "", &snapshot.global));
    scopes
}

/// Takes the limits of the attempt's provider, and of the model that a fallback goes to.
///
/// # Errors
/// Which limit stands in the way: the target is passed over.
pub fn attempt(
    gateway: &Gateway,
    provider: &Provider,
    fallback: Option<&Model>,
    tokens: u64,
) -> Result<Permit, Refusal> {
    let mut demands = vec![Demand {
        kind: ScopeKind::Provider,
        id: &provider.name,
        limits: provider.scope.limits,
    }];
    if let Some(model) = fallback {
        let limits = model.scope.limits;
        demands.push(Demand { kind: ScopeKind::Model, id: &model.name, limits });
    }
    let taken = gateway.limiter.admit(&demands, tokens, Instant::now());
    taken.inspect_err(|refusal| count(gateway, refusal))
}

/// Tokens that the request is taken to use: its bytes at the model's recent rate, and the output
/// that it may ask for.
pub fn estimate(
    gateway: &Gateway,
    endpoint: Endpoint,
    model: &Model,
    fields: &BodyFields,
    body: &[u8],
) -> u64 {
    let input = gateway.token_rate(&model.name).estimate(body.len() as u64);
    input.saturating_add(output(endpoint, model, fields).unwrap_or(UNTOLD_OUTPUT))
}

/// The most output that will be asked for, every answer of `n` together; `None`: nothing says.
pub fn output(endpoint: Endpoint, model: &Model, fields: &BodyFields) -> Option<u64> {
    let fields = match fields {
        _ if !makes_output(endpoint) => return Some(0),
        BodyFields::Json(fields) => fields,
        BodyFields::Form(..) => return None,
        BodyFields::Opaque => return Some(0),
    };
    let trusts_zero = endpoint == Endpoint::Messages;
    let names = endpoint.caps().iter();
    let asked = names.filter_map(|name| fields.capped(*name).filter(|n| trusts_zero || *n > 0));
    let asked = asked.max();
    let most = asked.into_iter().chain(model.max_output_tokens).min()?;
    Some(most.saturating_mul(answers(fields)))
}

/// Whether an output cap of 0 means what it says: it warms Anthropic's cache, and scores a text
/// that is echoed. Elsewhere some servers read it as no cap at all.
pub fn zero_is_a_cap(endpoint: Endpoint) -> bool {
    matches!(endpoint, Endpoint::Messages | Endpoint::Completions)
}

/// Whether the endpoint makes tokens of output at all. Vectors and verdicts are none.
pub fn makes_output(endpoint: Endpoint) -> bool {
    !matches!(endpoint, Endpoint::CountTokens | Endpoint::Embeddings | Endpoint::Moderations)
}

/// How many answers are generated, each with an output of its own.
pub fn answers(fields: &Fields) -> u64 {
    let each = fields.n.unwrap_or(1).max(fields.best_of.unwrap_or(1)).max(1);
    each.saturating_mul(fields.prompts.unwrap_or(1).max(1))
}

fn count(gateway: &Gateway, refusal: &Refusal) {
    let labels = [refusal.kind.as_str(), refusal.limit.as_str()];
    gateway.metrics.limited.with_label_values(&labels).inc();
}

/// The refusal for the client: whose limit, how much of it is left, and when to come back.
pub fn refused(refusal: &Refusal) -> Reject {
    let Refusal { kind, id, limit, max, remaining, reset, never } = refusal;
    let whose = match kind {
        ScopeKind::Global => "the whole gateway".to_owned(),
        kind => format!("the {} `{id}`", kind.as_str()),
    };
    let (reason, what, header) = match limit {
        LimitName::Parallel => {
            (Reason::ConcurrencyLimitExceeded, "requests at the same time (parallel)", "parallel")
        }
        LimitName::Rpm => (Reason::RateLimitExceeded, "requests in 60 seconds (rpm)", "requests"),
        LimitName::Tpm => (Reason::RateLimitExceeded, "tokens in 60 seconds (tpm)", "tokens"),
    };
    let advice = if *never {
        "This request alone asks for more than that: shorten it, or lower its output cap."
            .to_owned()
    } else {
        format!("Try again in {} s.", reset.as_secs_f64().ceil())
    };
    let message = format!("{whose} is limited to {max} {what}; {remaining} are left. {advice}");
    let name = |part: &str| -> &'static str {
        match (part, header) {
            ("limit", "requests") => "x-ratelimit-limit-requests",
            ("limit", "tokens") => "x-ratelimit-limit-tokens",
            ("limit", _) => "x-ratelimit-limit-parallel",
            ("remaining", "requests") => "x-ratelimit-remaining-requests",
            ("remaining", "tokens") => "x-ratelimit-remaining-tokens",
            ("remaining", _) => "x-ratelimit-remaining-parallel",
            (_, "requests") => "x-ratelimit-reset-requests",
            (_, "tokens") => "x-ratelimit-reset-tokens",
            _ => "x-ratelimit-reset-parallel",
        }
    };
    let reject = Reject::new(reason, message)
        .header(name("limit"), max.to_string())
        .header(name("remaining"), remaining.to_string())
        .header(name("reset"), format!("{}ms", reset.as_millis()));
    if *never {
        return reject.header("x-should-retry", "false");
    }
    reject.retry_after(*reset)
}
