//! Tokens and passwords.

use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use keel::error::Kind;
use nix::pty::openpty;
use nix::sys::signal::Signal;
use nix::sys::termios::{LocalFlags, tcgetattr};
use serde_json::json;

use crate::place::{Place, descriptor, pull};
use crate::server::{Reply, Server};
use crate::tests;

tests![
    a_token_is_got_with_the_password_and_used_again,
    an_expired_token_is_renewed_once,
    a_realm_on_another_host_without_https_is_not_asked,
    an_identity_token_is_exchanged,
    a_credential_helper_is_asked,
    login_stores_a_password_that_works_and_logout_forgets_it,
    login_and_logout_give_json,
    a_terminal_has_its_echo_after_the_prompt,
    a_wrong_password_is_not_stored,
    a_refusal_names_the_way_out,
];

/// A registry that takes `Bearer tN`, where N is what `valid` says, and its token server.
fn with_tokens(valid: Arc<AtomicUsize>) -> Server {
    let tokens = AtomicUsize::new(0);
    Server::new(move |request| {
        let wanted = format!("Bearer t{}", valid.load(Ordering::Relaxed));
        let realm = format!("Bearer realm=\"http://{}/token\",service=\"s\"", request.headers["host"]);
        if request.path.starts_with("/token") {
            return Reply::new(
                200,
                format!("{{\"token\": \"t{}\"}}", tokens.fetch_add(1, Ordering::Relaxed) + 1),
            );
        }
        match request.header("authorization") {
            Some(token) if token == wanted => Reply::new(200, "layer"),
            _ => Reply::new(401, "").header("WWW-Authenticate", realm),
        }
    })
}

fn a_token_is_got_with_the_password_and_used_again() {
    let server = with_tokens(Arc::new(1.into()));
    let place = Place::new();
    place.credentials(&[(&server.address, "user:secret")]);
    let client = place.client();
    for _ in 0..2 {
        assert_eq!(pull(&client, &server.address, &descriptor(b"layer")).unwrap(), b"layer");
    }
    let blob = format!("GET /v2/test/app/blobs/{}", descriptor(b"layer").digest);
    let token = "GET /token?client_id=keel-image&service=s&scope=repository%3Atest%2Fapp%3Apull&account=user";
    assert_eq!(server.asked(), [&blob, token, &blob, &blob]);
    assert_eq!(server.seen()[1].header("authorization"), Some("Basic dXNlcjpzZWNyZXQ="));
}

fn an_expired_token_is_renewed_once() {
    let valid = Arc::new(AtomicUsize::new(1));
    let server = with_tokens(valid.clone());
    let client = Place::new().client();
    pull(&client, &server.address, &descriptor(b"layer")).unwrap();
    valid.store(2, Ordering::Relaxed);
    pull(&client, &server.address, &descriptor(b"layer")).unwrap();
    valid.store(99, Ordering::Relaxed);
    let error = pull(&client, &server.address, &descriptor(b"layer")).unwrap_err();
    assert_eq!(error.kind(), Kind::Denied);
    assert_eq!(server.seen().len(), 3 + 3 + 3);
}

fn a_realm_on_another_host_without_https_is_not_asked() {
    let other = Server::new(|_| Reply::new(200, r#"{"token": "x"}"#));
    let realm = format!("Bearer realm=\"http://{}/token\"", other.address.replace("127.0.0.1", "localhost"));
    let server = Server::new(move |_| Reply::new(401, "").header("WWW-Authenticate", &realm));
    let place = Place::new();
    place.credentials(&[(&server.address, "user:secret")]);
    let error = pull(&place.client(), &server.address, &descriptor(b"layer")).unwrap_err();
    assert!(error.to_string().contains("/token is not https"), "{error}");
    assert_eq!((error.kind(), other.asked().len()), (Kind::Denied, 0));
}

fn an_identity_token_is_exchanged() {
    let server = with_tokens(Arc::new(1.into()));
    let place = Place::new();
    place.write(
        "config.json",
        format!(r#"{{"auths": {{"{}": {{"identitytoken": "i&d"}}}}}}"#, server.address),
    );
    pull(&place.client(), &server.address, &descriptor(b"layer")).unwrap();
    let form = String::from_utf8(server.seen()[1].body.clone()).unwrap();
    let scope = "scope=repository%3Atest%2Fapp%3Apull";
    assert_eq!(
        form,
        format!("client_id=keel-image&service=s&{scope}&grant_type=refresh_token&refresh_token=i%26d")
    );
}

fn a_credential_helper_is_asked() {
    let server = Server::new(|request| match request.header("authorization") {
        Some("Basic aGVscGVyOnNlY3JldA==") => Reply::new(200, r#"{"tags": ["v1"]}"#),
        _ => Reply::new(401, "").header("WWW-Authenticate", "Basic realm=x"),
    });
    let place = Place::new();
    let helper = "#!/bin/sh\nread server\necho \"$1 $server\" >>asked\necho '{\"Username\": \"helper\", \"Secret\": \"secret\"}'\n";
    let helper = place.write("docker-credential-test", helper);
    std::fs::set_permissions(helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    place.write("config.json", format!(r#"{{"credHelpers": {{"{}": "test"}}}}"#, server.address));
    let run = place.keel_image(&["tags", &format!("{}/a", server.address)]);
    assert_eq!((run.code, run.stdout.as_str(), run.stderr.as_str()), (0, "v1\n", ""));
    assert_eq!(place.read("asked"), format!("get {}\n", server.address));
    place.write("config.json", format!(r#"{{"credHelpers": {{"{}": "none"}}}}"#, server.address));
    let run = place.keel_image(&["tags", &format!("{}/a", server.address)]);
    assert!(run.code == 1 && run.stderr.contains("run docker-credential-none get: No such file"), "{run:?}");
}

fn password_server() -> Server {
    Server::new(|request| match request.header("authorization") {
        Some("Basic dXNlcjpzZWNyZXQ=") => Reply::new(200, "{}"),
        _ => Reply::new(401, "").header("WWW-Authenticate", "Basic realm=x"),
    })
}

fn login_stores_a_password_that_works_and_logout_forgets_it() {
    let (server, place) = (password_server(), Place::new());
    place.write("config.json", r#"{"auths": {"ghcr.io": {"auth": "YTpi"}}, "HttpHeaders": {"x": "y"}}"#);
    let run =
        place.keel_image_with(&["login", "-u", "user", "--password-stdin", &server.address], "secret\n");
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
    let config: serde_json::Value = serde_json::from_str(&place.read("config.json")).unwrap();
    assert_eq!(config["auths"][&server.address]["auth"], "dXNlcjpzZWNyZXQ=");
    assert_eq!(
        (&config["auths"]["ghcr.io"]["auth"], &config["HttpHeaders"]["x"]),
        (&"YTpi".into(), &"y".into())
    );
    let mode = std::fs::metadata(place.path("config.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(place.keel_image(&["logout", &server.address]).code, 0);
    assert!(!place.read("config.json").contains("127.0.0.1"));
    assert_eq!(place.keel_image(&["logout", &server.address]).code, 3);
}

fn login_and_logout_give_json() {
    let (server, place) = (password_server(), Place::new());
    let run = place
        .keel_image_with(&["login", "--json", "-u", "user", "--password-stdin", &server.address], "secret\n");
    let file = place.path("config.json").display().to_string();
    assert_eq!(run.json(), json!({"registry": server.address, "user": "user", "place": file}));
    let run = place.keel_image(&["logout", "--json", &server.address]);
    assert_eq!(run.json(), json!({"registry": server.address}));
}

/// Ctrl-C at the prompt.
fn a_terminal_has_its_echo_after_the_prompt() {
    let echoes = |terminal: &OwnedFd| tcgetattr(terminal).unwrap().local_flags.contains(LocalFlags::ECHO);
    for (signal, typed) in [(Some(Signal::SIGINT), ""), (Some(Signal::SIGTERM), "half"), (None, "wrong\n")] {
        let (server, place) = (password_server(), Place::new());
        let pty = openpty(None, None).unwrap();
        assert!(echoes(&pty.slave));
        // A shell has what it starts in the background ignore SIGINT, and these tests may be that.
        let mut child = Command::new("env")
            .args([
                "--default-signal",
                env!("CARGO_BIN_EXE_keel-image"),
                "login",
                "-u",
                "user",
                &server.address,
            ])
            .env("REGISTRY_AUTH_FILE", place.path("config.json"))
            .stdin(pty.slave.try_clone().unwrap())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        while echoes(&pty.slave) {
            assert_eq!(child.try_wait().unwrap(), None);
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        nix::unistd::write(&pty.master, typed.as_bytes()).unwrap();
        if let Some(signal) = signal {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), signal).unwrap();
        }
        let status = child.wait().unwrap();
        let expected = if signal.is_some() { None } else { Some(4) };
        assert_eq!((status.signal(), status.code()), (signal.map(|signal| signal as i32), expected));
        assert!(echoes(&pty.slave));
    }
}

fn a_wrong_password_is_not_stored() {
    let (server, place) = (password_server(), Place::new());
    let run = place.keel_image_with(&["login", "-u", "user", "--password-stdin", &server.address], "wrong");
    assert_eq!(run.code, 4, "{run:?}");
    assert!(
        run.stderr.starts_with(&format!("keel-image: log in to {} as \"user\": ", server.address)),
        "{run:?}"
    );
    assert!(!place.path("config.json").exists());
    let open = Server::new(|_| Reply::new(200, "{}"));
    let run = place.keel_image_with(&["login", "-u", "user", "--password-stdin", &open.address], "x");
    assert!(run.code == 1 && run.stderr.contains("it asks nobody for a password"), "{run:?}");
}

fn a_refusal_names_the_way_out() {
    let server = password_server();
    let run = Place::new().keel_image(&["tags", &format!("{}/a", server.address)]);
    let way_out = format!("\n  It may not be there, or not for you: keel-image login {}.\n", server.address);
    assert!(run.code == 4 && run.stderr.ends_with(&way_out), "{run:?}");
}
