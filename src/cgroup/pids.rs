//! `/linux/resources/pids`: pids.max. Here 0 is a limit: no process may be made.
//!
//! Format: <https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#pids>

use super::limits::Limit;
use crate::spec::Node;

pub fn plan(resources: &Node, limits: &mut Vec<Limit>) {
    let Some(pids) = resources.object("pids") else { return };
    pids.expect_keys(&["limit"]);
    let Some(limit) = pids.i64("limit") else { return };
    let value = match limit {
        -1 => "max".to_owned(),
        0.. => limit.to_string(),
        _ => return pids.problem("limit", format_args!("must be -1 or a number of processes, not {limit}")),
    };
    limits.push(Limit::new("pids.max", value, pids.at("limit")));
}

#[cfg(test)]
mod tests {
    use super::super::limits::tests::planned_limits;
    use super::*;

    #[test]
    fn minus_one_is_no_limit_and_zero_is_one() {
        for (limit, expected) in [("-1", "pids.max=max"), ("0", "pids.max=0"), ("7", "pids.max=7")] {
            assert_eq!(planned_limits(&format!(r#"{{"pids": {{"limit": {limit}}}}}"#), plan), [expected]);
        }
        assert_eq!(planned_limits(r#"{"pids": {}}"#, plan), [""; 0]);
        assert_eq!(
            planned_limits(r#"{"pids": {"limit": -2}}"#, plan),
            ["/pids/limit: must be -1 or a number of processes, not -2"]
        );
    }
}
