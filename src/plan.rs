//! JOINT: the lead's file; only the signature stands here.

use crate::bundle::Bundle;
use crate::spec::Report;

pub struct Plan;

impl Plan {
    pub fn new(_bundle: &Bundle, _report: &Report) -> Self {
        Self
    }
}
