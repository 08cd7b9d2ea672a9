//! `keel-image tags`: what a repository has, a line each or as JSON.

use serde_json::json;

use crate::error::Result;
use crate::image::cli::{Global, TagsOptions};

pub fn tags(global: &Global, options: &TagsOptions) -> Result<Vec<u8>> {
    let repository = global.repository(&options.repository)?;
    let tags = global.client()?.tags(&repository)?;
    if global.json {
        return Ok(format!("{:#}\n", json!({"repository": repository.name(), "tags": tags})).into_bytes());
    }
    // A registry may call anything a tag; a terminal must not take it for a command.
    let lines =
        tags.iter().map(|tag| tag.chars().filter(|c| !c.is_control()).chain(['\n']).collect::<String>());
    Ok(lines.collect::<String>().into_bytes())
}
