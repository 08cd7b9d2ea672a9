//! Lists of tags, which come in pages.

use crate::place::Place;
use crate::server::{Reply, Server};
use crate::tests;

tests![
    all_pages_are_read,
    pages_in_a_circle_are_refused,
    a_page_on_another_host_is_refused,
    pages_without_end_and_without_tags_end,
    a_tag_that_is_no_text_is_refused,
    pages_without_end_are_refused,
    a_tag_on_the_command_line_is_refused,
];

fn page(tags: &str, next: &str) -> Reply {
    let reply = Reply::new(200, format!(r#"{{"name": "a", "tags": {tags}}}"#));
    if next.is_empty() { reply } else { reply.header("Link", format!("<{next}>; rel=\"next\"")) }
}

fn all_pages_are_read() {
    let server = Server::new(|request| match request.path.as_str() {
        "/v2/a/tags/list?n=1000" => page(r#"["v1", "v2"]"#, "/v2/a/tags/list?n=1000&last=v2"),
        "/v2/a/tags/list?n=1000&last=v2" => page(r#"["v3", "\u001b[31m"]"#, ""),
        _ => Reply::new(404, ""),
    });
    let (place, repository) = (Place::new(), format!("{}/a", server.address));
    let run = place.keel_image(&["tags", &repository]);
    assert_eq!((run.code, run.stdout.as_str()), (0, "v1\nv2\nv3\n[31m\n"));
    let json = place.keel_image(&["--json", "tags", &repository]).json();
    assert_eq!((&json["repository"], &json["tags"][3]), (&repository.into(), &"\u{1b}[31m".into()));
}

fn pages_in_a_circle_are_refused() {
    let server = Server::new(|request| match request.path.as_str() {
        "/v2/a/tags/list?last=x" => page(r#"["v2"]"#, "/v2/a/tags/list?n=1000"),
        _ => page(r#"["v1"]"#, "/v2/a/tags/list?last=x"),
    });
    let run = Place::new().keel_image(&["tags", &format!("{}/a", server.address)]);
    assert!(run.code == 5 && run.stderr.contains("goes on with a page that was there before"), "{run:?}");
    assert_eq!(server.asked().len(), 2);
}

fn a_page_on_another_host_is_refused() {
    let server = Server::new(|_| page(r#"["v1"]"#, "https://192.0.2.1/v2/a/tags/list"));
    let run = Place::new().keel_image(&["tags", &format!("{}/a", server.address)]);
    assert!(run.code == 5 && run.stderr.contains("goes on at another host"), "{run:?}");
}

fn pages_without_end_and_without_tags_end() {
    let server = Server::new(|request| page("[]", &format!("{}0", request.path)));
    let run = Place::new().keel_image(&["tags", &format!("{}/a", server.address)]);
    assert_eq!((run.code, run.stdout.as_str(), server.asked().len()), (0, "", 1));
}

fn a_tag_that_is_no_text_is_refused() {
    let server = Server::new(|request| match request.path.len() {
        ..1000 => page("[1]", &format!("{}0", request.path)),
        _ => page("[]", ""),
    });
    let run = Place::new().keel_image(&["tags", &format!("{}/a", server.address)]);
    assert!(run.code == 5 && run.stderr.contains("a tag is no text"), "{run:?}");
    assert_eq!(server.asked().len(), 1);
}

fn pages_without_end_are_refused() {
    let count = std::sync::atomic::AtomicUsize::new(0);
    let server = Server::new(move |_| match count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
        // An end, for who would go on.
        1000.. => page("[]", ""),
        number => page(r#"["x"]"#, &format!("/v2/a/tags/list?last={number}")),
    });
    let run = Place::new().keel_image(&["tags", &format!("{}/a", server.address)]);
    assert!(run.code == 6 && run.stderr.contains("112 came in 112 pages, and it goes on"), "{run:?}");
}

fn a_tag_on_the_command_line_is_refused() {
    let run = Place::new().keel_image(&["tags", "localhost:1/a:v1"]);
    assert!(run.code == 1 && run.stderr.contains("a repository has no tag and no digest"), "{run:?}");
    assert_eq!(Place::new().keel_image(&["tags"]).code, 2);
}
