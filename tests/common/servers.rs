//! Real servers in the namespaces of the backends.

use std::fs;

use anyhow::Result;

use super::netns::{Lab, Process};
use super::networks::WEBS;

/// Where nginx listens.
pub const HTTP: u16 = 8080;
/// A name that each DNS server has another address for: 10.9.9.1 to 10.9.9.3.
pub const WHICH: &str = "which.test";

/// nginx in web1 to web3. `/` names the server and the client it sees, `/echo?DATA` these and the data, `/file` is what the test put into the server's
/// directory, a PUT to `/up/NAME` writes there.
pub fn nginx_everywhere(lab: &Lab) -> Result<Vec<Process>> {
    let servers: Result<Vec<Process>> = WEBS.iter().map(|(web, _)| nginx(lab, web)).collect();
    WEBS.iter().try_for_each(|(web, _)| lab.wait_for_port(web, "tcp", HTTP))?;
    servers
}

/// One process each, no daemon, and every path in the directory of the test.
pub fn nginx(lab: &Lab, web: &str) -> Result<Process> {
    nginx_with(lab, web, "access_log off")
}

/// The same with a line for each request: the path, and who asked.
pub fn nginx_logged(lab: &Lab, web: &str) -> Result<Process> {
    let to = lab.dir().join(format!("{web}.access"));
    // Written at once: what is counted must be there.
    let log = format!("log_format plain '$request_uri $http_user_agent'; access_log {} plain", to.display());
    nginx_with(lab, web, &log)
}

/// The same in web1 to web3.
pub fn logging_nginx_everywhere(lab: &Lab) -> Result<Vec<Process>> {
    let servers = WEBS.iter().map(|(web, _)| nginx_logged(lab, web)).collect();
    WEBS.iter().try_for_each(|(web, _)| lab.wait_for_port(web, "tcp", HTTP))?;
    servers
}

/// The lines that it has written.
pub fn requests_logged(lab: &Lab, web: &str) -> Result<Vec<String>> {
    let path = lab.dir().join(format!("{web}.access"));
    Ok(fs::read_to_string(path)?.lines().map(str::to_owned).collect())
}

fn nginx_with(lab: &Lab, web: &str, log: &str) -> Result<Process> {
    let dir = lab.dir().join(web);
    fs::create_dir_all(dir.join("up"))?;
    let at = dir.display();
    let scratch: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {at}/{kind};\n"))
        .concat();
    let config = format!(
        "daemon off; master_process off; pid {at}/pid; error_log {at}.log;
        events {{ worker_connections 16384; }}
        http {{
            {log}; sendfile on; default_type text/plain; keepalive_requests 1000000;
            {scratch}
            server {{
                listen {HTTP};
                root {at};
                client_max_body_size 0;
                location = / {{ return 200 '{web} $remote_addr $remote_port'; }}
                location = /echo {{ return 200 '{web} $remote_addr $remote_port $args'; }}
                location /up/ {{ dav_methods PUT; }}
            }}
        }}"
    );
    let path = lab.dir().join(format!("{web}.conf"));
    fs::write(&path, config)?;
    lab.start(web, "nginx", &["-e", &format!("{at}.log"), "-c", &path.display().to_string()])
}

/// dnsmasq in web1 to web3, UDP and TCP.
pub fn dnsmasq_everywhere(lab: &Lab) -> Result<Vec<Process>> {
    let mut servers = Vec::new();
    for (n, (web, _)) in WEBS.iter().enumerate() {
        let record = format!("--address=/{WHICH}/10.9.9.{}", n + 1);
        let plain =
            ["--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--no-resolv", "--no-hosts"];
        let own = ["--user=root", "--log-facility=-", "--local-ttl=0", &record];
        servers.push(lab.start(web, "dnsmasq", &[&plain[..], &own].concat())?);
    }
    for (web, _) in WEBS {
        lab.wait_for_port(web, "udp", 53)?;
        lab.wait_for_port(web, "tcp", 53)?;
    }
    Ok(servers)
}
