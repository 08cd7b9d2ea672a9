//! JOINT: only the signatures that the commands use; the branch `hooks` has the file.

use serde::{Deserialize, Serialize};

use crate::error::Result;

#[derive(Default, Serialize, Deserialize)]
pub struct Created {}

impl Created {
    pub fn remove(&self) -> Result<()> {
        Ok(())
    }
}
