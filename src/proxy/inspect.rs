//! What is asked: reads the body within its bounds, finds the model in it.

use super::accept;
use super::exchange::BodyFields;
use super::incoming::{Bounds, Incoming, TooMuch};
use crate::config::snapshot::{Model, Server, Snapshot};
use crate::faults;
use crate::keys::Caller;
use crate::reject::{Reason, Reject};
use crate::scope::ScopeKind;
use crate::state::{ByteBudget, ByteShare, Gateway};
use crate::wire::route::Endpoint;
use crate::wire::{multipart, scan};
use bytes::Bytes;
use http::header;
use pingora_core::protocols::http::ServerSession;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// How long a whole body may take, in idle timeouts.
const BODY_TIMEOUTS: u32 = 5;

/// The longest request header, names and values together, in bytes. Envoy's bound is 60 KiB.
const MAX_HEADER: usize = 64 * 1024;

/// A body in memory, with its share of the byte budget.
pub struct Received {
    /// Its bytes.
    pub body: Bytes,
    /// Given back when the request ends.
    pub share: ByteShare,
}

/// Refuses a request whose framing two servers could read differently, whose body is coded or
/// whose header is too long.
///
/// # Errors
/// `headers_too_large`, `invalid_request`, `unsupported_content_encoding`.
pub fn framing(session: &mut ServerSession) -> Result<(), Reject> {
    let headers = &session.req_header().headers;
    let length: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if length > MAX_HEADER {
        return Err(Reject::new(
            Reason::HeadersTooLarge,
            format!("the request's headers have {length} bytes; at most {MAX_HEADER} are taken."),
        ));
    }
    framed(session)?;
    let headers = &session.req_header().headers;
    match headers.get(header::CONTENT_ENCODING).map(|value| value.as_bytes()) {
        None => Ok(()),
        Some(coding) if coding.is_empty() || coding.eq_ignore_ascii_case(b"identity") => Ok(()),
        Some(_) => Err(Reject::new(
            Reason::UnsupportedEncoding,
            "compressed request bodies are not understood. Send the body without Content-Encoding.",
        )),
    }
}

/// Refuses a length beside a transfer coding, and every coding but one `chunked`, and with them the
/// connection: another server may see another end of the request.
///
/// # Errors
/// `invalid_request`.
pub fn framed(session: &mut ServerSession) -> Result<(), Reject> {
    let coded = session.req_header().headers.contains_key(header::TRANSFER_ENCODING);
    let sound = if coded { transfer(session) } else { Ok(()) };
    if sound.is_err() {
        session.set_keepalive(None);
    }
    sound
}

fn transfer(session: &ServerSession) -> Result<(), Reject> {
    let refused = |what: &str| Err(Reject::new(Reason::InvalidRequest, what));
    // Pingora drops Content-Length when both are there: only the raw bytes still show it.
    let raw = session.to_h1_raw();
    let conflicting = raw.split(|byte| *byte == b'\n').any(|line| {
        line.get(..15).is_some_and(|name| name.eq_ignore_ascii_case(b"content-length:"))
    });
    if conflicting {
        return refused("both Content-Length and Transfer-Encoding: send one.");
    }
    // Pingora looks at the last one only, and undoes no other.
    let mut codings = session.req_header().headers.get_all(header::TRANSFER_ENCODING).iter();
    let first = codings.next();
    let chunked = first.filter(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    if chunked.is_none() || codings.next().is_some() {
        return refused("no Transfer-Encoding is understood but `chunked`, once.");
    }
    Ok(())
}

/// Reads the whole body, within `server`'s bounds, which hold before the bytes are taken.
///
/// # Errors
/// `request_too_large`, `overloaded`, `request_timeout`, `invalid_request` (cut short), `draining`
/// (the end of the drain is not waited for).
pub async fn receive(
    session: &mut ServerSession,
    server: &Server,
    gateway: &Gateway,
    caller: &Caller,
) -> Result<Received, Reject> {
    let declared = content_length(session)?;
    let key = gateway.unfinished.of(ScopeKind::Key, &caller.id, |_| ByteBudget::default());
    let refused = |why| refused(why, server, caller);
    let incoming = Incoming::begin(&gateway.bodies, &key, Bounds::of(server), declared);
    let mut incoming = incoming.map_err(refused)?;
    if session.req_header().headers.contains_key(header::EXPECT) {
        // Pingora takes any header that goes out before the body is in for the end of keep-alive.
        let kept = session.get_keepalive();
        let _ = session.write_continue_response().await;
        session.set_keepalive(kept);
    }
    // Pingora's own on HTTP/1 is 60 s, and its error is that of a malformed body.
    session.set_read_timeout(None);
    let deadline = Instant::now() + server.idle_timeout * BODY_TIMEOUTS;
    let cut = gateway.running.is_cut();
    tokio::pin!(cut);
    loop {
        let until = deadline.min(Instant::now() + server.idle_timeout);
        let piece = tokio::select! {
            biased;
            piece = timeout_at(until, session.read_request_body()) => piece,
            () = &mut cut => return Err(accept::draining()),
        };
        match piece {
            Err(_) => return Err(stalled(server.idle_timeout)),
            Ok(Err(error)) => {
                // Where the next request begins nobody knows.
                session.set_keepalive(None);
                return Err(broken(&error));
            }
            Ok(Ok(None)) => break,
            Ok(Ok(Some(piece))) => incoming.add(piece).map_err(refused)?,
        }
    }
    let (body, share) = incoming.end();
    Ok(Received { body, share })
}

fn content_length(session: &ServerSession) -> Result<Option<u64>, Reject> {
    let Some(value) = session.req_header().headers.get(header::CONTENT_LENGTH) else {
        return Ok(None);
    };
    let length = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    length
        .map(Some)
        .ok_or_else(|| Reject::new(Reason::InvalidRequest, "Content-Length is not a number."))
}

fn refused(why: TooMuch, server: &Server, caller: &Caller) -> Reject {
    let message = match why {
        TooMuch::Body => return too_large(server),
        TooMuch::All => {
            "the gateway holds as many request bytes as it may (server.max_buffered_bytes). Try again shortly."
                .to_owned()
        }
        TooMuch::Key => format!(
            "request bodies of the key `{}` that are not complete yet have as many bytes as those of one key may (half of server.max_buffered_bytes). Finish them, or try again shortly.",
            caller.id
        ),
    };
    Reject::new(Reason::Overloaded, message).retry_after(Duration::from_secs(1))
}

fn too_large(server: &Server) -> Reject {
    Reject::new(
        Reason::RequestTooLarge,
        format!(
            "the body is larger than the gateway's limit of {} bytes (server.max_body_bytes).",
            server.max_body_bytes
        ),
    )
}

fn broken(error: &pingora_core::Error) -> Reject {
    let kind = error.etype().as_str();
    let message = format!("the request body ended early or is malformed ({kind}).");
    Reject::new(Reason::InvalidRequest, message)
}

fn stalled(idle: Duration) -> Reject {
    Reject::new(
        Reason::RequestTimeout,
        format!("the request body stood still for {} s.", idle.as_secs_f64()),
    )
}

/// What the body says.
pub struct Asked {
    /// Where the fields are.
    pub fields: BodyFields,
    /// The model, from the body or the path.
    pub model: String,
    /// Whether a streamed answer is wanted.
    pub stream: bool,
}

impl Asked {
    /// A body that is nobody's business.
    pub fn opaque() -> Self {
        let fields = BodyFields::Opaque;
        Asked { fields, model: String::new(), stream: false }
    }
}

/// Understands the body.
///
/// # Errors
/// `invalid_json`, `invalid_request`, `missing_model`.
pub fn understand(
    endpoint: Endpoint,
    path_model: Option<&str>,
    content_type: &str,
    body: &Bytes,
) -> Result<Asked, Reject> {
    faults::point("inspect");
    let (fields, in_body, stream) = if endpoint.multipart() {
        let (form, boundary) = understand_form(content_type, body)?;
        let (model, stream) = (form.model.clone(), form.stream);
        (BodyFields::Form(form, boundary), model, stream)
    } else {
        let fields = scan::scan(body).map_err(|error| match error.field {
            Some(field) => {
                Reject::new(Reason::InvalidRequest, format!("`{field}`: {}.", error.what))
            }
            None => Reject::new(Reason::InvalidJson, format!("{error}.")),
        })?;
        if fields.backdrop && endpoint != Endpoint::ImageGenerations {
            let message = "`background`: must be false or left out: only pictures have another.";
            return Err(Reject::new(Reason::InvalidRequest, message));
        }
        let (model, stream) = (fields.model.clone(), fields.stream);
        (BodyFields::Json(Box::new(fields)), model, stream)
    };
    let model = path_model.map(str::to_owned).or(in_body).filter(|model| !model.is_empty());
    let model = model.ok_or_else(|| {
        Reject::new(Reason::MissingModel, "the request names no `model`.").param("model")
    })?;
    Ok(Asked { fields, model, stream: stream || endpoint == Endpoint::GeminiStream })
}

/// The longest name that is looked for among those that are configured, in characters.
const LONGEST_NAME: usize = 256;

/// Stands for the conversation that a request belongs to: the client's `prompt_cache_key`, or
/// all up to the end of the first user message, which later turns repeat. Without either, each
/// request stands for itself.
pub fn affinity(fields: &BodyFields, body: &[u8]) -> u64 {
    let BodyFields::Json(fields) = fields else {
        return rand::random();
    };
    let prefix = body.get(..fields.prefix_end).filter(|prefix| !prefix.is_empty());
    match (&fields.prompt_cache_key, prefix) {
        (Some(key), _) => crate::plan::hash(key.as_bytes()),
        (None, Some(prefix)) => crate::plan::hash(prefix),
        (None, None) => rand::random(),
    }
}

fn understand_form(content_type: &str, body: &Bytes) -> Result<(multipart::Form, String), Reject> {
    let bad = |what: &str| Reject::new(Reason::InvalidRequest, what.to_owned());
    let boundary = multipart::boundary(content_type)
        .ok_or_else(|| bad("this endpoint takes multipart/form-data with a boundary."))?;
    let form = multipart::scan(body, &boundary).map_err(|error| bad(&format!("{error}.")))?;
    Ok((form, boundary))
}

/// The configured model, if the caller may use it.
///
/// # Errors
/// `model_not_found` with the nearest names that the caller may use, `model_not_allowed`.
pub fn known_model(snapshot: &Snapshot, caller: &Caller, name: &str) -> Result<Arc<Model>, Reject> {
    match snapshot.models.get(name) {
        Some(model) if caller.models.allows(name) => Ok(model.clone()),
        Some(_) => Err(Reject::new(
            Reason::ModelNotAllowed,
            format!(
                "the key `{}` may not use the model `{name}`. Its `models` list does not allow it.",
                caller.id
            ),
        )
        .param("model")),
        None => {
            Err(Reject::new(Reason::ModelNotFound, not_found(snapshot, caller, name))
                .param("model"))
        }
    }
}

fn not_found(snapshot: &Snapshot, caller: &Caller, name: &str) -> String {
    // It is compared with each that there is, and may be as long as a body.
    let end = name.char_indices().nth(LONGEST_NAME).map_or(name.len(), |(at, _)| at);
    let name = name.get(..end).unwrap_or(name);
    let mut names: Vec<(f64, &str)> = snapshot
        .models
        .keys()
        .filter(|known| caller.models.allows(known))
        .map(|known| (strsim::jaro_winkler(known, name), known.as_str()))
        .collect();
    names.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    let nearest: Vec<String> = names.iter().take(3).map(|(_, name)| format!("`{name}`")).collect();
    // A client's own words may be long or odd: show what can be shown.
    let shown: String = name.chars().take(100).flat_map(char::escape_debug).collect();
    if nearest.is_empty() {
        format!("there is no model `{shown}`, and this key may use none.")
    } else {
        format!(
            "there is no model `{shown}`. The nearest that this key may use: {}.",
            nearest.join(", ")
        )
    }
}
