//! Whole files through the load balancer, compared byte by byte.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::netns::Lab;
use super::networks::WEBS;

/// Random files down, three at a time, and up, one to each server of [`super::servers::nginx_everywhere`] by round robin.
pub fn transfer(lab: &Lab, vip: &str, mib: u64) -> Result<()> {
    let file = lab.dir().join("random");
    let content = random_file(&file, mib)?;
    for (web, _) in WEBS {
        fs::hard_link(&file, lab.dir().join(web).join("file"))?;
    }
    download(lab, vip, &content)?;
    upload(lab, vip, &file, &content)
}

fn random_file(path: &Path, mib: u64) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open("/dev/urandom")?.take(mib << 20).read_to_end(&mut content)?;
    fs::write(path, &content)?;
    Ok(content)
}

fn download(lab: &Lab, vip: &str, content: &[u8]) -> Result<()> {
    let url = format!("http://{vip}/file");
    let copies: Vec<PathBuf> = (1..=3).map(|n| lab.dir().join(format!("copy{n}"))).collect();
    let mut curl = lab.command("client", "curl")?;
    curl.args(["-sS", "--fail", "--max-time", "120", "--parallel", "--parallel-immediate"]);
    for copy in &copies {
        curl.arg("-o").arg(copy).arg(&url);
    }
    let output = curl.output()?;
    ensure!(output.status.success(), "curl: {}", String::from_utf8_lossy(&output.stderr));
    for copy in copies {
        assert_same(&copy, content)?;
    }
    Ok(())
}

fn upload(lab: &Lab, vip: &str, file: &Path, content: &[u8]) -> Result<()> {
    let file = file.to_str().context("a path that is no text")?;
    for n in 1..=3 {
        let url = format!("http://{vip}/up/{n}");
        lab.run("client", "curl", &["-sS", "--fail", "--max-time", "120", "-T", file, &url])?;
    }
    for (web, _) in WEBS {
        let received: Vec<PathBuf> = fs::read_dir(lab.dir().join(web).join("up"))?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_>>()?;
        assert_eq!(received.len(), 1, "{web} received {received:?}");
        assert_same(&received[0], content)?;
    }
    Ok(())
}

/// Not by assert_eq, which would print them.
fn assert_same(path: &Path, content: &[u8]) -> Result<()> {
    let arrived = fs::read(path)?;
    if arrived != content {
        let same = arrived.iter().zip(content).take_while(|(a, b)| a == b).count();
        panic!(
            "{}: {} of {} bytes, the first {same} of them right",
            path.display(),
            arrived.len(),
            content.len()
        );
    }
    Ok(())
}
