//! As systemd runs it: readiness, the watchdog, log lines for machines.

mod common;

use std::os::unix::net::UnixDatagram;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::balancer::XDP_LB;
use common::clients::requests;
use common::live::{file, say, three_backends, write};
use common::netns::in_lab;
use common::networks::{VIP, two_arms};
use common::servers::nginx_everywhere;
use serde_json::Value;

fn config(more: &str) -> String {
    format!(
        "interface = \"eth0\"\nassign-vip = true\nlog-format = \"json\"\n{more}[[service]]\nname = \"web\"\nvip = \"{VIP}:80\"\n\
         health = {{ type = \"tcp\", interval = \"100ms\", timeout = \"100ms\" }}\nbackend = [ {} ]\n",
        three_backends()
    )
}

/// What the instance told its supervisor next.
fn told(supervisor: &UnixDatagram) -> Result<String> {
    let mut buffer = [0; 256];
    let length = supervisor.recv(&mut buffer).context("it told nothing")?;
    Ok(String::from_utf8_lossy(&buffer[..length]).trim().to_owned())
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_it_tells_its_supervisor_and_logs_for_machines() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let mut servers = nginx_everywhere(lab)?;
        write(lab, &config(""))?;
        let path = lab.dir().join("notify");
        let supervisor = UnixDatagram::bind(&path)?;
        supervisor.set_read_timeout(Some(Duration::from_secs(30)))?;
        let log = lab.dir().join("json.err");
        let mut lb = lab
            .command("lb", XDP_LB)?
            .args(["run", "--config"])
            .arg(file(lab))
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "1500000")
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log)?)
            .spawn()?;
        assert_eq!(told(&supervisor)?, "READY=1");
        // Ready is: it balances.
        assert_eq!(requests(lab, &format!("http://{VIP}/?[1-3]"))?.len(), 3);
        let since = Instant::now();
        for _ in 0..3 {
            assert_eq!(told(&supervisor)?, "WATCHDOG=1");
        }
        assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
        servers[0].signal(nix::sys::signal::Signal::SIGKILL)?;
        servers[0].wait()?;
        let lines = || -> Result<Vec<Value>> {
            let text = std::fs::read_to_string(&log)?;
            text.lines().map(|line| serde_json::from_str(line).context(line.to_owned())).collect()
        };
        let down = common::eventually("a line about the backend", || {
            lines().ok()?.into_iter().find(|line| line["to"] == "down")
        });
        assert_eq!(
            (&down["level"], &down["service"], &down["from"]),
            (&"WARN".into(), &"web".into(), &"up".into())
        );
        assert_eq!((&down["address"], &down["by"]), (&"10.0.0.10:8080".into(), &"health check".into()));
        assert_eq!(down["why"], "connection refused");
        say(lab, "backend weight web 10.0.0.11:8080 9")?;
        requests(lab, &format!("http://{VIP}/?[1-200]"))?;
        let all = lines()?;
        assert!(all.iter().any(|line| line["by"] == "admin socket"), "{all:?}");
        assert!(all.len() < 30, "a line a packet: {}", all.len());
        say(lab, "stop")?;
        while told(&supervisor)? != "STOPPING=1" {}
        assert_eq!(lb.wait()?.code(), Some(0));
        Ok(())
    })
}
