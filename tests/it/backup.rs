//! The state file is copied while it is in use, and a process starts from the copy.

use crate::support::*;
use rusqlite::Connection;
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use tollbar_loadtest::provider::Provider;

fn with_budget(provider: &Provider) -> String {
    let key = "limits: { parallel: 9 }, budgets: [ { usd: 1, per: total } ]";
    let head = head().replace("unlimited: true", key) + "state: { path: state.db }\n";
    let models = model("gpt", "sim-gpt", ", max_output_tokens: 50");
    config_of(&head, provider, "", &models)
}

async fn ask(server: &Server) {
    let url = server.url("/v1/chat/completions");
    assert_eq!(post(&client(), url, chat("gpt").to_string()).await.status(), 200);
}

/// Attempts in the ledger, and what the total budget counts as spent.
async fn books(server: &Server) -> (u64, f64) {
    let get = async |path: &str| -> Value {
        let request = client().get(server.admin_url(path)).bearer_auth(ADMIN_TOKEN);
        request.send().await.unwrap().json().await.unwrap()
    };
    let rows = get("/spend?group_by=key").await["data"][0]["attempts"].as_u64().unwrap();
    let spent = get("/budgets").await["data"][0]["spent_usd"].as_f64().unwrap();
    (rows, spent)
}

/// The command that the guide prints, with other paths.
fn printed(state: &Path, to: &Path) -> String {
    let guide = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operating.md");
    let guide = std::fs::read_to_string(guide).unwrap();
    let block = guide.split("**Back it up**").nth(1).unwrap().split("```").nth(1).unwrap();
    let command = block.strip_prefix("sh\n").unwrap();
    assert!(command.contains("/var/lib/tollbar/tollbar.db") && command.contains("/backup/"));
    command
        .replace("/var/lib/tollbar/tollbar.db", state.to_str().unwrap())
        .replace("/backup", to.to_str().unwrap())
}

/// Every night the same, also after one in which it was interrupted.
fn back_up(state: &Path, to: &Path) {
    let command = printed(state, to);
    if Command::new("sqlite3").arg("-version").output().is_err() {
        eprintln!("sqlite3 is not installed: its statement is carried out, not its command line");
        let statement = command.split('"').nth(1).unwrap().replace(".new", "");
        Connection::open(state).unwrap().execute_batch(&statement).unwrap();
        return;
    }
    std::fs::write(to.join("tollbar.db.new"), "half a copy").unwrap();
    for _ in 0..2 {
        let ran = Command::new("sh").args(["-ec", &command]).output().unwrap();
        assert!(ran.status.success(), "{ran:?}");
    }
    let files: Vec<_> = std::fs::read_dir(to).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(files, ["tollbar.db"], "nothing is left over");
}

#[tokio::test]
async fn a_copy_made_while_running_is_a_state_file() {
    let provider = provider();
    let server = Server::start(&with_budget(&provider));
    for _ in 0..5 {
        ask(&server).await;
    }
    while server.metric("tollbar_ledger_rows_total").await < 5.0 {
        tokio::task::yield_now().await;
    }
    let (rows, spent) = books(&server).await;
    assert_eq!(rows, 5);
    let copied = Scratch::new();
    let copy = copied.0.join("tollbar.db");
    back_up(&server.state_file(), &copied.0);
    // What comes later is in the original only; taking the copy was in nobody's way.
    ask(&server).await;

    let restored = Server::start_with(
        &with_budget(&provider).replace("state.db", copy.to_str().unwrap()),
        &[],
    );
    // An account is there from its first request on.
    ask(&restored).await;
    while restored.metric("tollbar_ledger_rows_total").await < 1.0 {
        tokio::task::yield_now().await;
    }
    let (again, counted) = books(&restored).await;
    assert_eq!(again, 6);
    // Never less: what the copied process was still allowed to spend may have been spent.
    assert!(counted > spent && counted < 0.05, "{counted} of {spent}");
    println!("spent {spent}, counted after restoring {counted}");
}
