//! `/linux/resources/hugepageLimits`: hugetlb.SIZE.max and, where the kernel counts reservations, .rsvd.max.
//!
//! Format: <https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#huge-page-limits>

use super::limits::Limit;
use crate::spec::Node;

pub fn plan(resources: &Node, limits: &mut Vec<Limit>) {
    let mut seen = Vec::new();
    for entry in resources.objects("hugepageLimits") {
        entry.expect_keys(&["pageSize", "limit"]);
        let (size, limit) = (entry.required_string("pageSize"), entry.required_u64("limit"));
        let Some(size) = size else { continue };
        if !is_size(size) {
            entry.problem("pageSize", format_args!("must be a size such as 64KB, 2MB or 1GB, not {size:?}"));
        } else if seen.contains(&size) {
            entry.problem("pageSize", format_args!("{size} is limited already"));
        }
        seen.push(size);
        let Some(limit) = limit else { continue };
        limits.push(Limit::new(format!("hugetlb.{size}.max"), limit, entry.at("pageSize")));
        // A reservation that is refused is an error to the program; a page that is refused kills it.
        let reserved = Limit::new(format!("hugetlb.{size}.rsvd.max"), limit, entry.at("limit"));
        limits.push(Limit { may_lack: true, ..reserved });
    }
}

fn is_size(text: &str) -> bool {
    let digits = text.strip_suffix("KB").or(text.strip_suffix("MB")).or(text.strip_suffix("GB"));
    digits.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::super::limits::tests::planned_limits;
    use super::*;

    #[test]
    fn a_size_limits_pages_and_reservations() {
        assert_eq!(
            planned_limits(r#"{"hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}]}"#, plan),
            ["hugetlb.2MB.max=4194304", "hugetlb.2MB.rsvd.max=4194304"]
        );
    }

    #[test]
    fn a_size_must_be_one_and_stand_once() {
        for size in ["2M", "MB", "2MiB", "../x", "2 MB"] {
            let planned = planned_limits(
                &format!(r#"{{"hugepageLimits": [{{"pageSize": "{size}", "limit": 1}}]}}"#),
                plan,
            );
            assert!(planned[0].starts_with("/hugepageLimits/0/pageSize: must be a size"), "{planned:?}");
        }
        let twice =
            r#"{"hugepageLimits": [{"pageSize": "2MB", "limit": 0}, {"pageSize": "2MB", "limit": 1}]}"#;
        assert_eq!(planned_limits(twice, plan), ["/hugepageLimits/1/pageSize: 2MB is limited already"]);
    }
}
