//! A real service from a Debian root: nginx behind a veth pair, asked by a client in another network namespace.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use serde_json::{Value, json};

use crate::engine_profile;
use crate::sandbox::{Sandbox, program};
use crate::{needs, tests};

tests![nginx_serves_a_client_and_stops_gracefully, nginx_serves_a_client_under_the_profile_of_an_engine,];

/// $DEBIAN_ROOT, else made once, then kept below target/; containers see it read-only.
fn debian() -> Result<PathBuf, String> {
    if let Some(root) = env::var_os("DEBIAN_ROOT") {
        return Ok(root.into());
    }
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let root = cache.join("nginx-rootfs");
    if root.exists() {
        return Ok(root);
    }
    fs::create_dir_all(cache).map_err(|e| e.to_string())?;
    let made = cache.join(format!("nginx-rootfs.{}", std::process::id()));
    let output = Command::new("mmdebstrap")
        .args(["--quiet", "--variant=minbase", "--include=nginx-light", "--format=directory", "bookworm"])
        .arg(&made)
        .output()
        .map_err(|e| format!("mmdebstrap: {e}"))?;
    if !output.status.success() {
        return Err(format!("mmdebstrap: {}", String::from_utf8_lossy(&output.stderr)));
    }
    fs::rename(&made, &root).map_err(|e| e.to_string())?;
    Ok(root)
}

const CONFIG: &str = "
    daemon off; user www-data; error_log stderr; pid /run/nginx.pid; events {}
    http { access_log off; server { listen 80; location / { return 200 'served by $hostname'; } } }";

fn nginx_serves_a_client_and_stops_gracefully() {
    serves(json!(null));
}

fn nginx_serves_a_client_under_the_profile_of_an_engine() {
    serves(engine_profile::profile());
}

fn serves(seccomp: Value) {
    needs!(program("ip"), program("nsenter"), program("busybox"));
    let root = match debian() {
        Ok(root) => root,
        Err(why) => return crate::harness::skip(why),
    };
    let mut c = Sandbox::new();
    if !seccomp.is_null() {
        c.set("/linux/seccomp", seccomp);
    }
    let config = c.host_file("nginx.conf", CONFIG);
    let capabilities = json!([
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_NET_BIND_SERVICE",
        "CAP_KILL"
    ]);
    for set in ["bounding", "effective", "permitted"] {
        c.set(&format!("/process/capabilities/{set}"), capabilities.clone());
    }
    c.set("/root", json!({"path": root, "readonly": true})).set("/hostname", "web");
    c.set("/process/env", json!(["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]));
    c.args(&["nginx", "-c", "/etc/nginx/nginx.conf"]);
    for destination in ["/run", "/var/lib/nginx", "/var/log/nginx"] {
        c.mount(json!({"destination": destination, "type": "tmpfs", "source": "tmpfs"}));
    }
    c.mount(json!({"destination": "/etc/nginx/nginx.conf", "source": config, "options": ["bind", "ro"]}));
    c.created().start().ok();

    let pid = c.pid();
    let script = format!(
        "set -e
        ip link add client type veth peer name eth0
        ip link set eth0 netns {pid}
        ip addr add 10.9.0.2/24 dev client
        ip link set client up
        nsenter -t {pid} -n ip addr add 10.9.0.1/24 dev eth0
        nsenter -t {pid} -n ip link set eth0 up
        for try in $(seq 100); do
            busybox wget -q -O - http://10.9.0.1/ 2>/dev/null && exit 0
            sleep 0.1
        done
        exit 1"
    );
    let mut client = Command::new("unshare");
    client.args(["--net", "sh", "-c", &script]);
    assert_eq!(c.execute(client).ok().stdout, "served by web");

    c.kill("QUIT").ok();
    c.wait_stopped();
    c.delete().ok();
    assert_eq!(c.left(), Vec::<String>::new());
}
