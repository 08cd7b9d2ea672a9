//! JOINT: the lead's file; only the signature stands here.

use crate::cli::CreateOptions;
use crate::error::{Error, Result};

pub fn create(_options: &CreateOptions) -> Result<()> {
    Err(Error::new("create is not merged yet"))
}
