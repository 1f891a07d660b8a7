use http::Method;
use proptest::prelude::*;

use crate::units::Dialect;
use crate::wire::route::{Endpoint, Route, route};

fn post(path: &str) -> Route {
    route(&Method::POST, path)
}

fn get(path: &str) -> Route {
    route(&Method::GET, path)
}

fn call(endpoint: Endpoint, model: Option<&str>) -> Route {
    let model = model.map(str::to_owned);
    Route::Call { endpoint, model }
}

#[test]
fn the_contract_table() {
    use Endpoint::*;
    for (path, endpoint) in [
        ("chat/completions", ChatCompletions),
        ("completions", Completions),
        ("embeddings", Embeddings),
        ("responses", Responses),
        ("messages", Messages),
        ("messages/count_tokens", CountTokens),
        ("moderations", Moderations),
        ("images/generations", ImageGenerations),
        ("audio/transcriptions", AudioTranscriptions),
        ("audio/translations", AudioTranslations),
        ("audio/speech", AudioSpeech),
    ] {
        assert_eq!(post(&format!("/v1/{path}")), call(endpoint, None));
        assert_eq!(post(&format!("/openai/v1/{path}")), call(endpoint, None));
        assert_eq!(get(&format!("/v1/{path}")), Route::MethodNotAllowed { allow: "POST" });
        for wrong in [
            format!("/v1/{path}/"),
            format!("/v1//{path}"),
            format!("//v1/{path}"),
            format!("/V1/{path}"),
            format!("/v1/./{path}"),
            format!("/v1/x/../{path}"),
        ] {
            assert_eq!(post(&wrong), Route::Unknown, "{wrong}");
        }
    }
    for path in [
        "",
        "/",
        "/v1",
        "/v1/",
        "/openai",
        "/openai/v1",
        "/openai/v1/",
        "/v1/files",
        "/v1beta",
        "/openai/openai/v1/responses",
        "/passthrough",
        "/passthrough/",
        "/v1/chat%2Fcompletions",
        "*",
    ] {
        assert_eq!(post(path), Route::Unknown, "{path}");
    }
    assert_eq!(get("/v1/models"), Route::Models);
    assert_eq!(get("/openai/v1/models"), Route::Models);
    assert_eq!(get("/healthz"), Route::Healthz);
    for path in ["/v1/models", "/v1/models/a", "/healthz"] {
        assert_eq!(post(path), Route::MethodNotAllowed { allow: "GET" });
    }
}

#[test]
fn ids_in_paths_are_decoded_once() {
    for (path, id) in [
        ("gpt-x", "gpt-x"),
        ("meta/llama%203", "meta/llama 3"),
        ("meta%2Fllama", "meta/llama"),
        ("ft:gpt-4o:org::1", "ft:gpt-4o:org::1"),
        ("a%2525", "a%25"),
        ("%C3%A9", "é"),
    ] {
        assert_eq!(get(&format!("/v1/models/{path}")), Route::Model(id.to_owned()));
        let model = Some(id);
        let azure = format!("/openai/deployments/{path}/chat/completions?x=1");
        assert_eq!(post(azure.trim_end_matches("?x=1")), call(Endpoint::ChatCompletions, model));
        assert_eq!(
            post(&format!("/v1beta/models/{path}:generateContent")),
            call(Endpoint::GeminiGenerate, model)
        );
    }
    for bad in [
        "%",
        "%4",
        "%zz",
        "%ff",
        "a%00b",
        "a%0a",
        "%7f",
        "..",
        ".",
        "a/..",
        "a%2f..",
        "%2e%2e",
        "a%2f%2e%2e%2fb",
        "%2fa",
        "a%5c..",
        "%c2%85",
        "%+1",
    ] {
        assert_eq!(get(&format!("/v1/models/{bad}")), Route::BadPath, "{bad}");
        assert_eq!(post(&format!("/openai/deployments/{bad}/embeddings")), Route::BadPath, "{bad}");
        let gemini = format!("/v1beta/models/{bad}:generateContent");
        assert_eq!(post(&gemini), Route::BadPath, "{bad}");
    }
    for unknown in ["/v1/models/", "/v1/models//", "/v1/models/a/", "/v1/models/a//b"] {
        assert_eq!(get(unknown), Route::Unknown, "{unknown}");
    }
}

#[test]
fn azure_and_gemini() {
    use Endpoint::*;
    for (path, endpoint) in [
        ("chat/completions", ChatCompletions),
        ("completions", Completions),
        ("embeddings", Embeddings),
        ("images/generations", ImageGenerations),
        ("audio/transcriptions", AudioTranscriptions),
        ("audio/translations", AudioTranslations),
        ("audio/speech", AudioSpeech),
    ] {
        assert_eq!(post(&format!("/openai/deployments/d/{path}")), call(endpoint, Some("d")));
    }
    for path in [
        "/openai/deployments/d",
        "/openai/deployments//completions",
        "/openai/deployments/completions",
        "/openai/deployments/d/responses",
        "/openai/deployments/d/completions/",
        "/v1beta/models/m",
        "/v1beta/models/:generateContent",
        "/v1beta/models/m:countTokens",
        "/v1beta/models/m:generateContent/",
        "/v1/models/m:generateContent/x",
    ] {
        assert_eq!(
            post(path),
            match path {
                "/v1/models/m:generateContent/x" => Route::MethodNotAllowed { allow: "GET" },
                _ => Route::Unknown,
            },
            "{path}"
        );
    }
    assert_eq!(post("/v1beta/models/m%3AstreamGenerateContent"), call(GeminiStream, Some("m")));
    assert_eq!(post("/v1beta/models/a:b:streamGenerateContent"), call(GeminiStream, Some("a:b")));
    assert_eq!(get("/v1beta/models/m:generateContent"), Route::MethodNotAllowed { allow: "POST" });
}

#[test]
fn passthrough_has_one_form() {
    let through = |path: &str| route(&Method::DELETE, &format!("/passthrough/openai{path}"));
    for (path, wanted) in [
        ("", "/"),
        ("/", "/"),
        ("/v1/files", "/v1/files"),
        ("/v1/files/", "/v1/files/"),
        ("/v1/%66iles/%7ex", "/v1/files/~x"),
        ("/a%c3%a9/b%20c%3f", "/a%C3%A9/b%20c%3F"),
        ("/v1beta/models/m%3AcountTokens", "/v1beta/models/m:countTokens"),
        ("/x/a.b..c/...", "/x/a.b..c/..."),
        ("/100%25", "/100%25"),
        ("/a@b", "/a@b"),
    ] {
        let wanted = Route::Passthrough { provider: "openai".to_owned(), path: wanted.to_owned() };
        assert_eq!(through(path), wanted, "{path}");
    }
    for bad in [
        "/.",
        "/..",
        "/a/../b",
        "/a/./b",
        "/%2e%2e/b",
        "/.%2e",
        "/%2E",
        "/a%2fb",
        "/a%2Fb",
        "/a%5cb",
        "/a\\b",
        "//",
        "//b",
        "/a//b",
        "/%",
        "/%2",
        "/%zz",
        "/a%00",
        "/a%0d%0a",
        "/a\u{0}",
        "/a b",
        "/%7f",
        "/%252e%252e",
        "/%252f",
        "/%25252f",
        "/%255c",
        "/a#b",
        "/@evil",
        "/a/%40b/@x",
        "/a/..;/b",
        "/;/b",
        "/é",
        "/a?b",
        "/<",
        "/[x]",
    ] {
        assert_eq!(through(bad), Route::BadPath, "{bad}");
    }
    for provider in ["..", ".", "a%62", "a@b", "a b", "é", "a;b"] {
        assert_eq!(get(&format!("/passthrough/{provider}/v1")), Route::BadPath, "{provider}");
    }
    assert_eq!(get("/passthrough//v1"), Route::Unknown);
}

#[test]
fn paths_to_providers() {
    assert_eq!(Endpoint::ChatCompletions.upstream_path("m"), "/chat/completions");
    assert_eq!(Endpoint::Messages.upstream_path("m"), "/v1/messages");
    assert_eq!(Endpoint::CountTokens.upstream_path("m"), "/v1/messages/count_tokens");
    assert_eq!(
        Endpoint::GeminiGenerate.upstream_path("a/b?c é"),
        "/v1beta/models/a%2Fb%3Fc%20%C3%A9:generateContent"
    );
    assert_eq!(
        Endpoint::GeminiStream.upstream_path("g-2.5"),
        "/v1beta/models/g-2.5:streamGenerateContent"
    );
    for endpoint in Endpoint::ALL {
        assert!(endpoint.upstream_path("m").starts_with('/'), "{endpoint:?}");
        assert_eq!(endpoint.model_in_path(), endpoint.dialect() == Dialect::Gemini);
    }
    let names: std::collections::HashSet<&str> = Endpoint::ALL.map(Endpoint::as_str).into();
    assert_eq!(names.len(), Endpoint::ALL.len());
}

proptest! {
    #![proptest_config(super::fixtures::random(512))]

    #[test]
    fn any_path_is_survived(path in "(/v1/models/|/passthrough/p/|/v1beta/models/|/openai/deployments/)?[ -~é%./\\\\]{0,30}") {
        for method in [Method::GET, Method::POST] {
            if let Route::Passthrough { path, .. } = route(&method, &path) {
                // Normalising again changes nothing, and nobody can climb out.
                let again = route(&method, &format!("/passthrough/p{path}"));
                prop_assert_eq!(again, Route::Passthrough { provider: "p".to_owned(), path: path.clone() });
                let climbs = |name: &str| matches!(name.split(';').next(), Some("." | ".."));
                prop_assert!(!path.split('/').any(climbs), "{}", path);
            }
        }
    }
}
