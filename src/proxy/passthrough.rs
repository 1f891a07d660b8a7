//! `/passthrough/{provider}/{path}`: the provider's own API under the gateway's own rules.
//!
//! Where the path is one that the gateway knows how to meter, the request goes the same way as
//! any other. Reading the provider's model list bills nothing. Everything else is refused unless
//! the operator has listed the path as unmetered.

use crate::catalog::{Habits, ModelCard, Price};
use crate::config;
use crate::config::snapshot::{Model, Provider, Scope, Snapshot, Target, TierDef};
use crate::keys::Caller;
use crate::reject::{Reason, Reject};
use crate::scope::Limits;
use crate::units::{Dialect, Tier};
use crate::wire::route::{self, Endpoint, Route};
use crate::wire::route_path::decode_id;
use http::Method;
use pingora_http::RequestHeader;
use std::cmp::Reverse;
use std::sync::Arc;

/// The longest id of a model that only a client names, in bytes. Vendors' own have at most half of it.
const MOST_ID: usize = 256;

/// Where a passed-through request goes.
pub struct Via {
    /// The client's method.
    pub method: Method,
    /// Path and query at the provider, within its base path.
    pub target: String,
    /// The model as its client wrote it, and as it goes on; empty where none is asked for.
    pub model: String,
}

/// What a passthrough path means.
pub enum Kind {
    /// A call that the gateway can meter; the model may be in the path.
    Metered(Endpoint, Option<String>),
    /// Bills nothing, or may go unmetered.
    Unmetered,
}

/// The provider of that name, and what the path means there.
///
/// # Errors
/// `unknown_path` for a provider that isn't configured, `unmetered_path`, `model_not_allowed`.
pub fn understand(
    snapshot: &Snapshot,
    caller: &Caller,
    header: &RequestHeader,
    provider: &str,
    path: &str,
) -> Result<(Arc<Provider>, Kind, Via), Reject> {
    let provider = snapshot.providers.get(provider).cloned().ok_or_else(|| {
        let mut names: Vec<&str> = snapshot.providers.keys().map(String::as_str).collect();
        names.sort_unstable();
        Reject::new(
            Reason::UnknownPath,
            format!("there is no such provider. Configured are: {}.", names.join(", ")),
        )
    })?;
    let known = metered(&provider, &header.method, path);
    let target = target(&provider, path, header, known.is_some())?;
    let via = Via { method: header.method.clone(), target, model: String::new() };
    if let Some((endpoint, model)) = known {
        return Ok((provider, Kind::Metered(endpoint, model), via));
    }
    if !unmetered(&provider, &header.method, path) {
        return Err(Reject::new(
            Reason::UnmeteredPath,
            format!(
                "`{path}` can't be metered. The operator can allow it: providers.{}.passthrough.unmetered.",
                provider.name
            ),
        ));
    }
    let whole = format!("{}/", provider.name);
    if !caller.models.allows(&whole) {
        return Err(not_allowed(caller, &format!("{whole}*")));
    }
    Ok((provider, Kind::Unmetered, via))
}

/// The call that the path is at this provider, if the gateway knows it.
fn metered(provider: &Provider, method: &Method, path: &str) -> Option<(Endpoint, Option<String>)> {
    // Some servers take no notice of a slash at the end.
    let path = path.trim_end_matches('/');
    let whole = format!("{}{path}", provider.base_path);
    let mut ways = written(provider, path)
        .flat_map(|path| [versioned(provider.dialect, path), path.to_owned()])
        .chain([whole]);
    ways.find_map(|path| match route::route(method, &path) {
        Route::Call { endpoint, model } if endpoint.dialect() == provider.dialect => {
            Some((endpoint, model))
        }
        _ => None,
    })
}

/// The path, and what it is below the provider's base path: a client may write it with that.
fn written<'a>(provider: &Provider, path: &'a str) -> impl Iterator<Item = &'a str> {
    let below = path.strip_prefix(provider.base_path.as_str());
    std::iter::once(path).chain(below.filter(|below| below.starts_with('/')))
}

/// The path with the version that the gateway knows. Google's API has several, all alike.
fn versioned(dialect: Dialect, path: &str) -> String {
    let of = |version| path.strip_prefix(version).filter(|rest: &&str| rest.starts_with('/'));
    let rest = ["/v1", "/v1beta", "/v1alpha"].into_iter().find_map(of).unwrap_or(path);
    let version = if dialect == Dialect::Gemini { "/v1beta" } else { "/v1" };
    format!("{version}{rest}")
}

fn unmetered(provider: &Provider, method: &Method, path: &str) -> bool {
    let models = ["/models", "/v1/models", "/v1beta/models"];
    let reads_models = |path: &str| {
        let listed = |list: &&str| path == *list || path.starts_with(&format!("{list}/"));
        *method == Method::GET && models.iter().any(listed)
    };
    let listed = crate::keys::Allow::new(&provider.passthrough_unmetered);
    written(provider, path).any(|path| reads_models(path) || listed.allows(path))
}

/// The path at the provider: always below its base path.
fn target(
    provider: &Provider,
    path: &str,
    header: &RequestHeader,
    metered: bool,
) -> Result<String, Reject> {
    let base = provider.base_path.as_str();
    let below = !base.is_empty() && path.starts_with(&format!("{base}/"));
    let mut target = if below { path.to_owned() } else { format!("{base}{path}") };
    let raw = std::str::from_utf8(header.raw_path()).unwrap_or_default();
    if let Some((_, query)) = raw.split_once('?') {
        let printable = query.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
        if !printable {
            return Err(Reject::new(
                Reason::InvalidRequest,
                "the query has characters that must be encoded.",
            ));
        }
        let kept: Vec<&str> = query
            .split('&')
            .filter(|pair| !pair.is_empty() && is_forwarded(pair, metered))
            .collect();
        if !kept.is_empty() {
            target.push('?');
            target.push_str(&kept.join("&"));
        }
    }
    Ok(target)
}

/// Whether a parameter may go on to the provider. Google's clients may put a key there: it is ours,
/// not the provider's. What selects parts of an answer would leave out its usage, and Google's
/// parameters of every API (`$…`) can also make another call of it.
fn is_forwarded(pair: &str, metered: bool) -> bool {
    let name = pair.split('=').next().unwrap_or_default();
    // One that can't be decoded is not what any of these look like to a server.
    let name = decode_id(name).unwrap_or_default();
    let value = pair.split_once('=').map_or("", |(_, value)| value);
    // Another form of answer can't be read: its usage would be nobody's.
    let other_form = metered && name == "alt" && !["sse", "json"].contains(&value);
    !name.starts_with('$')
        && !other_form
        && !["key", "access_token", "oauth_token", "fields", "callback"].contains(&name.as_str())
}

/// What bounds a made-up model's requests, in tokens; `None` for what says nothing.
#[derive(Default)]
struct Bounds {
    output: Option<u64>,
    window: Option<u64>,
    unseen: Option<u64>,
}

/// A model made up for one request: this provider's, at its own price. A target that is configured
/// is its model's, whose limits and budgets it is charged to.
///
/// # Errors
/// `model_not_allowed`, `invalid_request` for what is no id, `unpriced_model`.
pub fn model(
    snapshot: &Snapshot,
    caller: &Caller,
    provider: &Provider,
    asked: &str,
) -> Result<Arc<Model>, Reject> {
    let name = format!("{}/{asked}", provider.name);
    if !caller.models.allows(&name) {
        return Err(not_allowed(caller, &name));
    }
    let id = bare(asked);
    let same =
        |target: &&Arc<Target>| target.provider == provider.name && bare(&target.model) == id;
    let models = snapshot.models.values();
    let configured = models.filter_map(|model| Some((model, model.targets.iter().find(same)?)));
    // Of several the widest bounds hold: the others are for those who ask by that name. So does
    // the highest price.
    let bound = |of: fn(&Model) -> Option<u64>| {
        let bounds = configured.clone().map(|(model, _)| of(model));
        bounds.reduce(|one, other| Some(one?.max(other?))).flatten()
    };
    let mut bounds = Bounds {
        output: bound(|model| model.max_output_tokens),
        window: bound(|model| model.context_window),
        unseen: bound(|model| model.unseen_input_tokens),
    };
    // Of several that are as dear, one with budgets, or limits, and always the same one.
    let dearest = configured.clone().max_by_key(|(model, target)| {
        let bounded = (!model.scope.budgets.is_empty(), model.scope.limits != Limits::default());
        (target.price.blended(), bounded, Reverse(&model.name))
    });
    let (name, scope, target) = match dearest {
        Some((model, target)) => (model.name.clone(), model.scope.clone(), target.clone()),
        None => {
            let target = from_catalogue(snapshot, provider, id)?;
            bounds.window = target.card.as_ref().and_then(|card| card.context_window);
            (target.id.clone(), Scope::default(), target)
        }
    };
    Ok(made_up(name, scope, target, bounds))
}

/// The id without what Google's clients may write before it: it is the same model.
fn bare(id: &str) -> &str {
    id.trim_start_matches("models/")
}

/// The model that an unmetered request is booked under; it costs nothing that is known.
pub fn nothing(provider: &Provider) -> Arc<Model> {
    let target = target_of(provider, "-", Price::free(), Tier(0));
    made_up(format!("{}/-", provider.name), Scope::default(), Arc::new(target), Bounds::default())
}

/// What the catalogue has under that id.
fn from_catalogue(
    snapshot: &Snapshot,
    provider: &Provider,
    id: &str,
) -> Result<Arc<Target>, Reject> {
    if id.len() > MOST_ID || id.contains(char::is_control) {
        let message = format!(
            "`model` is not a model's id: those have at most {MOST_ID} bytes and no control characters."
        );
        return Err(Reject::new(Reason::InvalidRequest, message).param("model"));
    }
    let found = config::card(&snapshot.catalog, provider, id);
    let priced = found.and_then(|card| Some((tier(snapshot, &card)?, card)));
    let (tier, card) = priced.ok_or_else(|| unpriced(provider, id))?;
    let mut target = target_of(provider, booked(&card, id), card.price.clone(), tier);
    target.card = Some(card);
    Ok(Arc::new(target))
}

/// The tier that a catalogue's model would have.
fn tier(snapshot: &Snapshot, card: &ModelCard) -> Option<Tier> {
    let blended = card.price.blended();
    let fits = |tier: &TierDef| tier.max_blended.is_none_or(|most| blended <= most);
    let place = snapshot.tiers.iter().position(fits)?;
    Some(Tier(u8::try_from(place).ok()?))
}

/// The id for labels, headers and books. What comes behind a fine-tune's base is anybody's: it makes
/// no name here.
fn booked<'a>(card: &'a ModelCard, id: &'a str) -> &'a str {
    // A region that comes before it is the provider's.
    if card.id.ends_with(id) { id } else { &card.id }
}

fn unpriced(provider: &Provider, id: &str) -> Reject {
    let name = shown(&format!("{}/{id}", provider.name));
    let message =
        format!("`{name}` has no known price. The operator can give it one: prices.file.");
    Reject::new(Reason::UnpricedModel, message).param("model")
}

fn target_of(provider: &Provider, id: &str, price: Price, tier: Tier) -> Target {
    Target {
        id: format!("{}/{id}", provider.name),
        provider: provider.name.clone(),
        dialect: provider.dialect,
        model: id.to_owned(),
        habits: Habits::of(id).at(&provider.host, provider.catalog.as_deref(), id),
        weight: 1,
        canary: None,
        price,
        card: None,
        tier,
    }
}

fn made_up(name: String, scope: Scope, target: Arc<Target>, bounds: Bounds) -> Arc<Model> {
    Arc::new(Model {
        name,
        tier: target.tier,
        targets: vec![target],
        fallbacks: Vec::new(),
        fallback_written: false,
        max_output_tokens: bounds.output,
        context_window: bounds.window,
        unseen_input_tokens: bounds.unseen,
        first_token_timeout: None,
        latency_budget: None,
        scope,
    })
}

fn not_allowed(caller: &Caller, name: &str) -> Reject {
    let message = format!(
        "the key `{}` may not use `{}`: its `models` list does not allow it.",
        caller.id,
        shown(name)
    );
    Reject::new(Reason::ModelNotAllowed, message).param("model")
}

fn shown(name: &str) -> String {
    name.chars().take(100).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::catalog::Catalog;

    #[test]
    fn names_are_the_catalogues_and_not_a_clients() {
        let claude = "anthropic.claude-sonnet-4-5-20250929-v1:0";
        for (provider, id, expected) in [
            ("openai", "gpt-4o-mini", "gpt-4o-mini"),
            ("openai", "ft:gpt-4o-mini-2024-07-18", "ft:gpt-4o-mini-2024-07-18"),
            ("openai", "ft:gpt-4o-mini-2024-07-18:a::b", "ft:gpt-4o-mini-2024-07-18"),
            ("bedrock@us-gov-east-1", claude, claude),
        ] {
            let card = Catalog::builtin().find(provider, id).unwrap();
            assert_eq!(booked(&card, id), expected, "{provider}");
        }
    }
}
