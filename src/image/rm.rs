//! `keel-image rm`: takes names away. What they stood for stays until a prune, and for bundles that need it.

use serde_json::json;

use crate::error::{Error, Kind, Result};
use crate::image::cli::{Global, RmOptions};
use crate::image::pull::store_name;
use crate::image::reference::Reference;

pub fn rm(global: &Global, options: &RmOptions) -> Result<Vec<u8>> {
    let store = global.store()?;
    let mut names = Vec::new();
    for text in &options.references {
        // Whatever there is on the disk: a name of the store is meant.
        let name = store_name(&Reference::parse(text)?)?;
        if store.get_ref(&name)?.is_none() {
            let message = format!("remove {name}: store {} has no such image", store.path().display());
            return Err(Error::of_kind(Kind::NotFound, message)
                .with_way_out("See keel-image ls. Nothing was removed."));
        }
        names.push(name);
    }
    for name in &names {
        store.remove_ref(name)?;
    }
    if global.json {
        return Ok(format!("{:#}\n", json!(names)).into_bytes());
    }
    Ok(names.iter().map(|name| format!("{name}\n")).collect::<String>().into_bytes())
}
