//! The few facts the provider needs from a multipart body.

use hyper::http::request::Parts;

/// What an audio upload said.
#[derive(Debug, Default)]
pub(crate) struct Form {
    pub(crate) model: Option<String>,
    pub(crate) response_format: Option<String>,
    pub(crate) file_bytes: usize,
}

/// Reads the parts of a multipart body; an empty form for any other body.
pub(crate) fn read(head: &Parts, body: &[u8]) -> Form {
    let mut form = Form::default();
    let content_type = head.headers.get("content-type").and_then(|v| v.to_str().ok());
    let Some(boundary) = content_type.and_then(boundary) else {
        return form;
    };
    let mark = format!("--{boundary}");
    let mut rest = body;
    while let Some(start) = find(rest, mark.as_bytes()) {
        rest = &rest[start + mark.len()..];
        let end = find(rest, mark.as_bytes()).unwrap_or(rest.len());
        take(&mut form, &rest[..end]);
    }
    form
}

fn boundary(content_type: &str) -> Option<&str> {
    if !content_type.starts_with("multipart/form-data") {
        return None;
    }
    let (_, value) = content_type.split_once("boundary=")?;
    let value = value.split(';').next().unwrap_or(value);
    Some(value.trim().trim_matches('"'))
}

fn take(form: &mut Form, part: &[u8]) {
    let Some(at) = find(part, b"\r\n\r\n") else {
        return;
    };
    let head = String::from_utf8_lossy(&part[..at]);
    let value = part[at + 4..].strip_suffix(b"\r\n").unwrap_or(&part[at + 4..]);
    let text = || Some(String::from_utf8_lossy(value).into_owned());
    let named = |name: &str| {
        head.contains(&format!(" name=\"{name}\"")) || head.contains(&format!(";name=\"{name}\""))
    };
    if named("model") {
        form.model = text();
    } else if named("response_format") {
        form.response_format = text();
    } else if named("file") {
        form.file_bytes = value.len();
    }
}

fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    // First byte first: uploads are megabytes and windows() alone is slow in debug builds.
    let first = *needle.first()?;
    let mut from = 0;
    while let Some(at) = hay.get(from..)?.iter().position(|b| *b == first) {
        if hay[from + at..].starts_with(needle) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_model_is_found_after_the_file() {
        let body = "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\nRIFF\r\n--b\r\n\
                    Content-Disposition: form-data; name=\"model\"\r\n\r\nsim-w\r\n--b--\r\n";
        let request =
            hyper::Request::builder().header("content-type", "multipart/form-data; boundary=b");
        let (head, ()) = request.body(()).unwrap().into_parts();
        let form = read(&head, body.as_bytes());
        assert_eq!(form.model.as_deref(), Some("sim-w"));
        assert_eq!(form.file_bytes, 4);
    }
}
