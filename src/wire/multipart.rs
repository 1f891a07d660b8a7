//! Audio uploads (RFC 7578): finds `model` in a form that is in memory.
//!
//! As strict as the JSON scan, for the same reason: one reading of a form, or none.

use memchr::memmem;

use super::fault::{ScanError, Span};
use super::splice::Edit;

/// The longest head of a part, in bytes.
const MAX_HEAD: usize = 16 * 1024;

/// The boundary out of a `content-type`. `None`: not a form, or not a legal boundary.
pub fn boundary(content_type: &str) -> Option<String> {
    let (kind, parameters) = content_type.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    let (value, more) = parameter(parameters, "boundary")?;
    // Two boundaries: two readings.
    if parameter(more, "boundary").is_some() {
        return None;
    }
    // RFC 2046: 1 to 70 of these, and no space at the end.
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"'()+_,-./:=? ".contains(&byte);
    let fits = (1..=70).contains(&value.len()) && !value.ends_with(' ');
    (fits && value.bytes().all(legal)).then_some(value)
}

/// The value of a `; name=value` parameter, quoted or not, and what follows it.
fn parameter<'a>(mut rest: &'a str, wanted: &str) -> Option<(String, &'a str)> {
    loop {
        let (name, after) = rest.split_once('=')?;
        let (value, more) = parameter_value(after.trim_start())?;
        let name = name.trim_start_matches([';', ' ', '\t']).trim_end();
        if name.eq_ignore_ascii_case(wanted) {
            return Some((value, more));
        }
        rest = more;
    }
}

fn parameter_value(after: &str) -> Option<(String, &str)> {
    let Some(quoted) = after.strip_prefix('"') else {
        let end = after.find(';').unwrap_or(after.len());
        let (value, more) = after.split_at(end);
        return Some((value.trim().to_owned(), more));
    };
    let mut value = String::new();
    let mut escaped = false;
    for (at, character) in quoted.char_indices() {
        match character {
            '\\' if !escaped => escaped = true,
            '"' if !escaped => return Some((value, quoted.get(at + 1..)?)),
            _ => {
                value.push(character);
                escaped = false;
            }
        }
    }
    None
}

/// What a form says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Form {
    /// The model asked for: the last one.
    pub model: Option<String>,
    /// The value of every `model` part: raw text.
    pub models: Vec<Span>,
    /// Whether a stream is asked for.
    pub stream: bool,
    /// Bytes in files.
    pub file_bytes: usize,
    /// Where they are.
    pub files: Vec<Span>,
    /// Where the first part begins: a part may be added there.
    pub first_part: usize,
}

/// Finds the fields of a form.
///
/// # Errors
/// The form is not well-formed, or has a `model` that can't be used.
pub fn scan(body: &[u8], boundary: &str) -> Result<Form, ScanError> {
    let dashes = format!("--{boundary}");
    let between = format!("\r\n--{boundary}");
    let delimiter = memmem::Finder::new(between.as_bytes());
    let mut form =
        Form { first_part: usize::from(body.starts_with(b"\r\n")) * 2, ..Form::default() };
    let from = form.first_part;
    if !body.get(from..).unwrap_or_default().starts_with(dashes.as_bytes()) {
        return Err(ScanError::form(from, "the form's boundary was expected"));
    }
    let mut at = from + dashes.len();
    loop {
        let rest = body.get(at..).unwrap_or_default();
        if let Some(after) = rest.strip_prefix(b"--") {
            return match after {
                b"" | b"\r\n" => Ok(form),
                _ => Err(ScanError::form(at + 2, "more after the form's end")),
            };
        }
        if !rest.starts_with(b"\r\n") {
            return Err(ScanError::form(at, "a line end was expected"));
        }
        // From the line end of the delimiter, so that a part without a head is found too.
        let bound = rest.get(..MAX_HEAD).unwrap_or(rest);
        let head_end = memmem::find(bound, b"\r\n\r\n")
            .ok_or(ScanError::form(at, "a part has no head, or too long a one"))?;
        let head = rest.get(2..head_end).unwrap_or_default();
        let from = at + head_end + 4;
        let length = delimiter
            .find(body.get(from..).unwrap_or_default())
            .ok_or(ScanError::form(body.len(), "the form has no end"))?;
        part(&mut form, body, head, from..from + length)?;
        at = from + length + between.len();
    }
}

/// Parts that would name a file instead of being one.
const FIELDS: [&str; 4] = ["file", "url", "file_url", "file_id"];

fn part(form: &mut Form, body: &[u8], head: &[u8], content: Span) -> Result<(), ScanError> {
    let wrong = |what| ScanError::form(content.start, what);
    let head = std::str::from_utf8(head).map_err(|_| wrong("a part's head is not UTF-8"))?;
    if head.split("\r\n").any(|line| line.starts_with([' ', '\t'])) {
        return Err(wrong("a line of a part's head is folded"));
    }
    let mut dispositions = head.split("\r\n").filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        let found = name.trim().eq_ignore_ascii_case("content-disposition");
        found.then_some(value)
    });
    let (Some(disposition), None) = (dispositions.next(), dispositions.next()) else {
        return Err(wrong("a part needs one content-disposition"));
    };
    let parameters = disposition.split_once(';').map_or("", |(_, rest)| rest);
    let Some((name, more)) = parameter(parameters, "name") else {
        return Err(wrong("a part has no name"));
    };
    let coded = parameter(parameters, "name*").is_some();
    if parameter(more, "name").is_some() || coded {
        return Err(wrong("a part has two names"));
    }
    if parameter(parameters, "filename").is_some() || parameter(parameters, "filename*").is_some() {
        form.file_bytes += content.len();
        if name == "model" {
            return Err(ScanError::field(content.start, "model", "must not be a file"));
        }
        form.files.push(content);
        return Ok(());
    }
    match name.as_str() {
        "model" => {
            let wrong = ScanError::field(content.start, "model", "must be a line of text");
            let value = body.get(content.clone()).unwrap_or_default();
            let text = std::str::from_utf8(value).map_err(|_| wrong.clone())?;
            if text.chars().any(char::is_control) || has_encoding(head) {
                return Err(wrong);
            }
            form.model = Some(text.to_owned());
            form.models.push(content);
        }
        "stream" => {
            let value = body.get(content).unwrap_or_default();
            form.stream = value.eq_ignore_ascii_case(b"true") || value == b"1";
        }
        // Whatever stands there is not the sound: what that costs, the gateway can't see.
        "file" | "url" | "file_url" | "file_id" => {
            let field = FIELDS.iter().find(|field| **field == name).unwrap_or(&"file");
            let what = "must not stand for a file that is elsewhere: send the file itself";
            return Err(ScanError::field(content.start, field, what));
        }
        _ => {}
    }
    Ok(())
}

/// Whether the part says that its content is encoded (RFC 7578 section 4.7 ended that).
fn has_encoding(head: &str) -> bool {
    let mut lines = head.split("\r\n").filter_map(|line| line.split_once(':'));
    lines.any(|(name, value)| {
        name.trim().eq_ignore_ascii_case("content-transfer-encoding")
            && !["7bit", "8bit", "binary"].contains(&value.trim().to_ascii_lowercase().as_str())
    })
}

/// The edits that make the form ask for `model`; none if it does so already.
pub fn edits(form: &Form, boundary: &str, model: &str) -> Vec<Edit> {
    if form.models.len() == 1 && form.model.as_deref() == Some(model) {
        return Vec::new();
    }
    if form.models.is_empty() {
        let part = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n{model}\r\n"
        );
        return vec![Edit { at: form.first_part..form.first_part, with: part.into_bytes() }];
    }
    let replace = |at: &Span| Edit { at: at.clone(), with: model.as_bytes().to_vec() };
    form.models.iter().map(replace).collect()
}
