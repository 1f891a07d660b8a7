//! Where secrets come from, and that they go nowhere.

use super::*;

fn provider_key(api_key: &str, env: &Fake) -> Result<Loaded, Invalid> {
    let url = r#"base_url: "https://api.openai.com/v1""#;
    load(&with(url, &format!("{url}, api_key: \"{api_key}\"")), env)
}

#[test]
fn every_form_of_a_secret() {
    let env = Fake::default()
        .var("K", "sk-variable")
        .var("CREDENTIALS_DIRECTORY", "/run/credentials/tollbar.service")
        .file("/run/credentials/tollbar.service/openai", "sk-systemd\n")
        .var("EMPTY", "")
        .file("/run/key", "sk-file\r\n")
        .file("/etc/tollbar/near.key", "sk-near")
        .file("/run/nothing", "\n");
    let found = [
        ("${K}", "sk-variable"),
        ("pre-${K}-post", "pre-sk-variable-post"),
        ("${NOT:-sk-default}", "sk-default"),
        ("${EMPTY:-sk-default}", "sk-default"),
        ("${K:-sk-default}", "sk-variable"),
        ("os.environ/K", "sk-variable"),
        ("env.K", "sk-variable"),
        ("file:/run/key", "sk-file"),
        ("file:near.key", "sk-near"),
        ("file:/run/${NOT:-key}", "sk-file"),
        ("file:${CREDENTIALS_DIRECTORY}/openai", "sk-systemd"),
        ("$${K}", "${K}"),
    ];
    for (form, plain) in found {
        let loaded = provider_key(form, &env).unwrap_or_else(|e| panic!("{form}: {e}"));
        let key = loaded.snapshot.providers["openai"].api_key.clone().unwrap();
        assert_eq!(key.expose(), plain, "{form}");
        assert_eq!(loaded.warnings, [], "{form}");
    }
    let refused = [
        ("${NOT}", "the environment variable NOT is not set"),
        ("${EMPTY}", "the environment variable EMPTY is empty"),
        ("${NOT:-}", "is empty"),
        ("os.environ/NOT", "NOT is not set"),
        ("env.NOT", "NOT is not set"),
        ("file:/run/none", "cannot read /run/none: "),
        ("file:/run/nothing", "the secret is empty"),
        ("${K", "without `}`"),
        ("${a b}", "not the name of a variable"),
        ("", "found an empty string"),
        ("  ", "the secret is empty"),
        ("sk-a\\nb", "no header can carry"),
    ];
    for (form, message) in refused {
        let invalid = provider_key(form, &env).expect_err(form);
        assert_eq!(invalid.problems.len(), 1, "{form}: {invalid}");
        let problem = &invalid.problems[0];
        assert!(problem.message.contains(message), "{form}: {problem}");
        assert_eq!((problem.line, problem.path.as_str()), (Some(3), "providers.openai.api_key"));
    }
}

#[test]
fn an_inline_provider_key_is_a_warning_that_does_not_show_it() {
    let loaded = provider_key("sk-inline-plain", &Fake::default()).unwrap();
    let warning = loaded.warnings[0].to_string();
    assert!(warning.contains("${OPENAI_API_KEY}"), "{warning}");
    assert!(!warning.contains("inline"), "{warning}");
    assert!(!format!("{:?}", loaded.snapshot).contains("sk-inline"));
}

/// Secrets in every place where one could stand, wrong ones included: no message has any.
#[test]
fn no_problem_shows_a_secret() {
    let text = r#"
listeners: [ { address: "${S}:8080" } ]
admin: { token: S3CRETshort }
providers:
  a: { dialect: openai, base_url: "https://u:S3CRET@h/v1?k=S3CRET", api_key: [S3CRET] }
  b: { dialect: openai, base_url: "http://h h/S3CRET", api_key: { x: S3CRET }, headers: { "host": S3CRET, "x y": S3CRET } }
  c: { dialect: sk-S3CRET, base_url: "${S}", api_key: "S3CRET\n2" }
models:
  m: { targets: [ { provider: tb-S3CRET, model: "${S} x" } ] }
keys:
  - { id: k, key: tb-S3CRET, models: [tb-S3CRET] }
  - { id: l, hash: S3CRET, models: ["*"], team: tb-S3CRET, expires: tb-S3CRET }
  - { id: m, hash: "sha256:S3CRET", models: ["*"], sk-S3CRET: 1 }
  - tb-S3CRET
alerts: { webhooks: [ { url: "S3CRET", secret: [S3CRET] } ] }
"#;
    let env = Fake::default().var("S", "S3CRET");
    let invalid = load(text, &env).unwrap_err();
    assert!(invalid.problems.len() > 14, "{invalid}");
    let shown = format!("{invalid}\n{invalid:?}");
    assert!(!shown.contains("S3CRET"), "{shown}");
}

#[test]
fn admin_tokens_are_long_and_not_guessable() {
    let token = |token: &str| {
        let text = format!("admin: {{ token: \"${{T}}\" }}\n{BASE}");
        load(&text, &Fake::default().var("T", token))
    };
    assert!(token("b7c1f9d2e4a68035b7c9f1d2e4a68035").is_ok());
    let refused = [
        "sk-1234",
        "sk-1234-f9d2e4a68035b7c9f1d2e4a68035b7",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "abababababababababababababababab",
        "b7c1f9d2e4b7c1f9d2e4b7c1f9d2e4b7c1f9d2e4",
        "abcdefghijklmnopqrstuvwxyz0123456789",
        "my-super-password-for-the-admin-port",
    ];
    for weak in refused {
        let invalid = token(weak).expect_err(weak);
        assert_eq!(invalid.problems.len(), 1, "{invalid}");
        assert_eq!(invalid.problems[0].path, "admin.token");
        assert!(!invalid.to_string().contains(weak));
    }
}
