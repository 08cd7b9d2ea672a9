//! `/linux/resources/rdma`: a line of rdma.max for each device.
//!
//! Format: <https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#rdma>

use super::limits::Limit;
use crate::spec::Node;

pub fn plan(resources: &Node, limits: &mut Vec<Limit>) {
    let Some(rdma) = resources.object("rdma") else { return };
    for device in rdma.keys() {
        let Some(entry) = rdma.object(device) else { continue };
        entry.expect_keys(&["hcaHandles", "hcaObjects"]);
        if device.is_empty() || device.contains(char::is_whitespace) {
            rdma.problem(device, "is not the name of a device");
        }
        let parts = [("hcaHandles", "hca_handle"), ("hcaObjects", "hca_object")];
        let line: String =
            parts.iter().filter_map(|(key, name)| Some(format!(" {name}={}", entry.u32(key)?))).collect();
        if !entry.has("hcaHandles") && !entry.has("hcaObjects") {
            rdma.problem(device, "needs hcaHandles or hcaObjects");
        }
        limits.push(Limit::new("rdma.max", format!("{device}{line}"), rdma.at(device)));
    }
}

#[cfg(test)]
mod tests {
    use super::super::limits::tests::planned_limits;
    use super::*;

    #[test]
    fn a_device_is_a_line() {
        assert_eq!(
            planned_limits(r#"{"rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 10000}}}"#, plan),
            ["rdma.max=mlx5_1 hca_handle=3 hca_object=10000"]
        );
        assert_eq!(
            planned_limits(r#"{"rdma": {"a": {"hcaObjects": 0}}}"#, plan),
            ["rdma.max=a hca_object=0"]
        );
    }

    #[test]
    fn a_device_without_a_limit_is_a_problem() {
        assert_eq!(
            planned_limits(r#"{"rdma": {"a": {}}}"#, plan),
            ["/rdma/a: needs hcaHandles or hcaObjects"]
        );
    }
}
